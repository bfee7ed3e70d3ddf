// One optimizer step on every parameter in one launch, and the copies of the weights that tensor cores read. A table has
// a segment per parameter; each block takes BLOCK elements of one, or of a weight with copies a tile of 32 filters by 32
// channels of one tap, which it finds by the number of the segment's first block. What is new in each step, learning
// rates and the like, lies in memory of its own: a captured launch finds it there.
//
// One rounding per operation, in the processor's order: its bits (update.cuh). Copies are as conv_pack.cu makes them,
// whose zeros stay. Bound by memory: SGD reads three arrays and writes two, AdamW reads four and writes three, and either
// writes two copies; a tile's rows are turned in 4.1 KB of shared memory, so that both copies are written in rows of 32
// neighbours. A block's search reads log2(segments) numbers. Where the norm of all gradients is bounded, two launches
// before find what they are multiplied by: one sums squares per block, the other adds those up.
#include "extents.cuh"
#include "pack.cuh"
#include "ptx.cuh"
#include "sums.cuh"
#include "update.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 4;
constexpr u32 BLOCK = 4 * PER_THREAD * THREADS;
constexpr u32 SIDE = 32;

struct Segment {
    float* value;
    const float* grad;
    float* first;   // the momentum buffer, or the mean of gradients
    float* second;  // the mean of squared gradients, or null
    void* forward;  // the copies of a convolution's weight (conv_pack.cu), or null
    void* flipped;  // or null
    u64 count;
    u32 first_block;
    u32 group;  // whose rates are its
    u32 taps, group_c, group_k, joined, width_c, width_k;  // as in ConvPackParams
    u32 bf16;  // whether the copies are of bf16, not f32
    u32 unused;
};

// What of the rule may move from step to step.
struct Moving {
    float momentum;  // or beta1
    float correction1, correction2;  // see AdamWRule
    float factor;  // of every gradient
};

struct Rates {
    float lr, weight_decay;
};

// The number of the last segment whose first block is not after this one.
__device__ inline u32 own_segment(const Segment* segments, u32 count) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        (segments[middle].first_block <= blockIdx.x ? low : high) = middle;
    }
    return low;
}

// Calls `update(at, V)` for this thread's elements of its segment: on four neighbours, or one by one at the end.
template <class Update>
__device__ inline void for_own(const Segment& segment, const Update& update) {
    const u64 block = u64(blockIdx.x - segment.first_block) * BLOCK;
    for (u32 i = 0; i < PER_THREAD; ++i) {
        const u64 first = block + 4 * (i * THREADS + threadIdx.x);
        if (first + 4 <= segment.count) update.template at<4>(first);
        else
            for (u64 at = first; at < segment.count; ++at) update.template at<1>(at);
    }
}

__device__ inline void store_copy(const Segment& segment, void* copy, u64 at, float value) {
    if (segment.bf16) static_cast<u16*>(copy)[at] = u16(bf16_pair(value, 0.0f));
    else static_cast<float*>(copy)[at] = value;
}

// The same for a tile of a weight with copies.
template <class Update>
__device__ inline void for_own_tile(const Segment& s, const Update& update) {
    __shared__ float tile[SIDE][SIDE + 1];
    const u32 filters = s.joined * s.group_k, channels = s.joined * s.group_c;
    u32 block = blockIdx.x - s.first_block;
    const u32 first_c = take_digit(block, ceil_div(channels, SIDE)) * SIDE;
    const u32 first_k = take_digit(block, ceil_div(filters, SIDE)) * SIDE;
    const u32 tap = take_digit(block, s.taps), group = block;
    const u32 col = threadIdx.x % SIDE, row = threadIdx.x / SIDE;
    // Whether a filter and a channel exist, of one group before these were joined.
    const auto own = [&](u32 k, u32 c) { return k < filters && c < channels && k / s.group_k == c / s.group_c; };
#pragma unroll
    for (u32 i = 0; i < SIDE; i += THREADS / SIDE) {
        const u32 k = first_k + row + i, c = first_c + col;
        if (!own(k, c)) continue;
        const u64 filter = (u64(group) * filters + k) * s.taps + tap;
        const float value = update.template at<1>(filter * s.group_c + c % s.group_c).at[0];
        tile[row + i][col] = value;
        store_copy(s, s.forward, filter * s.width_c + c, value);
    }
    if (!s.flipped) return;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < SIDE; i += THREADS / SIDE) {
        const u32 c = first_c + row + i, k = first_k + col;
        const u64 channel = (u64(group) * s.width_c + c) * s.taps + s.taps - 1 - tap;
        if (own(k, c)) store_copy(s, s.flipped, channel * s.width_k + k, tile[col][row + i]);
    }
}

