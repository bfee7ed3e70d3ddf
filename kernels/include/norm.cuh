// A batchnorm with fixed statistics as what it amounts to: a factor and an offset for each channel.
//
//   (x - mean) / sqrt(variance + eps) * scale + shift = x * factor + offset
#pragma once
#include "common.cuh"

struct Folded {
    float factor, offset;
};

// In f64 with one rounding per operation: the processor's bits.
__device__ inline Folded fold(float scale, float shift, float mean, float variance, float eps) {
    const double deviation = sqrt(__dadd_rn(variance, eps)), factor = __ddiv_rn(scale, deviation);
    return {float(factor), float(__dsub_rn(shift, __dmul_rn(mean, factor)))};
}

// The batchnorm, [channels] each; none where `scale` is null.
struct FixedNorm {
    const float* scale;
    const float* shift;
    const float* mean;
    const float* variance;
    float eps;

    __device__ Folded folded(u32 channel) const {
        return fold(scale[channel], shift[channel], mean[channel], variance[channel], eps);
    }
};
