// Neighbouring elements that one thread handles together: four where rows are multiples of four, else one.
#pragma once
#include "common.cuh"

// Moved as one access; its address is a multiple of its size.
template <class T, u32 V>
struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

template <u32 V, class T>
__device__ inline Pack<T, V> load(const T* from) {
    return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <u32 V, class T>
__device__ inline void store(T* to, const Pack<T, V>& pack) {
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Not a maximum, which would turn a NaN into 0 and hide a diverged run.
__device__ inline float positive(float x) { return x < 0.0f ? 0.0f : x; }

__device__ inline float not_a_number() { return __int_as_float(0x7fc00000); }

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }
