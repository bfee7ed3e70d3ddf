// Rows of a matrix by number: output[i] = matrix[rows[i]], whatever the elements are.
//
// Elements are moved in units as wide as a row's length allows: of 16, 4, 2 bytes or 1, one per thread; blockIdx.y
// counts output rows in steps of gridDim.y. A number that names no row gives a row of set bits, in floats NaN: it must
// not pass for data. Bound by memory: rows are read once and written once.
#include "common.cuh"

constexpr u32 THREADS = 256;

struct GatherParams {
    const void* matrix;  // [count, width]
    const u32* rows;     // [n]
    void* output;        // [n, width]
    u32 count;
    u32 n;
    u32 width;  // units of a row
};

template <class Unit>
__device__ inline void gather(const GatherParams& p, Unit set) {
    const u32 column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= p.width) return;
    const Unit* matrix = static_cast<const Unit*>(p.matrix);
    Unit* output = static_cast<Unit*>(p.output);
    for (u32 i = blockIdx.y; i < p.n; i += gridDim.y) {
        const u32 row = p.rows[i];
        output[u64(i) * p.width + column] = row < p.count ? matrix[u64(row) * p.width + column] : set;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_16(const GatherParams p) {
    gather<uint4>(p, make_uint4(~0u, ~0u, ~0u, ~0u));
}
extern "C" __global__ void __launch_bounds__(THREADS) gather_4(const GatherParams p) { gather<u32>(p, ~0u); }
extern "C" __global__ void __launch_bounds__(THREADS) gather_2(const GatherParams p) { gather<u16>(p, u16(~0)); }
extern "C" __global__ void __launch_bounds__(THREADS) gather_1(const GatherParams p) { gather<u8>(p, u8(~0)); }
