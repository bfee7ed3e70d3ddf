// A GEMM in the manner of Hopper: a producer warp, TMA with multicast in clusters of two blocks, mbarriers, two
// warpgroups that multiply. And the same with a mistake, as a parameter says.
#include "sm90.cuh"

enum Mistake : u32 {
    NONE,
    NO_FULL_WAIT,      // multiplies a stage without waiting for its copies
    EXPECTS_LESS,      // the full barrier expects fewer bytes than come
    EXPECTS_MORE,      // or more
    NO_PRODUCT_WAIT,   // uses the accumulators before wgmma.wait_group
    NO_PRODUCT_FENCE,  // no wgmma.fence after the accumulators were set
    NO_EMPTY_WAIT,     // fills a stage that is being read
    EARLY_RELEASE,     // gives a stage back before its products have ended
    NO_INIT_FENCE,     // mbarriers that copies and other blocks may not see
    NO_CLUSTER_SYNC,   // copies to a block whose mbarriers may not be there yet
    EARLY_EXIT,        // leaves while the other block still copies and arrives
    WRONG_SWIZZLE,     // a descriptor with another layout than the tensor map's
    LANE_DESCRIPTORS,  // descriptors that depend on the lane
    THREE_WARPS,       // a warpgroup without its last warp
};

constexpr u32 TILE = 128, DEPTH = 64, STAGES = 3, TILE_BYTES = 2 * TILE * DEPTH;

__device__ __forceinline__ void load(u32 to, const TensorMap* map, int x, int y, u32 barrier, u16 blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
                 : "memory");
}
// 128-byte rows, eight of them to a group, 1024 bytes from group to group.
__device__ __forceinline__ u64 descriptor(u32 address, u64 layout) {
    return (u64)(address >> 4 & 0x3FFF) | 1ull << 16 | 64ull << 32 | layout << 62;
}
// d += a · b, 64×16 by 16×128.
__device__ __forceinline__ void multiply(float (&d)[64], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, add, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

struct Params {
    TensorMap a, b;
    float* out;
    u32 k, m, n;
    Mistake mistake;
};

// out (m × n) = a (m × k) times b (n × k) transposed. Blocks of a cluster have the same columns.
__device__ __forceinline__ void gemm(const Params& p, Mistake mistake) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ __align__(8) u64 full[STAGES], empty[STAGES];
    u32 rank = cluster_rank(), warp = threadIdx.x / 32;
    u32 steps = (p.k + DEPTH - 1) / DEPTH;
    auto tile_a = [&](u32 stage) { return shared_address(memory) + stage * 2 * TILE_BYTES; };
    auto tile_b = [&](u32 stage) { return tile_a(stage) + TILE_BYTES; };
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            init(shared_address(&full[i]), 1);
            init(shared_address(&empty[i]), 4);
        }
        if (mistake != NO_INIT_FENCE) init_fence();
    }
    if (mistake == NO_CLUSTER_SYNC) __syncthreads(); else cluster_sync();
    if (warp < 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            for (u32 step = 0; step < steps; step++) {
                u32 stage = step % STAGES, barrier = shared_address(&full[stage]);
                if (mistake != NO_EMPTY_WAIT) wait(shared_address(&empty[stage]), (step / STAGES & 1) ^ 1);
                expect(barrier, 2 * TILE_BYTES + (mistake == EXPECTS_LESS ? -1024 : mistake == EXPECTS_MORE ? 1024 : 0));
                load(tile_a(stage), &p.a, step * DEPTH, blockIdx.x * TILE, barrier, 1 << rank);
                // Half of b for both blocks.
                load(tile_b(stage) + rank * TILE_BYTES / 2, &p.b, step * DEPTH, blockIdx.y * TILE + rank * TILE / 2,
                     barrier, 3);
            }
        }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        u32 group = warp / 4 - 1;
        bool idle = mistake == THREE_WARPS && warp == 7;
        float d[64];
        for (u32 i = 0; i < 64; i++) d[i] = 0.f;
        for (u32 step = 0; step < steps && !idle; step++) {
            u32 stage = step % STAGES;
            if (mistake != NO_FULL_WAIT) wait(shared_address(&full[stage]), step / STAGES & 1);
            if (mistake != NO_PRODUCT_FENCE) product_fence();
            for (u32 k = 0; k < DEPTH / 16; k++) {
                u32 at = mistake == LANE_DESCRIPTORS ? threadIdx.x % 2 * 1024 : 0;
                u64 a = descriptor(tile_a(stage) + group * TILE_BYTES / 2 + 32 * k + at, 1);
                multiply(d, a, descriptor(tile_b(stage) + 32 * k, mistake == WRONG_SWIZZLE ? 2 : 1), 1);
            }
            product_commit();
            if (mistake != NO_PRODUCT_WAIT && mistake != EARLY_RELEASE) product_wait<0>();
            if (threadIdx.x % 128 < 2) arrive_in(shared_address(&empty[stage]), threadIdx.x % 128);
            if (mistake == EARLY_RELEASE) product_wait<0>();
        }
        u32 lane = threadIdx.x % 32;
        for (u32 i = 0; i < 64; i++) {
            u32 row = blockIdx.x * TILE + group * 64 + warp % 4 * 16 + lane / 4 + i / 2 % 2 * 8;
            u32 column = blockIdx.y * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (row < p.m && column < p.n) p.out[(u64)row * p.n + column] = d[i];
        }
        if (mistake == NO_PRODUCT_WAIT) product_wait<0>();
    }
    if (mistake != EARLY_EXIT) cluster_sync();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gemm_right(const __grid_constant__ Params p) {
    gemm(p, NONE);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gemm_mistake(const __grid_constant__ Params p) {
    gemm(p, p.mistake);
}
