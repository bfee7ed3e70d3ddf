// 1x1 convolution on Hopper (sm_90a):  y[pixel, k] = sum over c of x[pixel, c] * w[k, c], a product of matrices, in
// bf16 with f32 sums; then the finish of a forward convolution or of an input's gradient (finish.cuh). That gradient is
// the same product, of the output's gradient and the flipped weights.
//
// Operations: 2*pixels*C*K. Bytes, 2 per element: x once (the tiles of a row run side by side and share it through L2),
// w from L2 once per two row tiles, y once, and what the finish reads. Bound by memory up to some 150 operations per
// byte, which is where most 1x1 layers are; beyond, by the tensor cores.
//
// Tiles 128x256, for up to 128 columns 128x128; 64 deep. Shared memory: 3 stages of 48 KB, or 5 of 32 KB, and 36 KB in
// which the finish lays sums out: 180 or 196 KB. 168 registers a thread at launch, then 40 and 232; one block per
// multiprocessor.
//
// A block is three warpgroups of 128 threads. One, the producer, has one thread that keeps the stages full: it asks the
// copy engine (TMA) for boxes of x and w, which come permuted as wgmma reads them, and zero outside the matrices. The
// two consumers multiply, 64 rows each, all columns, with their sums in registers (128 per thread), so the producer
// gives most of its registers to them. The stages are a ring, and two barriers guard each:
//
//             producer                                      consumers
//        .-> wait until empty[stage]   <----------------.   wait until full[stage]                            <-.
//        |   expect the stage's bytes at full[stage]    |   multiply: 4 products of 16 values of k, in the      |
//        |   copy x's rows         --- bytes count ---> |     background; wait for those of the stage before    |
//        |   copy half of w's rows     at full[stage]   `-- arrive at empty[stage before] of both blocks        |
//        `-- next stage                                     next stage  ----------------------------------------'
//
// full: the bytes have come; before, wgmma would read what was there. empty: every warp of the consumers has read the
// stage; before, a copy would overwrite it. Two blocks are a cluster: their tiles are neighbours in one column, so each
// copies half of w's rows to both, and a stage is empty only when the consumers of both blocks say so. They wait for
// each other at the start, when the barriers are made, and at the end, since a block that has gone has no shared memory
// that the other could still arrive at.
//
// Blocks stay (one for each multiprocessor) and take every so-many-th pair of tiles. While consumers finish a tile the
// producer is already filling stages for the next. What is computed of a pixel depends neither on that order nor on the
// tile; parts of sums are numbered by 64 rows.
#include "finish.cuh"
#include "ptx_sm90.cuh"

struct Conv1x1Product {
    TensorMap input;   // x: a matrix [pixels, C]; or, with a stride, images [N, H, W, C] and windows of one pixel
    TensorMap weight;  // w [K, C]
    u32 pixels, depth, cols;  // N*P*Q, C, K
    u32 stride, p, q;         // from one window to the next; windows down and across an image
};

template <class F>
struct Conv1x1Params {
    Conv1x1Product product;
    F finish;
};
using Conv1x1ForwardParams = Conv1x1Params<ForwardFinish>;
using Conv1x1InputGradParams = Conv1x1Params<GradFinish>;

constexpr u32 WARPGROUP = 128, CONSUMERS = 2, BLOCKS = 2;
constexpr u32 ROWS = 64 * CONSUMERS, DEPTH = 64, THREADS = WARPGROUP * (1 + CONSUMERS);
constexpr u32 PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
static_assert(WARPGROUP * (PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS) <= 65536, "all that there are");

