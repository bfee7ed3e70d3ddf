// Convolution, gradient of the weight:  dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k]
// * x[n, p*stride - padding + r, q*stride - padding + s, c].
//
// Implicit GEMM per group: rows are filters, columns the window (r, s, c), and the reduction runs over output pixels.
// That one is long and the tiles are few, so it is cut into slices of whole segments, as many as the shape asks for;
// conv_merge adds the slices in order.
// Operations: 2*N*P*Q*K*R*S*C/groups. Bytes: dy once per column tile, x once per tap and row tile (both mostly from
// L2), slices times dw.
// Tiles 128x64, 64x64 (256 threads), 64x16 and 16x64 (64 threads), 16 deep; shared memory 25.8, 17.8, 11.2 and 11.8 KB.
// Bound by the FP32 pipes.
#include "conv.cuh"

struct ConvWeightGradParams {
    const float* grad;
    const float* input;
    float* output;  // [slices, K, R, S, C / groups]
    ConvExtents extents;
    u32 pixels;        // N * P * Q
    u32 slice_pixels;  // a multiple of SEGMENT
};

// The output gradient of a group with filters as rows: a[row][k], contiguous along the rows.
template <class T>
struct Grads : AcrossDepth<T, T::ROWS> {
    using Base = AcrossDepth<T, T::ROWS>;
    using Base::SLOTS, Base::STRIDE, Base::staged;
    const ConvExtents& e;
    const float* grad;  // of this thread's first filter
    u32 pixel, end, valid;

    __device__ Grads(const ConvExtents& e, const float* grad, u32 rows, u32 from, u32 end)
        : e(e), grad(grad + Base::index()), pixel(from + Base::depth()), end(end),
          valid(rows > Base::index() ? rows - Base::index() : 0) {}

    __device__ void fetch() {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot) {
            staged[slot] = load4(grad + u64(pixel) * e.k, e.group_k % 4 == 0, pixel < end ? valid : 0);
            pixel += STRIDE;
        }
    }
};

// The windows of a group with their values as columns: b[k][col], where k is the output pixel; contiguous along the
// columns. The `places` of the columns are those of their taps in a window, and their channels.
template <class T>
struct Patches : AcrossDepth<T, T::COLS> {
    using Base = AcrossDepth<T, T::COLS>;
    using Base::SLOTS, Base::STRIDE, Base::staged;
    const ConvExtents& e;
    Images images;
    const Place* places;
    u32 pixel, end;
    Index3 at;

    __device__ Patches(const ConvExtents& e, const float* input, const Place* places, u32 from, u32 end)
        : e(e), images{input, e.h, e.w, e.c}, places(places + Base::index()), pixel(from + Base::depth()), end(end),
          at(pixel, e.p, e.q) {}

    __device__ void fetch() {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot) {
            if (e.group_c % 4 == 0) {
                const float* from = value(places[0]);
                staged[slot] = from ? *reinterpret_cast<const float4*>(from) : zero4();
            } else {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    const float* from = value(places[i]);
                    component(staged[slot], i) = from ? *from : 0.0f;
                }
            }
            pixel += STRIDE;
            at.advance(STRIDE, e.p, e.q);
        }
    }

    // The address of a tap's value in the current window, none if there is no such pixel or the tap lies outside.
    __device__ const float* value(const Place& tap) const {
        const i32 y = i32(at.middle * e.stride) - i32(e.padding) + tap.y;
        const i32 x = i32(at.inner * e.stride) - i32(e.padding) + tap.x;
        if (pixel >= end || !images.contains(y, x)) return nullptr;
        return images.pixel((at.outer * images.h + u32(y)) * images.w + u32(x)) + tap.base;
    }
};

template <class T>
__device__ inline void weight_grad(const ConvWeightGradParams& p) {
    const ConvExtents& e = p.extents;
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(e.window, T::COLS)) * T::COLS;
    const u32 first_row = take_digit(block, ceil_div(e.group_k, T::ROWS)) * T::ROWS;
    const u32 group = take_digit(block, e.groups), slice = block;
    const u32 from = slice * p.slice_pixels, end = min(from + p.slice_pixels, p.pixels);

    __shared__ Place places[T::COLS];
    if (threadIdx.x < T::COLS) {
        const u32 col = first_col + threadIdx.x;
        const Index3 at(col, e.s, e.group_c);
        places[threadIdx.x] = col < e.window ? Place{i32(at.outer), i32(at.middle), at.inner} : Place::nowhere();
    }
    __syncthreads();
    Grads<T> grads(e, p.grad + group * e.group_k + first_row, e.group_k - first_row, from, end);
    Patches<T> patches(e, p.input + group * e.group_c, places, from, end);
    __shared__ Stages<T> stages;
    float sums[T::HEIGHT][4];
    multiply<T>(grads, patches, end - from, stages, sums);

    const u32 col = first_col + T::col(), valid = col < e.window ? e.window - col : 0;
    float* output = p.output + u64(slice) * e.k * e.window + col;
#pragma unroll
    for (u32 i = 0; i < T::HEIGHT; ++i) {
        const u32 row = first_row + T::row(i);
        if (row < e.group_k)
            store4(output + u64(group * e.group_k + row) * e.window,
                   make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), e.window % 4 == 0, valid);
    }
}

CONV_KERNELS(conv_weight_grad, ConvWeightGradParams, weight_grad)
