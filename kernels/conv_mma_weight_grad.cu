// Convolution on tensor cores, gradient of the weight:  dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k]
// * x[n, p*stride - padding + r, q*stride - padding + s, c], in f32, of the elements that the f32 master has: where
// groups are joined, those of a filter's own group; of images with a fourth channel, the first three.
//
// Implicit GEMM per joined group: rows are filters, columns the window (r, s, c), and the reduction runs over output
// pixels. That one is long and the tiles are few, so it is cut into slices, as many as the shape asks for; conv_merge
// adds them in order. Both operands are contiguous along rows and columns. The kernel `by4` copies windows 8 bytes at a
// time, as in conv_mma_forward.cu.
//
// Operations: 2*N*P*Q*K*R*S*C/groups, more where groups are joined. Bytes: dy once per column tile, x once per tap and
// row tile (both mostly from L2), slices times dw.
// Tiles 128x128 and 64x64, 32 pixels deep (16 of f32); shared memory 68 and 32 KB; launch bounds of 255 and
// 128 registers, so that 2 and 4 blocks fit a multiprocessor that has the memory.
// Bound by the tensor cores; f32 by its fragments, which are read from shared memory word by word.
#include "conv_mma.cuh"

struct ConvMmaWeightGradParams {
    const void* grad;   // [N, P, Q, K]
    const void* input;  // [N, H, W, C]
    float* output;      // [slices, K, R, S, master_c]
    ConvExtents extents;
    u32 master_c, master_k;  // channels and filters of a group before groups are joined
    u32 pixels;              // N * P * Q
    u32 slice_pixels;        // a multiple of every step
};

// The operands of a tile: rows are filters, columns the values of windows, k runs over output pixels. Rows are copied
// 16 bytes at a time, columns BYTES at a time. Of both, a thread copies the same chunk of every so-many-th pixel: one
// tap.
template <class T, u32 BYTES>
struct FiltersByWindows {
    using Stored = typename T::E::Stored;
    using Stage = AcrossDepth<T>;
    static constexpr u32 SIZE = sizeof(Stored), VECTOR = 16 / SIZE, ELEMENTS = BYTES / SIZE;
    static constexpr u32 ROW_CHUNKS = T::ROWS / VECTOR, ROW_APART = T::THREADS / ROW_CHUNKS;
    static constexpr u32 COL_CHUNKS = T::COLS / ELEMENTS, COL_APART = T::THREADS / COL_CHUNKS;
    static_assert(ROW_APART % (SIZE == 2 ? 8 : 4) == 0 && COL_APART % (SIZE == 2 ? 8 : 4) == 0, "swizzled alike");
    const ConvExtents& e;
    const Stored *grads, *images;  // of this thread's chunks
    u32 row_to, col_to, row_pixel, col_pixel, end;
    i32 y, x;  // of this thread's tap in the window of output pixel (0, 0)
    bool row_exists, col_exists;
    Index3 at;

    __device__ FiltersByWindows(const ConvMmaWeightGradParams& p, u32 group, u32 first_row, u32 first_col, u32 from,
                                u32 end)
        : e(p.extents), row_pixel(from + threadIdx.x / ROW_CHUNKS), col_pixel(from + threadIdx.x / COL_CHUNKS),
          end(end), at(col_pixel, e.p, e.q) {
        const u32 row = threadIdx.x % ROW_CHUNKS * VECTOR, col = threadIdx.x % COL_CHUNKS * ELEMENTS;
        const Index3 tap(first_col + col, e.s, e.group_c);
        grads = static_cast<const Stored*>(p.grad) + group * e.group_k + first_row + row;
        images = static_cast<const Stored*>(p.input) + group * e.group_c + tap.inner;
        y = i32(tap.outer) - i32(e.padding), x = i32(tap.middle) - i32(e.padding);
        row_exists = first_row + row < e.group_k, col_exists = first_col + col < e.window;
        row_to = Stage::swizzled(T::ROWS, threadIdx.x / ROW_CHUNKS, threadIdx.x % ROW_CHUNKS);
        col_to = T::ROWS * T::DEPTH * SIZE + col * SIZE % 16 +
                 Stage::swizzled(T::COLS, threadIdx.x / COL_CHUNKS, col / VECTOR);
    }

