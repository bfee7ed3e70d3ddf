// Dropout: y[i] = random(i) >= p ? x[i] / (1 - p) : 0, the same function for the gradient.
//
// See map.cuh for who does what, random.cuh for the numbers; the processor's bits. Bound by memory on large GPUs: 8
// bytes moved per element, for about twenty integer operations.
#include "map.cuh"
#include "random.cuh"

struct DropoutParams {
    const float* input;
    float* output;
    u64 count;
    u64 key;          // of the stream that decides what is dropped
    const u64* step;  // where given, the stream is the key's part for this number
    float p;          // the share that is dropped
    float keep;       // 1 / (1 - p)
};

extern "C" __global__ void __launch_bounds__(MAP_THREADS) dropout(const DropoutParams p) {
    const Own own(p.count);
    const u64 key = p.step ? splitmix64(p.key ^ *p.step) : p.key;
    Pack<float, 4> x = own.load(p.input);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) x.at[j] = random_at(key, own.first + j) >= p.p ? x.at[j] * p.keep : 0.0f;
    own.store(p.output, x);
}
