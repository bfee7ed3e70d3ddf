//! Gradients of 1×1 convolutions on small maps, whose weight is larger than the maps: in products of few tasks it is read
//! few times, and no task has a copy of it.

use crate::{
    device::CpuDevice,
    ops::{
        conv::Extents,
        products::{transposed, whole_product},
    },
};

/// Pixels of a map that is small. The batch does not decide: an image's gradient does not depend on it.
const PIXELS: usize = 64;

/// Whether these gradients serve.
pub fn serves(extents: &Extents) -> bool {
    let pointwise = extents.r == 1 && extents.s == 1 && extents.padding == 0 && extents.groups == 1;
    pointwise && extents.p * extents.q <= PIXELS && extents.n > 0
}

/// `[K, C]`.
pub fn weight_grad(cpu: &CpuDevice, grad: &[f32], input: &[f32], extents: &Extents) -> Vec<f32> {
    let &Extents { n, h, w, c, p, q, k, .. } = extents;
    let pixels = n * p * q;
    let turned = transposed(cpu, pixels, k, |pixel| &grad[pixel * k..][..k]);
    let of_filter = |filter: usize| &turned[filter * pixels..][..pixels];
    let seen = |pixel: usize| {
        let (image, y, x) = extents.corner(pixel);
        &input[((image * h + y as usize) * w + x as usize) * c..][..c]
    };
    let result = whole_product(cpu, k, of_filter, pixels, c, seen);
    cpu.recycle(turned);
    result
}

/// `[N, H, W, C]`, with stride 1.
pub fn input_grad(cpu: &CpuDevice, grad: &[f32], weight: &[f32], extents: &Extents) -> Vec<f32> {
    let &Extents { n, p, q, c, k, .. } = extents;
    let of_pixel = |pixel: usize| &grad[pixel * k..][..k];
    whole_product(cpu, n * p * q, of_pixel, k, c, |filter| &weight[filter * c..][..c])
}
