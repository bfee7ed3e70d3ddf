// Batchnorm over the last axis of x [rows, C], forwards and backwards.
//
//   mean = sum x / rows,  variance = sum (x - mean)^2 / rows                      moments, merge
//   factor = scale / sqrt(variance + eps),  offset = shift - mean * factor        fold
//   y = relu(x * factor + offset + residual)                                      apply
//   g = y > 0 ? dy : 0,  S = sum g,  P = sum g * (x - mean)                       reduce
//   dshift = S,  dscale = P / sqrt(variance + eps),  dx = a * g + b * x + c       coefficients, input_grad
//
// Kernels over x walk it in tiles of TILE rows: a block takes COLUMNS * V channels of one tile, a thread V channels of
// every LANES-th row; V is 4 where C is a multiple of 4, else 1. Threads of a warp then read two runs of 256 bytes.
// Sums are taken per tile, over a thread's rows, then over lanes; the tiles' sums are merged in f64, in an order that
// depends on the number of tiles alone. No sum of squares is ever taken about another centre than a mean.
//
// Every kernel over x is bound by memory: it reads each of its operands once and writes its result once, with less than
// ten operations per element; partial sums are 2 / TILE of it. Shared memory: 4 KiB for the sums over lanes.
#include "pack.cuh"

constexpr u32 THREADS = 256;
constexpr u32 COLUMNS = 16;
constexpr u32 LANES = THREADS / COLUMNS;
constexpr u32 TILE = 128;
constexpr u32 PER_THREAD = TILE / LANES;

// This thread's share of x: rows number i of PER_THREAD.
template <u32 V>
struct Share {
    u32 tile, channel, lane, rows, channels;

    __device__ Share(u32 rows, u32 channels) : rows(rows), channels(channels) {
        const u32 across = (channels + COLUMNS * V - 1) / (COLUMNS * V);
        tile = blockIdx.x / across;
        channel = (blockIdx.x % across * COLUMNS + threadIdx.x % COLUMNS) * V;
        lane = threadIdx.x / COLUMNS;
    }

    __device__ u32 row(u32 i) const { return tile * TILE + lane + i * LANES; }
    __device__ bool has_channels() const { return channel < channels; }
    __device__ bool has(u32 i) const { return has_channels() && row(i) < rows; }
    __device__ u64 at(u32 i) const { return u64(row(i)) * channels + channel; }
    // Whether this thread writes what its lanes have in common.
    __device__ bool speaks() const { return lane == 0 && has_channels(); }
    __device__ u64 partial() const { return u64(tile) * channels + channel; }
    __device__ u32 rows_of_tile() const { return min(TILE, rows - tile * TILE); }
};

// The sum over the lanes of each channel, in their order; all threads get it.
template <u32 V>
__device__ inline Pack<float, V> over_lanes(const Pack<float, V>& own) {
    __shared__ Pack<float, V> sums[LANES][COLUMNS];
    const u32 column = threadIdx.x % COLUMNS;
    sums[threadIdx.x / COLUMNS][column] = own;
    __syncthreads();
    Pack<float, V> total = sums[0][column];
    for (u32 lane = 1; lane < LANES; ++lane)
#pragma unroll
        for (u32 j = 0; j < V; ++j) total.at[j] += sums[lane][column].at[j];
    __syncthreads();
    return total;
}

struct MomentsParams {
    const float* input;  // [rows, channels]
    float* mean;         // [tiles, channels]: of each tile
    float* m2;           // [tiles, channels]: sums of squared distances from it
    u32 rows;
    u32 channels;
};

// A first mean, then sums about it, which correct it where rounding left it off. The tile stays in registers.
template <u32 V>
__device__ inline void moments(const MomentsParams& p) {
    const Share<V> share(p.rows, p.channels);
    Pack<float, V> x[PER_THREAD] = {}, sum = {}, square = {};
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; ++i)
        if (share.has(i)) x[i] = load<V>(p.input + share.at(i));
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; ++i)
#pragma unroll
        for (u32 j = 0; j < V; ++j) sum.at[j] += x[i].at[j];
    const float rows = float(share.rows_of_tile());
    Pack<float, V> centre = over_lanes(sum);
#pragma unroll
    for (u32 j = 0; j < V; ++j) {
        centre.at[j] /= rows;
        sum.at[j] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < PER_THREAD; ++i) {
            const float distance = share.has(i) ? x[i].at[j] - centre.at[j] : 0.0f;
            sum.at[j] += distance;
            square.at[j] += distance * distance;
        }
    }
    sum = over_lanes(sum);
    square = over_lanes(square);
    if (!share.speaks()) return;
