// What is to be known of an array of f32 or bf16 at a glance: its sum, its largest magnitude, how many elements are not
// finite.
//
// A block takes BLOCK elements and writes one part; the host merges the few parts. Sums are taken by each thread over
// its elements, over its warp as a tree, then over the warps in order. Bound by memory: the array is read once.
#include "pack.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 64;
constexpr u32 BLOCK = PER_THREAD * THREADS;

struct Part {
    float sum;
    float largest;  // of all that are numbers
    u32 not_finite;

    __device__ void add(float x) {
        sum += x;
        largest = fmaxf(largest, fabsf(x));
        not_finite += !(fabsf(x) < __int_as_float(0x7f800000));
    }

    __device__ void merge(const Part& other) {
        sum += other.sum;
        largest = fmaxf(largest, other.largest);
        not_finite += other.not_finite;
    }
};

struct SummaryParams {
    const void* input;
    Part* parts;
    u64 count;
};

template <class T>
__device__ inline void summarise(const SummaryParams& p) {
    const T* input = static_cast<const T*>(p.input);
    Part own = {};
    const u64 first = u64(blockIdx.x) * BLOCK + 4 * threadIdx.x, end = min(u64(blockIdx.x + 1) * BLOCK, p.count);
    for (u64 at = first; at < end; at += 4 * THREADS) {
        if (at + 4 <= end) {
            const Pack<float, 4> x = widen(load<4>(input + at));
#pragma unroll
            for (u32 j = 0; j < 4; ++j) own.add(x.at[j]);
        } else {
            for (u64 last = at; last < end; ++last) own.add(widen(load<1>(input + last)).at[0]);
        }
    }
    for (u32 distance = 16; distance > 0; distance /= 2) {
        own.merge({__shfl_xor_sync(0xffffffff, own.sum, distance), __shfl_xor_sync(0xffffffff, own.largest, distance),
                   __shfl_xor_sync(0xffffffff, own.not_finite, distance)});
    }
    __shared__ Part parts[THREADS / 32];
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = own;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (u32 warp = 1; warp < THREADS / 32; ++warp) own.merge(parts[warp]);
    p.parts[blockIdx.x] = own;
}

extern "C" __global__ void __launch_bounds__(THREADS) summary(const SummaryParams p) { summarise<float>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) summary_bf16(const SummaryParams p) { summarise<bf16>(p); }
