// One kernel per primitive of ptx.cuh, on the words that the test gives it: what the hardware makes of them is recorded,
// and the emulator must make the same.
#include "ptx.cuh"

struct Words {
    const u32* input;
    u32* output;
};

// Words 0..127 through shared memory by copies of 16 bytes: lane l copies l % 17 bytes of its 16, in two groups.
extern "C" __global__ void copy_async_wide(const Words p) {
    __shared__ __align__(16) u32 shared[128];
    u32 lane = threadIdx.x;
    copy_async_16(shared_address(&shared[4 * lane]), p.input + 4 * lane, lane % 17);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (u32 i = lane; i < 128; i += 32) p.output[i] = shared[i ^ 5];
}

// Words 0..63 by copies of 4 bytes in two groups; the first is read while the second may still be under way.
extern "C" __global__ void copy_async_narrow(const Words p) {
    __shared__ u32 shared[64];
    u32 lane = threadIdx.x;
    copy_async_4(shared_address(&shared[lane]), p.input + lane, 4);
    copy_async_commit();
    copy_async_4(shared_address(&shared[32 + lane]), p.input + 32 + lane, lane % 3 == 0 ? 0 : 4);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    p.output[lane] = shared[31 - lane];
    copy_async_wait<0>();
    __syncthreads();
    p.output[32 + lane] = shared[63 - lane];
}

// Words 0..63 by copies of 8 bytes: lane l copies l % 9 bytes of its 8.
extern "C" __global__ void copy_async_middle(const Words p) {
    __shared__ __align__(8) u32 shared[64];
    u32 lane = threadIdx.x;
    copy_async_8(shared_address(&shared[2 * lane]), p.input + 2 * lane, lane % 9);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (u32 i = lane; i < 64; i += 32) p.output[i] = shared[i ^ 3];
}

// Word l to bf16, with word 32 + l in the upper half, and to TF32, of which the low 13 bits do not count.
extern "C" __global__ void narrower_floats(const Words p) {
    u32 lane = threadIdx.x;
    float low = __uint_as_float(p.input[lane]), high = __uint_as_float(p.input[32 + lane]);
    p.output[lane] = bf16_pair(low, high);
    p.output[32 + lane] = tf32_bits(low) & ~0x1fffu;
}

// Lane l stores two words and four words as vectors; words are read one by one.
extern "C" __global__ void shared_vectors(const Words p) {
    __shared__ __align__(16) u32 shared[192];
    u32 lane = threadIdx.x;
    float words[6];
    for (u32 i = 0; i < 6; i++) words[i] = __uint_as_float(p.input[6 * lane + i]);
    store_shared_x2(shared_address(&shared[2 * lane]), words[0], words[1]);
    store_shared_x4(shared_address(&shared[64 + 4 * lane]), words[2], words[3], words[4], words[5]);
    __syncthreads();
    for (u32 i = lane; i < 192; i += 32) p.output[i] = load_shared(shared_address(&shared[191 - i]));
}

// 256 words are 32 rows of 16 bytes; lane l gives row (5 · l + 3) % 32.
template <bool TRANSPOSED>
__device__ void load_matrix(const Words p) {
    __shared__ __align__(16) u32 shared[128];
    u32 lane = threadIdx.x;
    for (u32 i = lane; i < 128; i += 32) shared[i] = p.input[i];
    __syncthreads();
    u32 row = shared_address(&shared[4 * ((5 * lane + 3) % 32)]);
    u32 to[4];
    if (TRANSPOSED) load_matrix_x4_transposed(to, row);
    else load_matrix_x4(to, row);
    for (u32 i = 0; i < 4; i++) p.output[4 * lane + i] = to[i];
}

extern "C" __global__ void load_matrix_rows(const Words p) { load_matrix<false>(p); }

extern "C" __global__ void load_matrix_columns(const Words p) { load_matrix<true>(p); }

// Lane l holds a in words 10·l .. +4, b in the next two, d in the next four.
template <u32 KIND>
__device__ void multiply(const Words p) {
    const u32* words = p.input + 10 * threadIdx.x;
    u32 a[4] = {words[0], words[1], words[2], words[3]};
    u32 b[2] = {words[4], words[5]};
    float d[4];
    for (u32 i = 0; i < 4; i++) d[i] = __uint_as_float(words[6 + i]);
    if (KIND == 0) mma_bf16(d, a, b);
    if (KIND == 1) mma_f16(d, a, b);
    if (KIND == 2) mma_tf32(d, a, b);
    for (u32 i = 0; i < 4; i++) p.output[4 * threadIdx.x + i] = __float_as_uint(d[i]);
}

extern "C" __global__ void multiply_bf16(const Words p) { multiply<0>(p); }

extern "C" __global__ void multiply_f16(const Words p) { multiply<1>(p); }

extern "C" __global__ void multiply_tf32(const Words p) { multiply<2>(p); }

// Warp 0 writes and arrives, warp 1 waits and reads; then both meet.
extern "C" __global__ void named_barriers(const Words p) {
    __shared__ u32 shared[32];
    u32 lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        shared[lane] = p.input[lane] * 3;
        named_barrier_arrive(1, 64);
    } else {
        named_barrier_sync(1, 64);
        p.output[lane] = shared[lane ^ 9];
        __syncwarp();
        shared[lane] += 1;
    }
    named_barrier_sync(2, 64);
    if (threadIdx.x < 32) p.output[32 + lane] = shared[31 - lane];
}
