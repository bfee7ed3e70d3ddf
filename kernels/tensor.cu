// What tensors themselves need: a value for every element, sums in place, and other element types.
//
// See map.cuh for who does what. Bound by memory: operands are read once and results written once.
#include "map.cuh"

struct FillParams {
    float* to;
    u64 count;
    float value;
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) tensor_fill(const FillParams p) {
    Own(p.count).store(p.to, Pack<float, 4>{{p.value, p.value, p.value, p.value}});
}

struct AddAssignParams {
    void* sum;
    const void* other;
    u64 count;
};

template <class T>
__device__ inline void add_assign(const AddAssignParams& p) {
    const Own own(p.count);
    T* to = static_cast<T*>(p.sum);
    Pack<float, 4> sum = widen(own.load(to));
    const Pack<float, 4> other = widen(own.load(static_cast<const T*>(p.other)));
#pragma unroll
    for (u32 j = 0; j < 4; ++j) sum.at[j] += other.at[j];
    own.store(to, narrow<T>(sum));
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS) tensor_add_assign(const AddAssignParams p) {
    add_assign<float>(p);
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) tensor_add_assign_bf16(const AddAssignParams p) {
    add_assign<bf16>(p);
}

struct LerpAssignParams {
    float* to;
    const float* other;
    u64 count;
    float share;
};

// to += share * (other - to), one rounding per operation: the processor's bits.
extern "C" __global__ void __launch_bounds__(MAP_THREADS) tensor_lerp_assign(const LerpAssignParams p) {
    const Own own(p.count);
    Pack<float, 4> to = own.load(p.to);
    const Pack<float, 4> other = own.load(p.other);
#pragma unroll
    for (u32 j = 0; j < 4; ++j)
        to.at[j] = __fadd_rn(to.at[j], __fmul_rn(p.share, __fsub_rn(other.at[j], to.at[j])));
    own.store(p.to, to);
}

// Conversions: to the nearest, ties to even; what is too large becomes infinite; a NaN stays one.

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

__device__ inline float from_byte(u8 byte) { return byte; }

extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_f32_bf16(const CastParams p) {
    const Own own(p.count);
    own.store(static_cast<bf16*>(p.to), narrow<bf16>(own.load(static_cast<const float*>(p.from))));
}
extern "C" __global__ void __launch_bounds__(MAP_THREADS) cast_bf16_f32(const CastParams p) {
    const Own own(p.count);
    own.store(static_cast<float*>(p.to), widen(own.load(static_cast<const bf16*>(p.from))));
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
