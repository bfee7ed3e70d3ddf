// wgmma on an image of shared memory that the host lays out, by descriptors that the host makes; and rules about it
// kept and broken.
#include "sm90.cuh"

struct Params {
    const u32* image;
    // 64×n numbers to add to, and the result, by thread and register.
    const float* c;
    float* out;
    // Without their start.
    u64 a, b;
    u32 bytes, a_start, b_start, add;
};

__device__ __forceinline__ void product_bf16_8(float (&d)[4], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, %4, %5, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_bf16_64(float (&d)[32], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_bf16_64_ta(float (&d)[32], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 1, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_bf16_64_tb(float (&d)[32], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, -1, 1, 0, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_bf16_24_tab(float (&d)[12], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %14, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, %12, %13, p, 1, -1, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_f16_128_tb(float (&d)[64], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 1;\n}"
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

__device__ __forceinline__ void product_bf16_256(float (&d)[128], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
          "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
          "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
          "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
          "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
          "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
          "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
          "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
          "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_tf32_32(float (&d)[16], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_bf16_16_ra(float (&d)[8], const u32 (&a)[4], u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ void product_tf32_8_ra(float (&d)[4], const u32 (&a)[4], u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3"
        "}, {%4, %5, %6, %7}, %8, p, 1, 1;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)
        : "memory");
}

__device__ __forceinline__ u64 starting(u64 descriptor, u32 at) { return descriptor | (at >> 4 & 0x3FFF); }

__device__ __forceinline__ void fill(u32* memory, const u32* image, u32 bytes) {
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) memory[i] = image[i];
}

// Factor a from shared memory, or its 16-bit pairs (f32 for tf32) from the start of the image: row by row, 32 bytes each.
#define PRODUCT(name, count, from_registers)                                                           \
    extern "C" __global__ void __launch_bounds__(128) name(const Params p) {                           \
        extern __shared__ __align__(1024) u32 memory[];                                                \
        fill(memory, p.image, p.bytes);                                                                \
        float d[count];                                                                                \
        for (u32 i = 0; i < count; i++) d[i] = p.c[threadIdx.x * count + i];                           \
        auto a = factor<from_registers>(p, memory);                                                    \
        proxy_fence();                                                                                 \
        __syncthreads();                                                                               \
        product_fence();                                                                               \
        product_##name(d, a.value, starting(p.b, shared_address(memory) + p.b_start), p.add);          \
        product_commit();                                                                              \
        product_wait<0>();                                                                             \
        for (u32 i = 0; i < count; i++) p.out[threadIdx.x * count + i] = d[i];                         \
    }

template <bool REGISTERS> struct Factor;
template <> struct Factor<false> { u64 value; };
template <> struct Factor<true> { u32 value[4]; };
template <bool REGISTERS> __device__ __forceinline__ Factor<REGISTERS> factor(const Params& p, const u32* memory);
template <> __device__ __forceinline__ Factor<false> factor<false>(const Params& p, const u32* memory) {
    return {starting(p.a, shared_address(memory) + p.a_start)};
}
template <> __device__ __forceinline__ Factor<true> factor<true>(const Params& p, const u32*) {
    u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4;
    const u32* a = p.image + row * 8 + column;
    return {{a[0], a[64], a[4], a[68]}};
}

PRODUCT(bf16_8, 4, false)
PRODUCT(bf16_64, 32, false)
PRODUCT(bf16_64_ta, 32, false)
PRODUCT(bf16_64_tb, 32, false)
PRODUCT(bf16_24_tab, 12, false)
PRODUCT(f16_128_tb, 64, false)
PRODUCT(bf16_256, 128, false)
PRODUCT(tf32_32, 16, false)
PRODUCT(bf16_16_ra, 8, true)
PRODUCT(tf32_8_ra, 4, true)

// ---- rules ----

constexpr u64 PLAIN = 8ull << 16 | 16ull << 32;

// Writes its image without telling the asynchronous proxy.
template <bool RIGHT> __device__ __forceinline__ void proxy(const Params& p) {
    __shared__ __align__(1024) u32 memory[1024];
    fill(memory, p.image, 4096);
    if (RIGHT) proxy_fence();
    __syncthreads();
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    u64 a = starting(PLAIN, shared_address(memory));
    product_fence();
    product_bf16_8(d, a, a, 1);
    product_commit();
    product_wait<0>();
    for (u32 i = 0; i < 4; i++) p.out[threadIdx.x * 4 + i] = d[i];
}
BOTH(proxy, (const Params p), (p))

// Two products at once, each a group: the first may be used when one is left.
template <bool RIGHT> __device__ __forceinline__ void groups(const Params& p) {
    __shared__ __align__(1024) u32 memory[1024];
    fill(memory, p.image, 4096);
    proxy_fence();
    __syncthreads();
    float d[2][4] = {{1.f, 1.f, 1.f, 1.f}, {2.f, 2.f, 2.f, 2.f}};
    u64 a = starting(PLAIN, shared_address(memory));
    product_fence();
    product_bf16_8(d[0], a, a, 1);
    product_commit();
    product_bf16_8(d[1], a, a, 1);
    product_commit();
    product_wait<1>();
    p.out[threadIdx.x * 4] = d[RIGHT ? 0 : 1][0];
    product_wait<0>();
    for (u32 i = 1; i < 4; i++) p.out[threadIdx.x * 4 + i] = d[0][i] + d[1][i];
}
BOTH(groups, (const Params p), (p))

// A product left under way at the end.
template <bool RIGHT> __device__ __forceinline__ void leave(const Params& p) {
    __shared__ __align__(1024) u32 memory[1024];
    fill(memory, p.image, 4096);
    proxy_fence();
    __syncthreads();
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    u64 a = starting(PLAIN, shared_address(memory));
    for (u32 i = 0; i < 4; i++) p.out[threadIdx.x * 4 + i] = d[i];
    product_fence();
    product_bf16_8(d, a, a, 1);
    product_commit();
    if (RIGHT) product_wait<0>();
}
BOTH(leave, (const Params p), (p))

// Overwrites a factor in shared memory that is still being read.
template <bool RIGHT> __device__ __forceinline__ void overwrite(const Params& p) {
    __shared__ __align__(1024) u32 memory[1024];
    fill(memory, p.image, 4096);
    proxy_fence();
    __syncthreads();
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    u64 a = starting(PLAIN, shared_address(memory));
    product_fence();
    product_bf16_8(d, a, a, 1);
    product_commit();
    if (RIGHT) product_wait<0>();
    __syncthreads();
    memory[threadIdx.x] = 0;
    product_wait<0>();
    for (u32 i = 0; i < 4; i++) p.out[threadIdx.x * 4 + i] = d[i];
}
BOTH(overwrite, (const Params p), (p))

// Uses its accumulators, and adds to them again without a fence.
template <bool RIGHT> __device__ __forceinline__ void fence(const Params& p) {
    __shared__ __align__(1024) u32 memory[1024];
    fill(memory, p.image, 4096);
    proxy_fence();
    __syncthreads();
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    u64 a = starting(PLAIN, shared_address(memory));
    for (u32 round = 0; round < 3; round++) {
        if (RIGHT || round == 0) product_fence();
        product_bf16_8(d, a, a, 1);
        product_commit();
        product_wait<0>();
        for (u32 i = 0; i < 4; i++) d[i] *= 0.5f;
    }
    for (u32 i = 0; i < 4; i++) p.out[threadIdx.x * 4 + i] = d[i];
}
BOTH(fence, (const Params p), (p))

// Past the end of shared memory.
template <bool RIGHT> __device__ __forceinline__ void past(const Params& p) {
    __shared__ __align__(1024) u32 memory[1024];
    fill(memory, p.image, 4096);
    proxy_fence();
    __syncthreads();
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    u64 a = starting(PLAIN, shared_address(memory));
    product_fence();
    product_bf16_8(d, a, starting(PLAIN, shared_address(memory) + (RIGHT ? 0 : 4096)), 1);
    product_commit();
    product_wait<0>();
    for (u32 i = 0; i < 4; i++) p.out[threadIdx.x * 4 + i] = d[i];
}
BOTH(past, (const Params p), (p))
