// Sums and maxima over a warp, sums over a block: in one order, the same bits.
#pragma once
#include "common.cuh"

// Of all lanes, the same for each.
__device__ inline float warp_sum(float x) {
    for (u32 distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// Without NaN, which the sum of exponentials shows.
__device__ inline float warp_max(float x) {
    for (u32 distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    return x;
}

// The sum of `value(i)` for i below `count`, the same for each thread of a block of WARPS warps. Eight strands of 32
// lanes take every 256th value each, whatever WARPS is: the same bits.
template <u32 WARPS, class Value>
__device__ inline float block_sum(u32 count, const Value& value) {
    constexpr u32 STRANDS = 8;
    __shared__ float sums[STRANDS];
    const u32 lane = threadIdx.x % 32;
    for (u32 strand = threadIdx.x / 32; strand < STRANDS; strand += WARPS) {
        float sum = 0.0f;
        for (u32 i = 32 * strand + lane; i < count; i += 32 * STRANDS) sum += value(i);
        sum = warp_sum(sum);
        if (lane == 0) sums[strand] = sum;
    }
    __syncthreads();
    float total = 0.0f;
    for (u32 strand = 0; strand < STRANDS; ++strand) total += sums[strand];
    __syncthreads();
    return total;
}
