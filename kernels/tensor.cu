// What tensors themselves need: a value for every element, sums in place, and other element types.
//
// See map.cuh for who does what. Bound by memory: operands are read once and results written once.
#include "map.cuh"
#include "ptx.cuh"

struct FillParams {
    float* to;
    u64 count;
    float value;
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) tensor_fill(const FillParams p) {
    Own(p.count).store(p.to, Pack<float, 4>{{p.value, p.value, p.value, p.value}});
}

struct AddAssignParams {
    float* sum;
    const float* other;
    u64 count;
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) tensor_add_assign(const AddAssignParams p) {
    const Own own(p.count);
    Pack<float, 4> sum = own.load(p.sum);
    const Pack<float, 4> other = own.load(p.other);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) sum.at[j] += other.at[j];
    own.store(p.sum, sum);
}

// Conversions: to the nearest, ties to even; what is too large becomes infinite; a NaN stays one.

// The upper half of an f32's bits, rounded. A NaN's payload must not carry into its exponent, nor vanish.
__device__ inline u16 bfloat_bits(float x) {
    const u32 bits = __float_as_uint(x);
    if (x != x) return u16(bits >> 16) | 0x40;
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ inline float from_bfloat_bits(u16 bits) { return __uint_as_float(u32(bits) << 16); }

__device__ inline float from_byte(u8 byte) { return byte; }

struct CastParams {
    const void* from;
    void* to;
    u64 count;
};

template <class From, class To, class Convert>
__device__ inline void cast(const CastParams& p, Convert convert) {
    const Own own(p.count);
    const Pack<From, 4> from = own.load(static_cast<const From*>(p.from));
    Pack<To, 4> to;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) to.at[j] = convert(from.at[j]);
    own.store(static_cast<To*>(p.to), to);
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_f32_bf16(const CastParams p) {
    cast<float, u16>(p, bfloat_bits);
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_bf16_f32(const CastParams p) {
    cast<u16, float>(p, from_bfloat_bits);
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_f32_f16(const CastParams p) {
    cast<float, u16>(p, half_bits);
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_f16_f32(const CastParams p) {
    cast<u16, float>(p, from_half_bits);
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_u8_f32(const CastParams p) {
    cast<u8, float>(p, from_byte);
}
