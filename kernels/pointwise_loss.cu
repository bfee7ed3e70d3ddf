// Losses of outputs [N, K] that are compared with targets [N, K] one by one: one warp per row, which reads and writes its
// row once.
//
//   binary cross entropy  max(x, 0) - x t + log(1 + exp(-|x|)),  gradient sigmoid(x) - t
//   absolute error        |x - t|,                               gradient sign(x - t), 0 where they are equal
//   squared error         (x - t)^2,                             gradient 2 (x - t)
//
// each times its column's weight, divided by N K. Sums are taken lane by lane, then over the warp as a tree: a row's
// result depends on the row alone. The loss is summed over the rows by one block. Bound by launch latency.
#include "softmax.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;

enum Kind : u32 { BINARY, ABSOLUTE, SQUARED };

struct PointwiseLossParams {
    const float* outputs;
    const float* targets;
    const float* weights;  // [K] or null
    float* row_loss;       // [N], not yet divided
    float* loss;           // one number
    float* grad;           // [N, K]
    u32 n, columns;
    u32 kind;
};

struct Point {
    float loss, grad;
};

__device__ inline Point point(u32 kind, float x, float t) {
    const float difference = x - t;
    switch (kind) {
        case BINARY: {
            // Neither exponential can overflow.
            const float small = expf(-fabsf(x));
            const float sigmoid = (x < 0.0f ? small : 1.0f) / (1.0f + small);
            return {fmaxf(x, 0.0f) - x * t + log1pf(small), x == x ? sigmoid - t : x};
        }
        // Neither above nor below 0 are 0 and what is no number, which stay.
        case ABSOLUTE: return {fabsf(difference), difference > 0.0f ? 1.0f : difference < 0.0f ? -1.0f : difference};
        default: return {difference * difference, 2.0f * difference};
    }
}

// Each row's loss and gradient.
extern "C" __global__ void __launch_bounds__(THREADS) pointwise_loss(const PointwiseLossParams p) {
    const u32 row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= p.n) return;
    const u64 first = u64(row) * p.columns;
    const float count = float(p.n) * float(p.columns);
    float loss = 0.0f;
    for (u32 i = threadIdx.x % 32; i < p.columns; i += 32) {
        const float weight = p.weights ? p.weights[i] : 1.0f;
        const Point found = point(p.kind, p.outputs[first + i], p.targets[first + i]);
        loss += weight * found.loss;
        p.grad[first + i] = weight * found.grad / count;
    }
    loss = warp_sum(loss);
    if (threadIdx.x % 32 == 0) p.row_loss[row] = loss;
}

// One block: the rows' losses summed, and divided.
extern "C" __global__ void __launch_bounds__(THREADS) pointwise_loss_mean(const PointwiseLossParams p) {
    const float sum = block_sum<WARPS>(p.n, [&](u32 row) { return p.row_loss[row]; });
    if (threadIdx.x == 0) *p.loss = sum / (float(p.n) * float(p.columns));
}
