// What losses are made of: the cross entropy of one row of logits.
#pragma once
#include "pack.cuh"
#include "sums.cuh"

// A row's maximum and the logarithm of the sum of its exponentials about it.
struct Normaliser {
    float max, log_sum;

    __device__ Normaliser(const float* row, u32 classes) {
        const u32 lane = threadIdx.x % 32;
        max = minus_infinity();
        for (u32 i = lane; i < classes; i += 32) max = fmaxf(max, row[i]);
        max = warp_max(max);
        float sum = 0.0f;
        for (u32 i = lane; i < classes; i += 32) sum += expf(row[i] - max);
        log_sum = logf(warp_sum(sum));
    }

    __device__ float log_p(float x) const { return (x - max) - log_sum; }
};

// What a label's class weighs. A label that names no class weighs NaN: so does all that follows, and nothing is read
// beyond the arrays.
__device__ inline float label_weight(u32 label, const float* weights, u32 classes) {
    return label >= classes ? not_a_number() : weights ? weights[label] : 1.0f;
}

// How targets become those that the loss compares with.
struct Targets {
    const float* weights;  // [classes] or null
    u32 classes;
    float smoothing;

    // Of class i, which should be `own`.
    __device__ float operator()(u32 i, float own) const {
        const float keep = 1.0f - smoothing, even = smoothing / float(classes);
        return fmaf(own, keep, even) * (weights ? weights[i] : 1.0f);
    }
};

// The loss of one row, not yet divided by `norm`, and its gradient, which is: by one warp. `own(i)` is what class i should
// be. `grad` may be `logits` itself.
template <class Own>
__device__ inline float cross_entropy_row(const float* logits, float* grad, const Targets& targets, float norm,
                                          const Own& own) {
    const u32 lane = threadIdx.x % 32;
    const Normaliser normaliser(logits, targets.classes);
    float total = 0.0f;
    for (u32 i = lane; i < targets.classes; i += 32) total += targets(i, own(i));
    total = warp_sum(total);
    float loss = 0.0f;
    for (u32 i = lane; i < targets.classes; i += 32) {
        const float t = targets(i, own(i)), log_p = normaliser.log_p(logits[i]);
        // A target of zero contributes nothing, even where log p is minus infinity.
        if (t != 0.0f) loss -= t * log_p;
        grad[i] = (expf(log_p) * total - t) / norm;
    }
    return warp_sum(loss);
}
