// Clusters, mbarriers, registers handed on, stmatrix: right and broken.
#include "sm90.cuh"

#define CLUSTER(name, params, args)                                                                           \
    extern "C" __global__ void __cluster_dims__(2, 2, 1) name##_right params { name<true> args; }             \
    extern "C" __global__ void __cluster_dims__(2, 2, 1) name##_broken params { name<false> args; }

// ---- clusters ----

// What each thread of a grid of clusters of 2×1×2 sees of itself.
extern "C" __global__ void registers(u32* out) {
    u32 v[13], block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    asm volatile("mov.u32 %0, %%cluster_ctaid.x;" : "=r"(v[0]));
    asm volatile("mov.u32 %0, %%cluster_ctaid.y;" : "=r"(v[1]));
    asm volatile("mov.u32 %0, %%cluster_ctaid.z;" : "=r"(v[2]));
    asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(v[3]));
    asm volatile("mov.u32 %0, %%cluster_nctaid.y;" : "=r"(v[4]));
    asm volatile("mov.u32 %0, %%cluster_nctaid.z;" : "=r"(v[5]));
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(v[6]));
    asm volatile("mov.u32 %0, %%clusterid.z;" : "=r"(v[7]));
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(v[8]));
    asm volatile("mov.u32 %0, %%nclusterid.y;" : "=r"(v[9]));
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v[10]));
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(v[11]));
    asm volatile("{\n.reg .pred p;\nmov.pred p, %%is_explicit_cluster;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(v[12]));
    if (threadIdx.x == 0) for (u32 i = 0; i < 13; i++) out[13 * block + i] = v[i];
}

__device__ __forceinline__ u32 load_cluster(u32 address) {
    u32 value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

// Reads the next block's shared memory: after it was written, before it is gone.
template <bool START, bool END> __device__ __forceinline__ void neighbour(const u32* x, u32* out) {
    __shared__ u32 memory[64];
    u32 rank = cluster_rank(), block = blockIdx.y * gridDim.x + blockIdx.x;
    memory[threadIdx.x] = x[threadIdx.x] + block;
    if (START) cluster_sync(); else __syncthreads();
    u32 value = load_cluster(in_block(shared_address(&memory[63 - threadIdx.x]), (rank + 1) % 4));
    out[64 * block + threadIdx.x] = value;
    if (END) cluster_sync();
}
extern "C" __global__ void __cluster_dims__(2, 2, 1) neighbour_right(const u32* x, u32* out) { neighbour<true, true>(x, out); }
extern "C" __global__ void __cluster_dims__(2, 2, 1) neighbour_early(const u32* x, u32* out) { neighbour<false, true>(x, out); }
extern "C" __global__ void __cluster_dims__(2, 2, 1) neighbour_gone(const u32* x, u32* out) { neighbour<true, false>(x, out); }

// Adds to the first block's numbers, by atomics and a generic address; the last one to write there is alone.
template <bool RIGHT> __device__ __forceinline__ void gather(const u32* x, u32* out) {
    __shared__ u32 memory[64];
    u32 rank = cluster_rank(), block = blockIdx.y * gridDim.x + blockIdx.x;
    memory[threadIdx.x] = 0;
    cluster_sync();
    u64 first;
    asm volatile("mapa.u64 %0, %1, 0;" : "=l"(first) : "l"(&memory[threadIdx.x]));
    if (RIGHT)
        asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;"
                     ::"r"(in_block(shared_address(&memory[threadIdx.x]), 0)), "r"(x[threadIdx.x] + block) : "memory");
    else
        *(u32*)first += x[threadIdx.x] + block;
    cluster_arrive();
    cluster_wait();
    if (rank == 3) *(u32*)first *= 2;
    cluster_sync();
    out[64 * block + threadIdx.x] = rank == 0 ? memory[threadIdx.x] : 0;
}
CLUSTER(gather, (const u32* x, u32* out), (x, out))

