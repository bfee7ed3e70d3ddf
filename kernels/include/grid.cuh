// A barrier across all blocks of a cooperative launch.
#pragma once
#include "common.cuh"

// One counter in global memory that only grows, zero at launch. What any thread wrote before it comes to the barrier,
// every thread sees behind it.
struct GridBarrier {
    u32* counter;
    u32 goal = 0;

    __device__ explicit GridBarrier(u32* counter) : counter(counter) {}

    __device__ void wait() {
        goal += gridDim.x;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(counter, 1u);
            while (*static_cast<volatile u32*>(counter) < goal) {}
            __threadfence();
        }
        __syncthreads();
    }
};
