// Pairs of kernels: NAME_right keeps the rules, NAME_broken breaks one of them.
typedef unsigned int u32;
typedef unsigned long long u64;

#define BOTH(name, params, args)                                                    \
    extern "C" __global__ void name##_right params { name<true> args; }             \
    extern "C" __global__ void name##_broken params { name<false> args; }

// ---- shared memory ----

// A value is read before the thread that makes it has surely done so.
template <bool RIGHT> __device__ __forceinline__ void raw(const float* x, float* out) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    if (RIGHT) __syncthreads();
    out[threadIdx.x] = tile[127 - threadIdx.x];
}
BOTH(raw, (const float* x, float* out), (x, out))

// A tile is overwritten while others may still read it.
template <bool RIGHT> __device__ __forceinline__ void war(const float* x, float* out) {
    __shared__ float tile[128];
    float sum = 0;
    for (int i = 0; i < 3; i++) {
        tile[threadIdx.x] = x[i * 128 + threadIdx.x];
        __syncthreads();
        sum += tile[127 - threadIdx.x];
        if (RIGHT) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
BOTH(war, (const float* x, float* out), (x, out))

// Two threads of one warp: only __syncwarp orders them.
template <bool RIGHT> __device__ __forceinline__ void warp(const float* x, float* out) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    if (RIGHT) __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
BOTH(warp, (const float* x, float* out), (x, out))

// Halves of a warp, each synchronised on its own.
template <bool RIGHT> __device__ __forceinline__ void tiles(const float* x, float* out) {
    __shared__ float tile[32];
    u32 mask = threadIdx.x < 16 ? 0xFFFFu : 0xFFFF0000u;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp(mask);
    out[threadIdx.x] = tile[threadIdx.x ^ (RIGHT ? 1 : 17)];
}
BOTH(tiles, (const float* x, float* out), (x, out))

// Lanes of one instruction write different values to one place.
template <bool RIGHT> __device__ __forceinline__ void lanes(const float* x, float* out) {
    __shared__ float tile[32];
    tile[RIGHT ? threadIdx.x : threadIdx.x / 2] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x / 2];
}
BOTH(lanes, (const float* x, float* out), (x, out))

// The last elements of a tile are never filled.
template <bool RIGHT> __device__ __forceinline__ void unfilled(const float* x, float* out) {
    __shared__ float tile[64];
    if (RIGHT || threadIdx.x < 60) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    float value = tile[63 - threadIdx.x];
    out[threadIdx.x] = value * 0.f + 1.f;
}
BOTH(unfilled, (const float* x, float* out), (x, out))

// Halves of words: neighbours write the two halves of one.
template <bool RIGHT> __device__ __forceinline__ void halves(const float* x, float* out) {
    __shared__ unsigned short tile[64];
    tile[threadIdx.x] = (unsigned short)(int)(x[threadIdx.x] * 1000.f + 2000.f);
    if (RIGHT) __syncthreads();
    out[threadIdx.x] = tile[(threadIdx.x + 33) % 64];
}
BOTH(halves, (const float* x, float* out), (x, out))

// An index past the end of dynamic shared memory.
template <bool RIGHT> __device__ __forceinline__ void past_shared(const float* x, float* out) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x + (RIGHT ? 0 : 1)] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = RIGHT ? dynamic[127 - threadIdx.x] : dynamic[threadIdx.x + 1];
}
BOTH(past_shared, (const float* x, float* out), (x, out))

// ---- global memory ----

template <bool RIGHT> __device__ __forceinline__ void past_load(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[RIGHT ? i : i + 1];
}
BOTH(past_load, (const float* x, float* out, int n), (x, out, n))

template <bool RIGHT> __device__ __forceinline__ void past_store(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[RIGHT ? i : i + 1] = x[i];
}
BOTH(past_store, (const float* x, float* out, int n), (x, out, n))

template <bool RIGHT> __device__ __forceinline__ void unwritten(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (RIGHT ? i < n : i < n - 1) out[i] = x[i];
}
BOTH(unwritten, (const float* x, float* out, int n), (x, out, n))