// Arrives at the barrier of the cluster twice.
template <bool RIGHT> __device__ __forceinline__ void arrives(const u32* x, u32* out) {
    cluster_arrive();
    if (RIGHT) cluster_wait();
    cluster_arrive();
    cluster_wait();
    out[64 * (blockIdx.y * gridDim.x + blockIdx.x) + threadIdx.x] = x[threadIdx.x];
}
CLUSTER(arrives, (const u32* x, u32* out), (x, out))

// A block that stays away from the barrier of the cluster.
template <bool RIGHT> __device__ __forceinline__ void away(const u32* x, u32* out) {
    __shared__ u64 never;
    if (threadIdx.x == 0) init(shared_address(&never), 1);
    __syncthreads();
    if (RIGHT || cluster_rank() != 2) cluster_sync(); else wait(shared_address(&never), 0);
    out[64 * (blockIdx.y * gridDim.x + blockIdx.x) + threadIdx.x] = x[threadIdx.x];
}
CLUSTER(away, (const u32* x, u32* out), (x, out))

// Copies to all blocks, of which the broken ones do not stay.
template <bool RIGHT> __device__ __forceinline__ void multicast(const u32* x, u32* out) {
    __shared__ __align__(128) u32 memory[64];
    __shared__ u64 full;
    u32 barrier = shared_address(&full), rank = cluster_rank();
    if (threadIdx.x == 0) {
        init(barrier, 1);
        init_fence();
        expect(barrier, 256);
    }
    cluster_sync();
    if (!RIGHT && rank == 1) return;
    if (rank == 0 && threadIdx.x == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                     ::"r"(shared_address(memory)), "l"(x), "r"(256), "r"(barrier), "h"((u16)15) : "memory");
    wait(barrier, 0);
    out[64 * (blockIdx.y * gridDim.x + blockIdx.x) + threadIdx.x] = memory[threadIdx.x];
    if (RIGHT) cluster_sync();
}
CLUSTER(multicast, (const u32* x, u32* out), (x, out))

// ---- mbarriers ----

enum Mistake {
    NONE,
    NO_WAIT,        // reads what other warps write
    NO_EMPTY_WAIT,  // overwrites what other warps read
    NO_ARRIVAL,     // of one consumer
    RELAXED,        // arrives without releasing what it wrote
    AS_MEMORY,      // overwrites an mbarrier
    NO_SYNC,        // uses mbarriers before they are surely initialised
    THRICE,          // arrives more often than is expected
    NO_COUNT,       // an mbarrier for nobody: x begins with 3
};

// Warp 0 fills two stages in turn, warps 1 and 2 read them.
template <int MISTAKE> __device__ __forceinline__ void pipeline(const u32* x, u32* out) {
    __shared__ u32 memory[2][32];
    __shared__ u64 full[2], empty[2];
    u32 lane = threadIdx.x % 32, sum = 0;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 2; i++) {
            init(shared_address(&full[i]), MISTAKE == NO_COUNT ? x[0] - 3 : 32);
            init(shared_address(&empty[i]), 2);
        }
    }
    if (MISTAKE != NO_SYNC) __syncthreads();
    for (u32 i = 0; i < 6; i++) {
        u32 ready = shared_address(&full[i % 2]), free = shared_address(&empty[i % 2]), parity = i / 2 % 2;
        if (threadIdx.x < 32) {
            if (MISTAKE != NO_EMPTY_WAIT) wait(free, parity ^ 1);
            memory[i % 2][lane] = x[32 * i + lane];
            if (MISTAKE == AS_MEMORY && i == 3) full[0] = 7;
            if (MISTAKE == RELAXED) asm volatile("mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%0];" ::"r"(ready) : "memory");
            else if (MISTAKE == THRICE) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 3;" ::"r"(ready) : "memory");
            else arrive(ready);
        } else {
            if (MISTAKE != NO_WAIT) wait(ready, parity);
            sum += memory[i % 2][31 - lane];
            __syncwarp();
            if (lane == 0 && !(MISTAKE == NO_ARRIVAL && threadIdx.x == 64)) arrive(free);
        }
    }
    out[threadIdx.x] = sum;
}
#define PIPELINE(name, mistake)                                                                          \
    extern "C" __global__ void pipeline_##name(const u32* x, u32* out) { pipeline<mistake>(x, out); }
