// Adds the slices of a reduction that several blocks shared, in order, and applies the epilogue (epilogue.cuh):
// out[i] = finish(sum over slices of parts[slice][i]).
//
// One thread per output. Bytes: slices + 1 times the output; bound by memory.
#include "epilogue.cuh"

struct ConvMergeParams {
    const float* parts;  // [slices, count]
    float* output;       // [count], channels fastest
    const float* scale;  // as in ConvForwardParams
    const float* shift;
    const float* residual;
    u32 count;
    u32 channels;
    u32 slices;
    u32 relu;
};

extern "C" __global__ void __launch_bounds__(256) conv_merge(const ConvMergeParams p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= p.count) return;
    float sum = 0.0f;
    for (u32 slice = 0; slice < p.slices; ++slice) sum += p.parts[u64(slice) * p.count + at];
    p.output[at] = finish(p, sum, at % p.channels, at);
}