template <bool RIGHT> __device__ __forceinline__ void misaligned(const float* x, float* out, int) {
    float4 v = *(const float4*)(x + 4 * threadIdx.x + (RIGHT ? 0 : 1));
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
BOTH(misaligned, (const float* x, float* out, int n), (x, out, n))

// Threads of a block hand values on through global memory.
template <bool RIGHT> __device__ __forceinline__ void through_global(const float* x, float* out, float* scratch) {
    scratch[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x];
    if (RIGHT) __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = scratch[blockIdx.x * 64 + 63 - threadIdx.x];
}
BOTH(through_global, (const float* x, float* out, float* scratch), (x, out, scratch))

// Many read, and behind a barrier one reads and writes: alone, or while another warp still reads.
template <bool RIGHT> __device__ __forceinline__ void after_readers(const float* x, float* out, float* scratch) {
    float* shared_by_all = scratch + blockIdx.x * 64;
    float before = shared_by_all[0];
    __syncthreads();
    float behind = 0;
    if (threadIdx.x == 0 || !RIGHT && threadIdx.x == 32) behind = shared_by_all[0];
    if (threadIdx.x == 0) shared_by_all[0] = behind + x[0];
    out[blockIdx.x * 64 + threadIdx.x] = before + behind;
}
BOTH(after_readers, (const float* x, float* out, float* scratch), (x, out, scratch))

// Blocks write the same element.
template <bool RIGHT> __device__ __forceinline__ void blocks_write(const float* x, float* out, float*) {
    out[RIGHT ? blockIdx.x * 64 + threadIdx.x : blockIdx.x * 63 + threadIdx.x] = x[threadIdx.x];
    if (!RIGHT && blockIdx.x == 3 && threadIdx.x < 3) out[253 + threadIdx.x] = 0;
}
BOTH(blocks_write, (const float* x, float* out, float* scratch), (x, out, scratch))

// A block reads what another one writes in the same launch.
template <bool RIGHT> __device__ __forceinline__ void blocks_read(const float* x, float* out, float* scratch) {
    int i = blockIdx.x * 64 + threadIdx.x;
    scratch[i] = x[threadIdx.x];
    out[i] = scratch[RIGHT ? i : (i + 64) % 256];
}
BOTH(blocks_read, (const float* x, float* out, float* scratch), (x, out, scratch))

// In place: a block overwrites what another one reads.
template <bool RIGHT> __device__ __forceinline__ void in_place(const float* x, float* out, float* scratch) {
    int i = blockIdx.x * 64 + threadIdx.x;
    if (blockIdx.x < 4) scratch[i] = 0;
    float left = scratch[RIGHT ? i : max(i - 1, 0)];
    scratch[i] = left + x[threadIdx.x];
    out[i] = left;
}
BOTH(in_place, (const float* x, float* out, float* scratch), (x, out, scratch))

// A sum over all blocks: atomics are fine, plain additions are not.
template <bool RIGHT> __device__ __forceinline__ void counting(const float* x, float* out, float* scratch) {
    u32* counter = (u32*)scratch;
    if (threadIdx.x == 0) {
        if (RIGHT) atomicAdd(counter, 1u);
        else *counter += 1;
    }
    out[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x];
}
BOTH(counting, (const float* x, float* out, float* scratch), (x, out, scratch))

// The read-only path for memory that the kernel writes.
template <bool RIGHT> __device__ __forceinline__ void read_only(const float* x, float* out, float* scratch) {
    int i = blockIdx.x * 64 + threadIdx.x;
    scratch[i] = x[threadIdx.x];
    out[i] = RIGHT ? scratch[i] : __ldg(scratch + i);
}
BOTH(read_only, (const float* x, float* out, float* scratch), (x, out, scratch))

// The last block to finish adds up what all have left: needs fences on both sides.
template <bool RIGHT> __device__ __forceinline__ void last_block(const float* x, float* out, float* scratch) {
    __shared__ bool last;
    u32* counter = (u32*)scratch;
    float* parts = scratch + 1;
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = x[blockIdx.x];
        if (RIGHT) __threadfence();
        last = atomicAdd(counter, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = 0;
        for (u32 i = 0; i < gridDim.x; i++) sum += parts[i];
        for (int i = 0; i < 256; i++) out[i] = sum;
    }
}
BOTH(last_block, (const float* x, float* out, float* scratch), (x, out, scratch))

// ---- collectives ----

template <bool RIGHT> __device__ __forceinline__ void barrier_in_branch(const float* x, float* out) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    if (RIGHT || threadIdx.x < 80) __syncthreads();
    if (!RIGHT) __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x];
}
BOTH(barrier_in_branch, (const float* x, float* out), (x, out))

// Each half of the block waits at a barrier of its own making.
template <bool RIGHT> __device__ __forceinline__ void two_barriers(const float* x, float* out) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    if (RIGHT) {
        __syncthreads();
    } else if (threadIdx.x < 64) {
        asm volatile("bar.sync 0;" ::: "memory");
        tile[threadIdx.x] += 1.f;
    } else {
        asm volatile("bar.sync 0;" ::: "memory");
    }
    out[threadIdx.x] = tile[threadIdx.x];
}
BOTH(two_barriers, (const float* x, float* out), (x, out))

template <bool RIGHT> __device__ __forceinline__ void early_return(const float* x, float* out) {
    __shared__ float tile[128];
    if (!RIGHT && threadIdx.x >= 96) return;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
BOTH(early_return, (const float* x, float* out), (x, out))

template <bool RIGHT> __device__ __forceinline__ void shuffle(const float* x, float* out) {
    float value = x[threadIdx.x];
    if (RIGHT || threadIdx.x % 32 < 16) value += __shfl_xor_sync(~0u, value, 1);
    out[threadIdx.x] = value;
}
BOTH(shuffle, (const float* x, float* out), (x, out))

template <bool RIGHT> __device__ __forceinline__ void vote(const float* x, float* out) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) {
        value += __popc(__ballot_sync(RIGHT ? 0xFFFFu : ~0u, value > 0));
    }
    out[threadIdx.x] = value;
}
BOTH(vote, (const float* x, float* out), (x, out))

