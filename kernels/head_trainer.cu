// Many training steps of a linear classifier on cached features, in one launch: for each step
//
//   logits = x w^T + bias;  loss = cross entropy(logits, labels);  w, bias -= what SGD or AdamW make of its gradient
//
// with x the rows of `features` that the step names. All blocks run at once (a cooperative launch) and meet at a barrier
// three times per step; weights, their momentum and the features stay in the L2 cache where they fit:
//
//   1. logits, in parts: a block takes a tile of rows and classes and one segment of the features (gemm.cuh);
//   2. a warp per row adds the parts in order and the bias, and turns logits into loss and gradient (softmax.cuh);
//   3. a block takes a tile of the weight, multiplies out its gradient, and moves it at once; others sum the bias's.
//
// Every sum has the order that the separate kernels give it (conv_forward, conv_merge, cross_entropy,
// conv_weight_grad up to one segment of rows, linear_bias_grad): the same bits.
// Operations per step: 4*rows*features*classes. Bytes per step: the features twice, the weight with momentum read and
// written, the parts written and read. Few classes: bound by the latency of the barriers and of one segment's products.
// Tiles 64x16 and 16x64 (64 threads) for few classes, else 64x64 (256 threads); shared memory 22.6 and 34.9 KB.
#include "gemm.cuh"
#include "grid.cuh"
#include "softmax.cuh"
#include "update.cuh"

struct HeadTrainerParams {
    const float* features;  // [count, width]
    const u32* labels;      // [count]
    const u32* order;       // row numbers, those of a step one after another
    const u32* starts;      // [steps + 1]: where in `order` the rows of each step begin
    const float* lrs;       // [steps]
    const float* moving;    // [steps, 4]: momentum or beta1, AdamW's corrections, 1
    const float* class_weights;  // [classes] or null
    float* weight;          // [classes, width]
    float* bias;            // [classes]
    float* weight_first;    // like the weight: momentum, or the mean of gradients
    float* weight_second;   // like the weight: the mean of squared gradients; null with SGD
    float* bias_first;      // like the bias, both
    float* bias_second;
    float* parts;           // [segments of the width, most rows of a step, classes]
    float* grads;           // [most rows of a step, classes]: logits, then their gradients
    float* row_losses;      // [most rows of a step]
    float* losses;          // [steps]
    u32* barrier;           // zero
    u32 count, width, classes, steps;
    float weight_decay, bias_decay;
    float smoothing;
    float beta2, eps;
    u32 nesterov, decoupled;
};

// The rows of one step: row i is number order[i] of the features.
struct Step {
    const u32* order;
    u32 rows;

    __device__ Step(const HeadTrainerParams& p, u32 step)
        : order(p.order + p.starts[step]), rows(p.starts[step + 1] - p.starts[step]) {}
};

// Rows of a matrix, contiguous along k: those of `numbers`, or from `first` on.
template <class T, u32 EXTENT>
struct Rows : AlongDepth<T, EXTENT> {
    using Base = AlongDepth<T, EXTENT>;
    using Base::SLOTS, Base::staged;
    const float* rows[SLOTS];
    u32 width, k;

    __device__ Rows(const float* matrix, const u32* numbers, u32 first, u32 count, u32 width, u32 from)
        : width(width), k(from + Base::depth()) {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot) {
            const u32 row = first + Base::index(slot);
            rows[slot] = row < count ? matrix + u64(numbers ? numbers[row] : row) * width : nullptr;
        }
    }

    __device__ void fetch() {
        const u32 valid = k < width ? width - k : 0;
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot)
            staged[slot] = load4(rows[slot] + k, width % 4 == 0, rows[slot] ? valid : 0);
        k += DEPTH;
    }
};

// Columns of a matrix from `first` on, k over its rows: those of `numbers`, or as they come.
template <class T, u32 EXTENT>
struct Columns : AcrossDepth<T, EXTENT> {
    using Base = AcrossDepth<T, EXTENT>;
    using Base::SLOTS, Base::STRIDE, Base::staged;
    const float* matrix;
    const u32* numbers;
    u32 width, valid, k, end;

