// Log-softmax, softmax and cross entropy of logits [N, classes]: one warp per row, which reads its row three times
// (from the caches after the first).
//
//   log p = (x - max) - log(sum exp(x - max))
//   t = ((1 - smoothing) * target + smoothing / classes) * weight                 for each class
//   loss = -sum t * log p / norm,  d logits = (p * sum t - t) / norm
//
// norm is N, or with labels and weights the sum of the labels' weights. Sums are taken lane by lane, then over the warp
// as a tree: a row's result depends on the row alone. The loss is summed over the rows by one block.
// Classes are few: bound by launch latency, beyond a thousand by memory (the logits read, the gradient written).
#include "softmax.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;

// This warp's row of the grid; n where there is none.
__device__ inline u32 own_row(u32 n) { return min(blockIdx.x * WARPS + threadIdx.x / 32, n); }

struct LogSoftmaxParams {
    const float* logits;
    float* output;
    u32 n, classes;
    u32 probabilities;  // whether these are wanted instead of their logarithms
};

extern "C" __global__ void __launch_bounds__(THREADS) log_softmax(const LogSoftmaxParams p) {
    const u32 row = own_row(p.n);
    if (row == p.n) return;
    const float* logits = p.logits + u64(row) * p.classes;
    const Normaliser normaliser(logits, p.classes);
    for (u32 i = threadIdx.x % 32; i < p.classes; i += 32) {
        const float log_p = normaliser.log_p(logits[i]);
        p.output[u64(row) * p.classes + i] = p.probabilities ? expf(log_p) : log_p;
    }
}

struct LogSoftmaxGradParams {
    const float* grad;
    const float* output;
    float* logits_grad;
    u32 n, classes;
};

// grad - softmax * sum of grad.
extern "C" __global__ void __launch_bounds__(THREADS) log_softmax_grad(const LogSoftmaxGradParams p) {
    const u32 row = own_row(p.n);
    if (row == p.n) return;
    const u64 first = u64(row) * p.classes;
    float sum = 0.0f;
    for (u32 i = threadIdx.x % 32; i < p.classes; i += 32) sum += p.grad[first + i];
    sum = warp_sum(sum);
    for (u32 i = threadIdx.x % 32; i < p.classes; i += 32)
        p.logits_grad[first + i] = p.grad[first + i] - expf(p.output[first + i]) * sum;
}

struct CrossEntropyParams {
    const float* logits;
    const u32* labels;     // [N] or null
    const float* targets;  // [N, classes] without labels
    const float* weights;  // [classes] or null
    float* row_loss;       // [N], not yet divided
    float* loss;           // one number
    float* grad;           // [N, classes]
    u32 n, classes;
    float smoothing;
};

// What sums over rows are divided by; all threads of a block take part, and every block finds the same.
__device__ inline float norm(const CrossEntropyParams& p) {
    if (!p.labels || !p.weights) return float(p.n);
    return block_sum<WARPS>(p.n, [&](u32 row) { return label_weight(p.labels[row], p.weights, p.classes); });
}

// Each row's loss and gradient.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(const CrossEntropyParams p) {
    const float norm = ::norm(p);
    const u32 row = own_row(p.n);
    if (row == p.n) return;
    const u64 first = u64(row) * p.classes;
    const u32 label = p.labels ? p.labels[row] : 0;
    const bool nameless = p.labels && label >= p.classes;
    const auto own = [&](u32 i) {
        return nameless ? not_a_number() : p.labels ? float(i == label) : p.targets[first + i];
    };
    const Targets targets{p.weights, p.classes, p.smoothing};
    const float loss = cross_entropy_row(p.logits + first, p.grad + first, targets, norm, own);
    if (threadIdx.x % 32 == 0) p.row_loss[row] = loss;
}

// One block: the rows' losses summed, and divided.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_mean(const CrossEntropyParams p) {
    const float norm = ::norm(p);
    const float sum = block_sum<WARPS>(p.n, [&](u32 row) { return p.row_loss[row]; });
    if (threadIdx.x == 0) *p.loss = sum / norm;
}

struct CorrectParams {
    const float* logits;
    const u32* labels;  // [N]
    u32* correct;       // one number
    u32 n, classes;
};

// One block, a warp per row: a row is right where its label's logit is above those before it and not below those after
// it, so the first of equals is the prediction, and a row with a NaN is wrong.
extern "C" __global__ void __launch_bounds__(THREADS) count_correct(const CorrectParams p) {
    __shared__ u32 counts[WARPS];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 count = 0;
    for (u32 row = warp; row < p.n; row += WARPS) {
        const float* logits = p.logits + u64(row) * p.classes;
        const u32 label = p.labels[row];
        bool right = label < p.classes;
        const float own = right ? logits[label] : not_a_number();
        for (u32 i = lane; i < p.classes; i += 32) right = right && (i < label ? logits[i] < own : logits[i] <= own);
        count += __all_sync(0xffffffff, right);
    }
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    if (threadIdx.x > 0) return;
    count = 0;
    for (u32 other = 0; other < WARPS; ++other) count += counts[other];
    *p.correct = count;
}
