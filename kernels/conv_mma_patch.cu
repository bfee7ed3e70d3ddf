// Convolution on tensor cores where each input element is copied once instead of nine times: 3x3, stride 1, padding 1,
// of 64 channels to a group (the first stage of ResNets; joined narrow groups), in bf16, on maps whose extents are
// multiples of eight. Forward (y from x), or the gradient of the input (dx from dy and flipped weights); then the
// finish (finish.cuh).
//
// Implicit GEMM as in conv_mma_forward.cu, with the same sums in the same order: the same bits. Rows are the 2 x 64
// pixels of two tiles of 8 x 8, columns 64 filters. The tiles' patches, 10 x 10 pixels with the border, stay in shared
// memory; a tap's rows are the patch shifted by the tap. The taps' weights stream through a ring, two taps ahead.
//
// Operations as there. Bytes: the input 200 / 128 times per column tile (windows: nine times), the weights once per
// block (from L2), the output once, what the finish reads.
// Shared memory: two patches of 12.5 KB and three taps of 8 KB, 49 KB; sums are laid out in the same. The launch
// bound is 168 registers, so that 3 blocks fit a multiprocessor that has the memory. Bound by the tensor cores.
//
// A pixel is eight chunks of 16 bytes, of which chunk c of pixel i lies at c ^ (i % 8): the eight neighbours that
// ldmatrix reads at once meet all 32 banks, whatever the tap. A filter's channels of a tap lie likewise.
#include "conv_mma.cuh"

constexpr u32 SIDE = 8, PATCH_SIDE = SIDE + 2, PATCH = PATCH_SIDE * PATCH_SIDE;
constexpr u32 CHANNELS = 64, ROW_BYTES = CHANNELS * 2, TAPS = 9, RING = 3;

using Tile = MmaTile<Bf16, 2 * SIDE * SIDE, 64>;
constexpr u32 PATCH_BYTES = PATCH * ROW_BYTES, WEIGHT_BYTES = Tile::COLS * ROW_BYTES;

struct PatchProblem {
    const void* images;  // [N, h, w, pixel]
    const void* weight;  // [filters, 3, 3, 64]
    u32 h, w, pixel;
    u32 tiles;    // N * h / 8 * w / 8
    u32 filters;  // of a group
};

struct ConvMmaPatchForwardParams {
    PatchProblem problem;
    ForwardFinish finish;  // its tiles are those of 8 x 8 pixels, in order
};

struct ConvMmaPatchInputGradParams {
    PatchProblem problem;
    GradFinish finish;
};

// A tile of 8 x 8 pixels: where it lies. Its rows are its pixels, row by row.
struct MapTile {
    u32 y, x, w, first;  // its first pixel: where it lies in its map of width w, and its number in the batch

    __device__ MapTile(const PatchProblem& p, u32 number) : w(p.w) {
        const Index3 at(number, p.h / SIDE, p.w / SIDE);
        y = at.middle * SIDE, x = at.inner * SIDE, first = (at.outer * p.h + y) * w + x;
    }

    __device__ u32 operator()(u32 row) const { return first + row / SIDE * w + row % SIDE; }
};

// Where a chunk of a pixel, or of a filter, lies in its patch or tap.
__device__ inline u32 swizzled(u32 row, u32 chunk) { return row * ROW_BYTES + (chunk ^ row % 8) * 16; }

// Starts the copies of a tile's patch, zeros around the image.
__device__ inline void copy_patch(const PatchProblem& p, const u16* images, const MapTile& tile, u32 to) {
    const u32 chunk = threadIdx.x % 8;
    for (u32 i = threadIdx.x / 8; i < PATCH; i += Tile::THREADS / 8) {
        const u32 down = i / PATCH_SIDE - 1, right = i % PATCH_SIDE - 1;
        const bool inside = tile.y + down < p.h && tile.x + right < p.w;
        const u16* from = images + (inside ? (tile.first + down * p.w + right) * p.pixel + chunk * 8 : 0);
        copy_async_16(to + swizzled(i, chunk), from, inside ? 16 : 0);
    }
}

// Starts the copies of a tap's weights; `filters` exist from the first one on.
__device__ inline void copy_tap(const u16* weight, u32 filters, u32 tap, u32 to) {
    const u32 chunk = threadIdx.x % 8;
#pragma unroll
    for (u32 i = 0; i < Tile::COLS; i += Tile::THREADS / 8) {
        const u32 filter = threadIdx.x / 8 + i;
        const bool exists = filter < filters;
        const u16* from = weight + (exists ? (filter * TAPS + tap) * CHANNELS + chunk * 8 : 0);
        copy_async_16(to + swizzled(filter, chunk), from, exists ? 16 : 0);
    }
}