PIPELINE(right, NONE)
PIPELINE(no_wait, NO_WAIT)
PIPELINE(no_empty_wait, NO_EMPTY_WAIT)
PIPELINE(no_arrival, NO_ARRIVAL)
PIPELINE(relaxed, RELAXED)
PIPELINE(as_memory, AS_MEMORY)
PIPELINE(no_sync, NO_SYNC)
PIPELINE(thrice, THRICE)
PIPELINE(no_count, NO_COUNT)

// Phases by what arrivals return, `test_wait`, bytes told by threads, and an mbarrier that ends and begins again.
extern "C" __global__ void states(const u32* x, u32* out) {
    __shared__ u64 barrier;
    __shared__ u32 memory[96];
    u32 at = shared_address(&barrier), seen = 0;
    if (threadIdx.x == 0) init(at, 96);
    __syncthreads();
    for (u32 round = 0; round < 3; round++) {
        memory[threadIdx.x] = x[threadIdx.x] + round;
        u64 state;
        u32 done;
        asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(at) : "memory");
        do
            asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                         : "=r"(done) : "r"(at), "l"(state) : "memory");
        while (!done);
        seen += memory[95 - threadIdx.x];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(at) : "memory");
        init(at, 96);
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 96;" ::"r"(at) : "memory");
    }
    __syncthreads();
    arrive(at);
    asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    wait(at, 0);
    out[threadIdx.x] = seen;
}

// ---- registers ----

// Two warpgroups: the second takes what the first gives back.
template <u32 GIVEN, u32 TAKEN, u32 WARPS> __device__ __forceinline__ void hand_on(const u32* x, u32* out) {
    if (threadIdx.x < 32 * WARPS) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(GIVEN));
    else if (threadIdx.x >= 128) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(TAKEN));
    out[threadIdx.x] = x[threadIdx.x % 64];
}
#define HAND_ON(name, given, taken, warps)                                                              \
    extern "C" __global__ void __launch_bounds__(256, 2) hand_on_##name(const u32* x, u32* out) {        \
        hand_on<given, taken, warps>(x, out);                                                            \
    }
HAND_ON(right, 80, 176, 4)
HAND_ON(too_many, 80, 184, 4)
HAND_ON(not_more, 80, 120, 4)
HAND_ON(not_all, 80, 128, 3)

// ---- stmatrix ----

// Four 8×8 matrices from registers, and transposed.
template <bool TRANSPOSED> __device__ __forceinline__ void matrices(const u32* x, u32* out) {
    __shared__ __align__(16) u32 memory[128];
    u32 r[4];
    for (u32 i = 0; i < 4; i++) r[i] = x[4 * threadIdx.x + i];
    u32 row = shared_address(memory) + 16 * threadIdx.x;
    if (TRANSPOSED)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                     ::"r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    else
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                     ::"r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
    __syncwarp();
    for (u32 i = 0; i < 4; i++) out[32 * i + threadIdx.x] = memory[32 * i + threadIdx.x];
}
extern "C" __global__ void stmatrix(const u32* x, u32* out) { matrices<false>(x, out); }
extern "C" __global__ void stmatrix_transposed(const u32* x, u32* out) { matrices<true>(x, out); }

// ---- one lane for its warp ----

extern "C" __global__ void elected(const u32* x, u32* out) {
    u32 chosen;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, -1;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(chosen));
    asm volatile("griddepcontrol.wait;" ::: "memory");
    out[threadIdx.x] = x[threadIdx.x] * chosen;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
