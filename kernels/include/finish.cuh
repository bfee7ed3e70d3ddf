// The end of every kernel that computes tiles of [pixels, channels] on tensor cores: what is done to the f32 sums
// before they are stored, once rounded, and what is summed over the stored values in passing.
//
// The kernel lays its sums into shared memory as f32, row by row, and calls with all threads that share the tile:
//
//     using Tile = FinishTile<E, 64, COLS, THREADS>;             // 64 rows at a time
//     barrier; stage sums at sums[row * Tile::PITCH + col]; p.finish.prepare<Tile>(sums, first, cols, thread); barrier;
//     Finish<Tile, ForwardFinish> finish(p.finish, sums, first, cols, thread);
//     finish.rows(sums, pixels);
//     barrier; finish.write_sums(sums, barrier, tile_number);    // where the finish has sums to write
//
// A thread takes one vector of 16 bytes of every LANES-th row: rows leave in whole 32-byte sectors, neighbouring
// threads side by side. Operands of several rows are loaded before the first of them is used. `pixels(row)` says where
// a row lies in the output; `barrier()` brings the tile's threads together. The parts that a finish is made of (Affine,
// Partial, Moments, GradSums) stand on their own.
//
// A batchnorm with fixed statistics is folded on the way (norm.cuh): `prepare` has one thread do it for each channel,
// since f64 is slow on many GPUs, and leaves factors and offsets to all in the padding of the rows of sums, since every
// byte of shared memory is taken.
//
// Bytes: each operand of the finish once, the output once, 16 bytes per channel and tile of a batchnorm (on Hopper once
// for the tiles of a block while their columns stay), 8 of sums. Shared memory: ROWS * PITCH * 4 bytes, free of bank
// conflicts.
#pragma once
#include "element.cuh"
#include "norm.cuh"

constexpr u32 NO_PIXEL = 0xffffffffu;

// Rows that are consecutive pixels.
struct Consecutive {
    u32 first, count;
    __device__ u32 operator()(u32 row) const { return row < count ? first + row : NO_PIXEL; }
};

// Rows whose pixels a table in shared memory lists.
struct Listed {
    const u32* pixels;
    __device__ u32 operator()(u32 row) const { return pixels[row]; }
};

// A barrier of the whole block.
struct WholeBlock {
    __device__ void operator()() const { __syncthreads(); }
};

// How THREADS threads share a tile of ROWS x COLS sums, of which they store vectors of E.
template <class E_, u32 ROWS_, u32 COLS_, u32 THREADS_>
struct FinishTile {
    using E = E_;
    static constexpr u32 ROWS = ROWS_, COLS = COLS_, THREADS = THREADS_, VECTOR = E::VECTOR;
    // Eight floats of padding: mma's fragments are then stored to all banks at once.
    static constexpr u32 PITCH = COLS + 8;
    // Channels whose factors and offsets the padding has room for.
    static constexpr u32 PREPARED = ROWS / 2 * 8;
    static constexpr u32 ACROSS = COLS / VECTOR, LANES = THREADS / ACROSS, PER_THREAD = ROWS / LANES;
    static constexpr u32 BATCH = PER_THREAD < 4 ? PER_THREAD : 4;
    static_assert(THREADS % ACROSS == 0 && ROWS % LANES == 0 && PER_THREAD % BATCH == 0, "threads share evenly");
    static_assert(2 * LANES + 1 <= ROWS, "the lanes' sums fit in the tile");
    static_assert(COLS <= PREPARED, "so do factors and offsets in its padding");

    // Where the padding holds the factor and the offset of a column: eight columns to a row.
    static __device__ u32 factor(u32 col) { return col / 8 * PITCH + COLS + col % 8; }
    static __device__ u32 offset(u32 col) { return factor(col) + ROWS / 2 * PITCH; }
};

// A thread's vector among the columns of a tile, of which `cols` channels exist from `first` on: a multiple of eight.
template <class T>
struct Columns {
    u32 first, cols, thread;

    __device__ Columns(u32 first, u32 cols, u32 thread) : first(first), cols(min(cols, T::COLS)), thread(thread) {}

    __device__ u32 col() const { return thread % T::ACROSS * T::VECTOR; }
    __device__ u32 channel() const { return first + col(); }
    __device__ bool exists() const { return col() < cols; }
};