// A flag that no one sets.
template <bool RIGHT> __device__ __forceinline__ void spin(const float* x, float* out) {
    __shared__ volatile int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 32 && RIGHT) flag = 1;
    if (threadIdx.x == 64) while (flag == 0) {}
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}
BOTH(spin, (const float* x, float* out), (x, out))

// A thread spins for another one of its own warp.
template <bool RIGHT> __device__ __forceinline__ void spin_in_warp(const float* x, float* out) {
    __shared__ volatile int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 1) {
        while (flag == 0) {}
    } else if (threadIdx.x == 2 && RIGHT) {
        flag = 1;
    }
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}
BOTH(spin_in_warp, (const float* x, float* out), (x, out))

// An endless loop without any memory.
template <bool RIGHT> __device__ __forceinline__ void endless(const float* x, float* out) {
    u32 i = threadIdx.x;
    do {
        asm volatile("add.u32 %0, %0, 2;" : "+r"(i));
    } while (RIGHT ? i < 100 : (i | 1) != 0);
    out[threadIdx.x] = x[threadIdx.x];
}
BOTH(endless, (const float* x, float* out), (x, out))

// Named barriers: two warps make, two warps use.
template <bool RIGHT> __device__ __forceinline__ void named(const float* x, float* out) {
    __shared__ float tile[64];
    if (threadIdx.x < 64) {
        tile[threadIdx.x] = x[threadIdx.x];
        asm volatile("bar.arrive %0, 128;" ::"r"(RIGHT ? 1 : 2) : "memory");
    } else {
        asm volatile("bar.sync 1, 128;" ::: "memory");
        out[threadIdx.x] = tile[127 - threadIdx.x];
    }
    if (threadIdx.x < 64) out[threadIdx.x] = 0;
}
BOTH(named, (const float* x, float* out), (x, out))

// Two of three warps synchronise; the third reads too.
template <bool RIGHT> __device__ __forceinline__ void named_race(const float* x, float* out) {
    __shared__ float tile[64];
    if (threadIdx.x < 64) {
        tile[threadIdx.x] = x[threadIdx.x];
        asm volatile("bar.sync 1, 64;" ::: "memory");
        out[threadIdx.x] = tile[63 - threadIdx.x];
    } else {
        out[threadIdx.x] = RIGHT ? 0.f : tile[127 - threadIdx.x];
    }
}
BOTH(named_race, (const float* x, float* out), (x, out))

// Producer and consumer with two barriers over two stages.
template <bool RIGHT> __device__ __forceinline__ void pipeline(const float* x, float* out) {
    __shared__ float tile[64];
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        if (threadIdx.x < 64) {
            if (i > 0 && RIGHT) asm volatile("bar.sync 2, 128;" ::: "memory");
            tile[threadIdx.x] = x[threadIdx.x] + i;
            asm volatile("bar.arrive 1, 128;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 128;" ::: "memory");
            sum += tile[127 - threadIdx.x];
            if (i < 3 && RIGHT) asm volatile("bar.arrive 2, 128;" ::: "memory");
        }
    }
    out[threadIdx.x] = sum;
}
BOTH(pipeline, (const float* x, float* out), (x, out))

// ---- other ----

template <bool RIGHT> __device__ __forceinline__ void local_array(const float* x, float* out) {
    float local[8];
    for (int i = 0; i < (RIGHT ? 8 : 7); i++) local[i] = x[i] * i;
    out[threadIdx.x] = local[threadIdx.x % 8];
}
BOTH(local_array, (const float* x, float* out), (x, out))

template <bool RIGHT> __device__ __forceinline__ void register_(const float* x, float* out) {
    float value;
    if (RIGHT)
        asm volatile("{ .reg .f32 t; mov.f32 t, 0f3F800000; add.f32 %0, t, %1; }" : "=f"(value) : "f"(x[threadIdx.x]));
    else
        asm volatile("{ .reg .f32 t; .reg .pred p; setp.gt.f32 p, %1, 0f00000000; @p mov.f32 t, 0f3F800000; add.f32 %0, t, %1; }" : "=f"(value) : "f"(x[threadIdx.x]));
    out[threadIdx.x] = value;
}
BOTH(register_, (const float* x, float* out), (x, out))

template <bool RIGHT> __device__ __forceinline__ void assertion(const float* x, float* out) {
    if (x[threadIdx.x] > (RIGHT ? 2.f : 0.5f)) __trap();
    out[threadIdx.x] = x[threadIdx.x];
}
BOTH(assertion, (const float* x, float* out), (x, out))
