// A stem's batchnorm, ReLU and maximum pool in one pass, and its gradients. Activations x [N, H, W, C], windows of
// 3 × 3 at a stride of at least 2, outputs [N, P, Q, C], C a multiple of 8.
//
//   z = relu(x * factor + offset),  y = the largest z of a window                 apply_pool
//   g of a pixel = the sum of the gradients of the windows that it won, zero where z is not positive
//   S = sum g,  P = sum g * (x - mean), per patch of pixels                       reduce_pool
//   dx = a * g + b * x + c, with the coefficients that batchnorm_grad.cu makes    input_grad_pool
//
// z is never stored. Of a window its winner is kept, 3 * row + column as a byte; the first of equals wins, a NaN wins
// over all. x, y and gradients are f32 or bf16; everything else is f32, and g is not rounded.
//
// A block takes CHANNELS channels (see batchnorm.cuh) of a patch: forwards OUT_COLS outputs in each of LANES / OUT_COLS
// rows, a thread one of them; backwards 8 × 16 pixels, so that a patch is a tile of partial sums.
// Bound by memory: forwards x is read and y and its bytes are written; backwards x, the gradient (a quarter of it at
// stride 2) and the bytes are read, and dx is written. Windows overlap: at stride 2 threads ask for x 9 / 4 times
// forwards, and warps 3 / 2 times for the gradient and the bytes backwards. The first-level cache serves all but the
// patch's border: 1.2 times x and 1.4 times the gradient and the bytes reach the second level.
// Shared memory: 4 to 8 KiB for the sums over lanes.
#include "batchnorm.cuh"

constexpr u32 OUT_COLS = 8;
constexpr u32 PATCH_ROWS = 8;
constexpr u32 PATCH_COLS = TILE / PATCH_ROWS;

struct PoolExtents {
    u32 n, h, w, c, p, q;
    u32 stride, padding;
};

// A block's patch, of `rows` by `cols` places on maps of `height` by `width`: its image and its first place.
struct Patch {
    u32 image, row, col;

    __device__ Patch(u32 number, u32 rows, u32 cols, u32 height, u32 width) {
        const u32 down = (height + rows - 1) / rows, across = (width + cols - 1) / cols;
        image = number / across / down;
        row = number / across % down * rows;
        col = number % across * cols;
    }
};

struct ApplyPoolParams {
    const void* input;    // [N, H, W, C]
    const float* factor;  // [C]
    const float* offset;  // [C]
    void* output;         // [N, P, Q, C]
    u8* at;               // [N, P, Q, C]: the winners
    PoolExtents extents;
};

template <class T, u32 V>
__device__ inline void apply_pool(const ApplyPoolParams& params) {
    const PoolExtents& m = params.extents;
    const Columns<V> own(m.c);
    const Patch patch(own.tile, own.LANES / OUT_COLS, OUT_COLS, m.p, m.q);
    const u32 row = patch.row + own.lane / OUT_COLS, col = patch.col + own.lane % OUT_COLS;
    if (!own.has_channels() || row >= m.p || col >= m.q) return;
    const Pack<float, V> factor = own.of(params.factor), offset = own.of(params.offset);
    const T* input = static_cast<const T*>(params.input) + u64(patch.image) * m.h * m.w * m.c + own.channel;
    // Beyond the border these wrap around, and are too large.
    const u32 top = row * m.stride - m.padding, left = col * m.stride - m.padding;
    Pack<float, V> best;
    Pack<u8, V> at = {};
#pragma unroll
    for (u32 j = 0; j < V; ++j) best.at[j] = minus_infinity();
#pragma unroll
    for (u32 tap = 0; tap < 9; ++tap) {
        const u32 y = top + tap / 3, x = left + tap % 3;
        if (y >= m.h || x >= m.w) continue;
        const Pack<float, V> value = widen(load<V>(input + u64(y * m.w + x) * m.c));
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float z = positive(fmaf(value.at[j], factor.at[j], offset.at[j]));
            if (z > best.at[j] || (z != z && best.at[j] == best.at[j])) best.at[j] = z, at.at[j] = u8(tap);
        }
    }
    const u64 place = (u64(patch.image * m.p + row) * m.q + col) * m.c + own.channel;
    store(static_cast<T*>(params.output) + place, narrow<T>(best));
    store(params.at + place, at);
}

extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_pool_x4(const ApplyPoolParams p) {
    apply_pool<float, 4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) batchnorm_apply_pool_bf16(const ApplyPoolParams p) {
    apply_pool<bf16, 8>(p);
}

// What the gradients share.
struct PoolGrad {
    const void* grad;     // [N, P, Q, C]
    const void* input;    // [N, H, W, C]
    const u8* at;         // [N, P, Q, C]
    const float* factor;  // [C]
    const float* offset;  // [C]
    PoolExtents extents;
};

// The first and the end of the windows over position `at` of an axis.
__device__ inline void windows_over(u32 at, u32 windows, const PoolExtents& m, u32& first, u32& end) {
    const u32 last = at + m.padding;
    first = last >= 3 ? (last - 3) / m.stride + 1 : 0;
    end = min(last / m.stride + 1, windows);
}

