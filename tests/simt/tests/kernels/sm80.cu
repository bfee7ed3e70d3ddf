// Asynchronous copies, matrices and cooperative launches: right and broken.
typedef unsigned int u32;

#define BOTH(name, params, args)                                                    \
    extern "C" __global__ void name##_right params { name<true> args; }             \
    extern "C" __global__ void name##_broken params { name<false> args; }

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copy16_or_zero(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy4(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Reads a copy without waiting for it.
template <bool RIGHT> __device__ __forceinline__ void no_wait(const float* x, float* out) {
    __shared__ __align__(16) float tile[256];
    copy16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x);
    if (RIGHT) wait_all();
    __syncthreads();
    out[threadIdx.x] = tile[255 - threadIdx.x];
}
BOTH(no_wait, (const float* x, float* out), (x, out))

// Waits for its own copies, but not for those of other threads.
template <bool RIGHT> __device__ __forceinline__ void no_barrier(const float* x, float* out) {
    __shared__ __align__(16) float tile[256];
    copy16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x);
    commit();
    wait<0>();
    if (RIGHT) __syncthreads();
    out[threadIdx.x] = tile[255 - threadIdx.x];
}
BOTH(no_barrier, (const float* x, float* out), (x, out))

// A pipeline of three stages; the broken one waits for one group too few.
template <bool RIGHT> __device__ __forceinline__ void stages(const float* x, float* out) {
    __shared__ __align__(16) float tile[3][256];
    for (int i = 0; i < 2; i++) {
        copy16(&tile[i][4 * threadIdx.x], x + 16 * i + 4 * threadIdx.x);
        commit();
    }
    float sum = 0;
    for (int i = 0; i < 8; i++) {
        if (RIGHT) wait<1>(); else wait<2>();
        __syncthreads();
        if (i + 2 < 8) copy16(&tile[(i + 2) % 3][4 * threadIdx.x], x + 16 * (i + 2) + 4 * threadIdx.x);
        commit();
        sum += tile[i % 3][255 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}
BOTH(stages, (const float* x, float* out), (x, out))

// As many stages as copies ahead: the next copy overwrites what others still read.
template <bool RIGHT> __device__ __forceinline__ void overwrite(const float* x, float* out) {
    __shared__ __align__(16) float tile[2][256];
    float sum = 0;
    copy16(&tile[0][4 * threadIdx.x], x + 4 * threadIdx.x);
    commit();
    for (int i = 0; i < 4; i++) {
        wait<0>();
        __syncthreads();
        copy16(&tile[RIGHT ? (i + 1) % 2 : 0][4 * threadIdx.x], x + 16 * (i + 1) + 4 * threadIdx.x);
        commit();
        sum += tile[RIGHT ? i % 2 : 0][255 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
    wait_all();
}
BOTH(overwrite, (const float* x, float* out), (x, out))

template <bool RIGHT> __device__ __forceinline__ void copy_misaligned(const float* x, float* out) {
    __shared__ __align__(16) float tile[260];
    copy16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x + (RIGHT ? 4 : 1));
    wait_all();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
BOTH(copy_misaligned, (const float* x, float* out), (x, out))

// Rows past the end: zero-filled, or read.
template <bool RIGHT> __device__ __forceinline__ void copy_past(const float* x, float* out) {
    __shared__ __align__(16) float tile[256];
    int i = 4 * threadIdx.x + 192;
    copy16_or_zero(tile + 4 * threadIdx.x, x + (RIGHT && i >= 384 ? 0 : i), RIGHT ? i < 384 : true);
    wait_all();
    __syncthreads();
    out[threadIdx.x] = tile[255 - threadIdx.x];
}
BOTH(copy_past, (const float* x, float* out), (x, out))

// Copies of 4 bytes; a store to the same place before they land.
template <bool RIGHT> __device__ __forceinline__ void store_in_flight(const float* x, float* out) {
    __shared__ float tile[64];
    copy4(tile + threadIdx.x, x + threadIdx.x);
    if (RIGHT) wait_all();
    tile[threadIdx.x] = 1.f;
    wait_all();
    out[threadIdx.x] = tile[threadIdx.x];
}
BOTH(store_in_flight, (const float* x, float* out), (x, out))

// ---- matrices ----

__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix2_trans(u32 (&r)[2], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
template <bool BF16> __device__ __forceinline__ void mma16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    if (BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// out (16 x 8) = a (16 x 16, rows) times b (16 x 8, rows): b is stored with n contiguous, so its fragments need .trans.
// `pad` spreads rows over the banks.
template <bool BF16, int PAD, bool RIGHT>
__device__ __forceinline__ void gemm(const unsigned short* a, const unsigned short* b, float* out, int sync) {
    __shared__ __align__(16) unsigned short A[16][16 + PAD], B[16][8 + PAD];
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) A[i / 16][i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) B[i / 8][i % 8] = b[i];
    if (sync) __syncwarp();
    u32 fa[4], fb[2];
    float c[4] = {0, 0, 0, 0};
    ldmatrix4(fa, &A[lane % 16][8 * (lane / 16)]);
    ldmatrix2_trans(fb, &B[lane % 16][0]);
    if (!RIGHT) {
        u32 t = fa[1];
        fa[1] = fa[2];
        fa[2] = t;
    }
    mma16<BF16>(c, fa, fb);
    int row = lane / 4, col = 2 * (lane % 4);
    out[row * 8 + col] = c[0];
    out[row * 8 + col + 1] = c[1];
    out[(row + 8) * 8 + col] = c[2];
    out[(row + 8) * 8 + col + 1] = c[3];
}
extern "C" __global__ void gemm_bf16(const unsigned short* a, const unsigned short* b, float* out) { gemm<true, 8, true>(a, b, out, 1); }
extern "C" __global__ void gemm_f16(const unsigned short* a, const unsigned short* b, float* out) { gemm<false, 8, true>(a, b, out, 1); }
extern "C" __global__ void gemm_conflicts(const unsigned short* a, const unsigned short* b, float* out) { gemm<true, 48, true>(a, b, out, 1); }
extern "C" __global__ void gemm_swapped(const unsigned short* a, const unsigned short* b, float* out) { gemm<true, 8, false>(a, b, out, 1); }
extern "C" __global__ void gemm_race(const unsigned short* a, const unsigned short* b, float* out) { gemm<true, 8, true>(a, b, out, 0); }
extern "C" __global__ void gemm_misaligned(const unsigned short* a, const unsigned short* b, float* out) { gemm<true, 4, true>(a, b, out, 1); }

// 16 x 8 = 16 x 8 times 8 x 8 in TF32, straight from global memory.
extern "C" __global__ void gemm_tf32(const float* a, const float* b, float* out) {
    int lane = threadIdx.x, group = lane / 4, t = lane % 4;
    u32 fa[4] = {__float_as_uint(a[group * 8 + t]), __float_as_uint(a[(group + 8) * 8 + t]),
                 __float_as_uint(a[group * 8 + t + 4]), __float_as_uint(a[(group + 8) * 8 + t + 4])};
    u32 fb[2] = {__float_as_uint(b[t * 8 + group]), __float_as_uint(b[(t + 4) * 8 + group])};
    for (int i = 0; i < 4; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fa[i]) : "f"(__uint_as_float(fa[i])));
    for (int i = 0; i < 2; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fb[i]) : "f"(__uint_as_float(fb[i])));
    float c[4] = {0, 0, 0, 0};
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    out[group * 8 + 2 * t] = c[0];
    out[group * 8 + 2 * t + 1] = c[1];
    out[(group + 8) * 8 + 2 * t] = c[2];
    out[(group + 8) * 8 + 2 * t + 1] = c[3];
}

// A matrix instruction in a branch.
template <bool RIGHT> __device__ __forceinline__ void matrix_in_branch(const float* x, float* out) {
    u32 a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    float c[4] = {x[threadIdx.x], 0, 0, 0};
    if (RIGHT || threadIdx.x < 24) mma16<true>(c, a, b);
    out[threadIdx.x] = c[0];
}
BOTH(matrix_in_branch, (const float* x, float* out), (x, out))

// ---- all blocks together ----

// A barrier over the grid, by one counter that only grows.
template <bool FENCES, bool WAIT> __device__ __forceinline__ void grid_barrier(u32* counter, u32 goal) {
    __syncthreads();
    if (threadIdx.x == 0) {
        if (FENCES) __threadfence();
        atomicAdd(counter, 1u);
        if (WAIT) while (*(volatile u32*)counter < goal) {}
        if (FENCES) __threadfence();
    }
    __syncthreads();
}

template <bool FENCES, bool WAIT> __device__ __forceinline__ void rounds(const float* x, float* out, float* scratch, u32* counter) {
    int i = blockIdx.x * 64 + threadIdx.x, n = gridDim.x * 64;
    scratch[i] = x[threadIdx.x];
    for (int round = 1; round <= 3; round++) {
        grid_barrier<FENCES, WAIT>(counter, (2 * round - 1) * gridDim.x);
        // Every block reads what all blocks wrote, the first part by all of them.
        float next = scratch[(i + 64) % n] + scratch[threadIdx.x];
        grid_barrier<FENCES, WAIT>(counter, 2 * round * gridDim.x);
        scratch[i] = next;
    }
    out[i] = scratch[i];
}
extern "C" __global__ void grid_right(const float* x, float* out, float* scratch, u32* counter) { rounds<true, true>(x, out, scratch, counter); }
extern "C" __global__ void grid_no_wait(const float* x, float* out, float* scratch, u32* counter) { rounds<true, false>(x, out, scratch, counter); }
extern "C" __global__ void grid_no_fence(const float* x, float* out, float* scratch, u32* counter) { rounds<false, true>(x, out, scratch, counter); }

// Acquire and release instead of fences.
extern "C" __global__ void grid_acquire(const float* x, float* out, float* scratch, u32* counter) {
    int i = blockIdx.x * 64 + threadIdx.x, n = gridDim.x * 64;
    scratch[i] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 seen;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        while (seen < gridDim.x);
    }
    __syncthreads();
    out[i] = scratch[(i + 64) % n];
}

// One block never arrives.
extern "C" __global__ void grid_missing(const float* x, float* out, float* scratch, u32* counter) {
    if (blockIdx.x > 0) grid_barrier<true, true>(counter, gridDim.x);
    out[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x];
}
