// The matrix product under the convolutions and the linear layer, in f32 without tensor cores.
//
// A block computes a ROWS x COLS tile of  out[row][col] = sum over k of a[row][k] * b[k][col].  In steps of DEPTH
// values of k it stages both operands in shared memory, k first, and each thread multiplies HEIGHT rows by 4 columns in
// registers. Two stages alternate: global loads of the next step are in flight while this one is multiplied, and one
// barrier per step suffices.
//
// How an output is summed depends on the layer alone, never on the tile, the grid or the batch: SEGMENT products are
// accumulated in order of k from zero by fused multiply-adds, and the segments' sums are added in order. Every tile
// therefore gives the same bits, and so do blocks that take one segment each. It also keeps the rounding error of a
// long reduction small.
//
// Where the operands come from is up to the loaders (see conv.cuh). A loader keeps its place on the axis of k: each
// `fetch` reads its thread's share of the next step into registers, with zeros outside the operand, and `store` puts
// the share into a stage.
#pragma once
#include "common.cuh"

constexpr u32 DEPTH = 16;
constexpr u32 SEGMENT = 256;
constexpr u32 STEPS_PER_SEGMENT = SEGMENT / DEPTH;

template <u32 ROWS_, u32 COLS_, u32 THREADS_>
struct Tile {
    static constexpr u32 ROWS = ROWS_, COLS = COLS_, THREADS = THREADS_;
    // Threads along each axis, and rows of one thread; its columns are 4.
    static constexpr u32 THREAD_COLS = COLS / 4, THREAD_ROWS = THREADS / THREAD_COLS, HEIGHT = ROWS / THREAD_ROWS;
    static_assert(HEIGHT % 4 == 0, "a thread reads its rows four at a time");
    // Threads of a warp along each axis. Neighbouring lanes share their columns, and both halves of a warp hold few
    // different rows and columns, so that a half reads a vector of either operand in one pass over shared memory.
    static constexpr u32 WARP_COLS = THREAD_COLS < 8 ? THREAD_COLS : 8, WARP_ROWS = 32 / WARP_COLS;

    static __device__ u32 thread_col() {
        return threadIdx.x / 32 % (THREAD_COLS / WARP_COLS) * WARP_COLS + threadIdx.x % 32 / 2 % WARP_COLS;
    }
    static __device__ u32 thread_row() {
        const u32 within_warp = threadIdx.x % 2 + threadIdx.x % 32 / (2 * WARP_COLS) * 2;
        return threadIdx.x / 32 / (THREAD_COLS / WARP_COLS) * WARP_ROWS + within_warp;
    }

    // The first of this thread's four columns within the tile.
    static __device__ u32 col() { return thread_col() * 4; }

    // This thread's row number i within the tile: runs of four, so that they are read as vectors.
    static __device__ u32 row(u32 i) { return (i / 4 * THREAD_ROWS + thread_row()) * 4 + i % 4; }
};

// One operand of one step, k first. The padding keeps vectors aligned and spreads transposed stores over the banks.
template <u32 EXTENT>
using Stage = float[DEPTH][EXTENT + 4];

template <class T>
struct alignas(16) Stages {
    Stage<T::ROWS> a[2];
    Stage<T::COLS> b[2];
};

__device__ inline float4 zero4() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

