// The matrix product under the tensor-core convolutions: a block computes a ROWS x COLS tile of
// out[row][col] = sum over k of a[row][k] * b[col][k], with f32 sums.
//
// Both operands pass through shared memory in steps of DEPTH values of k (32 bf16 or 16 f32), copied in the background
// STAGES - 1 steps ahead of their use; a barrier per step tells that a stage has landed and that another may be
// overwritten. Four warps, two by two, each multiply a quarter of the tile, from fragments that are loaded while the
// tensor cores work on those before.
//
// How an output is summed depends on k alone: mma after mma in order of k, whatever the tile. Every tile gives the same
// bits.
#pragma once
#include "element.cuh"

template <class E_, u32 ROWS_, u32 COLS_>
struct MmaTile {
    using E = E_;
    static constexpr u32 ROWS = ROWS_, COLS = COLS_, THREADS = 128, STAGES = 4;
    // Of a warp, and its fragments' sums: M x N of 16x8.
    static constexpr u32 WARP_ROWS = ROWS / 2, WARP_COLS = COLS / 2, M = WARP_ROWS / 16, N = WARP_COLS / 8;
    static constexpr u32 STEP_BYTES = 64, DEPTH = STEP_BYTES / sizeof(typename E::Stored);
    static constexpr u32 STAGE_BYTES = (ROWS + COLS) * STEP_BYTES;

    // This warp's first row and column.
    static __device__ u32 warp_row() { return threadIdx.x / 64 * WARP_ROWS; }
    static __device__ u32 warp_col() { return threadIdx.x / 32 % 2 * WARP_COLS; }
};

// What a warp multiplies at once: 32 bytes of k of all its rows and columns.
template <class T>
struct Fragments {
    u32 a[T::M][4], b[T::N][2];

    __device__ void multiply(float (&sums)[T::M][T::N][4]) {
#pragma unroll
        for (u32 n = 0; n < T::N; ++n) T::E::prepare(b[n]);
#pragma unroll
        for (u32 m = 0; m < T::M; ++m) {
            T::E::prepare(a[m]);
#pragma unroll
            for (u32 n = 0; n < T::N; ++n) T::E::multiply(sums[m][n], a[m], b[n]);
        }
    }
};

// Fragments of operands that are contiguous along k. In a stage a row is four chunks of 16 bytes, of which chunk c of
// row r lies at c ^ (r / 2 % 4): the eight rows of an 8x8 matrix, which ldmatrix reads at once, then meet all 32 banks,
// and so do copies. A matrix of 16-bit elements is one chunk wide; four f32 fill a chunk just as eight bf16 do, and lie
// in ldmatrix's result as mma wants TF32 operands. So both element types share every line.
template <class T>
struct AlongDepth : Fragments<T> {
    using Fragments<T>::a, Fragments<T>::b;

    // Where 16 bytes of a row of a stage lie.
    static __device__ u32 swizzled(u32 row, u32 chunk) { return row * 64 + (chunk ^ (row / 2 % 4)) * 16; }

    // From the stage at `stage`; `half` 0 or 1 of its k.
    __device__ void load(u32 stage, u32 half) {
        const u32 lane = threadIdx.x % 32;
        const u32 rows = stage + T::warp_row() * T::STEP_BYTES + (swizzled(lane % 16, lane / 16) ^ half * 32);
#pragma unroll
        for (u32 m = 0; m < T::M; ++m) load_matrix_x4(a[m], rows + m * 16 * T::STEP_BYTES);
        const u32 cols = stage + (T::ROWS + T::warp_col()) * T::STEP_BYTES +
                         (swizzled(lane / 16 * 8 + lane % 8, lane / 8 % 2) ^ half * 32);
#pragma unroll
        for (u32 n = 0; n < T::N; n += 2) {
            u32 both[4];
            load_matrix_x4(both, cols + n * 8 * T::STEP_BYTES);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) b[n + i / 2][i % 2] = both[i];
        }
    }
};

// Fragments of operands that are contiguous along their rows and columns: a stage has DEPTH values of k, each with all
// rows, then likewise with all columns. Of 16-bit elements ldmatrix transposes; f32 are read one by one. In both, the
// chunks of 16 bytes are swapped within eight, by k, so that lanes meet all 32 banks.
template <class T>
struct AcrossDepth : Fragments<T> {
    using Fragments<T>::a, Fragments<T>::b;
    static constexpr u32 SIZE = sizeof(typename T::E::Stored);