// A vector of f32 in shared memory. Where it is two accesses long, every second group of four threads takes them in the
// other order, so that eight threads always meet 32 banks.
template <u32 V>
__device__ inline void read_shared(const float* from, u32 thread, float (&to)[V]) {
    const u32 first = V == 8 ? thread / 4 % 2 : 0;
    float4 parts[V / 4];
#pragma unroll
    for (u32 i = 0; i < V / 4; ++i) parts[i] = *reinterpret_cast<const float4*>(from + 4 * (i ^ first));
#pragma unroll
    for (u32 i = 0; i < V / 4; ++i) {
        const float4 part = first ? parts[V / 4 - 1 - i] : parts[i];
        to[4 * i] = part.x, to[4 * i + 1] = part.y, to[4 * i + 2] = part.z, to[4 * i + 3] = part.w;
    }
}

template <u32 V>
__device__ inline void write_shared(float* to, u32 thread, const float (&from)[V]) {
    const u32 first = V == 8 ? thread / 4 % 2 : 0;
#pragma unroll
    for (u32 i = 0; i < V / 4; ++i) {
        const u32 own = 4 * i, other = V - 4 - own;
        store_shared_x4(shared_address(to) + 16 * (i ^ first), first ? from[other] : from[own],
                        first ? from[other + 1] : from[own + 1], first ? from[other + 2] : from[own + 2],
                        first ? from[other + 3] : from[own + 3]);
    }
}

// Values of a thread's channels.
template <u32 V>
__device__ inline void load_channels(const float* from, u32 channel, float (&to)[V]) {
#pragma unroll
    for (u32 i = 0; i < V; i += 4) {
        const float4 part = *reinterpret_cast<const float4*>(from + channel + i);
        to[i] = part.x, to[i + 1] = part.y, to[i + 2] = part.z, to[i + 3] = part.w;
    }
}

// sum * factor + offset per channel, where there is a batchnorm. The multiply-add is spelled out, so that every kernel
// rounds alike.
template <class T>
struct Affine {
    static constexpr u32 V = T::VECTOR;
    float factor[V] = {}, offset[V] = {};
    bool applies;

    // Leaves factors and offsets of `cols` channels from `first` on, at most the tile's, in the padding of `sums`.
    static __device__ void prepare(const FixedNorm& norm, float* sums, u32 first, u32 cols, u32 thread) {
        if (!norm.scale) return;
#pragma unroll 1
        for (u32 col = thread; col < cols; col += T::THREADS) {
            const Folded folded = norm.folded(first + col);
            sums[T::factor(col)] = folded.factor, sums[T::offset(col)] = folded.offset;
        }
    }

    // Behind a barrier, those of a thread's channels.
    __device__ Affine(const FixedNorm& norm, const float* prepared, const Columns<T>& own)
        : applies(norm.scale && own.exists()) {
        if (!applies) return;
        read_shared(prepared + T::factor(own.col()), own.thread, factor);
        read_shared(prepared + T::offset(own.col()), own.thread, offset);
    }

    __device__ void apply(float (&values)[V]) const {
        if (!applies) return;
#pragma unroll
        for (u32 j = 0; j < V; ++j) values[j] = fmaf(values[j], factor[j], offset[j]);
    }
};

// Mean and sum of squared distances from it, per channel. A thread sums distances from the first value that it meets:
// one of its n values, so that cancellation costs at most a factor n of rounding. Lanes are merged in order, by Chan's
// formula.
template <class T>
struct Moments {
    static constexpr u32 V = T::VECTOR;
    float first[V] = {}, sum[V] = {}, square[V] = {};
    u32 count = 0;

    __device__ void add(const float (&values)[V]) {
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            if (count == 0) first[j] = values[j];
            const float distance = values[j] - first[j];
            sum[j] += distance;
            square[j] = fmaf(distance, distance, square[j]);
        }
        ++count;
    }

    // `cols` channels from `mean` and `m2` on.
    template <class Barrier>
    __device__ void write(float* scratch, const Barrier& barrier, u32 thread, u32 cols, float* mean, float* m2) {
        const u32 lane = thread / T::ACROSS, col = thread % T::ACROSS * V;
        float *means = scratch, *squares = means + T::LANES * T::COLS, *counts = squares + T::LANES * T::COLS;
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float shift = count ? sum[j] / float(count) : 0.0f;
            square[j] = count ? square[j] - shift * sum[j] : 0.0f;
            first[j] = count ? first[j] + shift : 0.0f;
        }
        write_shared(means + lane * T::COLS + col, thread, first);
        write_shared(squares + lane * T::COLS + col, thread, square);
        if (col == 0) counts[lane] = float(count);
        barrier();
        for (u32 own = thread; own < cols; own += T::THREADS) {
            float rows = 0.0f, centre = 0.0f, total = 0.0f;
            for (u32 i = 0; i < T::LANES; ++i) {
                if (counts[i] == 0.0f) continue;
                const float distance = means[i * T::COLS + own] - centre, share = counts[i] / (rows + counts[i]);
                total += squares[i * T::COLS + own] + distance * distance * rows * share;
                centre += distance * share;
                rows += counts[i];
            }
            mean[own] = centre, m2[own] = total;
        }
    }
};