// Calls `use(place, g, x)` for this thread's pixels, `place` being that of their first channel. Gradients are added in
// the order of their windows.
template <class T, u32 V, class Use>
__device__ inline void for_pixels(const PoolGrad& params, const Columns<V>& own, const Use& use) {
    const PoolExtents& m = params.extents;
    if (!own.has_channels()) return;
    const Patch patch(own.tile, PATCH_ROWS, PATCH_COLS, m.h, m.w);
    const Pack<float, V> factor = own.of(params.factor), offset = own.of(params.offset);
#pragma unroll 1
    for (u32 pixel = own.lane; pixel < TILE; pixel += own.LANES) {
        const u32 y = patch.row + pixel / PATCH_COLS, x = patch.col + pixel % PATCH_COLS;
        if (y >= m.h || x >= m.w) continue;
        const u64 place = (u64(patch.image * m.h + y) * m.w + x) * m.c + own.channel;
        const Pack<float, V> value = widen(load<V>(static_cast<const T*>(params.input) + place));
        u32 first_row, end_row, first_col, end_col;
        windows_over(y, m.p, m, first_row, end_row);
        windows_over(x, m.q, m, first_col, end_col);
        Pack<float, V> g = {};
        for (u32 row = first_row; row < end_row; ++row) {
            // At most two windows lie side by side. Both are asked for at once; a missing one has a tap that never wins.
            Pack<T, V> grad[2];
            Pack<u8, V> at[2];
            u32 tap[2];
#pragma unroll
            for (u32 n = 0; n < 2; ++n) {
                const u32 col = first_col + n;
                const bool present = col < end_col;
                const u64 from = (u64(patch.image * m.p + row) * m.q + col) * m.c + own.channel;
                grad[n] = present ? load<V>(static_cast<const T*>(params.grad) + from) : Pack<T, V>{};
                at[n] = present ? load<V>(params.at + from) : Pack<u8, V>{};
                tap[n] = present ? (y + m.padding - row * m.stride) * 3 + (x + m.padding - col * m.stride) : 9;
            }
#pragma unroll
            for (u32 n = 0; n < 2; ++n) {
                const Pack<float, V> wide = widen(grad[n]);
#pragma unroll
                for (u32 j = 0; j < V; ++j)
                    if (at[n].at[j] == tap[n]) g.at[j] += wide.at[j];
            }
        }
#pragma unroll
        for (u32 j = 0; j < V; ++j)
            if (!(fmaf(value.at[j], factor.at[j], offset.at[j]) > 0.0f)) g.at[j] = 0.0f;
        use(place, g, value);
    }
}

struct ReducePoolParams {
    PoolGrad pool;
    const float* mean;  // [C]
    float* sum;         // [patches, C]
    float* product;     // [patches, C]
};

template <class T, u32 V>
__device__ inline void reduce_pool(const ReducePoolParams& p) {
    const Columns<V> own(p.pool.extents.c);
    const Pack<float, V> mean = own.of(p.mean);
    Pack<float, V> sum = {}, product = {};
    for_pixels<T>(p.pool, own, [&](u64, const Pack<float, V>& g, const Pack<float, V>& x) {
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            sum.at[j] += g.at[j];
            product.at[j] += g.at[j] * (x.at[j] - mean.at[j]);
        }
    });
    sum = over_lanes(sum);
    product = over_lanes(product);
    if (!own.speaks()) return;
    store(p.sum + own.partial(), sum);
    store(p.product + own.partial(), product);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) batchnorm_reduce_pool_x4(const ReducePoolParams p) {
    reduce_pool<float, 4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) batchnorm_reduce_pool_bf16(const ReducePoolParams p) {
    reduce_pool<bf16, 8>(p);
}

struct InputGradPoolParams {
    PoolGrad pool;
    const float* a;  // [C]
    const float* b;
    const float* c;
    void* input_grad;  // [N, H, W, C]
};

template <class T, u32 V>
__device__ inline void input_grad_pool(const InputGradPoolParams& p) {
    const Columns<V> own(p.pool.extents.c);
    const Pack<float, V> a = own.of(p.a), b = own.of(p.b), c = own.of(p.c);
    for_pixels<T>(p.pool, own, [&](u64 place, const Pack<float, V>& g, const Pack<float, V>& x) {
        Pack<float, V> dx;
#pragma unroll
        for (u32 j = 0; j < V; ++j) dx.at[j] = fmaf(g.at[j], a.at[j], fmaf(x.at[j], b.at[j], c.at[j]));
        store(static_cast<T*>(p.input_grad) + place, narrow<T>(dx));
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) batchnorm_input_grad_pool_x4(const InputGradPoolParams p) {
    input_grad_pool<float, 4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS, 2) batchnorm_input_grad_pool_bf16(const InputGradPoolParams p) {
    input_grad_pool<bf16, 8>(p);
}
