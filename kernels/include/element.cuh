// What activations are stored as on the tensor-core path: bf16, or f32 that is multiplied as TF32. Both are moved 16
// bytes, a vector, at a time; tensors have whole vectors of channels.
#pragma once
#include "ptx.cuh"

struct Bf16 {
    using Stored = u16;
    static constexpr u32 VECTOR = 8;

    static __device__ void unpack(const uint4& bits, float (&to)[VECTOR]) {
        const u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            to[2 * i] = __uint_as_float(words[i] << 16);
            to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }

    // Makes words of memory an operand of `multiply`.
    template <u32 N>
    static __device__ void prepare(u32 (&)[N]) {}

    // d += a * b: 16x8, over 32 bytes of k.
    static __device__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b); }

    // To the nearest, ties to even, as `pack`.
    static __device__ Stored stored(float value) { return Stored(bf16_pair(value, 0.0f)); }

    static __device__ uint4 pack(const float (&values)[VECTOR]) {
        return make_uint4(bf16_pair(values[0], values[1]), bf16_pair(values[2], values[3]),
                          bf16_pair(values[4], values[5]), bf16_pair(values[6], values[7]));
    }
};

struct Tf32 {
    using Stored = float;
    static constexpr u32 VECTOR = 4;

    template <u32 N>
    static __device__ void prepare(u32 (&words)[N]) {
#pragma unroll
        for (u32 i = 0; i < N; ++i) words[i] = tf32_bits(__uint_as_float(words[i]));
    }

    static __device__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_tf32(d, a, b); }

    static __device__ Stored stored(float value) { return value; }

    static __device__ void unpack(const uint4& bits, float (&to)[VECTOR]) {
        to[0] = __uint_as_float(bits.x), to[1] = __uint_as_float(bits.y);
        to[2] = __uint_as_float(bits.z), to[3] = __uint_as_float(bits.w);
    }

    static __device__ uint4 pack(const float (&values)[VECTOR]) {
        return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                          __float_as_uint(values[3]));
    }
};

// The vector of a tensor [pixels, channels] that holds this channel.
template <class E>
__device__ inline uint4 load_vector(const void* tensor, u32 pixel, u32 channels, u32 channel) {
    const auto* from = static_cast<const typename E::Stored*>(tensor) + u64(pixel) * channels + channel;
    return *reinterpret_cast<const uint4*>(from);
}

template <class E>
__device__ inline void store_vector(void* tensor, u32 pixel, u32 channels, u32 channel, const uint4& bits) {
    auto* to = static_cast<typename E::Stored*>(tensor) + u64(pixel) * channels + channel;
    *reinterpret_cast<uint4*>(to) = bits;
}
