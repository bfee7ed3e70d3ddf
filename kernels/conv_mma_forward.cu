// Convolution on tensor cores, forward:  y[n, p, q, k] = sum over r, s, c of x[n, p*stride - padding + r,
// q*stride - padding + s, c] * w[k, r, s, c], with zeros outside the image; then the finish (finish.cuh).
//
// Implicit GEMM: rows are output pixels (N*P*Q), columns the filters of a group, k runs over the window (r, s, c).
// Input and output are bf16, or f32 multiplied as TF32. Groups are joined ones (conv_pack.cu). Kernels `by4` copy 8
// bytes at a time instead of 16, for images of four channels and groups whose channels are no multiple of eight.
//
// Operations: 2*N*P*Q*K*R*S*C/groups, and those of a k rounded up to a step. Bytes: the input once per tap and column
// tile (the taps of a pixel, and neighbouring blocks, share it through L2), the weights once per row tile (from L2),
// the output once, what the finish reads.
// Tiles 128x128, 128x64 and 64x64, 32 deep (16 of f32); shared memory 68, 48 and 32 KB and a table of windows, 1 KB;
// launch bounds of 255, 168 and 128 registers, so that 2, 3 and 4 blocks fit a multiprocessor that has the memory.
// Bound by memory below some 150 operations per byte (1x1 convolutions of few channels, the stem), else by the tensor
// cores; a 128x64 tile asks L2 for a byte per 43 operations, which is more than it gives on fast GPUs: hence
// conv_mma_patch.cu.
#include "conv_mma.cuh"

struct ConvMmaForwardParams {
    const void* input;
    const void* weight;  // [K, R, S, group_c]
    ForwardFinish finish;
    ConvExtents extents;
    u32 rows;  // N * P * Q
};

template <class T, u32 BYTES>
__device__ inline void forward(const ConvMmaForwardParams& p) {
    const ConvExtents& e = p.extents;
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(e.group_k, T::COLS)) * T::COLS;
    const u32 tile = take_digit(block, ceil_div(p.rows, T::ROWS)), first_row = tile * T::ROWS, group = block;

    const Images images = {p.input, e.h, e.w, e.c};
    const Taps taps = {e.r, e.s, 0, e.s * e.group_c, e.group_c};
    __shared__ Window windows[T::ROWS];
    if (threadIdx.x < T::ROWS) {
        const u32 row = first_row + threadIdx.x;
        const Index3 at(row, e.p, e.q);
        const i32 y = i32(at.middle * e.stride) - i32(e.padding), x = i32(at.inner * e.stride) - i32(e.padding);
        windows[threadIdx.x] = row < p.rows ? Window::at(images, taps, at.outer, y, x, group * e.group_c)
                                            : Window::nowhere();
    }
    __syncthreads();
    const u32 first_filter = group * e.group_k + first_col, filters = e.group_k - first_col;
    const auto* weight = static_cast<const typename T::E::Stored*>(p.weight) + first_filter * e.window;
    WindowsByFilters<T, BYTES> operands(images, windows, taps, weight, filters, e.window, e.group_c);

    alignas(128) extern __shared__ u8 shared[];
    float sums[T::M][T::N][4] = {};
    multiply<T, AlongDepth<T>>(operands, ceil_div(e.window, T::DEPTH), shared_address(shared), sums);
    const Consecutive pixels = {first_row, p.rows - first_row};
    finish_tile<T>(p.finish, sums, reinterpret_cast<float*>(shared), first_filter, filters, pixels, tile);
}

#define FORWARD(NAME, E, ROWS, COLS, BYTES, BLOCKS)                                                       \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) NAME(const ConvMmaForwardParams p) { \
        forward<MmaTile<E, ROWS, COLS>, BYTES>(p);                                                        \
    }

FORWARD(conv_mma_forward_bf16_128x128, Bf16, 128, 128, 16, 2)
FORWARD(conv_mma_forward_bf16_128x64, Bf16, 128, 64, 16, 3)
FORWARD(conv_mma_forward_bf16_64x64, Bf16, 64, 64, 16, 4)
FORWARD(conv_mma_forward_bf16_128x64_by4, Bf16, 128, 64, 8, 3)
FORWARD(conv_mma_forward_tf32_128x128, Tf32, 128, 128, 16, 2)
FORWARD(conv_mma_forward_tf32_128x64, Tf32, 128, 64, 16, 3)
FORWARD(conv_mma_forward_tf32_64x64, Tf32, 64, 64, 16, 4)