// Shared memory from its start: the stages, each x's rows and then w's; the consumers' sums; the barriers.
template <u32 COLS_, u32 STAGES_>
struct Plan {
    static constexpr u32 COLS = COLS_, STAGES = STAGES_;
    static constexpr u32 INPUT = ROWS * DEPTH * 2, WEIGHT = COLS * DEPTH * 2, STAGE = INPUT + WEIGHT;
    // A consumer finishes 64 columns at a time.
    using Part = FinishTile<Bf16, 64, 64, WARPGROUP>;
    static constexpr u32 SUMS = Part::ROWS * Part::PITCH * 4;
    static_assert(COLS <= Part::PREPARED, "a tile's factors and offsets fit in the padding of a part");
    static constexpr u32 FULL = STAGES * STAGE + CONSUMERS * SUMS, EMPTY = FULL + 8 * STAGES;
    static constexpr u32 BYTES = EMPTY + 8 * STAGES;
    static_assert(BYTES <= 227 * 1024 && STAGE % 1024 == 0, "a block's shared memory; whole swizzle patterns");
};

// The stage whose turn it is, and the parity of the phase in which it is filled.
template <u32 STAGES>
struct Turn {
    u32 stage = 0, parity = 0;

    __device__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// The tiles of this cluster, one pair after the other: columns first, so that blocks that run together read the same
// rows. Each block has one of a pair's two row tiles.
template <u32 COLS>
struct Tiles {
    u32 at, end, across;

    __device__ Tiles(u32 rows, u32 cols)
        : at(blockIdx.x / BLOCKS), end(ceil_div(rows, BLOCKS * ROWS) * ceil_div(cols, COLS)),
          across(ceil_div(cols, COLS)) {}

    __device__ bool any() const { return at < end; }
    __device__ void next() { at += gridDim.x / BLOCKS; }
    __device__ u32 row(u32 rank) const { return (at / across * BLOCKS + rank) * ROWS; }
    __device__ u32 col() const { return at % across * COLS; }
};

// What the producer's one thread does.
template <class T>
__device__ inline void produce(const Conv1x1Product& p, u32 memory, u32 rank) {
    const u32 steps = ceil_div(p.depth, DEPTH);
    Turn<T::STAGES> turn;
    for (Tiles<T::COLS> tiles(p.pixels, p.cols); tiles.any(); tiles.next()) {
        const u32 row = tiles.row(rank), half = rank * (T::COLS / BLOCKS), col = tiles.col() + half;
        const u32 x = row % p.q * p.stride, y = row / p.q % p.p * p.stride, image = row / p.q / p.p;
#pragma unroll 1
        for (u32 step = 0; step < steps; ++step, turn.next()) {
            const u32 stage = memory + turn.stage * T::STAGE, full = memory + T::FULL + 8 * turn.stage;
            // The stage was filled in the phase before this one; for the first filling, see mbarrier_wait.
            mbarrier_wait(memory + T::EMPTY + 8 * turn.stage, turn.parity ^ 1);
            mbarrier_arrive_expect(full, T::STAGE);
            if (p.stride == 1) copy_box(stage, p.input, step * DEPTH, row, full);
            else copy_pixels(stage, p.input, step * DEPTH, x, y, image, full);
            const u32 weight = stage + T::INPUT + half * (DEPTH * 2);
            copy_box_to_all(weight, p.weight, step * DEPTH, col, full, (1 << BLOCKS) - 1);
        }
    }
}

// Lays 64 columns of this warpgroup's sums out in shared memory; see multiply_bf16 for what a thread holds.
template <class Part, u32 COUNT>
__device__ inline void lay_out(const float (&sums)[COUNT], u32 first, float* to) {
    const u32 row = threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 j = 0; j < 8; ++j)
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 i = first / 2 + 4 * j + 2 * half;
            float* at = to + (row + 8 * half) * Part::PITCH + 8 * j + col;
            *reinterpret_cast<float2*>(at) = make_float2(sums[i], sums[i + 1]);
        }
}

struct WarpgroupBarrier {
    u32 id;
    __device__ void operator()() const { named_barrier_sync(id, WARPGROUP); }
};