    // Where chunk number `chunk` of value k lies, of an operand with `extent` rows or columns.
    static __device__ u32 swizzled(u32 extent, u32 k, u32 chunk) {
        return k * extent * SIZE + (chunk ^ (SIZE == 2 ? k % 8 : k % 4 * 2)) * 16;
    }

    __device__ void load(u32 stage, u32 half) {
        const u32 lane = threadIdx.x % 32, cols = stage + T::ROWS * T::DEPTH * SIZE;
        if constexpr (SIZE == 2) {
#pragma unroll
            for (u32 m = 0; m < T::M; ++m) {
                const u32 k = half * 16 + lane / 16 * 8 + lane % 8, chunk = T::warp_row() / 8 + m * 2 + lane / 8 % 2;
                load_matrix_x4_transposed(a[m], stage + swizzled(T::ROWS, k, chunk));
            }
#pragma unroll
            for (u32 n = 0; n < T::N; n += 2) {
                const u32 k = half * 16 + lane % 16, chunk = T::warp_col() / 8 + n + lane / 16;
                u32 both[4];
                load_matrix_x4_transposed(both, cols + swizzled(T::COLS, k, chunk));
#pragma unroll
                for (u32 i = 0; i < 4; ++i) b[n + i / 2][i % 2] = both[i];
            }
        } else {
            // Lane l wants value l % 4 of k, and number l / 4 of eight rows or columns: of two chunks, which lie in
            // four ways among the eight that are swapped.
            const u32 rows = stage + T::warp_row() * SIZE, k = half * 8 + lane % 4, within = lane / 4 % 4 * SIZE;
            u32 ways[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) ways[i] = swizzled(0, k, 2 * i + lane / 16) + within;
#pragma unroll
            for (u32 m = 0; m < T::M; ++m)
#pragma unroll
                for (u32 i = 0; i < 4; ++i)
                    a[m][i] = load_shared(rows + (k + i / 2 * 4) * T::ROWS * SIZE + ways[(2 * m + i % 2) % 4] +
                                          m / 2 * 128);
#pragma unroll
            for (u32 n = 0; n < T::N; ++n)
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
                    b[n][i] = load_shared(cols + T::warp_col() * SIZE + (k + i * 4) * T::COLS * SIZE + ways[n % 4] +
                                          n / 4 * 128);
        }
    }
};

// Adds the product over `steps` steps, at least one. `operands.copy(stage)` starts the copies of the next step into the
// stage at that address of shared memory. All threads of the block take part; behind a barrier the stages are free.
template <class T, class Fragments, class Operands>
__device__ inline void multiply(Operands& operands, u32 steps, u32 stages, float (&sums)[T::M][T::N][4]) {
#pragma unroll
    for (u32 step = 0; step < T::STAGES - 1; ++step) {
        if (step < steps) operands.copy(stages + step * T::STAGE_BYTES);
        copy_async_commit();
    }
    copy_async_wait<T::STAGES - 2>();
    __syncthreads();
    u32 current = stages, free = stages + (T::STAGES - 1) * T::STAGE_BYTES;
    Fragments first, second;
    first.load(current, 0);
    for (u32 step = 0; step < steps; ++step) {
        second.load(current, 1);
        first.multiply(sums);
        if (step + T::STAGES - 1 < steps) operands.copy(free);
        copy_async_commit();
        // All threads have now read the current stage and the next one has landed.
        copy_async_wait<T::STAGES - 2>();
        __syncthreads();
        free = current;
        current = current + T::STAGE_BYTES < stages + T::STAGES * T::STAGE_BYTES ? current + T::STAGE_BYTES : stages;
        if (step + 1 < steps) first.load(current, 0);
        second.multiply(sums);
    }
}

// Lays a warp's sums into a tile of f32, `pitch` to a row, of which `to` is this warp's first row and column.
template <class T>
__device__ inline void stage_sums(const float (&sums)[T::M][T::N][4], float* to, u32 pitch) {
    const u32 first = shared_address(to) + (threadIdx.x % 32 / 4 * pitch + threadIdx.x % 4 * 2) * 4;
#pragma unroll
    for (u32 m = 0; m < T::M; ++m)
#pragma unroll
        for (u32 n = 0; n < T::N; ++n)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                store_shared_x2(first + ((m * 16 + half * 8) * pitch + n * 8) * 4, sums[m][n][2 * half],
                                sums[m][n][2 * half + 1]);
}
