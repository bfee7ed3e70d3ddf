// How one parameter moves in one step. One rounding per operation, in the processor's order: its bits.
#pragma once
#include "common.cuh"

// g += weight_decay * p;  b = momentum * b + g;  p -= lr * (nesterov ? g + momentum * b : b)
// Decoupled, p -= lr * weight_decay * p comes first instead.
struct SgdRule {
    float momentum;
    bool nesterov, decoupled;

    __device__ void operator()(float& p, float& b, float grad, float lr, float weight_decay) const {
        if (decoupled) p = __fsub_rn(p, __fmul_rn(__fmul_rn(lr, weight_decay), p));
        const float g = decoupled ? grad : __fadd_rn(grad, __fmul_rn(weight_decay, p));
        b = __fadd_rn(__fmul_rn(momentum, b), g);
        const float step = nesterov ? __fadd_rn(g, __fmul_rn(momentum, b)) : b;
        p = __fsub_rn(p, __fmul_rn(lr, step));
    }
};

// p -= lr * weight_decay * p;  m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g * g;
// p -= lr / correction1 * m / (sqrt(v) / correction2 + eps)
struct AdamWRule {
    float beta1, beta2, eps;
    float correction1;  // 1 - beta1^step
    float correction2;  // sqrt(1 - beta2^step)

    __device__ void operator()(float& p, float& m, float& v, float g, float lr, float weight_decay) const {
        const float decay = __fmul_rn(lr, weight_decay), rate = __fdiv_rn(lr, correction1);
        const float new1 = 1.0f - beta1, new2 = 1.0f - beta2;
        p = __fsub_rn(p, __fmul_rn(decay, p));
        m = __fadd_rn(__fmul_rn(beta1, m), __fmul_rn(new1, g));
        v = __fadd_rn(__fmul_rn(beta2, v), __fmul_rn(__fmul_rn(new2, g), g));
        const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), correction2), eps);
        p = __fsub_rn(p, __fdiv_rn(__fmul_rn(rate, m), root));
    }
};
