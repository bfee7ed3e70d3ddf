// The three convolutions as plain loops, one thread per result: what the tiled kernels are compared with, and the first
// rung of the ladder that benchmarks climb. [N, H, W, C], [K, R, S, C / groups] and [N, P, Q, K] as everywhere.
//
// Bytes: two reads per multiply-add, from the caches; bound by their bandwidth.
#include "conv.cuh"

struct ConvNaiveParams {
    const float* left;   // forward: input; gradients: output gradient
    const float* right;  // weight gradient: input; else weight
    float* output;
    ConvExtents extents;
};

// A sum of products in the order of the tiled kernels: see gemm.cuh.
struct Sum {
    float total = 0.0f, part = 0.0f;
    u32 products = 0;

    __device__ void add(float a, float b) {
        part = fmaf(a, b, part);
        if (++products % SEGMENT == 0) total += part, part = 0.0f;
    }
    __device__ float value() const { return total + part; }
};

__device__ inline u64 thread() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }

// Takes the last coordinate off an offset.
__device__ inline u32 take(u64& offset, u32 extent) {
    const u32 coordinate = u32(offset % extent);
    offset /= extent;
    return coordinate;
}

extern "C" __global__ void __launch_bounds__(256) conv_forward_naive(const ConvNaiveParams p) {
    const ConvExtents& e = p.extents;
    if (thread() >= u64(e.n) * e.p * e.q * e.k) return;
    u64 offset = thread();
    const u32 k = take(offset, e.k), q = take(offset, e.q), row = take(offset, e.p), n = u32(offset);
    const u32 first_c = k / e.group_k * e.group_c;
    Sum sum;
    for (u32 r = 0; r < e.r; ++r)
        for (u32 s = 0; s < e.s; ++s) {
            // Above or left of the image, the differences wrap around to large numbers.
            const u32 y = row * e.stride + r - e.padding, x = q * e.stride + s - e.padding;
            const bool inside = y < e.h && x < e.w;
            for (u32 c = 0; c < e.group_c; ++c) {
                const float value = inside ? p.left[((u64(n) * e.h + y) * e.w + x) * e.c + first_c + c] : 0.0f;
                sum.add(value, p.right[((u64(k) * e.r + r) * e.s + s) * e.group_c + c]);
            }
        }
    p.output[thread()] = sum.value();
}

extern "C" __global__ void __launch_bounds__(256) conv_input_grad_naive(const ConvNaiveParams p) {
    const ConvExtents& e = p.extents;
    if (thread() >= u64(e.n) * e.h * e.w * e.c) return;
    u64 offset = thread();
    const u32 c = take(offset, e.c), x = take(offset, e.w), y = take(offset, e.h), n = u32(offset);
    const u32 group = c / e.group_c;
    Sum sum;
    for (u32 r = 0; r < e.r; ++r)
        for (u32 s = 0; s < e.s; ++s) {
            const u32 down = y + e.padding - r, right = x + e.padding - s;
            if (down % e.stride || right % e.stride || down / e.stride >= e.p || right / e.stride >= e.q) continue;
            const u64 pixel = (u64(n) * e.p + down / e.stride) * e.q + right / e.stride;
            for (u32 k = group * e.group_k; k < (group + 1) * e.group_k; ++k)
                sum.add(p.left[pixel * e.k + k], p.right[((u64(k) * e.r + r) * e.s + s) * e.group_c + c % e.group_c]);
        }
    p.output[thread()] = sum.value();
}

extern "C" __global__ void __launch_bounds__(256) conv_weight_grad_naive(const ConvNaiveParams p) {
    const ConvExtents& e = p.extents;
    if (thread() >= u64(e.k) * e.r * e.s * e.group_c) return;
    u64 offset = thread();
    const u32 c = take(offset, e.group_c), s = take(offset, e.s), r = take(offset, e.r), k = u32(offset);
    const u32 first_c = k / e.group_k * e.group_c;
    Sum sum;
    for (u32 n = 0; n < e.n; ++n)
        for (u32 row = 0; row < e.p; ++row)
            for (u32 q = 0; q < e.q; ++q) {
                const u32 y = row * e.stride + r - e.padding, x = q * e.stride + s - e.padding;
                const bool inside = y < e.h && x < e.w;
                sum.add(p.left[((u64(n) * e.p + row) * e.q + q) * e.k + k],
                        inside ? p.right[((u64(n) * e.h + y) * e.w + x) * e.c + first_c + c] : 0.0f);
            }
    p.output[thread()] = sum.value();
}