// Sums of g and of g * (y - mean), per channel.
template <class T>
struct GradSums {
    static constexpr u32 V = T::VECTOR;
    float mean[V] = {}, sum[V] = {}, product[V] = {};

    __device__ GradSums(const float* means, u32 channel) {
        if (means) load_channels(means, channel, mean);
    }

    __device__ void add(const float (&grad)[V], const float (&input)[V]) {
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            sum[j] += grad[j];
            product[j] = fmaf(grad[j], input[j] - mean[j], product[j]);
        }
    }

    template <class Barrier>
    __device__ void write(float* scratch, const Barrier& barrier, u32 thread, u32 cols, float* sums, float* products) {
        const u32 lane = thread / T::ACROSS, col = thread % T::ACROSS * V;
        float* second = scratch + T::LANES * T::COLS;
        write_shared(scratch + lane * T::COLS + col, thread, sum);
        write_shared(second + lane * T::COLS + col, thread, product);
        barrier();
        for (u32 own = thread; own < cols; own += T::THREADS) {
            float total[2] = {};
            for (u32 i = 0; i < T::LANES; ++i) {
                total[0] += scratch[i * T::COLS + own];
                total[1] += second[i * T::COLS + own];
            }
            sums[own] = total[0], products[own] = total[1];
        }
    }
};

// A gradient that is added to another: of all its pixels, or of those whose coordinates are multiples of `stride`.
struct Partial {
    const void* grad;  // [N, ceil(h / stride), ceil(w / stride), channels], or null
    u32 stride, h, w;

    // The pixel of `grad` that lies at this one.
    __device__ u32 pixel(u32 pixel) const {
        if (stride == 1) return pixel;
        const u32 x = pixel % w, row = pixel / w, y = row % h, image = row / h;
        if (x % stride || y % stride) return NO_PIXEL;
        return (image * ((h + stride - 1) / stride) + y / stride) * ((w + stride - 1) / stride) + x / stride;
    }
};

// A convolution's output: relu(norm(sum) + residual); or, for a batchnorm with the batch's own statistics, the sum and
// the moments of what is stored.
struct ForwardFinish {
    void* output;          // [pixels, channels]
    FixedNorm norm;        // or none
    const void* residual;  // like the output, or null
    float* mean;           // [tiles, channels] or null: where there is no norm
    float* m2;             // [tiles, channels] with `mean`
    u32 channels;
    u32 relu;

    template <class T>
    __device__ void prepare(float* sums, u32 first, u32 cols, u32 thread) const {
        Affine<T>::prepare(norm, sums, first, cols, thread);
    }

    struct Operands {
        uint4 residual;
    };

    template <class T>
    struct Work {
        static constexpr u32 V = T::VECTOR;
        const ForwardFinish& p;
        Affine<T> affine;
        Moments<T> moments;

        __device__ Work(const ForwardFinish& p, const float* prepared, const Columns<T>& own)
            : p(p), affine(p.norm, prepared, own) {}

        __device__ Operands load(u32 pixel, u32 channel) const {
            Operands operands = {};
            if (p.residual) operands.residual = load_vector<typename T::E>(p.residual, pixel, p.channels, channel);
            return operands;
        }

        __device__ void before(float (&values)[V], const Operands& operands, u32) const {
            affine.apply(values);
            if (p.residual) {
                float residual[V];
                T::E::unpack(operands.residual, residual);
#pragma unroll
                for (u32 j = 0; j < V; ++j) values[j] += residual[j];
            }
            if (p.relu) {
                // Not a maximum, which would turn a NaN into 0 and hide a diverged run.
#pragma unroll
                for (u32 j = 0; j < V; ++j) values[j] = values[j] < 0.0f ? 0.0f : values[j];
            }
        }

        __device__ void after(const float (&stored)[V], const Operands&) {
            if (p.mean) moments.add(stored);
        }

        template <class Barrier>
        __device__ void write(float* scratch, const Barrier& barrier, u32 thread, u32 cols, u64 at) {
            if (p.mean) moments.write(scratch, barrier, thread, cols, p.mean + at, p.m2 + at);
        }
    };
};

