// The extents of a convolution, and how kernels find their way in them. Activations are [N, H, W, C], weights
// [K, R, S, C / groups].
#pragma once
#include "common.cuh"

// All extents of a convolution. Inputs [n, h, w, c], weights [k, r, s, group_c], outputs [n, p, q, k].
struct ConvExtents {
    u32 n, h, w, c;
    u32 k, r, s;
    u32 p, q;
    u32 stride, padding, groups;
    u32 group_c, group_k;  // channels and filters of a group
    u32 window;            // r * s * group_c
};

// Takes the last digit off a mixed-radix number.
__device__ inline u32 take_digit(u32& number, u32 radix) {
    const u32 digit = number % radix;
    number /= radix;
    return digit;
}

// An index over three extents, the last fastest, that is moved forward without divisions.
struct Index3 {
    u32 outer, middle, inner;

    __device__ Index3(u32 index, u32 middles, u32 inners)
        : outer(index / inners / middles), middle(index / inners % middles), inner(index % inners) {}

    __device__ void advance(u32 by, u32 middles, u32 inners) {
        inner += by;
        while (inner >= inners) {
            inner -= inners;
            if (++middle == middles) middle = 0, ++outer;
        }
    }
};

// A place in images, kept in shared memory for each row or column of a tile.
struct Place {
    i32 y, x;
    u32 base;  // the number of the image's first pixel; or a channel

    // A place outside every image, with any tap added.
    static __device__ Place nowhere() { return {-(1 << 30), -(1 << 30), 0}; }
};

// An input gradient falls into stride * stride classes of pixels, each a convolution of the output's gradient with
// every stride-th tap (see conv_input_grad.cu): the pixels of one class along one axis, and their taps.
struct Axis {
    u32 first, pixels;    // the first pixel, and how many there are: every stride-th
    u32 first_tap, taps;  // likewise
    i32 source;           // where the first pixel's first tap lies in dy

    __device__ Axis(u32 residue, u32 extent, u32 kernel, u32 stride, u32 padding)
        : first(residue), pixels(residue < extent ? ceil_div(extent - residue, stride) : 0),
          first_tap((residue + padding) % stride),
          taps(first_tap < kernel ? ceil_div(kernel - first_tap, stride) : 0),
          source((residue + padding - first_tap) / stride) {}
};
