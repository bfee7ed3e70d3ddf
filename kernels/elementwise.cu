// Operations element by element: ReLU, addition, scaling by a number on the device.
//
// See map.cuh for who does what. One rounding per operation: the processor's bits. Bound by memory: operands are read
// once and results written once.
#include "map.cuh"

struct UnaryParams {
    const float* input;
    float* output;
    u64 count;
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) relu(const UnaryParams p) {
    const Own own(p.count);
    Pack<float, 4> x = own.load(p.input);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] = positive(x.at[j]);
    own.store(p.output, x);
}

struct BinaryParams {
    const float* left;
    const float* right;
    float* output;
    u64 count;
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) add(const BinaryParams p) {
    const Own own(p.count);
    Pack<float, 4> x = own.load(p.left);
    const Pack<float, 4> y = own.load(p.right);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] += y.at[j];
    own.store(p.output, x);
}

// The gradient on the left where the ReLU's output on the right is positive.
extern "C" __global__ void __launch_bounds__(MAP_THREADS) relu_grad(const BinaryParams p) {
    const Own own(p.count);
    Pack<float, 4> grad = own.load(p.left);
    const Pack<float, 4> output = own.load(p.right);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) grad.at[j] = output.at[j] > 0.0f ? grad.at[j] : 0.0f;
    own.store(p.output, grad);
}

struct ScaleParams {
    const float* input;
    const float* factor;  // one number
    float* output;
    u64 count;
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) scale(const ScaleParams p) {
    const Own own(p.count);
    Pack<float, 4> x = own.load(p.input);
    const float factor = *p.factor;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] *= factor;
    own.store(p.output, x);
}