    __device__ Columns(const float* matrix, const u32* numbers, u32 first, u32 width, u32 end)
        : matrix(matrix + first + Base::index()), numbers(numbers), width(width), k(Base::depth()), end(end) {
        const u32 column = first + Base::index();
        valid = width > column ? width - column : 0;
    }

    __device__ void fetch() {
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; ++slot, k += STRIDE) {
            const bool inside = k < end;
            const u32 row = inside && numbers ? numbers[k] : k;
            staged[slot] = load4(matrix + u64(row) * width, width % 4 == 0, inside ? valid : 0);
        }
    }
};

// 1. Parts of the logits.
template <class T>
__device__ inline void logits_parts(const HeadTrainerParams& p, const Step& step, Stages<T>& stages) {
    const u32 col_tiles = ceil_div(p.classes, T::COLS), tiles = ceil_div(step.rows, T::ROWS) * col_tiles;
    const u32 items = tiles * ceil_div(p.width, SEGMENT);
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const u32 segment = item / tiles, first_row = item % tiles / col_tiles * T::ROWS;
        const u32 first_col = item % col_tiles * T::COLS, from = segment * SEGMENT;
        Rows<T, T::ROWS> features(p.features, step.order, first_row, step.rows, p.width, from);
        Rows<T, T::COLS> weights(p.weight, nullptr, first_col, p.classes, p.width, from);
        float sums[T::HEIGHT][4];
        multiply<T>(features, weights, min(SEGMENT, p.width - from), stages, sums);
        const u32 col = first_col + T::col(), valid = p.classes > col ? p.classes - col : 0;
#pragma unroll
        for (u32 i = 0; i < T::HEIGHT; ++i) {
            const u32 row = first_row + T::row(i);
            if (row < step.rows)
                store4(p.parts + (u64(segment) * step.rows + row) * p.classes + col,
                       make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), p.classes % 4 == 0, valid);
        }
        // The next item's first stage is the one that this item's last products may still be read from.
        __syncthreads();
    }
}

// What losses and gradients of a step are divided by; all threads of the block take part.
template <u32 WARPS>
__device__ inline float norm(const HeadTrainerParams& p, const Step& step) {
    if (!p.class_weights) return float(step.rows);
    return block_sum<WARPS>(
        step.rows, [&](u32 row) { return label_weight(p.labels[step.order[row]], p.class_weights, p.classes); });
}

// 2. Logits, loss and gradient of each row.
template <u32 WARPS>
__device__ inline void losses_and_grads(const HeadTrainerParams& p, const Step& step) {
    const float norm = ::norm<WARPS>(p, step);
    const u32 lane = threadIdx.x % 32;
    for (u32 row = blockIdx.x * WARPS + threadIdx.x / 32; row < step.rows; row += gridDim.x * WARPS) {
        float* logits = p.grads + u64(row) * p.classes;
        for (u32 i = lane; i < p.classes; i += 32) {
            float sum = 0.0f;
            for (u32 segment = 0; segment < ceil_div(p.width, SEGMENT); ++segment)
                sum += p.parts[(u64(segment) * step.rows + row) * p.classes + i];
            logits[i] = sum + p.bias[i];
        }
        const u32 label = p.labels[step.order[row]];
        const auto own = [&](u32 i) { return label < p.classes ? float(i == label) : not_a_number(); };
        const Targets targets{p.class_weights, p.classes, p.smoothing};
        const float loss = cross_entropy_row(logits, logits, targets, norm, own);
        if (lane == 0) p.row_losses[row] = loss;
    }
}

