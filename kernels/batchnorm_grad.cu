// Batchnorm over the last axis of x [rows, C], backwards. With g the gradient of its output, zeroed where the ReLU
// after it was not positive, and moments of the batch itself (fixed ones leave b = c = 0):
//
//   S = sum g,  P = sum g * (x - mean)                                            reduce
//   dshift = S,  dscale = P / sqrt(variance + eps),                               coefficients
//   a = scale / sqrt(variance + eps),  b = -a * P / ((variance + eps) * rows),  c = -a * S / rows - b * mean
//   dx = a * g + b * x + c                                                        input_grad
//
// x, gradients and outputs are f32 or bf16; everything else is f32. See batchnorm.cuh for who does what.
//
// Bound by memory: reduce reads x, the gradient and a mask (or the ReLU's output) once and writes g once, if it masks;
// input_grad reads g and x and writes dx; the pair, for the two batchnorms whose sum a ReLU follows, reads g once for
// both. Less than ten operations per element. Shared memory: 4 to 8 KiB for the sums over lanes, 8 KiB in coefficients.
#include "batchnorm.cuh"

struct ReduceParams {
    const void* input;   // [rows, channels]
    const float* mean;   // [channels]
    const void* output;  // [rows, channels]: where it is not positive the gradient is zeroed; or null
    const u8* mask;      // [rows, channels / 8]: the same as bits; or null
    const void* grad;    // [rows, channels]
    void* masked;        // [rows, channels]: the gradient with its zeros; null without output and mask
    float* sum;          // [tiles, channels]
    float* product;      // [tiles, channels]
    u32 rows;
    u32 channels;
};

template <class T, u32 V>
__device__ inline void reduce(const ReduceParams& p) {
    const Share<V> share(p.rows, p.channels);
    const Pack<float, V> mean = share.of(p.mean);
    Pack<float, V> sum = {}, product = {};
    const T *input = static_cast<const T*>(p.input), *output = static_cast<const T*>(p.output);
    constexpr u32 BATCH = Share<V>::BATCH;
#pragma unroll
    for (u32 first = 0; first < share.PER_THREAD; first += BATCH) {
        Pack<T, V> x[BATCH], g[BATCH], y[BATCH] = {};
        share.load(input, first, x);
        share.load(static_cast<const T*>(p.grad), first, g);
        if (output) share.load(output, first, y);
        u32 bits[BATCH];
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k)
            bits[k] = V >= 4 && p.mask && share.has(first + k) ? load_mask<V>(p.mask, share.at(first + k))
                                                               : positives(widen(y[k]));
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            const Pack<float, V> x_k = widen(x[k]);
            Pack<float, V> grad = widen(g[k]);
            if (p.masked) {
#pragma unroll
                for (u32 j = 0; j < V; ++j) grad.at[j] = bits[k] >> j & 1 ? grad.at[j] : 0.0f;
                if (share.has(first + k)) store(static_cast<T*>(p.masked) + share.at(first + k), narrow<T>(grad));
            }
#pragma unroll
            for (u32 j = 0; j < V; ++j) {
                sum.at[j] += grad.at[j];
                product.at[j] += grad.at[j] * (x_k.at[j] - mean.at[j]);
            }
        }
    }
    sum = over_lanes(sum);
    product = over_lanes(product);
    if (!share.speaks()) return;
    store(p.sum + share.partial(), sum);
    store(p.product + share.partial(), product);
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_reduce_x1(const ReduceParams p) { reduce<float, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_reduce_x4(const ReduceParams p) { reduce<float, 4>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_reduce_bf16(const ReduceParams p) {
    reduce<bf16, 8>(p);
}

struct CoefficientsParams {
    const float* sum;       // [tiles, channels]
    const float* product;   // [tiles, channels]
    const float* mean;      // [channels], as all below
    const float* variance;
    const float* scale;
    float* scale_grad;
    float* shift_grad;
    float* a;
    float* b;
    float* c;
    u32 rows;
    u32 tiles;
    u32 channels;
    u32 width;  // channels of a block
    float eps;
    u32 batch;  // whether mean and variance are the batch's own
};

extern "C" __global__ void __launch_bounds__(MERGE_THREADS, 1) batchnorm_coefficients(const CoefficientsParams p) {
    const Merge merge(p.width);
    const u32 channel = merge.channel, tiles = channel < p.channels ? p.tiles : 0;
    double sum = 0.0, product = 0.0;
#pragma unroll 4
    for (u32 tile = merge.lane; tile < tiles; tile += merge.lanes) {
        sum += double(p.sum[u64(tile) * p.channels + channel]);
        product += double(p.product[u64(tile) * p.channels + channel]);
    }
    sum = merge.over_lanes(sum);
    product = merge.over_lanes(product);
    if (merge.lane > 0 || channel >= p.channels) return;
    const double inverse = 1.0 / sqrt(double(p.variance[channel]) + double(p.eps)), rows = p.rows;
    const double a = double(p.scale[channel]) * inverse;
    const double b = p.batch ? -a * inverse * inverse * product / rows : 0.0;
    const double c = p.batch ? -a * sum / rows - b * double(p.mean[channel]) : 0.0;
    p.scale_grad[channel] = float(product * inverse);
    p.shift_grad[channel] = float(sum);
    p.a[channel] = float(a);
    p.b[channel] = float(b);
    p.c[channel] = float(c);
}

// One batchnorm's part of what input_grad does.
struct Branch {
    const void* input;  // [rows, channels]
    const float* a;     // [channels]
    const float* b;
    const float* c;
    void* input_grad;   // [rows, channels]
};

struct InputGradParams {
    const void* grad;    // [rows, channels]
    Branch branches[2];  // one, or both
    u32 rows;
    u32 channels;
};

template <class T, u32 V, u32 BRANCHES>
__device__ inline void input_grad(const InputGradParams& p) {
    const Share<V> share(p.rows, p.channels);
    Pack<float, V> a[BRANCHES], b[BRANCHES], c[BRANCHES];
#pragma unroll
    for (u32 n = 0; n < BRANCHES; ++n) {
        const Branch& branch = p.branches[n];
        a[n] = share.of(branch.a), b[n] = share.of(branch.b), c[n] = share.of(branch.c);
    }
    constexpr u32 BATCH = Share<V>::BATCH;
#pragma unroll
    for (u32 first = 0; first < share.PER_THREAD; first += BATCH) {
        Pack<T, V> grad[BATCH], x[BRANCHES][BATCH];
        share.load(static_cast<const T*>(p.grad), first, grad);
#pragma unroll
        for (u32 n = 0; n < BRANCHES; ++n) share.load(static_cast<const T*>(p.branches[n].input), first, x[n]);
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            if (!share.has(first + k)) break;
            const Pack<float, V> g = widen(grad[k]);
#pragma unroll
            for (u32 n = 0; n < BRANCHES; ++n) {
                Pack<float, V> y = widen(x[n][k]);
#pragma unroll
                for (u32 j = 0; j < V; ++j)
                    y.at[j] = fmaf(g.at[j], a[n].at[j], fmaf(y.at[j], b[n].at[j], c[n].at[j]));
                store(static_cast<T*>(p.branches[n].input_grad) + share.at(first + k), narrow<T>(y));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_x1(const InputGradParams p) {
    input_grad<float, 1, 1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_x4(const InputGradParams p) {
    input_grad<float, 4, 1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_bf16(const InputGradParams p) {
    input_grad<bf16, 8, 1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_pair_x4(const InputGradParams p) {
    input_grad<float, 4, 2>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_pair_bf16(const InputGradParams p) {
    input_grad<bf16, 8, 2>(p);
}
