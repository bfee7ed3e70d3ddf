// Batchnorm over the last axis of x [rows, C], forwards: moments, and x normalised by them.
//
//   mean = sum x / rows,  variance = sum (x - mean)^2 / rows                      moments, merge
//   factor = scale / sqrt(variance + eps),  offset = shift - mean * factor        fold, or with merge
//   y = relu(x * factor + offset + r)                                             apply
//
// r is a residual, or a second input normalised on the way, residual * factor + offset: a projecting shortcut's. The
// ReLU may leave a mask of what was positive for the backward pass. x, r and y are f32 or bf16; everything else is f32.
// See batchnorm.cuh for who does what. No sum of squares is ever taken about another centre than a mean.
//
// Bound by memory: moments reads x; apply reads x and r once and writes y once, and a mask of a bit per element, with
// less than ten operations per element. Shared memory: 4 KiB for the sums over lanes, 8 KiB in merge.
#include "batchnorm.cuh"
#include "norm.cuh"

struct MomentsParams {
    const void* input;  // [rows, channels]
    float* mean;        // [tiles, channels]: of each tile
    float* m2;          // [tiles, channels]: sums of squared distances from it
    u32 rows;
    u32 channels;
};

// A first mean, then sums about it, which correct it where rounding left it off. The tile stays in registers.
template <class T, u32 V>
__device__ inline void moments(const MomentsParams& p) {
    const Share<V> share(p.rows, p.channels);
    constexpr u32 PER_THREAD = Share<V>::PER_THREAD;
    Pack<float, V> x[PER_THREAD] = {}, sum = {}, square = {};
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; ++i)
        if (share.has(i)) x[i] = widen(load<V>(static_cast<const T*>(p.input) + share.at(i)));
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

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_moments_x1(const MomentsParams p) {
    moments<float, 1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_moments_x4(const MomentsParams p) {
    moments<float, 4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_moments_bf16(const MomentsParams p) {
    moments<bf16, 8>(p);
}

// What makes a factor and an offset of a batchnorm, [channels] each.
struct Fold {
    const float* scale;
    const float* shift;
    float* factor;
    float* offset;
    float eps;

    __device__ void make(u32 channel, float mean, float variance) const {
        const Folded folded = ::fold(scale[channel], shift[channel], mean, variance, eps);
        factor[channel] = folded.factor, offset[channel] = folded.offset;
    }
};

struct MergeParams {
    const float* tile_mean;  // [tiles, channels]
    const float* tile_m2;    // [tiles, channels]
    float* mean;             // [channels]
    float* variance;         // [channels], biased
    Fold fold;               // made too, if there is a scale
    u32 rows;
    u32 tile_rows;  // of every tile but the last
    u32 channels;
    u32 width;  // channels of a block
};

// Chan's formula for all tiles at once: M2 = sum of the tiles' M2 + sum of n * (tile's mean - mean)^2.
extern "C" __global__ void __launch_bounds__(MERGE_THREADS, 1) batchnorm_merge(const MergeParams p) {
    const Merge merge(p.width);
    const u32 tiles = merge.channel < p.channels ? (p.rows + p.tile_rows - 1) / p.tile_rows : 0;
    const double rows = p.rows;
    double sum = 0.0, m2 = 0.0;
#pragma unroll 4
    for (u32 tile = merge.lane; tile < tiles; tile += merge.lanes) {
        const u32 n = min(p.tile_rows, p.rows - tile * p.tile_rows);
        sum += double(n) * double(p.tile_mean[u64(tile) * p.channels + merge.channel]);
    }
    const double mean = merge.over_lanes(sum) / rows;
#pragma unroll 4
    for (u32 tile = merge.lane; tile < tiles; tile += merge.lanes) {
        const u64 at = u64(tile) * p.channels + merge.channel;
        const double n = min(p.tile_rows, p.rows - tile * p.tile_rows), distance = double(p.tile_mean[at]) - mean;
        m2 += double(p.tile_m2[at]) + n * distance * distance;
    }
    m2 = merge.over_lanes(m2);
    if (merge.lane > 0 || merge.channel >= p.channels) return;
    const float rounded = float(mean), variance = float(m2 / rows);
    p.mean[merge.channel] = rounded;
    p.variance[merge.channel] = variance;
    if (p.fold.scale) p.fold.make(merge.channel, rounded, variance);
}

struct FoldParams {
    const float* mean;      // [channels]
    const float* variance;  // [channels]
    Fold fold;
    u32 channels;
};

// One thread per channel.
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_fold(const FoldParams p) {
    const u32 channel = blockIdx.x * THREADS + threadIdx.x;
    if (channel < p.channels) p.fold.make(channel, p.mean[channel], p.variance[channel]);
}

// A batchnorm's running statistics and what they move towards.
struct Running {
    const float* mean;      // [channels]: the batch's
    const float* variance;  // [channels], biased
    float* running_mean;
    float* running_variance;
    u32 channels;
    float momentum;
    float unbiased;  // rows / (rows - 1)
};

struct RunningTable {
    const Running* entries;  // one for each blockIdx.y
};

// All batchnorms of a network at once, one thread per channel. One rounding per operation, as the processor:
// running = (1 - momentum) * running + momentum * moment.
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_running(const RunningTable p) {
    const Running own = p.entries[blockIdx.y];
    const u32 channel = blockIdx.x * THREADS + threadIdx.x;
    if (channel >= own.channels) return;
    const float keep = 1.0f - own.momentum, share = __fmul_rn(own.momentum, own.unbiased);
    float &mean = own.running_mean[channel], &variance = own.running_variance[channel];
    mean = __fadd_rn(__fmul_rn(keep, mean), __fmul_rn(own.momentum, own.mean[channel]));
    variance = __fadd_rn(__fmul_rn(keep, variance), __fmul_rn(share, own.variance[channel]));
}

struct ApplyParams {
    const void* input;             // [rows, channels]
    const float* factor;           // [channels]
    const float* offset;           // [channels]
    const void* residual;          // [rows, channels] or null
    const float* residual_factor;  // [channels], or null: the residual is added as it is
    const float* residual_offset;  // [channels]
    void* output;                  // [rows, channels]
    u8* mask;                      // [rows, channels / 8] or null: where the output is positive
    u32 rows;
    u32 channels;
    u32 relu;
};

// The multiply-add is fused, as in a convolution's epilogue.
template <class T, u32 V>
__device__ inline void apply(const ApplyParams& p) {
    const Share<V> share(p.rows, p.channels);
    const T *input = static_cast<const T*>(p.input), *residual = static_cast<const T*>(p.residual);
    const Pack<float, V> factor = share.of(p.factor), offset = share.of(p.offset);
    Pack<float, V> residual_factor = {}, residual_offset = {};
    if (p.residual_factor)
        residual_factor = share.of(p.residual_factor), residual_offset = share.of(p.residual_offset);
    constexpr u32 BATCH = Share<V>::BATCH;
#pragma unroll
    for (u32 first = 0; first < share.PER_THREAD; first += BATCH) {
        Pack<T, V> x[BATCH], r[BATCH] = {};
        share.load(input, first, x);
        if (residual) share.load(residual, first, r);
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            Pack<float, V> y = widen(x[k]), addend = widen(r[k]);
#pragma unroll
            for (u32 j = 0; j < V; ++j) {
                y.at[j] = fmaf(y.at[j], factor.at[j], offset.at[j]);
                if (p.residual_factor)
                    addend.at[j] = fmaf(addend.at[j], residual_factor.at[j], residual_offset.at[j]);
                if (residual) y.at[j] += addend.at[j];
                if (p.relu) y.at[j] = positive(y.at[j]);
            }
            const Pack<T, V> output = narrow<T>(y);
            const bool mine = share.has(first + k);
            const u64 at = share.at(first + k);
            if (mine) store(static_cast<T*>(p.output) + at, output);
            if (V >= 4 && p.mask) store_mask<V>(p.mask, at, positives(widen(output)), mine);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_x1(const ApplyParams p) { apply<float, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_x4(const ApplyParams p) { apply<float, 4>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_bf16(const ApplyParams p) { apply<bf16, 8>(p); }
