// The last step of the input pipeline: each pixel of a picture is looked up in a patch of its image, lit, clipped and
// normalised.
//
//   output[n, j, i, c] = (clip(gain · P(start + i · across + j · down)[c] / 255 + offset, 0, 1) − mean[c]) / std[c]
//
// P is the patch's bilinear value, on an image that is continued by reflection. Coordinates have 32 bits after the
// point and weights 12; the arithmetic is the processor's (src/ops/augment/placement.rs), integer by integer and
// rounding by rounding, so the results are equal bit for bit.
//
// Layout: patches are u8 [h, w, 3] of any extents, one after the other; output is f32 [N, height, width, 3], or for tensor
// cores f32 or bf16 [N, height, width, 4], whose fourth channel is zero.
// Traffic: 3 bytes read per pixel (up to 12, mostly from L1, where pixels lie between others), 12, 16 or 8 written: the
// writes bound it. Work: one lookup of 3 channels and 4 taps per pixel, in integers; lighting and normalisation are
// tables of 256 entries per channel, made once per block.
// Shape: a block makes TILE consecutive pixels of one picture, THREADS at a time, a thread a pixel. Four channels are
// stored as one; three are handed over through shared memory, so that stores are consecutive. Shared: 3 KiB
// of tables, and 3 for three channels.
//
// pack_images gives images that are f32 [N, H, W, 3] already their fourth channel: 12 bytes read per pixel, which
// bounds it, 16 or 8 written. A block takes THREADS pixels. Shared: 3 KiB.
#include "pack.cuh"

constexpr u32 THREADS = 256;
constexpr u32 TILE = 1024;

// Where a picture's patch begins, and where the picture's pixels lie in it: pairs are column and row.
struct Picture {
    i64 start[2];
    i64 across[2];
    i64 down[2];
    u64 offset; // of the patch's first byte
    u32 width; // of the patch
    i32 pad; // of the image that it is a part of
    i32 origin[2]; // of the patch on that image
    i32 image[2]; // extents
    float gain;
    float lift;
};

struct AugmentParams {
    const u8* pixels;
    const Picture* pictures;
    void* output;
    u32 height;
    u32 width;
    u32 tiles; // per picture
    float mean[3];
    float std[3];
};

// Position of index i on a side of len pixels continued by reflection: cba|abc|cba.
__device__ __forceinline__ i32 reflect(i32 i, i32 len) {
    if (i >= 0 && i < len) return i;
    i %= 2 * len;
    if (i < 0) i += 2 * len;
    return i < len ? i : 2 * len - 1 - i;
}

// Position of index i of the padded image on the image: both are continued by reflection.
__device__ __forceinline__ i32 on_image(i32 i, i32 len, i32 pad) {
    return reflect(reflect(i, len + 2 * pad) - pad, len);
}

__device__ __forceinline__ u32 mix(u32 a, u32 b, u32 t) {
    return a * (4096 - t) + b * t;
}

// The bytes at column i and row j of the picture.
__device__ __forceinline__ void sample(const u8* pixels, const Picture& picture, u32 i, u32 j, u32 rgb[3]) {
    const i64 x = picture.start[0] + i * picture.across[0] + j * picture.down[0];
    const i64 y = picture.start[1] + i * picture.across[1] + j * picture.down[1];
    const i32 column = (i32)(x >> 32), row = (i32)(y >> 32);
    const u32 right = (u32)x >> 20, below = (u32)y >> 20; // weights

    // In-patch offsets stay below 2³⁰: patches have at most a GiB.
    const u32 stride = 3 * picture.width;
    const u32 c0 = 3 * (on_image(column, picture.image[0], picture.pad) - picture.origin[0]);
    const u32 r0 = stride * (on_image(row, picture.image[1], picture.pad) - picture.origin[1]);
    const u8* first = pixels + picture.offset;
    const u8* a = first + r0 + c0;
    if ((right | below) == 0) { // unturned and turned by quarters: no other pixel has weight
        for (u32 k = 0; k < 3; k++) rgb[k] = a[k];
        return;
    }
    const u32 c1 = 3 * (on_image(column + 1, picture.image[0], picture.pad) - picture.origin[0]);
    const u32 r1 = stride * (on_image(row + 1, picture.image[1], picture.pad) - picture.origin[1]);
    const u8 *b = first + r0 + c1, *c = first + r1 + c0, *d = first + r1 + c1;
    for (u32 k = 0; k < 3; k++) {
        rgb[k] = (mix(mix(a[k], b[k], right), mix(c[k], d[k], right), below) + (1u << 23)) >> 24;
    }
}

