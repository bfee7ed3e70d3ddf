// Convolution on tensor cores, gradient of the input:  dx[n, y, x, c] = sum over r, s, k of dy[n, (y + padding - r) /
// stride, (x + padding - s) / stride, k] * w[k, r, s, c], over those r and s for which the divisions leave no remainder
// and the pixel exists; then the finish (finish.cuh).
//
// As in conv_input_grad.cu, the input's pixels fall into stride * stride classes, each a convolution of dy with stride
// 1 and every stride-th tap; a class without taps has sums of zero. The weights come flipped, [C, R, S, K / groups]
// with the taps in reverse order, so that this is the forward convolution of dy, its windows starting further left.
//
// Implicit GEMM per class and group: rows are input pixels, columns input channels, k runs over (tap row, tap column,
// filter). Operations: 2*N*P*Q*K*R*S*C/groups. Bytes: dy once per tap and column tile (shared through L2), the weights
// once per row tile (from L2), dx once, what the finish reads: up to a partial gradient, y and a bit of mask for each
// element.
// Tiles 128x128, 128x64 and 64x64, 32 deep (16 of f32); shared memory 68, 48 and 32 KB and tables of windows and
// pixels, 1.5 KB; launch bounds of 255, 168 and 128 registers, so that 2, 3 and 4 blocks fit a multiprocessor that has
// the memory.
// Bound as conv_mma_forward.cu.
#include "conv_mma.cuh"

struct ConvMmaInputGradParams {
    const void* grad;
    const void* weight;  // flipped
    GradFinish finish;   // its tiles are numbered by class, then by row
    ConvExtents extents;
    u32 rows;  // pixels of the largest class: N * ceil(H / stride) * ceil(W / stride)
};

template <class T>
__device__ inline void input_grad(const ConvMmaInputGradParams& p) {
    const ConvExtents& e = p.extents;
    const u32 row_tiles = ceil_div(p.rows, T::ROWS);
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(e.group_c, T::COLS)) * T::COLS;
    const u32 row_tile = take_digit(block, row_tiles), first_row = row_tile * T::ROWS;
    const u32 group = take_digit(block, e.groups), residues = block;
    const Axis rows(residues / e.stride, e.h, e.r, e.stride, e.padding);
    const Axis cols(residues % e.stride, e.w, e.s, e.stride, e.padding);
    const u32 pixels = e.n * rows.pixels * cols.pixels;

    const Images images = {p.grad, e.p, e.q, e.k};
    const u32 first_tap_row = e.r - 1 - rows.first_tap - e.stride * (rows.taps - 1);
    const u32 first_tap_col = e.s - 1 - cols.first_tap - e.stride * (cols.taps - 1);
    const Taps taps = {rows.taps, cols.taps, (first_tap_row * e.s + first_tap_col) * e.group_k,
                       e.stride * e.s * e.group_k, e.stride * e.group_k};
    __shared__ Window windows[T::ROWS];
    __shared__ u32 places[T::ROWS];
    if (threadIdx.x < T::ROWS) {
        const u32 row = first_row + threadIdx.x;
        Window window = Window::nowhere();
        u32 place = NO_PIXEL;
        if (row < pixels) {
            const Index3 at(row, rows.pixels, cols.pixels);
            const i32 y = rows.source + i32(at.middle) - i32(rows.taps - 1);
            const i32 x = cols.source + i32(at.inner) - i32(cols.taps - 1);
            window = Window::at(images, taps, at.outer, y, x, group * e.group_k);
            place = (at.outer * e.h + rows.first + at.middle * e.stride) * e.w + cols.first + at.inner * e.stride;
        }
        windows[threadIdx.x] = window, places[threadIdx.x] = place;
    }
    __syncthreads();

    alignas(128) extern __shared__ u8 shared[];
    const u32 first_channel = group * e.group_c + first_col, channels = e.group_c - first_col;
    float sums[T::M][T::N][4] = {};
    if (first_row < pixels && rows.taps * cols.taps > 0) {
        const u32 length = e.r * e.s * e.group_k;
        const auto* weight = static_cast<const typename T::E::Stored*>(p.weight) + first_channel * length;
        WindowsByFilters<T, 16> operands(images, windows, taps, weight, channels, length, e.group_k);
        const u32 steps = ceil_div(rows.taps * cols.taps * e.group_k, T::DEPTH);
        multiply<T, AlongDepth<T>>(operands, steps, shared_address(shared), sums);
    }
    finish_tile<T>(p.finish, sums, reinterpret_cast<float*>(shared), first_channel, channels, Listed{places},
                   residues * row_tiles + row_tile);
}

#define INPUT_GRAD(NAME, E, ROWS, COLS, BLOCKS)                                                       \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) NAME(const ConvMmaInputGradParams p) { \
        input_grad<MmaTile<E, ROWS, COLS>>(p);                                                        \
    }

INPUT_GRAD(conv_mma_input_grad_bf16_128x128, Bf16, 128, 128, 2)
INPUT_GRAD(conv_mma_input_grad_bf16_128x64, Bf16, 128, 64, 3)
INPUT_GRAD(conv_mma_input_grad_bf16_64x64, Bf16, 64, 64, 4)
INPUT_GRAD(conv_mma_input_grad_tf32_128x128, Tf32, 128, 128, 2)
INPUT_GRAD(conv_mma_input_grad_tf32_128x64, Tf32, 128, 64, 3)
INPUT_GRAD(conv_mma_input_grad_tf32_64x64, Tf32, 64, 64, 4)
