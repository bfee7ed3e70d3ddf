// The parameter-free shortcut of the CIFAR ResNets, [N, H, W, C] to [N, P, Q, channels]: every stride-th pixel, with
// zeros for new channels on both sides of the old ones; and its gradient.
//
// One thread per element of an image of the result; images are counted by blockIdx.y in steps of gridDim.y. Bound by
// memory: it only moves elements.
#include "common.cuh"

constexpr u32 THREADS = 256;

struct ShortcutParams {
    const float* from;  // [N, H, W, C], or backwards [N, P, Q, channels]
    float* to;          // [N, P, Q, channels], or backwards [N, H, W, C]
    u32 n, h, w, c, p, q, channels;
    u32 stride;
    u32 before;  // new channels before the old ones
};

extern "C" __global__ void __launch_bounds__(THREADS) shortcut(const ShortcutParams p) {
    const u32 place = blockIdx.x * THREADS + threadIdx.x;
    if (place >= p.p * p.q * p.channels) return;
    const u32 channel = place % p.channels - p.before, pixel = place / p.channels;
    const u32 from = ((pixel / p.q * p.w + pixel % p.q) * p.stride) * p.c + channel;
    for (u32 image = blockIdx.y; image < p.n; image += gridDim.y) {
        const float x = channel < p.c ? p.from[u64(image) * p.h * p.w * p.c + from] : 0.0f;
        p.to[u64(image) * p.p * p.q * p.channels + place] = x;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) shortcut_grad(const ShortcutParams p) {
    const u32 place = blockIdx.x * THREADS + threadIdx.x;
    if (place >= p.h * p.w * p.c) return;
    const u32 channel = place % p.c, x = place / p.c % p.w, y = place / p.c / p.w;
    const bool taken = x % p.stride == 0 && y % p.stride == 0;
    const u32 from = (y / p.stride * p.q + x / p.stride) * p.channels + p.before + channel;
    for (u32 image = blockIdx.y; image < p.n; image += gridDim.y) {
        const float grad = taken ? p.from[u64(image) * p.p * p.q * p.channels + from] : 0.0f;
        p.to[u64(image) * p.h * p.w * p.c + place] = grad;
    }
}
