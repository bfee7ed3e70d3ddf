// What is done to an output of a convolution or linear layer before it is stored.
#pragma once
#include "common.cuh"

// relu(sum * scale[channel] + shift[channel] + residual[at]), each part only where `p` has it. The multiply-add is
// spelled out, so that every kernel rounds alike.
template <class P>
__device__ inline float finish(const P& p, float sum, u32 channel, u64 at) {
    if (p.scale) sum = fmaf(sum, p.scale[channel], p.shift[channel]);
    else if (p.shift) sum += p.shift[channel];
    if (p.residual) sum += p.residual[at];
    // Not a maximum, which would turn a NaN into 0 and hide a diverged run.
    return p.relu && sum < 0.0f ? 0.0f : sum;
}
