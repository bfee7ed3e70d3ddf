// How the batchnorm kernels share work on x [rows, C], and how they add up.
//
// Kernels over x walk it in tiles of TILE rows: a block takes COLUMNS * V channels of one tile, a thread V channels of
// every LANES-th row. V is 4 where C is a multiple of 4, else 1; it is 8 in bf16, whose C is a multiple of 8. Where C
// is a multiple of 64, a warp reads runs of 128 bytes or more. Sums are taken over a thread's rows, then over lanes;
// the tiles' sums are merged in f64, in an order that depends on their number alone.
//
// Where a ReLU was positive is kept as a bit per element, [rows, C / 8] bytes: bit j of byte b is channel 8 * b + j.
#pragma once
#include "pack.cuh"

constexpr u32 THREADS = 256;
constexpr u32 TILE = 128;

// Channels of a thread, and threads that lie side by side along the channels and along the rows.
template <u32 V>
struct Columns {
    static constexpr u32 COLUMNS = V == 8 ? 8 : 16, LANES = THREADS / COLUMNS, CHANNELS = COLUMNS * V;

    u32 tile, lane, channel, channels;

    __device__ explicit Columns(u32 channels) : lane(threadIdx.x / COLUMNS), channels(channels) {
        const u32 groups = (channels + CHANNELS - 1) / CHANNELS;
        tile = blockIdx.x / groups;
        channel = blockIdx.x % groups * CHANNELS + threadIdx.x % COLUMNS * V;
    }

    __device__ bool has_channels() const { return channel < channels; }
    // Whether this thread writes what its lanes have in common.
    __device__ bool speaks() const { return lane == 0 && has_channels(); }
    // Its place in [tiles, C].
    __device__ u64 partial() const { return u64(tile) * channels + channel; }
    // Per-channel numbers.
    __device__ Pack<float, V> of(const float* numbers) const {
        return has_channels() ? load<V>(numbers + channel) : Pack<float, V>{};
    }
};

// This thread's share of x: rows number i of PER_THREAD.
template <u32 V>
struct Share : Columns<V> {
    static constexpr u32 PER_THREAD = TILE / Columns<V>::LANES;
    // Rows that a thread reads before it writes any: enough loads under way to keep memory busy.
    static constexpr u32 BATCH = V == 8 ? 2 : 4;

    u32 rows;

    __device__ Share(u32 rows, u32 channels) : Columns<V>(channels), rows(rows) {}

    __device__ u32 row(u32 i) const { return this->tile * TILE + this->lane + i * this->LANES; }
    __device__ bool has(u32 i) const { return this->has_channels() && row(i) < rows; }
    __device__ u64 at(u32 i) const { return u64(row(i)) * this->channels + this->channel; }
    // BATCH of its rows of `from`, the first of which is number `first`; zeros where it has none.
    template <class T>
    __device__ void load(const T* from, u32 first, Pack<T, V> (&to)[BATCH]) const {
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) to[k] = has(first + k) ? ::load<V>(from + at(first + k)) : Pack<T, V>{};
    }
    __device__ u32 rows_of_tile() const { return min(TILE, rows - this->tile * TILE); }
};

// Which elements are positive, a bit each.
template <u32 V>
__device__ inline u32 positives(const Pack<float, V>& x) {
    u32 bits = 0;
#pragma unroll
    for (u32 j = 0; j < V; ++j) bits |= u32(x.at[j] > 0.0f) << j;
    return bits;
}

// The bits of V elements from number `at` on.
template <u32 V>
__device__ inline u32 load_mask(const u8* mask, u64 at) {
    return mask[at / 8] >> (V == 4 ? at & 4 : 0);
}

// Stores the bits of V elements from number `at` on, if `mine`. All threads of a warp take part: two that have four
// channels each make a byte.
template <u32 V>
__device__ inline void store_mask(u8* mask, u64 at, u32 bits, bool mine) {
    if (V == 4) bits |= __shfl_xor_sync(0xffffffff, bits, 1) << 4;
    if (mine && at % 8 == 0) mask[at / 8] = u8(bits);
}

// The sum over the lanes of each channel, in their order; all threads get it.
template <u32 V>
__device__ inline Pack<float, V> over_lanes(const Pack<float, V>& own) {
    // In quarters of 16 bytes, which neighbouring threads store side by side.
    constexpr u32 Q = V < 4 ? V : 4, PARTS = V / Q, COLUMNS = Columns<V>::COLUMNS, LANES = Columns<V>::LANES;
    __shared__ Pack<float, Q> sums[PARTS][LANES][COLUMNS];
    const u32 column = threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part)
#pragma unroll
        for (u32 j = 0; j < Q; ++j) sums[part][lane][column].at[j] = own.at[part * Q + j];
    __syncthreads();
    // A thread per channel adds up.
    if (threadIdx.x < COLUMNS * V) {
        const u32 part = threadIdx.x / (COLUMNS * Q), column = threadIdx.x / Q % COLUMNS, j = threadIdx.x % Q;
        float total = sums[part][0][column].at[j];
#pragma unroll 8
        for (u32 lane = 1; lane < LANES; ++lane) total += sums[part][lane][column].at[j];
        sums[part][0][column].at[j] = total;
    }
    __syncthreads();
    Pack<float, V> total;
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part)
#pragma unroll
        for (u32 j = 0; j < Q; ++j) total.at[part * Q + j] = sums[part][0][column].at[j];
    __syncthreads();
    return total;
}

// Merging tiles [tiles, C]: a block takes `width` channels, 2 to 32 of them, a thread every so-many-th tile of one. Few
// channels of many tiles make more blocks, which a long column of tiles needs.
constexpr u32 MERGE_THREADS = 1024;

struct Merge {
    u32 channel, lane, lanes, width;

    __device__ explicit Merge(u32 width)
        : channel(blockIdx.x * width + threadIdx.x % width),
          lane(threadIdx.x / width),
          lanes(MERGE_THREADS / width),
          width(width) {}

    // The sum over the lanes that share a channel: over a warp's as a tree, then over the warps in order; all threads
    // get it.
    __device__ double over_lanes(double own) const {
        constexpr u32 WARPS = MERGE_THREADS / 32;
        __shared__ double sums[WARPS][32];
        for (u32 distance = 16; distance >= width; distance /= 2) own += __shfl_xor_sync(0xffffffff, own, distance);
        if (threadIdx.x % 32 < width) sums[threadIdx.x / 32][threadIdx.x % 32] = own;
        __syncthreads();
        if (threadIdx.x < width) {
            double total = sums[0][threadIdx.x];
#pragma unroll 8
            for (u32 warp = 1; warp < WARPS; ++warp) total += sums[warp][threadIdx.x];
            sums[0][threadIdx.x] = total;
        }
        __syncthreads();
        const double total = sums[0][threadIdx.x % width];
        __syncthreads();
        return total;
    }
};