// What consumer number `group` does.
template <class T, class F>
__device__ inline void consume(const Conv1x1Product& p, const F& f, u32 memory, float* scratch, u32 rank, u32 group) {
    using Part = typename T::Part;
    const u32 steps = ceil_div(p.depth, DEPTH), thread = threadIdx.x % WARPGROUP, lane = threadIdx.x % 32;
    const WarpgroupBarrier barrier{1 + group};
    // Lanes 0 and 1 of each warp tell both blocks that the warp has read a stage.
    const auto release = [&](u32 stage) {
        if (lane < BLOCKS) mbarrier_arrive_at(memory + T::EMPTY + 8 * stage, lane);
    };
    Turn<T::STAGES> turn;
    u32 prepared = ~0u;
    for (Tiles<T::COLS> tiles(p.pixels, p.cols); tiles.any(); tiles.next()) {
        // Once for tiles in a row with the same columns. Behind the last tile's barriers nobody reads those before.
        if (prepared != tiles.col()) {
            prepared = tiles.col();
            f.template prepare<Part>(scratch, prepared, min(p.cols - prepared, T::COLS), thread);
        }
        float sums[T::COLS / 2];
        u32 before = 0;
        for (u32 step = 0; step < steps; ++step, turn.next()) {
            const u32 stage = memory + turn.stage * T::STAGE;
            mbarrier_wait(memory + T::FULL + 8 * turn.stage, turn.parity);
            const u64 a = operand(stage + group * (64 * DEPTH * 2)), b = operand(stage + T::INPUT);
            products_begin();
#pragma unroll
            for (u32 k = 0; k < DEPTH / 16; ++k)
                multiply_bf16(sums, a + k * OPERAND_STEP, b + k * OPERAND_STEP, step > 0 || k > 0);
            products_commit();
            products_wait<1>();
            if (step > 0) release(before);
            before = turn.stage;
        }
        products_wait<0>();
        release(before);

        const u32 row = tiles.row(rank) + group * 64, rows = row < p.pixels ? p.pixels - row : 0;
#pragma unroll
        for (u32 part = 0; part < T::COLS; part += Part::COLS) {
            const u32 col = tiles.col() + part;
            if (rows == 0 || col >= p.cols) break;
            barrier();
            lay_out<Part>(sums, part, scratch);
            barrier();
            Finish<Part, F> finish(f, scratch + part / 8 * Part::PITCH, col, p.cols - col, thread);
            finish.rows(scratch, Consecutive{row, rows});
            barrier();
            finish.write_sums(scratch, barrier, row / 64);
        }
    }
}

template <class T, class F>
__device__ inline void convolve(const Conv1x1Product& p, const F& finish) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 memory = shared_address(shared), rank = cluster_rank();
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < T::STAGES; ++stage) {
            mbarrier_init(memory + T::FULL + 8 * stage, 1);
            mbarrier_init(memory + T::EMPTY + 8 * stage, CONSUMERS * (WARPGROUP / 32) * BLOCKS);
        }
        mbarrier_init_fence();
        prefetch_map(p.input), prefetch_map(p.weight);
    }
    cluster_sync();
    // The same in all lanes, and the compiler is to know.
    const u32 warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == 0) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<T>(p, memory, rank);
        __syncwarp();
    } else {
        take_registers<CONSUMER_REGISTERS>();
        const u32 group = warpgroup - 1;
        float* scratch = reinterpret_cast<float*>(shared + T::STAGES * T::STAGE + group * T::SUMS);
        consume<T>(p, finish, memory, scratch, rank, group);
    }
    cluster_sync();
}

#define KERNEL(NAME, PARAMS, PLAN)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ PARAMS p) { \
        convolve<PLAN>(p.product, p.finish);                                                        \
    }

using Wide = Plan<256, 3>;
using Narrow = Plan<128, 5>;
KERNEL(conv_1x1_forward_128x256, Conv1x1ForwardParams, Wide)
KERNEL(conv_1x1_forward_128x128, Conv1x1ForwardParams, Narrow)
KERNEL(conv_1x1_input_grad_128x256, Conv1x1InputGradParams, Wide)
KERNEL(conv_1x1_input_grad_128x128, Conv1x1InputGradParams, Narrow)
