// Bulk copies: boxes of tensors (TMA) and plain bytes, to shared memory and back; and rules about them kept and broken.
#include "sm90.cuh"

struct Params {
    TensorMap map;
    const u32* x;
    u32* out;
    u32 bytes;
    int at[5];
    u32 offsets[3];
};

#define TILED "cp.async.bulk.tensor."
#define LOAD ".shared::cluster.global.tile.mbarrier::complete_tx::bytes "
#define IM2COL ".shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
#define STORE ".global.shared::cta.tile.bulk_group "

template <int RANK> __device__ __forceinline__ void load(u32 to, const Params& p, u32 barrier) {
    const int* c = p.at;
    if (RANK == 1)
        asm volatile(TILED "1d" LOAD "[%0], [%1, {%3}], [%2];" ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]) : "memory");
    if (RANK == 2)
        asm volatile(TILED "2d" LOAD "[%0], [%1, {%3, %4}], [%2];"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]) : "memory");
    if (RANK == 3)
        asm volatile(TILED "3d" LOAD "[%0], [%1, {%3, %4, %5}], [%2];"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]) : "memory");
    if (RANK == 4)
        asm volatile(TILED "4d" LOAD "[%0], [%1, {%3, %4, %5, %6}], [%2];"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]) : "memory");
    if (RANK == 5)
        asm volatile(TILED "5d" LOAD "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]) : "memory");
}

template <int RANK> __device__ __forceinline__ void load_im2col(u32 to, const Params& p, u32 barrier) {
    const int* c = p.at;
    u16 w = p.offsets[0], h = p.offsets[1], d = p.offsets[2];
    if (RANK == 3)
        asm volatile(TILED "3d" IM2COL "[%0], [%1, {%3, %4, %5}], [%2], {%6};"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "h"(w) : "memory");
    if (RANK == 4)
        asm volatile(TILED "4d" IM2COL "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "h"(w), "h"(h) : "memory");
    if (RANK == 5)
        asm volatile(TILED "5d" IM2COL "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};"
                     ::"r"(to), "l"(&p.map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]),
                     "h"(w), "h"(h), "h"(d) : "memory");
}

template <int RANK> __device__ __forceinline__ void store(const Params& p, u32 from) {
    const int* c = p.at;
    if (RANK == 1)
        asm volatile(TILED "1d" STORE "[%0, {%2}], [%1];" ::"l"(&p.map), "r"(from), "r"(c[0]) : "memory");
    if (RANK == 2)
        asm volatile(TILED "2d" STORE "[%0, {%2, %3}], [%1];" ::"l"(&p.map), "r"(from), "r"(c[0]), "r"(c[1]) : "memory");
    if (RANK == 4)
        asm volatile(TILED "4d" STORE "[%0, {%2, %3, %4, %5}], [%1];"
                     ::"l"(&p.map), "r"(from), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]) : "memory");
}

// A box to shared memory, and that to `out` as it is.
template <int RANK, bool IM2COL_MODE> __device__ __forceinline__ void load_box(const Params& p) {
    extern __shared__ __align__(1024) u32 memory[];
    __shared__ u64 full;
    u32 barrier = shared_address(&full);
    if (threadIdx.x == 0) {
        asm volatile("prefetch.tensormap [%0];" ::"l"(&p.map) : "memory");
        init(barrier, 1);
        proxy_fence();
        if (IM2COL_MODE) load_im2col<RANK>(shared_address(memory), p, barrier); else load<RANK>(shared_address(memory), p, barrier);
        expect(barrier, p.bytes);
    }
    __syncthreads();
    wait(barrier, 0);
    for (u32 i = threadIdx.x; i < p.bytes / 4; i += blockDim.x) p.out[i] = memory[i];
}

// `bytes` of x to shared memory, and from there to a box.
template <int RANK> __device__ __forceinline__ void store_box(const Params& p) {
    extern __shared__ __align__(1024) u32 memory[];
    for (u32 i = threadIdx.x; i < p.bytes / 4; i += blockDim.x) memory[i] = p.x[i];
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        store<RANK>(p, shared_address(memory));
        store_commit();
        store_wait_read();
    }
}

