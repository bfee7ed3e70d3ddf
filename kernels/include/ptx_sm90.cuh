// The inline PTX of Hopper alone (sm_90a): mbarriers, copies by the tensor memory accelerator (TMA), matrix products of
// a warpgroup (wgmma), clusters; each primitive a small named function, as in ptx.cuh. Layouts are those of the PTX
// ISA, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensors". Shared addresses are 32 bits (shared_address).
#pragma once

#include "ptx.cuh"

// A tensor as the host describes it to the copy engine (cuTensorMapEncode*): part of a kernel's parameters, which are
// then `const __grid_constant__`, since the engine reads it where it lies.
struct alignas(64) TensorMap {
    u8 bytes[128];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// An mbarrier counts, phase by phase, arrivals of threads and bytes of copies; a phase ends when none is outstanding.
// Phases alternate in parity, from 0. Initialises one of `arrivals` per phase; one thread does.
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Shows initialised barriers to the copy engine and, with the cluster_sync that follows, to the cluster.
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and adds `bytes` to what this phase waits for.
__device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier that lies at the same place in block `rank` of the cluster, which may be this one. Without
// `.release.cluster`, for which ptxas has the thread wait for all its stores to global memory: copies and products,
// which these arrivals keep apart, are ordered by their own waits.
__device__ __forceinline__ void mbarrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                 "}" ::"r"(barrier), "r"(rank) : "memory");
}

// Waits until the phase of this parity has ended. Right after initialisation, the phase before the first counts as one
// of parity 1 that has ended.
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(barrier), "r"(parity) : "memory");
}

// Which block of its cluster this is.
__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of the cluster.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Fetches a tensor map ahead of its first use.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the box of a matrix that begins at column x of row y to shared memory, in the background, zeros outside the
// matrix; its bytes count at `barrier`.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap& map, u32 x, u32 y, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

// As copy_box, to the same place in every block of the cluster whose bit is set in `blocks`, and counted at the barrier
// at that place in each.
__device__ __forceinline__ void copy_box_to_all(u32 to, const TensorMap& map, u32 x, u32 y, u32 barrier, u16 blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
                 : "memory");
}

// Copies pixels of images, those that windows begin at, in the order of memory, from column x and row y of an image on;
// where windows begin, how many, and how many channels are the map's (im2col). Else as copy_box.
__device__ __forceinline__ void copy_pixels(u32 to, const TensorMap& map, u32 channel, u32 x, u32 y, u32 image,
                                            u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4, %5}], [%6], {%7, %7};" ::"r"(to), "l"(&map), "r"(channel), "r"(x), "r"(y),
                 "r"(image), "r"(barrier), "h"(u16(0))
                 : "memory");
}

// Lets a warpgroup's threads use COUNT registers from now on: fewer than before, or more, once others have given enough
// of theirs up.
template <u32 COUNT>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <u32 COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// What wgmma needs to know of an operand in shared memory: rows of 128 bytes, 64 values of k of 16 bits each, whose
// 16-byte pieces are permuted by the 128-byte swizzle; eight rows are 1024 bytes, at a multiple of which the operand's
// first row begins. The next 16 values of k are OPERAND_STEP further.
__device__ __forceinline__ u64 operand(u32 address) {
    constexpr u64 SWIZZLE_128 = 1ull << 62, EIGHT_ROWS = u64(1024 / 16) << 32, UNUSED = 1ull << 16;
    return u64((address & 0x3ffff) / 16) | UNUSED | EIGHT_ROWS | SWIZZLE_128;
}

constexpr u64 OPERAND_STEP = 16 * 2 / 16;

// Before the first product of a group: what this thread has done to the sums is done.
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Makes a group of the products since the last one.
__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most the last N groups of products are still under way.
template <u32 N>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define SUMS_8(d, i)                                                                                        \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SUMS_32(d, i) SUMS_8(d, i), SUMS_8(d, i + 8), SUMS_8(d, i + 16), SUMS_8(d, i + 24)

// d = a · b + d, or a · b alone unless `add`: a of 64 rows, b of 128 columns, both by `operand`, over 16 values of k of
// bf16. In the background, by a whole warpgroup. d[4 · j + 2 · h + i] is row 16 · warp + 8 · h + lane / 4, column
// 8 · j + 2 · (lane % 4) + i.
__device__ __forceinline__ void multiply_bf16(float (&d)[64], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.u32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, add, 1, 1, 0, 0;\n"
        "}"
        : SUMS_32(d, 0), SUMS_32(d, 32)
        : "l"(a), "l"(b), "r"(u32(add)));
}

// As above, b of 256 columns.
__device__ __forceinline__ void multiply_bf16(float (&d)[128], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.u32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, add, 1, 1, 0, 0;\n"
        "}"
        : SUMS_32(d, 0), SUMS_32(d, 32), SUMS_32(d, 64), SUMS_32(d, 96)
        : "l"(a), "l"(b), "r"(u32(add)));
}

#undef SUMS_32
#undef SUMS_8

#endif
