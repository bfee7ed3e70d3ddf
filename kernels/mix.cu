// Samples of a batch that take in others of it: output[n] = share[n] * input[n] + (1 - share[n]) * input[partner[n]]; or
// a box of the partner's pixels in a picture of one's own. Elements are f32 or bf16.
//
// A thread takes an element of a sample; blockIdx.y counts samples in steps of gridDim.y. One rounding per operation, in
// f32 the processor's bits. Bound by memory: the batch is read twice and written once.
#include "map.cuh"

constexpr u32 THREADS = 256;

struct MixParams {
    const void* input;    // [n, length]
    const u32* partners;  // [n]
    const float* shares;  // [n], or null for a box
    void* output;         // like the input
    u32 n;
    u32 length;
    u32 row, channels;  // elements of a row of pixels, and of a pixel
    u32 top, bottom, left, right;  // rows and pixels of the box, the last ones excluded
};

__device__ inline void put(float* to, float value) { *to = value; }
__device__ inline void put(bf16* to, float value) { to->bits = u16(bf16_pair(value, 0.0f)); }

template <class T>
__device__ inline void mixed(const MixParams& p) {
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= p.length) return;
    const T* input = static_cast<const T*>(p.input);
    T* output = static_cast<T*>(p.output);
    for (u32 n = blockIdx.y; n < p.n; n += gridDim.y) {
        const u64 own = u64(n) * p.length + at, other = u64(p.partners[n]) * p.length + at;
        if (p.shares) {
            const float share = p.shares[n];
            const float x = widen(load<1>(input + own)).at[0], y = widen(load<1>(input + other)).at[0];
            put(output + own, __fadd_rn(__fmul_rn(share, x), __fmul_rn(1.0f - share, y)));
        } else {
            const u32 y = at / p.row, x = at % p.row / p.channels;
            const bool inside = y >= p.top && y < p.bottom && x >= p.left && x < p.right;
            output[own] = input[inside ? other : own];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) mix(const MixParams p) { mixed<float>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) mix_bf16(const MixParams p) { mixed<bf16>(p); }
