// Arrays handled element by element: a block takes MAP_BLOCK of them, a thread four neighbours, moved as one.
#pragma once
#include "pack.cuh"

constexpr u32 MAP_THREADS = 256;
constexpr u32 MAP_BLOCK = 4 * MAP_THREADS;

// This thread's elements: the last thread may have fewer than four, those after it none.
struct Own {
    u64 first;
    u32 valid;

    __device__ explicit Own(u64 count) : first(u64(blockIdx.x) * MAP_BLOCK + 4 * threadIdx.x) {
        valid = first >= count ? 0 : u32(min(count - first, 4ull));
    }

    template <class T>
    __device__ Pack<T, 4> load(const T* from) const {
        if (valid == 4) return ::load<4>(from + first);
        Pack<T, 4> own = {};
#pragma unroll
        for (u32 j = 0; j < 3; ++j)
            if (j < valid) own.at[j] = from[first + j];
        return own;
    }

    template <class T>
    __device__ void store(T* to, const Pack<T, 4>& own) const {
        if (valid == 4) return ::store(to + first, own);
#pragma unroll
        for (u32 j = 0; j < 3; ++j)
            if (j < valid) to[first + j] = own.at[j];
    }
};
