// Convolution, forward:  y[n, p, q, k] = sum over r, s, c of x[n, p*stride - padding + r, q*stride - padding + s, c]
// * w[k, r, s, c], with zeros outside the image; then the epilogue (epilogue.cuh), and where asked for the moments of
// each tile's outputs per channel, for batchnorm.
//
// Implicit GEMM: rows are output pixels (N*P*Q), columns the filters of a group, k runs over the window (r, s, c).
// Operations: 2*N*P*Q*K*R*S*C/groups. Bytes, with f32 elements: the input once per column tile (neighbouring blocks
// share it through L2), the weights once per row tile (from L2), the output once.
// Tiles 128x64, 64x64 (256 threads), 64x16 and 16x64 (64 threads), 16 deep; shared memory 30.5, 21.8, 12.8 and 12.2 KB.
// Bound by the FP32 pipes where the window is long: 12 values read from shared memory per 32 multiply-adds (128x64).
#include "conv.cuh"
#include "epilogue.cuh"

struct ConvForwardParams {
    const float* input;
    const float* weight;
    float* output;          // or, with several slices, the sums of each segment of k: [slices, rows, K]
    const float* scale;     // [K] or null; then `shift` is there too
    const float* shift;     // [K] or null
    const float* residual;  // like the output, or null
    float* mean;            // [row tiles, K] or null: of the tile's outputs
    float* m2;              // [row tiles, K] with `mean`: sums of squared distances from the tile's mean
    ConvExtents extents;
    u32 rows;               // N * P * Q
    u32 slices;             // 1, or one per segment of the window: then without epilogue
    u32 relu;
};

// The filters of a group as columns: b[k][col], contiguous along k.
template <class T>
struct Filters : AlongDepth<T, T::COLS> {
    using Base = AlongDepth<T, T::COLS>;
    using Base::SLOTS, Base::staged;
    const float* filters;
    u32 count, window, k, end;
    bool vector;

    __device__ Filters(const float* filters, u32 count, u32 window, u32 from, u32 end, bool vector)
        : filters(filters), count(count), window(window), k(from + Base::depth()), end(end), vector(vector) {}

    __device__ void fetch() {
        const u32 valid = k < end ? end - k : 0;
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot) {
            const u32 col = Base::index(slot);
            staged[slot] = load4(filters + u64(col) * window + k, vector, col < count ? valid : 0);
        }
        k += DEPTH;
    }
};

// Moments of each column over the tile's rows: the mean, then what rounding left of it, then the distances from it.
template <class T>
__device__ inline void write_moments(float (&values)[T::HEIGHT][4], u32 rows, u32 cols, float* mean, float* m2) {
    __shared__ float sums[T::THREAD_ROWS][T::COLS];
    float centre[4] = {}, column[4];
    for (u32 pass = 0; pass < 3; ++pass) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < T::HEIGHT; ++i) {
                const float distance = values[i][j] - centre[j];
                if (T::row(i) < rows) sum += pass < 2 ? distance : distance * distance;
            }
            sums[T::thread_row()][T::col() + j] = sum;
        }
        __syncthreads();
        // Every thread adds up its own columns, in the same order.
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            column[j] = 0.0f;
            for (u32 i = 0; i < T::THREAD_ROWS; ++i) column[j] += sums[i][T::col() + j];
            if (pass < 2) centre[j] += column[j] / float(rows);
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 j = 0; j < 4; ++j)
        if (T::thread_row() == 0 && T::col() + j < cols) mean[T::col() + j] = centre[j], m2[T::col() + j] = column[j];
}

template <class T>
__device__ inline void forward(const ConvForwardParams& p) {
    const ConvExtents& e = p.extents;
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(e.group_k, T::COLS)) * T::COLS;
    const u32 row_tile = take_digit(block, ceil_div(p.rows, T::ROWS)), first_row = row_tile * T::ROWS;
    const u32 group = take_digit(block, e.groups), slice = block;
    const u32 from = slice * SEGMENT, end = p.slices > 1 ? min(from + SEGMENT, e.window) : e.window;

    __shared__ Place places[T::ROWS];
    if (threadIdx.x < T::ROWS) {
        const u32 row = first_row + threadIdx.x;
        const Index3 at(row, e.p, e.q);
        const i32 y = i32(at.middle * e.stride) - i32(e.padding), x = i32(at.inner * e.stride) - i32(e.padding);
        places[threadIdx.x] = row < p.rows ? Place{y, x, at.outer * e.h * e.w} : Place::nowhere();
    }
    __syncthreads();
    Windows<T, 1> windows({p.input + group * e.group_c, e.h, e.w, e.c}, places, e.s, e.group_c, from, end);
    const u32 first_filter = group * e.group_k + first_col;
    const float* weight = p.weight + u64(first_filter) * e.window;
    Filters<T> filters(weight, e.group_k - first_col, e.window, from, end, windows.vector);

    __shared__ Stages<T> stages;
    float sums[T::HEIGHT][4];
    multiply<T>(windows, filters, end - from, stages, sums);

    const u32 cols = min(T::COLS, e.group_k - first_col), rows = min(T::ROWS, p.rows - first_row);
    const bool vector = e.group_k % 4 == 0;
    const u32 valid = T::col() < cols ? cols - T::col() : 0;
    float* output = p.output + u64(slice) * p.rows * e.k;
#pragma unroll
    for (u32 i = 0; i < T::HEIGHT; ++i) {
        if (T::row(i) >= rows) continue;
        const u64 at = u64(first_row + T::row(i)) * e.k + first_filter + T::col();
        if (p.slices == 1)
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                if (j < valid) sums[i][j] = finish(p, sums[i][j], first_filter + T::col() + j, at + j);
        store4(output + at, make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), vector, valid);
    }
    if (p.mean) {
        const u64 at = u64(row_tile) * e.k + first_filter;
        write_moments<T>(sums, rows, cols, p.mean + at, p.m2 + at);
    }
}

CONV_KERNELS(conv_forward, ConvForwardParams, forward)
