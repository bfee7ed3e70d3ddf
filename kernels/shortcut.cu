// The parameter-free shortcut of the CIFAR ResNets, [N, H, W, C] to [N, P, Q, channels]: every stride-th pixel, with
// zeros for new channels on both sides of the old ones; and its gradient. Elements are f32 or bf16.
//
// One thread per V neighbouring channels of an image of the result: one of f32, four of bf16, whose channels come in
// multiples of eight, so that the new ones before the old are a multiple of four. Images are counted by blockIdx.y in
// steps of gridDim.y. Bound by memory: it only moves elements.
#include "pack.cuh"

constexpr u32 THREADS = 256;

struct ShortcutParams {
    const void* from;  // [N, H, W, C], or backwards [N, P, Q, channels]
    void* to;          // [N, P, Q, channels], or backwards [N, H, W, C]
    u32 n, h, w, c, p, q, channels;
    u32 stride;
    u32 before;  // new channels before the old ones
};

template <class T, u32 V>
__device__ inline void forward(const ShortcutParams& p) {
    const u32 place = (blockIdx.x * THREADS + threadIdx.x) * V;
    if (place >= p.p * p.q * p.channels) return;
    const u32 channel = place % p.channels - p.before, pixel = place / p.channels;
    const u32 from = ((pixel / p.q * p.w + pixel % p.q) * p.stride) * p.c + channel;
    for (u32 image = blockIdx.y; image < p.n; image += gridDim.y) {
        Pack<T, V> x = {};
        if (channel < p.c) x = load<V>(static_cast<const T*>(p.from) + u64(image) * p.h * p.w * p.c + from);
        store(static_cast<T*>(p.to) + u64(image) * p.p * p.q * p.channels + place, x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) shortcut(const ShortcutParams p) { forward<float, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) shortcut_bf16(const ShortcutParams p) { forward<bf16, 4>(p); }

template <class T, u32 V>
__device__ inline void backward(const ShortcutParams& p) {
    const u32 place = (blockIdx.x * THREADS + threadIdx.x) * V;
    if (place >= p.h * p.w * p.c) return;
    const u32 channel = place % p.c, x = place / p.c % p.w, y = place / p.c / p.w;
    const bool taken = x % p.stride == 0 && y % p.stride == 0;
    const u32 from = (y / p.stride * p.q + x / p.stride) * p.channels + p.before + channel;
    for (u32 image = blockIdx.y; image < p.n; image += gridDim.y) {
        Pack<T, V> grad = {};
        if (taken) grad = load<V>(static_cast<const T*>(p.from) + u64(image) * p.p * p.q * p.channels + from);
        store(static_cast<T*>(p.to) + u64(image) * p.h * p.w * p.c + place, grad);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) shortcut_grad(const ShortcutParams p) { backward<float, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) shortcut_grad_bf16(const ShortcutParams p) {
    backward<bf16, 4>(p);
}
