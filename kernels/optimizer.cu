// One optimizer step on every parameter in one launch. A table has a segment per parameter; each block takes BLOCK
// elements of one, which it finds by the number of the segment's first block.
//
// One rounding per operation, in the processor's order: its bits. Bound by memory: SGD reads three arrays and writes
// two, AdamW reads four and writes three; a block's search reads log2(segments) numbers.
#include "pack.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 4;
constexpr u32 BLOCK = 4 * PER_THREAD * THREADS;

struct Segment {
    float* value;
    const float* grad;
    float* first;   // the momentum buffer, or the mean of gradients
    float* second;  // the mean of squared gradients, or null
    u64 count;
    u32 first_block;
    float lr;
    float weight_decay;
    u32 unused;
};

// The last segment whose first block is not after this one.
__device__ inline const Segment& own_segment(const Segment* segments, u32 count) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        (segments[middle].first_block <= blockIdx.x ? low : high) = middle;
    }
    return segments[low];
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

struct SgdParams {
    const Segment* segments;
    u32 count;
    float momentum;
    u32 nesterov;
};

// g += weight_decay * p;  b = momentum * b + g;  p -= lr * (nesterov ? g + momentum * b : b)
struct Sgd {
    const Segment& segment;
    float momentum;
    bool nesterov;

    template <u32 V>
    __device__ void at(u64 at) const {
        Pack<float, V> p = load<V>(segment.value + at), b = load<V>(segment.first + at);
        const Pack<float, V> grad = load<V>(segment.grad + at);
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float g = __fadd_rn(grad.at[j], __fmul_rn(segment.weight_decay, p.at[j]));
            b.at[j] = __fadd_rn(__fmul_rn(momentum, b.at[j]), g);
            const float step = nesterov ? __fadd_rn(g, __fmul_rn(momentum, b.at[j])) : b.at[j];
            p.at[j] = __fsub_rn(p.at[j], __fmul_rn(segment.lr, step));
        }
        store(segment.value + at, p);
        store(segment.first + at, b);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) sgd(const SgdParams p) {
    const Segment segment = own_segment(p.segments, p.count);
    for_own(segment, Sgd{segment, p.momentum, p.nesterov != 0});
}

struct AdamWParams {
    const Segment* segments;
    u32 count;
    float beta1;
    float beta2;
    float eps;
    float correction1;  // 1 - beta1^step
    float correction2;  // sqrt(1 - beta2^step)
};

// p -= lr * weight_decay * p;  m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g * g;
// p -= lr / correction1 * m / (sqrt(v) / correction2 + eps)
struct AdamW {
    const Segment& segment;
    const AdamWParams& rule;

    template <u32 V>
    __device__ void at(u64 at) const {
        Pack<float, V> p = load<V>(segment.value + at);
        Pack<float, V> m = load<V>(segment.first + at), v = load<V>(segment.second + at);
        const Pack<float, V> grad = load<V>(segment.grad + at);
        const float decay = __fmul_rn(segment.lr, segment.weight_decay), rate = __fdiv_rn(segment.lr, rule.correction1);
        const float new1 = 1.0f - rule.beta1, new2 = 1.0f - rule.beta2;
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float g = grad.at[j];
            p.at[j] = __fsub_rn(p.at[j], __fmul_rn(decay, p.at[j]));
            m.at[j] = __fadd_rn(__fmul_rn(rule.beta1, m.at[j]), __fmul_rn(new1, g));
            v.at[j] = __fadd_rn(__fmul_rn(rule.beta2, v.at[j]), __fmul_rn(__fmul_rn(new2, g), g));
            const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v.at[j]), rule.correction2), rule.eps);
            p.at[j] = __fsub_rn(p.at[j], __fdiv_rn(__fmul_rn(rate, m.at[j]), root));
        }
        store(segment.value + at, p);
        store(segment.first + at, m);
        store(segment.second + at, v);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) adamw(const AdamWParams p) {
    const Segment segment = own_segment(p.segments, p.count);
    for_own(segment, AdamW{segment, p});
}