// The gradient of a convolution's input: g = sum + partial where the mask allows, else 0; and the sums that the
// batchnorm before it asks of g as stored.
struct GradFinish {
    void* output;  // [pixels, channels]
    Partial partial;
    const u8* mask;     // [pixels, channels / 8] or null: bit j of a byte tells of channel j of its eight
    const void* input;  // [pixels, channels] or null: y, what the batchnorm normalised
    const float* mean;  // [channels] with `input`: of y
    float* sum;         // [tiles, channels] with `input`: of g
    float* product;     // [tiles, channels] with `input`: of g * (y - mean)
    u32 channels;

    template <class T>
    __device__ void prepare(float*, u32, u32, u32) const {}

    struct Operands {
        uint4 partial, input;
        u32 mask;
    };

    template <class T>
    struct Work {
        static constexpr u32 V = T::VECTOR;
        const GradFinish& p;
        GradSums<T> sums;

        __device__ Work(const GradFinish& p, const float*, const Columns<T>& own)
            : p(p), sums(p.mean, own.exists() ? own.channel() : own.first) {}

        __device__ Operands load(u32 pixel, u32 channel) const {
            Operands operands = {};
            if (p.partial.grad) {
                const u32 from = p.partial.pixel(pixel);
                if (from != NO_PIXEL)
                    operands.partial = load_vector<typename T::E>(p.partial.grad, from, p.channels, channel);
            }
            if (p.input) operands.input = load_vector<typename T::E>(p.input, pixel, p.channels, channel);
            operands.mask = p.mask ? p.mask[u64(pixel) * (p.channels / 8) + channel / 8] : 0xff;
            return operands;
        }

        __device__ void before(float (&values)[V], const Operands& operands, u32 channel) const {
            float partial[V];
            T::E::unpack(operands.partial, partial);
#pragma unroll
            for (u32 j = 0; j < V; ++j) {
                const bool passes = operands.mask >> (channel + j) % 8 & 1;
                values[j] = passes ? values[j] + partial[j] : 0.0f;
            }
        }

        __device__ void after(const float (&stored)[V], const Operands& operands) {
            if (!p.input) return;
            float input[V];
            T::E::unpack(operands.input, input);
            sums.add(stored, input);
        }

        template <class Barrier>
        __device__ void write(float* scratch, const Barrier& barrier, u32 thread, u32 cols, u64 at) {
            if (p.input) sums.write(scratch, barrier, thread, cols, p.sum + at, p.product + at);
        }
    };
};

// A thread's part in the finish F (ForwardFinish, GradFinish) of a tile's columns.
template <class T, class F>
struct Finish {
    const F& p;
    Columns<T> own;
    typename F::template Work<T> work;

    // `prepared` is the memory of the sums, where `first` was the first column that was prepared; else as many rows
    // further as there are eights of columns between. For `first` and `cols` see Columns.
    __device__ Finish(const F& p, const float* prepared, u32 first, u32 cols, u32 thread)
        : p(p), own(first, cols, thread), work(p, prepared, own) {}

    // Finishes and stores T::ROWS rows of sums.
    template <class Pixels>
    __device__ void rows(const float* sums, const Pixels& pixels) {
        if (!own.exists()) return;
#pragma unroll 1
        for (u32 from = 0; from < T::PER_THREAD; from += T::BATCH) {
            u32 pixel[T::BATCH];
            typename F::Operands operands[T::BATCH];
#pragma unroll
            for (u32 i = 0; i < T::BATCH; ++i) {
                pixel[i] = pixels(own.thread / T::ACROSS + (from + i) * T::LANES);
                if (pixel[i] != NO_PIXEL) operands[i] = work.load(pixel[i], own.channel());
            }
#pragma unroll
            for (u32 i = 0; i < T::BATCH; ++i) {
                if (pixel[i] == NO_PIXEL) continue;
                float values[T::VECTOR];
                const u32 row = own.thread / T::ACROSS + (from + i) * T::LANES;
                read_shared(sums + row * T::PITCH + own.col(), own.thread, values);
                work.before(values, operands[i], own.channel());
                const uint4 bits = T::E::pack(values);
                store_vector<typename T::E>(p.output, pixel[i], p.channels, own.channel(), bits);
                T::E::unpack(bits, values);
                work.after(values, operands[i]);
            }
        }
    }

    // Writes what was summed over all rows so far as that of tile number `tile`; `scratch` is the memory of the sums.
    template <class Barrier>
    __device__ void write_sums(float* scratch, const Barrier& barrier, u32 tile) {
        work.write(scratch, barrier, own.thread, own.cols, u64(tile) * p.channels + own.first);
    }
};
