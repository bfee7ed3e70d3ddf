// The three convolutions as plain loops, one thread per result: what the tiled kernels are compared with, and the first
// rung of the ladder that benchmarks climb. [N, H, W, C], [K, R, S, C / groups] and [N, P, Q, K] as everywhere.
//
// Bytes: two reads per multiply-add, from the caches; bound by their bandwidth.
#include "gemm.cuh"

struct ConvNaiveParams {
    const float* left;   // forward: input; gradients: output gradient
    const float* right;  // weight gradient: input; else weight
    float* output;
    u32 n, h, w, c;
    u32 k, r, s;
    u32 p, q;
    u32 stride, padding, groups;
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
    if (thread() >= u64(p.n) * p.p * p.q * p.k) return;
    u64 offset = thread();
    const u32 k = take(offset, p.k), q = take(offset, p.q), row = take(offset, p.p), n = u32(offset);
    const u32 group_c = p.c / p.groups, first_c = k / (p.k / p.groups) * group_c;
    Sum sum;
    for (u32 r = 0; r < p.r; ++r)
        for (u32 s = 0; s < p.s; ++s) {
            // Above or left of the image, the differences wrap around to large numbers.
            const u32 y = row * p.stride + r - p.padding, x = q * p.stride + s - p.padding;
            const bool inside = y < p.h && x < p.w;
            for (u32 c = 0; c < group_c; ++c) {
                const float value = inside ? p.left[((u64(n) * p.h + y) * p.w + x) * p.c + first_c + c] : 0.0f;
                sum.add(value, p.right[((u64(k) * p.r + r) * p.s + s) * group_c + c]);
            }
        }
    p.output[thread()] = sum.value();
}

extern "C" __global__ void __launch_bounds__(256) conv_input_grad_naive(const ConvNaiveParams p) {
    if (thread() >= u64(p.n) * p.h * p.w * p.c) return;
    u64 offset = thread();
    const u32 c = take(offset, p.c), x = take(offset, p.w), y = take(offset, p.h), n = u32(offset);
    const u32 group_c = p.c / p.groups, group_k = p.k / p.groups, group = c / group_c;
    Sum sum;
    for (u32 r = 0; r < p.r; ++r)
        for (u32 s = 0; s < p.s; ++s) {
            const u32 down = y + p.padding - r, right = x + p.padding - s;
            if (down % p.stride || right % p.stride || down / p.stride >= p.p || right / p.stride >= p.q) continue;
            const u64 pixel = (u64(n) * p.p + down / p.stride) * p.q + right / p.stride;
            for (u32 k = group * group_k; k < (group + 1) * group_k; ++k)
                sum.add(p.left[pixel * p.k + k], p.right[((u64(k) * p.r + r) * p.s + s) * group_c + c % group_c]);
        }
    p.output[thread()] = sum.value();
}

extern "C" __global__ void __launch_bounds__(256) conv_weight_grad_naive(const ConvNaiveParams p) {
    const u32 group_c = p.c / p.groups;
    if (thread() >= u64(p.k) * p.r * p.s * group_c) return;
    u64 offset = thread();
    const u32 c = take(offset, group_c), s = take(offset, p.s), r = take(offset, p.r), k = u32(offset);
    const u32 first_c = k / (p.k / p.groups) * group_c;
    Sum sum;
    for (u32 n = 0; n < p.n; ++n)
        for (u32 row = 0; row < p.p; ++row)
            for (u32 q = 0; q < p.q; ++q) {
                const u32 y = row * p.stride + r - p.padding, x = q * p.stride + s - p.padding;
                const bool inside = y < p.h && x < p.w;
                sum.add(p.left[((u64(n) * p.p + row) * p.q + q) * p.k + k],
                        inside ? p.right[((u64(n) * p.h + y) * p.w + x) * p.c + first_c + c] : 0.0f);
            }
    p.output[thread()] = sum.value();
}
