// Convolution, gradient of the input:  dx[n, y, x, c] = sum over r, s, k of dy[n, (y + padding - r) / stride,
// (x + padding - s) / stride, k] * w[k, r, s, c], over those r and s for which the divisions leave no remainder and the
// pixel exists.
//
// Which taps those are depends on (y + padding) % stride and (x + padding) % stride alone. So the input's pixels fall
// into stride * stride classes, and within each the sum is a convolution of dy with stride 1, whose window holds every
// stride-th tap: no product is wasted, nothing is scattered. A class without taps (stride > R) becomes zeros.
//
// Implicit GEMM per class and group: rows are input pixels, columns input channels, k runs over (tap row, tap column,
// filter). Operations: 2*N*P*Q*K*R*S*C/groups. Bytes: dy once per column tile (shared through L2), the weights
// once per row tile (from L2), dx once.
// Tiles 128x64, 64x64 (256 threads), 64x16 and 16x64 (64 threads), 16 deep; shared memory 26.5, 17.8, 11.8 and 11.2 KB.
// Bound by the FP32 pipes where K is large.
#include "conv.cuh"

struct ConvInputGradParams {
    const float* grad;
    const float* weight;
    float* output;  // or, with several slices, the sums of each segment of k: [slices, N, H, W, C]
    ConvExtents extents;
    u32 slices;  // 1, or one per segment of the longest window
};

// The weights of a group with channels as columns: b[k][col], contiguous along the columns.
template <class T>
struct Turned : AcrossDepth<T, T::COLS> {
    using Base = AcrossDepth<T, T::COLS>;
    using Base::SLOTS, Base::STRIDE, Base::staged;
    const ConvExtents& e;
    const float* weight;  // of the group's first filter, the class's first tap and this thread's first column
    u32 tap_cols, k, end, valid;
    Index3 at;

    __device__ Turned(const ConvExtents& e, const float* weight, u32 cols, u32 tap_cols, u32 from, u32 end)
        : e(e), weight(weight + Base::index()), tap_cols(tap_cols), k(from + Base::depth()), end(end),
          valid(cols > Base::index() ? cols - Base::index() : 0), at(k, tap_cols, e.group_k) {}

    __device__ void fetch() {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot) {
            const u32 tap = (at.inner * e.r + e.stride * at.outer) * e.s + e.stride * at.middle;
            staged[slot] = load4(weight + u64(tap) * e.group_c, e.group_c % 4 == 0, k < end ? valid : 0);
            k += STRIDE;
            at.advance(STRIDE, tap_cols, e.group_k);
        }
    }
};

template <class T>
__device__ inline void input_grad(const ConvInputGradParams& p) {
    const ConvExtents& e = p.extents;
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(e.group_c, T::COLS)) * T::COLS;
    const u32 most_rows = e.n * ceil_div(e.h, e.stride) * ceil_div(e.w, e.stride);
    const u32 first_row = take_digit(block, ceil_div(most_rows, T::ROWS)) * T::ROWS;
    const u32 group = take_digit(block, e.groups);
    const Axis cols(take_digit(block, e.stride), e.w, e.s, e.stride, e.padding);
    const Axis rows(take_digit(block, e.stride), e.h, e.r, e.stride, e.padding);
    const u32 slice = block;
    const u32 pixels = e.n * rows.pixels * cols.pixels;
    if (first_row >= pixels) return;
    const u32 window = rows.taps * cols.taps * e.group_k;
    const u32 from = min(slice * SEGMENT, window), end = p.slices > 1 ? min(from + SEGMENT, window) : window;

    float sums[T::HEIGHT][4] = {};
    if (from < end) {
        __shared__ Place places[T::ROWS];
        if (threadIdx.x < T::ROWS) {
            const u32 row = first_row + threadIdx.x;
            const Index3 at(row, rows.pixels, cols.pixels);
            const i32 y = rows.source + i32(at.middle), x = cols.source + i32(at.inner);
            places[threadIdx.x] = row < pixels ? Place{y, x, at.outer * e.p * e.q} : Place::nowhere();
        }
        __syncthreads();
        Windows<T, -1> windows({p.grad + group * e.group_k, e.p, e.q, e.k}, places, cols.taps, e.group_k, from, end);
        const u32 tap = (group * e.group_k * e.r + rows.first_tap) * e.s + cols.first_tap;
        Turned<T> weights(e, p.weight + u64(tap) * e.group_c + first_col, e.group_c - first_col, cols.taps, from, end);
        __shared__ Stages<T> stages;
        multiply<T>(windows, weights, end - from, stages, sums);
    }

    const u32 col = first_col + T::col(), valid = col < e.group_c ? e.group_c - col : 0;
    float* output = p.output + u64(slice) * (e.n * e.h * e.w) * e.c + group * e.group_c + col;
#pragma unroll
    for (u32 i = 0; i < T::HEIGHT; ++i) {
        const u32 row = first_row + T::row(i);
        if (row >= pixels) continue;
        const Index3 at(row, rows.pixels, cols.pixels);
        const u32 y = rows.first + at.middle * e.stride, x = cols.first + at.inner * e.stride;
        store4(output + u64((at.outer * e.h + y) * e.w + x) * e.c,
               make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), e.group_c % 4 == 0, valid);
    }
}

CONV_KERNELS(conv_input_grad, ConvInputGradParams, input_grad)
