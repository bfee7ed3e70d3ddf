//! The padding shortcut on the GPU: `kernels/shortcut.cu`.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{MOST_IMAGES, small},
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
    entries: &["shortcut", "shortcut_grad"],
    layouts: &[ShortcutParams::LAYOUT],
};

static FORWARD: Kernel<ShortcutParams> = Kernel::new(&SOURCE, "shortcut", THREADS);
static GRAD: Kernel<ShortcutParams> = Kernel::new(&SOURCE, "shortcut_grad", THREADS);

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
    kernel: &Kernel<ShortcutParams>,
    from: &Tensor,
    [[n, h, w, c], [_, p, q, channels]]: [[usize; 4]; 2],
    shape: [usize; 4],
    stride: usize,
) -> Result<Tensor> {
    let to = Tensor::uninit::<f32>(shape, cuda)?;
    let count = |value| small("shortcut", value);
    // Kernels count the elements of an image in 32 bits.
    count(h * w * c)?;
    count(p * q * channels)?;
    let params = ShortcutParams {
        from: from.pointer::<f32>(cuda)?,
        to: to.pointer::<f32>(cuda)?,
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
    cuda.launch(kernel, [per_image.div_ceil(THREADS as usize), n.min(MOST_IMAGES), 1], 0, &params)?;
    Ok(to)
}
