// What the three f32 convolutions share: their tiles, and the loaders that read images as matrices.
#pragma once
#include "extents.cuh"
#include "gemm.cuh"

// The tiles that every convolution comes in: for large problems, for middling ones, for few columns and for few rows.
using Large = Tile<128, 64, 256>;
using Middle = Tile<64, 64, 256>;
using Narrow = Tile<64, 16, 64>;
using Flat = Tile<16, 64, 64>;

// Defines the kernels NAME_128x64 ... of `run<Tile>(params)`. Two blocks of the large tiles fit a multiprocessor.
#define CONV_KERNELS(NAME, PARAMS, RUN)                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME##_128x64(const PARAMS p) { RUN<Large>(p); }     \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME##_64x64(const PARAMS p) { RUN<Middle>(p); }     \
    extern "C" __global__ void __launch_bounds__(64, 8) NAME##_64x16(const PARAMS p) { RUN<Narrow>(p); }      \
    extern "C" __global__ void __launch_bounds__(64, 8) NAME##_16x64(const PARAMS p) { RUN<Flat>(p); }

// A batch of images, or a channel group of one: pixels are `stride` elements apart.
struct Images {
    const float* first;
    u32 h, w, stride;

    __device__ bool contains(i32 y, i32 x) const { return u32(y) < h && u32(x) < w; }
    __device__ const float* pixel(u32 index) const { return first + u64(index) * stride; }
};

// Rows of windows of images: a[row][k] with k over (tap row, tap column, channel). The next tap lies one pixel further
// (DIRECTION 1) or back (-1) in the image. The `places` of the rows are those of their first taps.
template <class T, i32 DIRECTION>
struct Windows : AlongDepth<T, T::ROWS> {
    using Base = AlongDepth<T, T::ROWS>;
    using Base::SLOTS, Base::staged;
    Images images;
    const Place* places;
    u32 tap_cols, channels, k, end;
    bool vector;
    Index3 at;

    // Values of k from `from` to `end`.
    __device__ Windows(Images images, const Place* places, u32 tap_cols, u32 channels, u32 from, u32 end)
        : images(images), places(places), tap_cols(tap_cols), channels(channels), k(from + Base::depth()), end(end),
          vector(channels % 4 == 0), at(k, tap_cols, channels) {}

    __device__ void fetch() {
        if (vector) {
#pragma unroll
            for (u32 slot = 0; slot < SLOTS; ++slot) {
                const float* from = tap(slot, k);
                staged[slot] = from ? *reinterpret_cast<const float4*>(from) : zero4();
            }
            at.advance(DEPTH, tap_cols, channels);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                for (u32 slot = 0; slot < SLOTS; ++slot) {
                    const float* from = tap(slot, k + i);
                    component(staged[slot], i) = from ? *from : 0.0f;
                }
                at.advance(i < 3 ? 1 : DEPTH - 3, tap_cols, channels);
            }
        }
        k += DEPTH;
    }

    // The address of the current value, none if there is no such tap or it lies outside the image.
    __device__ const float* tap(u32 slot, u32 k) const {
        const Place place = places[Base::index(slot)];
        const i32 y = place.y + DIRECTION * i32(at.outer), x = place.x + DIRECTION * i32(at.middle);
        if (k >= end || !images.contains(y, x)) return nullptr;
        return images.pixel(place.base + u32(y) * images.w + u32(x)) + at.inner;
    }
};