    // Starts the copies of the next step.
    __device__ void copy(u32 stage) {
#pragma unroll
        for (u32 i = 0; i < T::DEPTH; i += ROW_APART) {
            const u32 pixel = row_pixel + i;
            const bool exists = row_exists && pixel < end;
            copy_async_16(stage + row_to + i * T::ROWS * SIZE, grads + (exists ? pixel * e.k : 0), exists ? 16 : 0);
        }
        row_pixel += T::DEPTH;
#pragma unroll
        for (u32 i = 0; i < T::DEPTH; i += COL_APART) {
            const u32 row = u32(i32(at.middle * e.stride) + y), col = u32(i32(at.inner * e.stride) + x);
            const bool exists = col_exists && col_pixel + i < end && row < e.h && col < e.w;
            const Stored* from = images + (exists ? ((at.outer * e.h + row) * e.w + col) * e.c : 0);
            const u32 to = stage + col_to + i * T::COLS * SIZE;
            if (BYTES == 16) copy_async_16(to, from, exists ? 16 : 0);
            else copy_async_8(to, from, exists ? 8 : 0);
            at.advance(COL_APART, e.p, e.q);
        }
        col_pixel += T::DEPTH;
    }
};

// Stores a warp's sums: four lanes have eight neighbours, a sector.
template <class T>
__device__ inline void store_weights(const ConvMmaWeightGradParams& p, const float (&sums)[T::M][T::N][4], u32 group,
                                     u32 first_row, u32 first_col, u32 slice) {
    const ConvExtents& e = p.extents;
    float* output = p.output + u64(slice) * e.k * e.r * e.s * p.master_c;
    const u32 first_k = first_row + T::warp_row() + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 n = 0; n < T::N; ++n) {
        const u32 col = first_col + T::warp_col() + n * 8 + threadIdx.x % 4 * 2;
        const u32 tap = col / e.group_c, channel = col % e.group_c;
#pragma unroll
        for (u32 m = 0; m < 2 * T::M; ++m) {
            const u32 k = first_k + m * 8, first_channel = k / p.master_k * p.master_c, c = channel - first_channel;
            if (col >= e.window || k >= e.group_k) continue;
            float* to = output + (u64(group * e.group_k + k) * e.r * e.s + tap) * p.master_c;
            const float left = sums[m / 2][n][m % 2 * 2], right = sums[m / 2][n][m % 2 * 2 + 1];
            if (p.master_c % 2 == 0) {
                if (c < p.master_c) *reinterpret_cast<float2*>(to + c) = make_float2(left, right);
            } else {
                if (c < p.master_c) to[c] = left;
                if (c + 1 < p.master_c) to[c + 1] = right;
            }
        }
    }
}

template <class T, u32 BYTES>
__device__ inline void weight_grad(const ConvMmaWeightGradParams& p) {
    const ConvExtents& e = p.extents;
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(e.window, T::COLS)) * T::COLS;
    const u32 first_row = take_digit(block, ceil_div(e.group_k, T::ROWS)) * T::ROWS;
    const u32 group = take_digit(block, e.groups), slice = block;
    const u32 from = slice * p.slice_pixels, end = min(from + p.slice_pixels, p.pixels);

    alignas(128) extern __shared__ u8 shared[];
    FiltersByWindows<T, BYTES> operands(p, group, first_row, first_col, from, end);
    float sums[T::M][T::N][4] = {};
    multiply<T, AcrossDepth<T>>(operands, ceil_div(end - from, T::DEPTH), shared_address(shared), sums);
    store_weights<T>(p, sums, group, first_row, first_col, slice);
}

#define WEIGHT_GRAD(NAME, E, ROWS, COLS, BYTES, BLOCKS)                                                \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) NAME(const ConvMmaWeightGradParams p) { \
        weight_grad<MmaTile<E, ROWS, COLS>, BYTES>(p);                                                 \
    }

WEIGHT_GRAD(conv_mma_weight_grad_bf16_128x128, Bf16, 128, 128, 16, 2)
WEIGHT_GRAD(conv_mma_weight_grad_bf16_64x64, Bf16, 64, 64, 16, 4)
WEIGHT_GRAD(conv_mma_weight_grad_bf16_64x64_by4, Bf16, 64, 64, 8, 4)
WEIGHT_GRAD(conv_mma_weight_grad_tf32_128x128, Tf32, 128, 128, 16, 2)
WEIGHT_GRAD(conv_mma_weight_grad_tf32_64x64, Tf32, 64, 64, 16, 4)
