// What the tensor-core convolutions share: implicit GEMM of windows of images with filters, and the way from its sums
// to memory.
#pragma once
#include "extents.cuh"
#include "finish.cuh"
#include "mma.cuh"

// The taps of windows, at most 15 a side, each one pixel further than the last; and where their weights lie in a
// filter.
struct Taps {
    u32 rows, cols;
    u32 first, row_step, col_step;  // elements of a filter before the first tap, and from one to the next
};

// The images that windows lie in: `pixel` elements from one pixel to the next.
struct Images {
    const void* first;
    u32 h, w, pixel;
};

// A window, of one row of a tile: the element of the images that its first tap's first channel has or would have, and
// which taps lie inside. Bit i tells of tap row i, bit 16 + i of tap column i.
struct alignas(8) Window {
    u32 first, inside;

    static __device__ u32 bits(i32 first, u32 taps, u32 extent) {
        const i32 from = min(max(-first, 0), 15), to = min(i32(extent) - first, i32(taps));
        return (1u << max(to, from)) - (1u << from);
    }

    // Of image number n, its first tap at (y, x).
    static __device__ Window at(const Images& images, const Taps& taps, u32 n, i32 y, i32 x, u32 channel) {
        return {((n * images.h + u32(y)) * images.w + u32(x)) * images.pixel + channel,
                bits(y, taps.rows, images.h) | bits(x, taps.cols, images.w) << 16};
    }
    static __device__ Window nowhere() { return {0, 0}; }
};

// The operands of a tile: rows are windows, columns are filters, k runs over (tap row, tap column, channel), with zeros
// outside the images and beyond the last filter. Copied BYTES (8 or 16) at a time, which lie in one tap, as `channels`
// is a multiple of them. Of the threads that copy a row, each keeps its own place on the axis of k; the windows stay in
// shared memory, as registers are what limits the tiles.
template <class T, u32 BYTES>
struct WindowsByFilters {
    using Stored = typename T::E::Stored;
    static constexpr u32 ELEMENTS = BYTES / sizeof(Stored), PER_ROW = T::STEP_BYTES / BYTES;
    static constexpr u32 APART = T::THREADS / PER_ROW, ROW_SLOTS = T::ROWS / APART, COL_SLOTS = T::COLS / APART;
    static_assert(APART % 8 == 0, "a thread's rows are swizzled alike");
    const Stored *images, *filters;
    Taps taps;
    u32 row, pixel;            // elements from one row of pixels to the next, and from one pixel to the next
    u32 filter, count;         // elements from one filter of this thread to its next, and how many it has
    u32 channels, skip, rest;  // a step is `skip` taps and `rest` channels
    u32 to, tap_row, tap_col, channel;
    const Window* windows;  // of this thread's first row

    // `windows` are those of the rows. `filters` exist from the first column on, each `length` elements long.
    __device__ WindowsByFilters(const Images& images, const Window* windows, const Taps& taps,
                                const Stored* first_filter, u32 filters, u32 length, u32 channels)
        : images(static_cast<const Stored*>(images.first)), filters(first_filter + own_row() * length), taps(taps),
          row(images.w * images.pixel), pixel(images.pixel), filter(APART * length),
          count(filters > own_row() ? ceil_div(filters - own_row(), APART) : 0), channels(channels),
          skip(T::DEPTH / channels), rest(T::DEPTH % channels), windows(windows + own_row()) {
        const u32 at = threadIdx.x % PER_ROW, tap = at * ELEMENTS / channels;
        channel = at * ELEMENTS % channels, tap_row = tap / taps.cols, tap_col = tap % taps.cols;
        to = AlongDepth<T>::swizzled(own_row(), at * BYTES / 16) + at * BYTES % 16;
    }

    // The first of this thread's rows and columns.
    static __device__ u32 own_row() { return threadIdx.x / PER_ROW; }

    static __device__ void copy_chunk(u32 to, const Stored* from, bool exists) {
        if (BYTES == 16) copy_async_16(to, from, exists ? 16 : 0);
        else copy_async_8(to, from, exists ? 8 : 0);
    }

    // Starts the copies of the next step.
    __device__ void copy(u32 stage) {
        const bool exists = tap_row < taps.rows;
        const u32 tap = exists ? 1u << tap_row | 0x10000u << tap_col : ~0u;
        const u32 source = tap_row * row + tap_col * pixel + channel;
#pragma unroll
        for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
            const Window window = windows[slot * APART];
            const bool inside = (window.inside & tap) == tap;
            const Stored* from = images + (inside ? window.first + source : 0);
            copy_chunk(stage + to + slot * APART * T::STEP_BYTES, from, inside);
        }
        const u32 weight = taps.first + tap_row * taps.row_step + tap_col * taps.col_step + channel;
#pragma unroll
        for (u32 slot = 0; slot < COL_SLOTS; ++slot) {
            const bool inside = exists && slot < count;
            copy_chunk(stage + to + (T::ROWS + slot * APART) * T::STEP_BYTES,
                       filters + (inside ? slot * filter + weight : 0), inside);
        }
        channel += rest, tap_col += skip;
        if (channel >= channels) channel -= channels, ++tap_col;
        while (tap_col >= taps.cols) tap_col -= taps.cols, ++tap_row;
    }
};

// Finishes a tile in the memory of the stages, or of a little more: the whole tile is laid out before any of it is
// finished, so that the registers of its sums are free by then.
template <class T, class F, class Pixels>
__device__ inline void finish_tile(const F& p, const float (&sums)[T::M][T::N][4], float* shared, u32 first, u32 cols,
                                   const Pixels& pixels, u32 tile) {
    using Whole = FinishTile<typename T::E, T::ROWS, T::COLS, T::THREADS>;
    __syncthreads();
    stage_sums<T>(sums, shared + T::warp_row() * Whole::PITCH + T::warp_col(), Whole::PITCH);
    p.template prepare<Whole>(shared, first, min(cols, T::COLS), threadIdx.x);
    __syncthreads();
    Finish<Whole, F> finish(p, shared, first, cols, threadIdx.x);
    finish.rows(shared, pixels);
    __syncthreads();
    finish.write_sums(shared, WholeBlock{}, tile);
}
