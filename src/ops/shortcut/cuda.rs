//! The padding shortcut on the GPU: `kernels/shortcut.cu`.

use std::sync::Arc;

use crate::{
    Error, Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Params, Source, kernel_params},
    },
    ops::{MOST_IMAGES, small},
    tensor::{DType, cuda::ByType},
};

/// Threads of a block.
const THREADS: u32 = 256;

kernel_params! {
    struct ShortcutParams {
        from: u64,
        to: u64,
        n: u32,
        h: u32,
        w: u32,
        c: u32,
        p: u32,
        q: u32,
        channels: u32,
        stride: u32,
        before: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "shortcut",
    text: include_str!("../../../kernels/shortcut.cu"),
    archs: F32_ARCHS,
    entries: &["shortcut", "shortcut_bf16", "shortcut_grad", "shortcut_grad_bf16"],
    layouts: &[ShortcutParams::LAYOUT],
};

static FORWARD: ByType<ShortcutParams> = ByType::new(&SOURCE, "shortcut", "shortcut_bf16", THREADS);
static GRAD: ByType<ShortcutParams> = ByType::new(&SOURCE, "shortcut_grad", "shortcut_grad_bf16", THREADS);

/// From `[N, H, W, C]` to `[N, P, Q, channels]`.
pub fn forward(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    extents: [usize; 4],
    output: [usize; 4],
    stride: usize,
) -> Result<Tensor> {
    launch(cuda, &FORWARD, input, [extents, output], output, stride)
}

/// From the gradient `[N, P, Q, channels]` to that of the input, `[N, H, W, C]`.
pub fn grad(
    cuda: &Arc<CudaDevice>,
    grad: &Tensor,
    extents: [usize; 4],
    output: [usize; 4],
    stride: usize,
) -> Result<Tensor> {
    launch(cuda, &GRAD, grad, [extents, output], extents, stride)
}

fn launch(
    cuda: &Arc<CudaDevice>,
    kernels: &ByType<ShortcutParams>,
    from: &Tensor,
    [[n, h, w, c], [_, p, q, channels]]: [[usize; 4]; 2],
    shape: [usize; 4],
    stride: usize,
) -> Result<Tensor> {
    let dtype = from.dtype();
    let (kernel, to) = (kernels.of(dtype)?, Tensor::uninit_of(dtype, shape, cuda)?);
    let per_thread = if dtype == DType::BF16 { 4 } else { 1 };
    if dtype == DType::BF16 && !(c.is_multiple_of(8) && channels.is_multiple_of(8)) {
        let message = format!("{c} to {channels} channels of bf16, which come in multiples of 8");
        return Err(Error::shape("shortcut", message));
    }
    let count = |value| small("shortcut", value);
    // Kernels count the elements of an image in 32 bits.
    count(h * w * c)?;
    count(p * q * channels)?;
    let params = ShortcutParams {
        from: from.address(dtype, cuda)?,
        to: to.address(dtype, cuda)?,
        n: count(n)?,
        h: count(h)?,
        w: count(w)?,
        c: count(c)?,
        p: count(p)?,
        q: count(q)?,
        channels: count(channels)?,
        stride: count(stride)?,
        before: count((channels - c) / 2)?,
    };
    let per_image: usize = shape[1..].iter().product();
    cuda.launch(kernel, [per_image.div_ceil(per_thread * THREADS as usize), n.min(MOST_IMAGES), 1], 0, &params)?;
    Ok(to)
}