// A tap's operands.
struct PatchFragments : Fragments<Tile> {
    // Part `part` of four of its channels. `row` is where this lane's pixel and first chunk for the first 16 rows lie,
    // `col` the filter's for the first 16 columns. 16 rows further, a pixel's number is greater by 20, its chunks lie
    // at four more modulo eight.
    __device__ void load(u32 row, u32 col, u32 part) {
#pragma unroll
        for (u32 m = 0; m < Tile::M; ++m)
            load_matrix_x4(a[m], (row ^ part * 32 ^ m % 2 * 64) + m * 2 * PATCH_SIDE * ROW_BYTES);
#pragma unroll
        for (u32 n = 0; n < Tile::N; n += 2) {
            u32 both[4];
            load_matrix_x4(both, (col ^ part * 32) + n * 8 * ROW_BYTES);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) b[n + i / 2][i % 2] = both[i];
        }
    }
};
static_assert(2 * PATCH_SIDE % 8 == 4, "as PatchFragments::load has it");

template <class F>
__device__ inline void convolve(const PatchProblem& p, const F& f) {
    u32 block = blockIdx.x;
    const u32 first_col = take_digit(block, ceil_div(p.filters, Tile::COLS)) * Tile::COLS;
    const u32 first_tile = take_digit(block, ceil_div(p.tiles, 2)) * 2, group = block;
    const u32 first_filter = group * p.filters + first_col, filters = p.filters - first_col;
    const u16* images = static_cast<const u16*>(p.images) + group * CHANNELS;
    const u16* weight = static_cast<const u16*>(p.weight) + first_filter * (TAPS * CHANNELS);

    alignas(128) extern __shared__ u8 shared[];
    const u32 patches = shared_address(shared), ring = patches + 2 * PATCH_BYTES;
    // Without a second tile, its rows are the first one's once more.
    const u32 last_tile = min(first_tile + 1, p.tiles - 1);
    copy_patch(p, images, MapTile(p, first_tile), patches);
    copy_patch(p, images, MapTile(p, last_tile), patches + PATCH_BYTES);
    copy_tap(weight, filters, 0, ring);
    copy_async_commit();
    copy_tap(weight, filters, 1, ring + WEIGHT_BYTES);
    copy_async_commit();

    const u32 patch = patches + Tile::warp_row() / (SIDE * SIDE) * PATCH_BYTES;
    const u32 lane = threadIdx.x % 32, first_pixel = lane % 16 / SIDE * PATCH_SIDE + lane % SIDE;
    const u32 filter = swizzled(Tile::warp_col() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    float sums[Tile::M][Tile::N][4] = {};
#pragma unroll 1
    for (u32 tap = 0; tap < TAPS; ++tap) {
        // This tap has landed, and all threads have multiplied the one before, whose place the copies take.
        copy_async_wait<1>();
        __syncthreads();
        if (tap + 2 < TAPS) copy_tap(weight, filters, tap + 2, ring + (tap + 2) % RING * WEIGHT_BYTES);
        copy_async_commit();
        const u32 row = patch + swizzled(first_pixel + tap / 3 * PATCH_SIDE + tap % 3, lane / 16);
        const u32 col = ring + tap % RING * WEIGHT_BYTES + filter;
        PatchFragments fragments[2];
        fragments[0].load(row, col, 0);
#pragma unroll
        for (u32 part = 0; part < 4; ++part) {
            if (part < 3) fragments[(part + 1) % 2].load(row, col, part + 1);
            fragments[part % 2].multiply(sums);
        }
    }

    using Part = FinishTile<Bf16, SIDE * SIDE, Tile::COLS, Tile::THREADS>;
    float* staged = reinterpret_cast<float*>(shared);
    __syncthreads();
    stage_sums<Tile>(sums, staged + Tile::warp_row() * Part::PITCH + Tile::warp_col(), Part::PITCH);
    f.template prepare<Part>(staged, first_filter, min(filters, Tile::COLS), threadIdx.x);
    __syncthreads();
#pragma unroll 1
    for (u32 tile = first_tile; tile <= last_tile; ++tile) {
        float* own = staged + (tile - first_tile) * SIDE * SIDE * Part::PITCH;
        Finish<Part, F> finish(f, staged, first_filter, filters, threadIdx.x);
        finish.rows(own, MapTile(p, tile));
        __syncthreads();
        finish.write_sums(own, WholeBlock{}, tile);
    }
}

#define PATCH(NAME, PARAMS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128, 3) NAME(const PARAMS p) { convolve(p.problem, p.finish); }

PATCH(conv_mma_patch_forward_bf16, ConvMmaPatchForwardParams)
PATCH(conv_mma_patch_input_grad_bf16, ConvMmaPatchInputGradParams)