__device__ inline float& component(float4& v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Four neighbours of which the first `valid` exist; as one vector where the address allows.
__device__ inline float4 load4(const float* from, bool vector, u32 valid) {
    if (vector) return valid ? *reinterpret_cast<const float4*>(from) : zero4();
    float4 v = zero4();
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
        if (i < valid) component(v, i) = from[i];
    return v;
}

__device__ inline void store4(float* to, float4 v, bool vector, u32 valid) {
    if (vector) {
        if (valid) *reinterpret_cast<float4*>(to) = v;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
        if (i < valid) to[i] = component(v, i);
}

// How a block's threads share the loads of an operand whose memory is contiguous along k: a thread reads four values of
// k in each of SLOTS rows. A warp reads 16 rows of 32 bytes (whole sectors) and stores them, transposed, to 32 banks.
template <class T, u32 EXTENT>
struct AlongDepth {
    static constexpr u32 SLOTS = EXTENT * DEPTH / 4 / T::THREADS;
    float4 staged[SLOTS];

    static __device__ u32 index(u32 slot) {
        return threadIdx.x / 64 * 16 + threadIdx.x % 32 / 2 + slot * (T::THREADS / 4);
    }
    static __device__ u32 depth() { return threadIdx.x / 32 % 2 * 8 + threadIdx.x % 2 * 4; }

    __device__ void store(Stage<EXTENT>& stage) {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) stage[depth() + i][index(slot)] = component(staged[slot], i);
    }
};

// The same for an operand whose memory is contiguous along its other axis: a thread reads four neighbours for each of
// SLOTS values of k, STRIDE apart.
template <class T, u32 EXTENT>
struct AcrossDepth {
    static constexpr u32 VECTORS = EXTENT / 4, STRIDE = T::THREADS / VECTORS, SLOTS = DEPTH / STRIDE;
    float4 staged[SLOTS];

    static __device__ u32 index() { return threadIdx.x % VECTORS * 4; }
    static __device__ u32 depth() { return threadIdx.x / VECTORS; }

    __device__ void store(Stage<EXTENT>& stage) {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot)
            *reinterpret_cast<float4*>(&stage[depth() + slot * STRIDE][index()]) = staged[slot];
    }
};

// Multiplies this thread's part of one step.
template <class T>
__device__ inline void multiply_stage(const Stage<T::ROWS>& a, const Stage<T::COLS>& b, float (&sum)[T::HEIGHT][4]) {
#pragma unroll
    for (u32 k = 0; k < DEPTH; ++k) {
        float left[T::HEIGHT];
#pragma unroll
        for (u32 i = 0; i < T::HEIGHT; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(&a[k][T::row(i)]);
            left[i] = v.x, left[i + 1] = v.y, left[i + 2] = v.z, left[i + 3] = v.w;
        }
        const float4 right = *reinterpret_cast<const float4*>(&b[k][T::col()]);
#pragma unroll
        for (u32 i = 0; i < T::HEIGHT; ++i) {
            sum[i][0] = fmaf(left[i], right.x, sum[i][0]);
            sum[i][1] = fmaf(left[i], right.y, sum[i][1]);
            sum[i][2] = fmaf(left[i], right.z, sum[i][2]);
            sum[i][3] = fmaf(left[i], right.w, sum[i][3]);
        }
    }
}

// The product over `count` values of k, from a multiple of SEGMENT on. All threads of the block take part.
template <class T, class A, class B>
__device__ inline void multiply(A& a, B& b, u32 count, Stages<T>& stages, float (&total)[T::HEIGHT][4]) {
    float part[T::HEIGHT][4];
#pragma unroll
    for (u32 i = 0; i < T::HEIGHT; ++i)
#pragma unroll
        for (u32 j = 0; j < 4; ++j) total[i][j] = part[i][j] = 0.0f;

    const u32 steps = ceil_div(count, DEPTH);
    for (u32 step = 0; step <= steps; ++step) {
        const bool more = step < steps;
        if (more) a.fetch(), b.fetch();
        if (step > 0) {
            multiply_stage<T>(stages.a[(step - 1) % 2], stages.b[(step - 1) % 2], part);
            if (step % STEPS_PER_SEGMENT == 0 || !more) {
#pragma unroll
                for (u32 i = 0; i < T::HEIGHT; ++i)
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) total[i][j] += part[i][j], part[i][j] = 0.0f;
            }
        }
        if (more) {
            a.store(stages.a[step % 2]), b.store(stages.b[step % 2]);
            __syncthreads();
        }
    }
}
