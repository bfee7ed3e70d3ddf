// A convolution's weight as tensor cores read it, from the f32 master w [K, R, S, C / groups]:
//
//   forward[k, r, s, c] = w[k, r, s, c'] and flipped[c, R-1-r, S-1-s, k] = the same, where filter k and channel c are
// of
//   one group, whose channel number c' it is; 0 where they are not.
//
// Narrow groups are joined, `joined` of them into one of at most 64 channels and filters, so that both are dense within
// it: forward is [K, R, S, width_c], flipped [joined groups * width_c, R, S, width_k], padded with zeros to the widths.
//
// A block takes 32 filters by 32 channels of one tap. Bytes: the master once, either copy once; both sides in rows of
// up to 32 neighbours, turned in 4.1 KB of shared memory. Bound by latency: even 512 x 512 x 3 x 3 is 9.4 MB.
#include "element.cuh"
#include "extents.cuh"

struct ConvPackParams {
    const float* weight;
    void* forward;
    void* flipped;  // or null
    u32 taps;       // R * S
    u32 group_c, group_k;
    u32 joined;
    u32 width_c, width_k;
};

constexpr u32 SIDE = 32, ROWS = 8;

template <class E>
__device__ inline void pack(const ConvPackParams& p) {
    const u32 channels = p.joined * p.group_c, filters = p.joined * p.group_k;
    u32 block = blockIdx.x;
    const u32 first_c = take_digit(block, ceil_div(p.width_c, SIDE)) * SIDE;
    const u32 first_k = take_digit(block, ceil_div(p.width_k, SIDE)) * SIDE;
    const u32 tap = take_digit(block, p.taps), group = block;
    const u32 col = threadIdx.x % SIDE, row = threadIdx.x / SIDE;

    __shared__ float tile[SIDE][SIDE + 1];
#pragma unroll
    for (u32 i = 0; i < SIDE; i += ROWS) {
        const u32 k = first_k + row + i, c = first_c + col;
        const u64 filter = (u64(group) * filters + k) * p.taps + tap;
        const bool own = k < filters && c < channels && k / p.group_k == c / p.group_c;
        const float value = own ? p.weight[filter * p.group_c + c % p.group_c] : 0.0f;
        tile[row + i][col] = value;
        if (k < filters && c < p.width_c)
            static_cast<typename E::Stored*>(p.forward)[filter * p.width_c + c] = E::stored(value);
    }
    if (!p.flipped) return;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < SIDE; i += ROWS) {
        const u32 c = first_c + row + i, k = first_k + col;
        const u64 channel = (u64(group) * p.width_c + c) * p.taps + p.taps - 1 - tap;
        if (c < p.width_c && k < p.width_k)
            static_cast<typename E::Stored*>(p.flipped)[channel * p.width_k + k] = E::stored(tile[col][row + i]);
    }
}

extern "C" __global__ void __launch_bounds__(256) conv_pack_bf16(const ConvPackParams p) { pack<Bf16>(p); }
extern "C" __global__ void __launch_bounds__(256) conv_pack_tf32(const ConvPackParams p) { pack<Tf32>(p); }
