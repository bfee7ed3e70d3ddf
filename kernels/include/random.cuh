// Counter-based randomness: the number at an index is a function of a stream's key and the index alone, the same on
// every device (src/random.rs).
#pragma once
#include "common.cuh"

// One splitmix64 output for the counter `x` (Steele, Lea, Flood 2014).
__device__ inline u64 splitmix64(u64 x) {
    u64 z = x + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// The value at `index` of the stream, in [0, 1) with 24 bits.
__device__ inline float random_at(u64 key, u64 index) {
    return float(u32(splitmix64(key + index) >> 40)) * (1.0f / (1u << 24));
}