#define BOX(name, call)                                                           \
    extern "C" __global__ void name(const __grid_constant__ Params p) { call(p); }
BOX(load_1d, (load_box<1, false>))
BOX(load_2d, (load_box<2, false>))
BOX(load_3d, (load_box<3, false>))
BOX(load_4d, (load_box<4, false>))
BOX(load_5d, (load_box<5, false>))
BOX(im2col_3d, (load_box<3, true>))
BOX(im2col_4d, (load_box<4, true>))
BOX(im2col_5d, (load_box<5, true>))
BOX(store_1d, store_box<1>)
BOX(store_2d, store_box<2>)
BOX(store_4d, store_box<4>)

// ---- plain bytes ----

__device__ __forceinline__ void load_bytes(void* to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
__device__ __forceinline__ void store_bytes(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 ::"l"(to), "r"(shared_address(from)), "r"(bytes) : "memory");
}

enum Mistake {
    NONE,
    NO_WAIT,           // reads what a copy fills before its mbarrier
    NO_BARRIER_FENCE,  // a copy that completes on an mbarrier it may not see
    NO_INIT,           // or on none
    OVERWRITES,        // stores where a copy is on its way
    MISALIGNED,        // 8 bytes past a multiple of 16
    PAST_END,          // of global memory
    NO_PROXY_FENCE,    // a store of what was just written
    EARLY_REUSE,       // overwrites what a store still reads
    EARLY_RETURN,      // leaves while a store still reads
    LEAVES_COPY,       // leaves while a copy is on its way
    READS_BACK,        // reads global memory before its store has ended
    WRONG_PARITY,      // waits for a phase that was over before anything began
};

// 512 bytes in, doubled, out.
template <int MISTAKE> __device__ __forceinline__ void bytes(const u32* x, u32* out) {
    __shared__ __align__(128) u32 memory[256];
    __shared__ u64 full;
    u32 barrier = shared_address(&full);
    if (threadIdx.x == 0) {
        if (MISTAKE != NO_INIT) init(barrier, 1);
        if (MISTAKE != NO_BARRIER_FENCE) proxy_fence();
        expect(barrier, 512);
        load_bytes(memory + (MISTAKE == MISALIGNED ? 2 : 0), x + (MISTAKE == PAST_END ? 352 : 0), 512, barrier);
    }
    __syncthreads();
    if (MISTAKE == LEAVES_COPY) return;
    if (MISTAKE == OVERWRITES) memory[threadIdx.x] = 0;
    if (MISTAKE != NO_WAIT) wait(barrier, MISTAKE == WRONG_PARITY);
    memory[threadIdx.x] *= 2;
    if (MISTAKE != NO_PROXY_FENCE) proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_bytes(out, memory, 512);
        store_commit();
        if (MISTAKE == READS_BACK) store_wait_read();
        else if (MISTAKE != EARLY_RETURN && MISTAKE != EARLY_REUSE) store_wait();
        if (MISTAKE == EARLY_REUSE) {
            memory[0] = 0;
            store_wait();
        }
        out[128] = MISTAKE == READS_BACK ? *(volatile u32*)(out + 5) : 0;
    }
}

#define BYTES(name, mistake)                                                                          \
    extern "C" __global__ void bytes_##name(const u32* x, u32* out) { bytes<mistake>(x, out); }
BYTES(right, NONE)
BYTES(no_wait, NO_WAIT)
BYTES(no_barrier_fence, NO_BARRIER_FENCE)
BYTES(no_init, NO_INIT)
BYTES(overwrites, OVERWRITES)
BYTES(misaligned, MISALIGNED)
BYTES(past_end, PAST_END)
BYTES(no_proxy_fence, NO_PROXY_FENCE)
BYTES(early_reuse, EARLY_REUSE)
BYTES(early_return, EARLY_RETURN)
BYTES(leaves_copy, LEAVES_COPY)
BYTES(reads_back, READS_BACK)
BYTES(wrong_parity, WRONG_PARITY)
