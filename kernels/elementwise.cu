// Operations element by element: ReLU, addition, scaling by a number on the device. Elements are f32 or bf16.
//
// See map.cuh for who does what. One rounding per operation: in f32 the processor's bits. Bound by memory: operands are
// read once and results written once.
#include "map.cuh"

struct UnaryParams {
    const void* input;
    void* output;
    u64 count;
};

template <class T>
__device__ inline void rectify(const UnaryParams& p) {
    const Own own(p.count);
    Pack<float, 4> x = widen(own.load(static_cast<const T*>(p.input)));
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] = positive(x.at[j]);
    own.store(static_cast<T*>(p.output), narrow<T>(x));
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS) relu(const UnaryParams p) { rectify<float>(p); }
extern "C" __global__ void __launch_bounds__(MAP_THREADS) relu_bf16(const UnaryParams p) { rectify<bf16>(p); }

struct BinaryParams {
    const void* left;
    const void* right;
    void* output;
    u64 count;
};

template <class T, class Combine>
__device__ inline void binary(const BinaryParams& p, const Combine& combine) {
    const Own own(p.count);
    Pack<float, 4> x = widen(own.load(static_cast<const T*>(p.left)));
    const Pack<float, 4> y = widen(own.load(static_cast<const T*>(p.right)));
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] = combine(x.at[j], y.at[j]);
    own.store(static_cast<T*>(p.output), narrow<T>(x));
}

__device__ inline float sum(float x, float y) { return x + y; }

extern "C" __global__ void __launch_bounds__(MAP_THREADS) add(const BinaryParams p) { binary<float>(p, sum); }
extern "C" __global__ void __launch_bounds__(MAP_THREADS) add_bf16(const BinaryParams p) { binary<bf16>(p, sum); }

// The gradient on the left where the ReLU's output on the right is positive.
__device__ inline float where_positive(float grad, float output) { return output > 0.0f ? grad : 0.0f; }

extern "C" __global__ void __launch_bounds__(MAP_THREADS) relu_grad(const BinaryParams p) {
    binary<float>(p, where_positive);
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) relu_grad_bf16(const BinaryParams p) {
    binary<bf16>(p, where_positive);
}

struct ScaleParams {
    const void* input;
    const float* factor;  // one number
    void* output;
    u64 count;
};

template <class T>
__device__ inline void scaled(const ScaleParams& p) {
    const Own own(p.count);
    Pack<float, 4> x = widen(own.load(static_cast<const T*>(p.input)));
    const float factor = *p.factor;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] *= factor;
    own.store(static_cast<T*>(p.output), narrow<T>(x));
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS) scale(const ScaleParams p) { scaled<float>(p); }
extern "C" __global__ void __launch_bounds__(MAP_THREADS) scale_bf16(const ScaleParams p) { scaled<bf16>(p); }
