// Neighbouring elements that one thread handles together: four where rows are multiples of four, else one; eight of
// bf16. Kernels compute in f32; a template parameter T says what lies in memory, float or bf16.
#pragma once
#include "ptx.cuh"

// bfloat16: the upper half of an f32.
struct bf16 {
    u16 bits;
};

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

// The elements as f32.
template <u32 V>
__device__ inline Pack<float, V> widen(const Pack<float, V>& pack) {
    return pack;
}

template <u32 V>
__device__ inline Pack<float, V> widen(const Pack<bf16, V>& pack) {
    Pack<float, V> wide;
#pragma unroll
    for (u32 j = 0; j < V; ++j) wide.at[j] = __uint_as_float(u32(pack.at[j].bits) << 16);
    return wide;
}

// The elements as T, to the nearest, ties to even; a NaN stays one.
template <class T, u32 V>
__device__ inline Pack<T, V> narrow(const Pack<float, V>& pack) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return pack;
    } else {
        static_assert(V % 2 == 0, "bf16 is converted in pairs");
        Pack<T, V> narrow;
#pragma unroll
        for (u32 j = 0; j < V; j += 2) {
            const u32 pair = bf16_pair(pack.at[j], pack.at[j + 1]);
            narrow.at[j].bits = u16(pair);
            narrow.at[j + 1].bits = u16(pair >> 16);
        }
        return narrow;
    }
}

// Not a maximum, which would turn a NaN into 0 and hide a diverged run.
__device__ inline float positive(float x) { return x < 0.0f ? 0.0f : x; }

__device__ inline float not_a_number() { return __int_as_float(0x7fc00000); }

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }
