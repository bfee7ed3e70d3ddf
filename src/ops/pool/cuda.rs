//! Pooling on the GPU: `kernels/pool.cu`.

use std::sync::Arc;

use super::Window;
use crate::{
    Error, Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{MOST_IMAGES, optional, small},
    tensor::DType,
};

/// Threads of a block.
const THREADS: u32 = 256;
/// Groups of channels that a block of a global pool takes: `COLUMNS`.
const COLUMNS: usize = 16;

kernel_params! {
    struct MaxPoolParams {
        input: u64,
        output: u64,
        at: u64,
        extents: [u32; 6],
        window: [u32; 3],
    }
}

kernel_params! {
    struct MaxPoolGradParams {
        grad: u64,
        at: u64,
        input_grad: u64,
        extents: [u32; 6],
        window: [u32; 3],
    }
}

kernel_params! {
    struct GlobalPoolParams {
        input: u64,
        output: u64,
        at: u64,
        n: u32,
        positions: u32,
        c: u32,
    }
}

kernel_params! {
    struct GlobalPoolGradParams {
        grad: u64,
        at: u64,
        input_grad: u64,
        n: u32,
        positions: u32,
        c: u32,
        share: f32,
    }
}

pub static SOURCE: Source = Source {
    name: "pool",
    text: include_str!("../../../kernels/pool.cu"),
    archs: F32_ARCHS,
    entries: &[
        "max_pool_x1",
        "max_pool_x4",
        "max_pool_bf16",
        "max_pool_grad_x1",
        "max_pool_grad_x4",
        "max_pool_grad_bf16",
        "average_pool_x1",
        "average_pool_x4",
        "average_pool_bf16",
        "concat_pool_x1",
        "concat_pool_x4",
        "concat_pool_bf16",
        "global_pool_grad_x1",
        "global_pool_grad_x4",
        "global_pool_grad_bf16",
    ],
    layouts: &[
        MaxPoolParams::LAYOUT,
        MaxPoolGradParams::LAYOUT,
        GlobalPoolParams::LAYOUT,
        GlobalPoolGradParams::LAYOUT,
    ],
};

/// Kernels of one and of four channels of f32 per thread, and of four of bf16.
type Kernels<P> = [Kernel<P>; 3];

const fn kernels<P: Params>(names: [&'static str; 3]) -> Kernels<P> {
    let [one, four, bf16] = names;
    [Kernel::new(&SOURCE, one, THREADS), Kernel::new(&SOURCE, four, THREADS), Kernel::new(&SOURCE, bf16, THREADS)]
}

static MAX: Kernels<MaxPoolParams> = kernels(["max_pool_x1", "max_pool_x4", "max_pool_bf16"]);
static MAX_GRAD: Kernels<MaxPoolGradParams> = kernels(["max_pool_grad_x1", "max_pool_grad_x4", "max_pool_grad_bf16"]);
static AVERAGE: Kernels<GlobalPoolParams> = kernels(["average_pool_x1", "average_pool_x4", "average_pool_bf16"]);
static CONCAT: Kernels<GlobalPoolParams> = kernels(["concat_pool_x1", "concat_pool_x4", "concat_pool_bf16"]);
static GLOBAL_GRAD: Kernels<GlobalPoolGradParams> =
    kernels(["global_pool_grad_x1", "global_pool_grad_x4", "global_pool_grad_bf16"]);

/// Launches the kernel for maps of `dtype` with `channels` over images, with `per_block` groups of channels of
/// `per_image` elements in each block.
fn over_images<P: Params>(
    cuda: &CudaDevice,
    kernels: &Kernels<P>,
    dtype: DType,
    [n, per_image, channels]: [usize; 3],
    per_block: usize,
    params: &P,
) -> Result<()> {
    // Kernels count the elements of an image in 32 bits.
    small("pool", per_image)?;
    let vector = channels.is_multiple_of(4);
    let kernel = match (dtype, vector) {
        (DType::F32, false) => &kernels[0],
        (DType::F32, true) => &kernels[1],
        (DType::BF16, true) => &kernels[2],
        _ => {
            let message = format!("maps are f32, or bf16 with a multiple of 4 channels; got {channels} of {dtype:?}");
            return Err(Error::shape("pool", message));
        }
    };
    let groups = if vector { per_image / 4 } else { per_image };
    cuda.launch(kernel, [groups.div_ceil(per_block), n.min(MOST_IMAGES), 1], 0, params)
}

pub fn max_forward(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    [n, h, w, c]: [usize; 4],
    window: Window,
    output: [usize; 4],
) -> Result<(Tensor, Tensor)> {
    let ([_, p, q, _], dtype) = (output, input.dtype());
    let (result, at) = (Tensor::uninit_of(dtype, output, cuda)?, Tensor::uninit::<u32>(output, cuda)?);
    let params = MaxPoolParams {
        input: input.address(dtype, cuda)?,
        output: result.address(dtype, cuda)?,
        at: at.pointer::<u32>(cuda)?,
        extents: counts([n, h, w, c, p, q])?,
        window: counts([window.size, window.stride, window.padding])?,
    };
    small("max pool", h * w * c)?;
    over_images(cuda, &MAX, dtype, [n, p * q * c, c], THREADS as usize, &params)?;
    Ok((result, at))
}

/// The gradient of the input, `[N, H, W, C]`.
pub fn max_grad(
    cuda: &Arc<CudaDevice>,
    grad: &Tensor,
    at: &Tensor,
    [n, h, w, c]: [usize; 4],
    window: Window,
) -> Result<Tensor> {
    let (p, q, dtype) = (at.dims()[1], at.dims()[2], grad.dtype());
    let input_grad = Tensor::uninit_of(dtype, [n, h, w, c], cuda)?;
    let params = MaxPoolGradParams {
        grad: grad.address(dtype, cuda)?,
        at: at.pointer::<u32>(cuda)?,
        input_grad: input_grad.address(dtype, cuda)?,
        extents: counts([n, h, w, c, p, q])?,
        window: counts([window.size, window.stride, window.padding])?,
    };
    over_images(cuda, &MAX_GRAD, dtype, [n, h * w * c, c], THREADS as usize, &params)?;
    Ok(input_grad)
}

fn counts<const N: usize>(values: [usize; N]) -> Result<[u32; N]> {
    let mut counts = [0; N];
    for (count, value) in counts.iter_mut().zip(values) {
        *count = small("pool", value)?;
    }
    Ok(counts)
}

pub fn average_forward(cuda: &Arc<CudaDevice>, input: &Tensor, extents: [usize; 4]) -> Result<Tensor> {
    let output = Tensor::uninit::<f32>([extents[0], extents[3]], cuda)?;
    global(cuda, &AVERAGE, input, extents, &output, None)?;
    Ok(output)
}

pub fn concat_forward(cuda: &Arc<CudaDevice>, input: &Tensor, extents: [usize; 4]) -> Result<(Tensor, Tensor)> {
    let [n, _, _, c] = extents;
    let (output, at) = (Tensor::uninit::<f32>([n, 2 * c], cuda)?, Tensor::uninit::<u32>([n, c], cuda)?);
    global(cuda, &CONCAT, input, extents, &output, Some(&at))?;
    Ok((output, at))
}

fn global(
    cuda: &CudaDevice,
    kernels: &Kernels<GlobalPoolParams>,
    input: &Tensor,
    [n, h, w, c]: [usize; 4],
    output: &Tensor,
    at: Option<&Tensor>,
) -> Result<()> {
    let [n32, positions, c32] = counts([n, h * w, c])?;
    let dtype = input.dtype();
    let params = GlobalPoolParams {
        input: input.address(dtype, cuda)?,
        output: output.pointer::<f32>(cuda)?,
        at: optional::<u32>(cuda, at)?,
        n: n32,
        positions,
        c: c32,
    };
    over_images(cuda, kernels, dtype, [n, c, c], COLUMNS, &params)
}

/// The gradient, `dtype`, of the input of an average pool, or with `at` of a concat pool.
pub fn global_grad(
    cuda: &Arc<CudaDevice>,
    grad: &Tensor,
    at: Option<&Tensor>,
    dtype: DType,
    [n, h, w, c]: [usize; 4],
) -> Result<Tensor> {
    let input_grad = Tensor::uninit_of(dtype, [n, h, w, c], cuda)?;
    let [n32, positions, c32] = counts([n, h * w, c])?;
    let params = GlobalPoolGradParams {
        grad: grad.pointer::<f32>(cuda)?,
        at: optional::<u32>(cuda, at)?,
        input_grad: input_grad.address(dtype, cuda)?,
        n: n32,
        positions,
        c: c32,
        share: 1.0 / (h * w) as f32,
    };
    over_images(cuda, &GLOBAL_GRAD, dtype, [n, h * w * c, c], THREADS as usize, &params)?;
    Ok(input_grad)
}
