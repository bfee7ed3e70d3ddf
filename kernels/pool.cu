// Pooling of activations [N, H, W, C] of f32 or bf16, and its gradients. What is pooled over all positions is f32, and so
// is its gradient.
//
// The maximum of windows: one thread per V neighbouring channels of an output (forwards) or of an input (backwards),
// which looks at its window, or at the windows that it lies in: each gradient is gathered, none scattered. Averages
// over all positions, with the maximum beside them (concat): a block takes COLUMNS * V channels of one image, a thread
// V channels of every LANES-th position; then lanes are merged in order. V is 4 where C is a multiple of 4, as in bf16 it must be, else 1.
// Everything depends on one image alone, which blockIdx.y counts in steps of gridDim.y.
//
// The first of equals wins a maximum, a NaN wins over all. Positions are numbered y * W + x.
// Bound by memory: inputs are read once (windows overlap in the caches), outputs written once.
#include "pack.cuh"

constexpr u32 THREADS = 256;
constexpr u32 COLUMNS = 16;
constexpr u32 LANES = THREADS / COLUMNS;
// The position of a maximum that has seen no value yet: even minus infinity replaces it.
constexpr u32 NOWHERE = 0xffffffff;

// Takes the last digit off a mixed-radix number.
__device__ inline u32 next_digit(u32& number, u32 radix) {
    const u32 digit = number % radix;
    number /= radix;
    return digit;
}

// Keeps the better of two maxima; positions decide between equals, so that the order of calls does not matter.
__device__ inline void keep_best(float& best, u32& best_at, float value, u32 at) {
    const bool nan = value != value, best_nan = best != best;
    const bool equal = value == best || (nan && best_nan);
    if (value > best || (nan && !best_nan) || (equal && at < best_at)) best = value, best_at = at;
}

struct MapExtents {
    u32 n, h, w, c, p, q;
};

struct WindowExtents {
    u32 size, stride, padding;
};

struct MaxPoolParams {
    const void* input;  // [N, H, W, C]
    void* output;       // [N, P, Q, C]
    u32* at;            // [N, P, Q, C]: where each maximum lies
    MapExtents extents;
    WindowExtents window;
};