// Stores a pixel of four channels, the last of them zero.
template <class T>
__device__ __forceinline__ void store_pixel(void* output, u64 pixel, float r, float g, float b) {
    store(static_cast<T*>(output) + 4 * pixel, narrow<T>(Pack<float, 4>{{r, g, b, 0.0f}}));
}

template <class T, u32 CHANNELS>
__device__ __forceinline__ void pictures(const AugmentParams& p) {
    __shared__ float table[3][256];
    __shared__ float staged[CHANNELS == 3 ? 3 * THREADS : 1];

    const u32 image = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles;
    const Picture picture = p.pictures[image];
    const u32 pixels = p.height * p.width;
    const u64 origin = (u64)image * pixels;

    // One rounding per operation: a fused multiply-add would differ from the processor.
    const float level = __fadd_rn(__fmul_rn(picture.gain, __fdiv_rn((float)threadIdx.x, 255.0f)), picture.lift);
    const float lit = level < 0.0f ? 0.0f : level > 1.0f ? 1.0f : level;
    for (u32 k = 0; k < 3; k++) table[k][threadIdx.x] = __fdiv_rn(__fsub_rn(lit, p.mean[k]), p.std[k]);
    __syncthreads();

    const u32 end = min(pixels, (tile + 1) * TILE);
    for (u32 first = tile * TILE; first < end; first += THREADS) {
        const u32 pixel = first + threadIdx.x;
        if (pixel < end) {
            u32 rgb[3];
            sample(p.pixels, picture, pixel % p.width, pixel / p.width, rgb);
            const float r = table[0][rgb[0]], g = table[1][rgb[1]], b = table[2][rgb[2]];
            if (CHANNELS == 4) {
                store_pixel<T>(p.output, origin + pixel, r, g, b);
            } else {
                float* to = staged + 3 * threadIdx.x;
                to[0] = r, to[1] = g, to[2] = b;
            }
        }
        if (CHANNELS == 4) continue;
        __syncthreads();
        float* output = static_cast<float*>(p.output) + 3 * (origin + first);
        const u32 floats = 3 * min(THREADS, end - first);
        for (u32 k = threadIdx.x; k < floats; k += THREADS) output[k] = staged[k];
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) augment(const AugmentParams p) { pictures<float, 3>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) augment_x4(const AugmentParams p) { pictures<float, 4>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) augment_bf16(const AugmentParams p) { pictures<bf16, 4>(p); }

struct PackImagesParams {
    const float* images;  // [pixels, 3]
    void* output;         // [pixels, 4]
    u64 pixels;
};

template <class T>
__device__ __forceinline__ void pack_images(const PackImagesParams& p) {
    __shared__ float staged[3 * THREADS];
    const u64 first = (u64)blockIdx.x * THREADS;
    const u32 valid = (u32)min(p.pixels - first, (u64)THREADS);
    for (u32 k = threadIdx.x; k < 3 * valid; k += THREADS) staged[k] = p.images[3 * first + k];
    __syncthreads();
    const float* pixel = staged + 3 * threadIdx.x;
    if (threadIdx.x < valid) store_pixel<T>(p.output, first + threadIdx.x, pixel[0], pixel[1], pixel[2]);
}

extern "C" __global__ void __launch_bounds__(THREADS) pack_images_x4(const PackImagesParams p) {
    pack_images<float>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) pack_images_bf16(const PackImagesParams p) {
    pack_images<bf16>(p);
}