// Moves this block's elements.
template <class Update>
__device__ inline void step(const Segment& segment, const Update& update) {
    if (segment.forward) for_own_tile(segment, update);
    else for_own(segment, update);
}

struct SgdParams {
    const Segment* segments;
    const Moving* moving;
    const Rates* rates;
    const float* scale;  // of every gradient
    u32 count;
    u32 nesterov;
    u32 decoupled;
};

struct Sgd {
    const Segment& segment;
    SgdRule rule;
    Rates rates;
    float scale;

    template <u32 V>
    __device__ Pack<float, V> at(u64 at) const {
        Pack<float, V> p = load<V>(segment.value + at), b = load<V>(segment.first + at);
        const Pack<float, V> grad = load<V>(segment.grad + at);
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float g = __fmul_rn(scale, grad.at[j]);
            rule(p.at[j], b.at[j], g, rates.lr, rates.weight_decay);
        }
        store(segment.value + at, p);
        store(segment.first + at, b);
        return p;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) sgd(const SgdParams p) {
    const Segment segment = p.segments[own_segment(p.segments, p.count)];
    const SgdRule rule{p.moving->momentum, p.nesterov != 0, p.decoupled != 0};
    step(segment, Sgd{segment, rule, p.rates[segment.group], *p.scale});
}

struct AdamWParams {
    const Segment* segments;
    const Moving* moving;
    const Rates* rates;
    const float* scale;  // of every gradient
    u32 count;
    float beta2;
    float eps;
};

struct AdamW {
    const Segment& segment;
    AdamWRule rule;
    Rates rates;
    float scale;

    template <u32 V>
    __device__ Pack<float, V> at(u64 at) const {
        Pack<float, V> p = load<V>(segment.value + at);
        Pack<float, V> m = load<V>(segment.first + at), v = load<V>(segment.second + at);
        const Pack<float, V> grad = load<V>(segment.grad + at);
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float g = __fmul_rn(scale, grad.at[j]);
            rule(p.at[j], m.at[j], v.at[j], g, rates.lr, rates.weight_decay);
        }
        store(segment.value + at, p);
        store(segment.first + at, m);
        store(segment.second + at, v);
        return p;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) adamw(const AdamWParams p) {
    const Segment segment = p.segments[own_segment(p.segments, p.count)];
    const AdamWRule rule{p.moving->momentum, p.beta2, p.eps, p.moving->correction1, p.moving->correction2};
    step(segment, AdamW{segment, rule, p.rates[segment.group], *p.scale});
}

struct SquaresParams {
    const Segment* segments;
    float* parts;  // a sum per block
    u32 count;
};

// Squares of the gradients: the blocks of a segment take its elements in turn.
extern "C" __global__ void __launch_bounds__(THREADS) gradient_squares(const SquaresParams p) {
    const u32 own = own_segment(p.segments, p.count);
    const Segment& segment = p.segments[own];
    const u32 end = own + 1 < p.count ? p.segments[own + 1].first_block : gridDim.x;
    const u64 stride = 4ull * THREADS * (end - segment.first_block);
    float sum = 0.0f;
    for (u64 at = 4 * (u64(blockIdx.x - segment.first_block) * THREADS + threadIdx.x); at < segment.count; at += stride) {
        if (at + 4 <= segment.count) {
            const Pack<float, 4> grad = load<4>(segment.grad + at);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sum += grad.at[j] * grad.at[j];
        } else {
            for (u64 last = at; last < segment.count; ++last) sum += segment.grad[last] * segment.grad[last];
        }
    }
    sum = block_sum<THREADS / 32>(THREADS, [&](u32) { return sum; });
    if (threadIdx.x == 0) p.parts[blockIdx.x] = sum;
}

struct ClipParams {
    const float* parts;
    const float* factor;
    float* scale;
    u32 count;
    float most;  // that the norm may be
};

// What gradients are multiplied by: factor * min(1, most / (norm + 1e-6)), the norm after the factor.
extern "C" __global__ void __launch_bounds__(THREADS) clip_scale(const ClipParams p) {
    const float squares = block_sum<THREADS / 32>(p.count, [&](u32 i) { return p.parts[i]; });
    if (threadIdx.x > 0) return;
    const float factor = *p.factor, norm = factor * sqrtf(squares);
    *p.scale = factor * fminf(p.most / (norm + 1e-6f), 1.0f);
}