#pragma unroll
    for (u32 j = 0; j < V; ++j) {
        const float shift = sum.at[j] / rows;
        centre.at[j] += shift;
        square.at[j] -= shift * sum.at[j];
    }
    store(p.mean + share.partial(), centre);
    store(p.m2 + share.partial(), square);
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_moments_x1(const MomentsParams p) { moments<1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_moments_x4(const MomentsParams p) { moments<4>(p); }

// Merging tiles: a block takes MERGED channels, a thread every MERGE_LANES-th tile of one.
constexpr u32 MERGED = 8;
constexpr u32 MERGE_LANES = THREADS / MERGED;

// The sum over the lanes that share a channel, in their order; all threads get it.
__device__ inline double over_merge_lanes(double own) {
    __shared__ double sums[MERGE_LANES][MERGED];
    const u32 column = threadIdx.x % MERGED;
    sums[threadIdx.x / MERGED][column] = own;
    __syncthreads();
    double total = 0.0;
    for (u32 lane = 0; lane < MERGE_LANES; ++lane) total += sums[lane][column];
    __syncthreads();
    return total;
}

struct MergeParams {
    const float* tile_mean;  // [tiles, channels]
    const float* tile_m2;    // [tiles, channels]
    float* mean;             // [channels]
    float* variance;         // [channels], biased
    u32 rows;
    u32 tile_rows;  // of every tile but the last
    u32 channels;
};

// Chan's formula for all tiles at once: M2 = sum of the tiles' M2 + sum of n * (tile's mean - mean)^2.
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_merge(const MergeParams p) {
    const u32 channel = blockIdx.x * MERGED + threadIdx.x % MERGED, lane = threadIdx.x / MERGED;
    const u32 tiles = channel < p.channels ? (p.rows + p.tile_rows - 1) / p.tile_rows : 0;
    const double rows = p.rows;
    double sum = 0.0, m2 = 0.0;
    for (u32 tile = lane; tile < tiles; tile += MERGE_LANES) {
        const u32 n = min(p.tile_rows, p.rows - tile * p.tile_rows);
        sum += double(n) * double(p.tile_mean[u64(tile) * p.channels + channel]);
    }
    const double mean = over_merge_lanes(sum) / rows;
    for (u32 tile = lane; tile < tiles; tile += MERGE_LANES) {
        const u64 at = u64(tile) * p.channels + channel;
        const double n = min(p.tile_rows, p.rows - tile * p.tile_rows), distance = double(p.tile_mean[at]) - mean;
        m2 += double(p.tile_m2[at]) + n * distance * distance;
    }
    m2 = over_merge_lanes(m2);
    if (lane > 0 || channel >= p.channels) return;
    p.mean[channel] = float(mean);
    p.variance[channel] = float(m2 / rows);
}

// The next two run one thread per channel.

struct RunningParams {
    const float* mean;      // [channels]: the batch's
    const float* variance;  // [channels], biased
    float* running_mean;
    float* running_variance;
    u32 channels;
    float momentum;
    float unbiased;  // rows / (rows - 1)
};

// One rounding per operation, as the processor: running = (1 - momentum) * running + momentum * moment.
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_running(const RunningParams p) {
    const u32 channel = blockIdx.x * THREADS + threadIdx.x;
    if (channel >= p.channels) return;
    const float keep = 1.0f - p.momentum;
    p.running_mean[channel] =
        __fadd_rn(__fmul_rn(keep, p.running_mean[channel]), __fmul_rn(p.momentum, p.mean[channel]));
    const float share = __fmul_rn(p.momentum, p.unbiased);
    p.running_variance[channel] =
        __fadd_rn(__fmul_rn(keep, p.running_variance[channel]), __fmul_rn(share, p.variance[channel]));
}

struct FoldParams {
    const float* scale;  // [channels], as all here
    const float* shift;
    const float* mean;
    const float* variance;
    float* factor;
    float* offset;
    u32 channels;
    float eps;
};

// In f64 with one rounding per operation: the processor's bits.
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_fold(const FoldParams p) {
    const u32 channel = blockIdx.x * THREADS + threadIdx.x;
    if (channel >= p.channels) return;
    const double deviation = sqrt(__dadd_rn(p.variance[channel], p.eps));
    const double factor = __ddiv_rn(p.scale[channel], deviation);
    p.factor[channel] = float(factor);
    p.offset[channel] = float(__dsub_rn(p.shift[channel], __dmul_rn(p.mean[channel], factor)));
}

struct ApplyParams {
    const float* input;     // [rows, channels]
    const float* factor;    // [channels]
    const float* offset;    // [channels]
    const float* residual;  // [rows, channels] or null
    float* output;          // [rows, channels]
    u32 rows;
    u32 channels;
    u32 relu;
};

// The multiply-add is fused, as in a convolution's epilogue.
template <u32 V>
__device__ inline void apply(const ApplyParams& p) {
    const Share<V> share(p.rows, p.channels);
    if (!share.has_channels()) return;
    const Pack<float, V> factor = load<V>(p.factor + share.channel), offset = load<V>(p.offset + share.channel);
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; ++i) {
        if (!share.has(i)) break;
        Pack<float, V> y = load<V>(p.input + share.at(i)), residual = {};
        if (p.residual) residual = load<V>(p.residual + share.at(i));
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            y.at[j] = fmaf(y.at[j], factor.at[j], offset.at[j]);
            if (p.residual) y.at[j] += residual.at[j];
            if (p.relu) y.at[j] = positive(y.at[j]);
        }
        store(p.output + share.at(i), y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_x1(const ApplyParams p) { apply<1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_x4(const ApplyParams p) { apply<4>(p); }

struct ReduceParams {
    const float* input;   // [rows, channels]
    const float* mean;    // [channels]
    const float* output;  // [rows, channels]: where it is not positive the gradient is zeroed; or null
    float* grad;          // [rows, channels]
    float* sum;           // [tiles, channels]
    float* product;       // [tiles, channels]
    u32 rows;
    u32 channels;
};

template <u32 V>
__device__ inline void reduce(const ReduceParams& p) {
    const Share<V> share(p.rows, p.channels);
    Pack<float, V> mean = {}, sum = {}, product = {};
    if (share.has_channels()) mean = load<V>(p.mean + share.channel);
#pragma unroll 4
    for (u32 i = 0; i < PER_THREAD; ++i) {
        if (!share.has(i)) break;
        const Pack<float, V> x = load<V>(p.input + share.at(i));
        Pack<float, V> grad = load<V>(p.grad + share.at(i));
        if (p.output) {
            const Pack<float, V> output = load<V>(p.output + share.at(i));
#pragma unroll
            for (u32 j = 0; j < V; ++j) grad.at[j] = output.at[j] > 0.0f ? grad.at[j] : 0.0f;
            store(p.grad + share.at(i), grad);
        }
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            sum.at[j] += grad.at[j];
            product.at[j] += grad.at[j] * (x.at[j] - mean.at[j]);
        }
    }
    sum = over_lanes(sum);
    product = over_lanes(product);
    if (!share.speaks()) return;
    store(p.sum + share.partial(), sum);
    store(p.product + share.partial(), product);
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_reduce_x1(const ReduceParams p) { reduce<1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_reduce_x4(const ReduceParams p) { reduce<4>(p); }

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
    float eps;
    u32 batch;  // whether mean and variance are the batch's own
};

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_coefficients(const CoefficientsParams p) {
    const u32 channel = blockIdx.x * MERGED + threadIdx.x % MERGED, lane = threadIdx.x / MERGED;
    const u32 tiles = channel < p.channels ? p.tiles : 0;
    double sum = 0.0, product = 0.0;
    for (u32 tile = lane; tile < tiles; tile += MERGE_LANES) {
        sum += double(p.sum[u64(tile) * p.channels + channel]);
        product += double(p.product[u64(tile) * p.channels + channel]);
    }
    sum = over_merge_lanes(sum);
    product = over_merge_lanes(product);
    if (lane > 0 || channel >= p.channels) return;
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

struct InputGradParams {
    const float* grad;   // [rows, channels]
    const float* input;  // [rows, channels]
    const float* a;      // [channels]
    const float* b;
    const float* c;
    float* input_grad;   // [rows, channels]
    u32 rows;
    u32 channels;
};

template <u32 V>
__device__ inline void input_grad(const InputGradParams& p) {
    const Share<V> share(p.rows, p.channels);
    if (!share.has_channels()) return;
    const Pack<float, V> a = load<V>(p.a + share.channel), b = load<V>(p.b + share.channel);
    const Pack<float, V> c = load<V>(p.c + share.channel);
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; ++i) {
        if (!share.has(i)) break;
        Pack<float, V> grad = load<V>(p.grad + share.at(i));
        const Pack<float, V> x = load<V>(p.input + share.at(i));
#pragma unroll
        for (u32 j = 0; j < V; ++j) grad.at[j] = fmaf(grad.at[j], a.at[j], fmaf(x.at[j], b.at[j], c.at[j]));
        store(p.input_grad + share.at(i), grad);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_x1(const InputGradParams p) {
    input_grad<1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_input_grad_x4(const InputGradParams p) {
    input_grad<4>(p);
}
