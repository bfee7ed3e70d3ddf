// What the linear layer needs beyond a convolution with 1x1 maps: the gradient of its bias,
// db[col] = sum over rows of dy[row, col].
//
// A block takes 32 columns; each warp sums every eighth row, and the eight sums are added in order. Bytes: dy once;
// bound by memory, or by latency where dy is small.
#include "common.cuh"

constexpr u32 COLS = 32, WARPS = 8;

struct LinearBiasGradParams {
    const float* grad;  // [rows, cols]
    float* output;      // [cols]
    u32 rows, cols;
};

extern "C" __global__ void __launch_bounds__(COLS * WARPS) linear_bias_grad(const LinearBiasGradParams p) {
    __shared__ float sums[WARPS][COLS];
    const u32 lane = threadIdx.x % COLS, warp = threadIdx.x / COLS, col = blockIdx.x * COLS + lane;
    float sum = 0.0f;
    if (col < p.cols)
        for (u32 row = warp; row < p.rows; row += WARPS) sum += p.grad[u64(row) * p.cols + col];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && col < p.cols) {
        float total = 0.0f;
        for (u32 i = 0; i < WARPS; ++i) total += sums[i][lane];
        p.output[col] = total;
    }
}
