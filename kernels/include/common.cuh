// What every kernel file uses: fixed-width integers (NVRTC has no <cstdint> of its own) and small helpers.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

constexpr __device__ u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