template <class T, u32 V>
__device__ inline void max_pool(const MaxPoolParams& params) {
    const MapExtents& m = params.extents;
    const WindowExtents& window = params.window;
    const u32 per_image = m.p * m.q * m.c;
    u32 rest = (blockIdx.x * THREADS + threadIdx.x) * V;
    if (rest >= per_image) return;
    const u32 place = rest, channel = next_digit(rest, m.c), col = next_digit(rest, m.q), row = rest;
    const i32 padding = i32(window.padding);
    const i32 top = i32(row * window.stride) - padding, left = i32(col * window.stride) - padding;
    for (u32 image = blockIdx.y; image < m.n; image += gridDim.y) {
        const T* input = static_cast<const T*>(params.input) + u64(image) * m.h * m.w * m.c + channel;
        Pack<float, V> best;
        Pack<u32, V> best_at;
#pragma unroll
        for (u32 j = 0; j < V; ++j) best.at[j] = minus_infinity(), best_at.at[j] = NOWHERE;
        for (i32 y = max(top, 0); y < min(top + i32(window.size), i32(m.h)); ++y) {
            for (i32 x = max(left, 0); x < min(left + i32(window.size), i32(m.w)); ++x) {
                const u32 at = u32(y) * m.w + u32(x);
                const Pack<float, V> value = widen(load<V>(input + u64(at) * m.c));
#pragma unroll
                for (u32 j = 0; j < V; ++j) keep_best(best.at[j], best_at.at[j], value.at[j], at);
            }
        }
        store(static_cast<T*>(params.output) + u64(image) * per_image + place, narrow<T>(best));
        store(params.at + u64(image) * per_image + place, best_at);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) max_pool_x1(const MaxPoolParams p) { max_pool<float, 1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) max_pool_x4(const MaxPoolParams p) { max_pool<float, 4>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) max_pool_bf16(const MaxPoolParams p) { max_pool<bf16, 4>(p); }

struct MaxPoolGradParams {
    const void* grad;  // [N, P, Q, C]
    const u32* at;     // [N, P, Q, C]
    void* input_grad;  // [N, H, W, C]
    MapExtents extents;
    WindowExtents window;
};

// The first and the end of the windows that cover position `at` of an axis.
__device__ inline void windows_over(u32 at, u32 windows, const WindowExtents& window, u32& first, u32& end) {
    const u32 last = at + window.padding;
    first = last >= window.size ? (last - window.size) / window.stride + 1 : 0;
    end = min(last / window.stride + 1, windows);
}

// Gradients are added in the order of their windows, as the processor does.
template <class T, u32 V>
__device__ inline void max_pool_grad(const MaxPoolGradParams& params) {
    const MapExtents& m = params.extents;
    const u32 per_image = m.h * m.w * m.c;
    u32 rest = (blockIdx.x * THREADS + threadIdx.x) * V;
    if (rest >= per_image) return;
    const u32 place = rest, channel = next_digit(rest, m.c), own = rest, x = next_digit(rest, m.w), y = rest;
    u32 first_row, end_row, first_col, end_col;
    windows_over(y, m.p, params.window, first_row, end_row);
    windows_over(x, m.q, params.window, first_col, end_col);
    for (u32 image = blockIdx.y; image < m.n; image += gridDim.y) {
        Pack<float, V> sum = {};
        for (u32 row = first_row; row < end_row; ++row) {
            for (u32 col = first_col; col < end_col; ++col) {
                const u64 from = (u64(image) * m.p * m.q + row * m.q + col) * m.c + channel;
                const Pack<float, V> grad = widen(load<V>(static_cast<const T*>(params.grad) + from));
                const Pack<u32, V> at = load<V>(params.at + from);
#pragma unroll
                for (u32 j = 0; j < V; ++j)
                    if (at.at[j] == own) sum.at[j] += grad.at[j];
            }
        }
        store(static_cast<T*>(params.input_grad) + u64(image) * per_image + place, narrow<T>(sum));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) max_pool_grad_x1(const MaxPoolGradParams p) {
    max_pool_grad<float, 1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) max_pool_grad_x4(const MaxPoolGradParams p) {
    max_pool_grad<float, 4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) max_pool_grad_bf16(const MaxPoolGradParams p) {
    max_pool_grad<bf16, 4>(p);
}

struct GlobalPoolParams {
    const void* input;  // [N, H * W, C]
    float* output;      // [N, C]: averages; or [N, 2 * C]: maxima, then averages
    u32* at;            // [N, C] of a concat pool, else null
    u32 n, positions, c;
};

template <class T, u32 V, bool CONCAT>
__device__ inline void global_pool(const GlobalPoolParams& p) {
    __shared__ Pack<float, V> sums[LANES][COLUMNS], maxima[CONCAT ? LANES : 1][COLUMNS];
    __shared__ Pack<u32, V> places[CONCAT ? LANES : 1][COLUMNS];
    const u32 column = threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    const u32 channel = (blockIdx.x * COLUMNS + column) * V;
    for (u32 image = blockIdx.y; image < p.n; image += gridDim.y) {
        const T* input = static_cast<const T*>(p.input) + u64(image) * p.positions * p.c + channel;
        Pack<float, V> sum = {}, best;
        Pack<u32, V> at;
#pragma unroll
        for (u32 j = 0; j < V; ++j) best.at[j] = minus_infinity(), at.at[j] = NOWHERE;
        for (u32 position = lane; channel < p.c && position < p.positions; position += LANES) {
            const Pack<float, V> value = widen(load<V>(input + u64(position) * p.c));
#pragma unroll
            for (u32 j = 0; j < V; ++j) {
                sum.at[j] += value.at[j];
                if (CONCAT) keep_best(best.at[j], at.at[j], value.at[j], position);
            }
        }
        sums[lane][column] = sum;
        if (CONCAT) maxima[lane][column] = best, places[lane][column] = at;
        __syncthreads();
        if (lane == 0 && channel < p.c) {
            for (u32 other = 1; other < LANES; ++other) {
#pragma unroll
                for (u32 j = 0; j < V; ++j) {
                    sum.at[j] += sums[other][column].at[j];
                    if (CONCAT)
                        keep_best(best.at[j], at.at[j], maxima[other][column].at[j], places[other][column].at[j]);
                }
            }
#pragma unroll
            for (u32 j = 0; j < V; ++j) sum.at[j] /= float(p.positions);
            if (CONCAT) {
                store(p.output + u64(image) * 2 * p.c + channel, best);
                store(p.output + u64(image) * 2 * p.c + p.c + channel, sum);
                store(p.at + u64(image) * p.c + channel, at);
            } else {
                store(p.output + u64(image) * p.c + channel, sum);
            }
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) average_pool_x1(const GlobalPoolParams p) {
    global_pool<float, 1, false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) average_pool_x4(const GlobalPoolParams p) {
    global_pool<float, 4, false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) average_pool_bf16(const GlobalPoolParams p) {
    global_pool<bf16, 4, false>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) concat_pool_x1(const GlobalPoolParams p) {
    global_pool<float, 1, true>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) concat_pool_x4(const GlobalPoolParams p) {
    global_pool<float, 4, true>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) concat_pool_bf16(const GlobalPoolParams p) {
    global_pool<bf16, 4, true>(p);
}

struct GlobalPoolGradParams {
    const float* grad;  // [N, C], or [N, 2 * C] of a concat pool
    const u32* at;      // [N, C] of a concat pool, else null
    void* input_grad;   // [N, H * W, C]
    u32 n, positions, c;
    float share;  // 1 / positions
};

// One thread per V channels of an input: its share of the average's gradient, and the maximum's if it won. One rounding
// per operation, as the processor.
template <class T, u32 V>
__device__ inline void global_pool_grad(const GlobalPoolGradParams& p) {
    const u32 per_image = p.positions * p.c, place = (blockIdx.x * THREADS + threadIdx.x) * V;
    if (place >= per_image) return;
    const u32 channel = place % p.c, position = place / p.c;
    for (u32 image = blockIdx.y; image < p.n; image += gridDim.y) {
        const float* grads = p.grad + u64(image) * (p.at ? 2 : 1) * p.c + channel;
        Pack<float, V> grad = load<V>(grads + (p.at ? p.c : 0));
#pragma unroll
        for (u32 j = 0; j < V; ++j) grad.at[j] = __fmul_rn(grad.at[j], p.share);
        if (p.at) {
            const Pack<float, V> maximum = load<V>(grads);
            const Pack<u32, V> at = load<V>(p.at + u64(image) * p.c + channel);
#pragma unroll
            for (u32 j = 0; j < V; ++j)
                grad.at[j] = __fadd_rn(at.at[j] == position ? maximum.at[j] : 0.0f, grad.at[j]);
        }
        store(static_cast<T*>(p.input_grad) + u64(image) * per_image + place, narrow<T>(grad));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) global_pool_grad_x1(const GlobalPoolGradParams p) {
    global_pool_grad<float, 1>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_pool_grad_x4(const GlobalPoolGradParams p) {
    global_pool_grad<float, 4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) global_pool_grad_bf16(const GlobalPoolGradParams p) {
    global_pool_grad<bf16, 4>(p);
}
