// Instructions that CUDA C++ has no word for without NVIDIA's headers, each as a small function.
#pragma once
#include "common.cuh"

// To half precision and back; to the nearest, ties to even.
__device__ inline u16 half_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__device__ inline float from_half_bits(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
