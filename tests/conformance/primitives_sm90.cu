// One kernel per primitive of ptx_sm90.cuh, on the words that the test gives it as a tensor: what the hardware makes of
// them is recorded, and the emulator must make the same.
#include "ptx_sm90.cuh"

struct Mapped {
    TensorMap map;
    u32* output;
};

// Waits at a barrier of this block's own for `bytes` that `copy` asks for.
template <class Copy>
__device__ void fetch(u32 bytes, const Copy& copy) {
    __shared__ u64 barrier;
    const u32 full = shared_address(&barrier);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(full, bytes);
        copy(full);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
}

__device__ void write(const u32* shared, u32 words, u32* output) {
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) output[i] = shared[i];
}

// 16 rows of 128 bytes of a matrix, of which some lie outside, as they lie in shared memory.
extern "C" __global__ void copy_boxes(const __grid_constant__ Mapped p) {
    __shared__ __align__(1024) u32 box[512];
    fetch(sizeof(box), [&](u32 full) { copy_box(shared_address(box), p.map, 40, 10, full); });
    write(box, 512, p.output);
}

// 16 pixels of images, every other one both ways, from the second row of the first image on.
extern "C" __global__ void copy_windows(const __grid_constant__ Mapped p) {
    __shared__ __align__(1024) u32 pixels[512];
    fetch(sizeof(pixels), [&](u32 full) { copy_pixels(shared_address(pixels), p.map, 0, 2, 2, 0, full); });
    write(pixels, 512, p.output);
}

// Each of two blocks copies eight rows to both; then all threads arrive in both.
extern "C" __global__ void copy_to_both(const __grid_constant__ Mapped p) {
    __shared__ __align__(1024) u32 rows[512];
    __shared__ u64 barriers[2];
    const u32 rank = cluster_rank(), full = shared_address(&barriers[0]), all = shared_address(&barriers[1]);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1), mbarrier_init(all, 2 * 32);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(full, sizeof(rows));
        copy_box_to_all(shared_address(rows) + rank * 1024, p.map, 0, 8 * rank, full, 3);
    }
    __syncwarp();
    mbarrier_wait(full, 0);
    mbarrier_arrive_at(all, 0), mbarrier_arrive_at(all, 1);
    mbarrier_wait(all, 0);
    write(rows, 512, p.output + 512 * rank);
    cluster_sync();
}

// The first 64 rows of a matrix of 64 columns by the others: sum number i of thread t is word 128 * i + t.
template <u32 COLS>
__device__ void multiply(const Mapped& p) {
    __shared__ __align__(1024) u8 rows[(64 + COLS) * 128];
    const u32 address = shared_address(rows);
    fetch(sizeof(rows), [&](u32 full) {
        for (u32 row = 0; row < 64 + COLS; row += 64) copy_box(address + row * 128, p.map, 0, row, full);
    });
    float sums[COLS / 2];
    products_begin();
#pragma unroll
    for (u32 k = 0; k < 4; ++k)
        multiply_bf16(sums, operand(address) + k * OPERAND_STEP, operand(address + 64 * 128) + k * OPERAND_STEP, k > 0);
    products_commit();
    products_wait<0>();
#pragma unroll
    for (u32 i = 0; i < COLS / 2; ++i) p.output[128 * i + threadIdx.x] = __float_as_uint(sums[i]);
}

extern "C" __global__ void __launch_bounds__(128) multiply_128(const __grid_constant__ Mapped p) { multiply<128>(p); }
extern "C" __global__ void __launch_bounds__(128) multiply_256(const __grid_constant__ Mapped p) { multiply<256>(p); }