// Moves element `at` of a parameter by its gradient.
__device__ inline void update(const HeadTrainerParams& p, u32 step, float* value, float* first, float* second, u64 at,
                              float grad, float decay) {
    const float lr = p.lrs[step];
    const float* moving = p.moving + 4 * step;
    float x = value[at], a = first[at];
    if (second) {
        float b = second[at];
        AdamWRule{moving[0], p.beta2, p.eps, moving[1], moving[2]}(x, a, b, grad, lr, decay);
        second[at] = b;
    } else {
        SgdRule{moving[0], p.nesterov != 0, p.decoupled != 0}(x, a, grad, lr, decay);
    }
    value[at] = x;
    first[at] = a;
}

// 3. The weight's gradient, tile by tile, and its step.
template <class T>
__device__ inline void move_weight(const HeadTrainerParams& p, u32 number, const Step& step, Stages<T>& stages) {
    const u32 col_tiles = ceil_div(p.width, T::COLS), items = ceil_div(p.classes, T::ROWS) * col_tiles;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const u32 first_row = item / col_tiles * T::ROWS, first_col = item % col_tiles * T::COLS;
        Columns<T, T::ROWS> grads(p.grads, nullptr, first_row, p.classes, step.rows);
        Columns<T, T::COLS> features(p.features, step.order, first_col, p.width, step.rows);
        float sums[T::HEIGHT][4];
        multiply<T>(grads, features, step.rows, stages, sums);
#pragma unroll
        for (u32 i = 0; i < T::HEIGHT; ++i)
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 row = first_row + T::row(i), col = first_col + T::col() + j;
                if (row >= p.classes || col >= p.width) continue;
                update(p, number, p.weight, p.weight_first, p.weight_second, u64(row) * p.width + col, sums[i][j],
                       p.weight_decay);
            }
        __syncthreads();
    }
}

// The bias's gradient and its step, a warp per 32 classes: eight strands of rows, added in order.
template <u32 WARPS>
__device__ inline void move_bias(const HeadTrainerParams& p, u32 number, const Step& step) {
    constexpr u32 STRANDS = 8;
    const u32 warp = blockIdx.x * WARPS + threadIdx.x / 32;
    for (u32 i = 32 * warp + threadIdx.x % 32; i < p.classes; i += 32 * gridDim.x * WARPS) {
        float sums[STRANDS] = {};
        for (u32 row = 0; row < step.rows; row += STRANDS)
#pragma unroll
            for (u32 strand = 0; strand < STRANDS; ++strand)
                if (row + strand < step.rows) sums[strand] += p.grads[u64(row + strand) * p.classes + i];
        float total = 0.0f;
#pragma unroll
        for (u32 strand = 0; strand < STRANDS; ++strand) total += sums[strand];
        update(p, number, p.bias, p.bias_first, p.bias_second, i, total, p.bias_decay);
    }
}

template <class Forward, class Backward>
__device__ inline void train(const HeadTrainerParams& p) {
    static_assert(Forward::THREADS == Backward::THREADS, "one block does both");
    constexpr u32 WARPS = Forward::THREADS / 32;
    __shared__ Stages<Forward> forward;
    __shared__ Stages<Backward> backward;
    GridBarrier barrier(p.barrier);
    for (u32 number = 0; number < p.steps; ++number) {
        const Step step(p, number);
        logits_parts<Forward>(p, step, forward);
        barrier.wait();
        losses_and_grads<WARPS>(p, step);
        barrier.wait();
        move_weight<Backward>(p, number, step, backward);
        move_bias<WARPS>(p, number, step);
        if (blockIdx.x == 0) {
            const float norm = ::norm<WARPS>(p, step);
            const float sum = block_sum<WARPS>(step.rows, [&](u32 row) { return p.row_losses[row]; });
            if (threadIdx.x == 0) p.losses[number] = sum / norm;
        }
        barrier.wait();
    }
}

extern "C" __global__ void __launch_bounds__(64) head_trainer_few(const HeadTrainerParams p) {
    train<Tile<64, 16, 64>, Tile<16, 64, 64>>(p);
}
extern "C" __global__ void __launch_bounds__(256) head_trainer_many(const HeadTrainerParams p) {
    train<Tile<64, 64, 256>, Tile<64, 64, 256>>(p);
}
