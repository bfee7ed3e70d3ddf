//! Gradients: `kernels/batchnorm_grad.cu`.

use std::sync::Arc;

use super::{
    CHANNELS, Kernels, MERGE_THREADS, THREADS, TILE, kernels, merge_grid, merge_width, over_rows, over_tiles, uninit,
};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Field, Kernel, Params, Source, kernel_params},
    },
    ops::{
        batchnorm::{
            Moments, TileSums,
            fused::Coefficients,
            grad::{Backward, Saved},
        },
        small,
    },
    tensor::{DType, cuda::ByType},
};

kernel_params! {
    struct ReduceParams {
        input: u64,
        mean: u64,
        output: u64,
        mask: u64,
        grad: u64,
        masked: u64,
        sum: u64,
        product: u64,
        rows: u32,
        channels: u32,
    }
}

kernel_params! {
    struct CoefficientsParams {
        sum: u64,
        product: u64,
        mean: u64,
        variance: u64,
        scale: u64,
        scale_grad: u64,
        shift_grad: u64,
        a: u64,
        b: u64,
        c: u64,
        rows: u32,
        tiles: u32,
        channels: u32,
        width: u32,
        eps: f32,
        batch: u32,
    }
}

kernel_params! {
    /// One of the batchnorms that share a gradient.
    struct Branch {
        input: u64,
        a: u64,
        b: u64,
        c: u64,
        input_grad: u64,
    }
}

impl Field for Branch {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct InputGradParams {
        grad: u64,
        branches: [Branch; 2],
        rows: u32,
        channels: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "batchnorm_grad",
    text: include_str!("../../../../kernels/batchnorm_grad.cu"),
    archs: F32_ARCHS,
    entries: &[
        "batchnorm_reduce_x1",
        "batchnorm_reduce_x4",
        "batchnorm_reduce_bf16",
        "batchnorm_coefficients",
        "batchnorm_input_grad_x1",
        "batchnorm_input_grad_x4",
        "batchnorm_input_grad_bf16",
        "batchnorm_input_grad_pair_x4",
        "batchnorm_input_grad_pair_bf16",
    ],
    layouts: &[ReduceParams::LAYOUT, CoefficientsParams::LAYOUT, Branch::LAYOUT, InputGradParams::LAYOUT],
};

static REDUCE: Kernels<ReduceParams> =
    kernels(&SOURCE, ["batchnorm_reduce_x1", "batchnorm_reduce_x4", "batchnorm_reduce_bf16"]);
static COEFFICIENTS: Kernel<CoefficientsParams> = Kernel::new(&SOURCE, "batchnorm_coefficients", MERGE_THREADS);
static INPUT_GRAD: Kernels<InputGradParams> =
    kernels(&SOURCE, ["batchnorm_input_grad_x1", "batchnorm_input_grad_x4", "batchnorm_input_grad_bf16"]);
static INPUT_GRAD_PAIR: ByType<InputGradParams> =
    ByType::new(&SOURCE, "batchnorm_input_grad_pair_x4", "batchnorm_input_grad_pair_bf16", THREADS);

/// What decides where a gradient passes; what does not is zeroed in `masked`.
pub enum Gate<'a> {
    /// It passes everywhere.
    Open,
    /// Where a bit is set.
    Mask { mask: &'a Tensor, masked: &'a Tensor },
    /// Where the ReLU's output is positive; in place.
    Output(&'a Tensor),
}

/// The sums of a gradient `[.., C]`, and what `gate` asks of it.
pub fn reduce(cuda: &Arc<CudaDevice>, grad: &Tensor, input: &Tensor, mean: &Tensor, gate: Gate) -> Result<TileSums> {
    let (rows, channels, dtype) = (input.shape().rows(), input.shape().last(), input.dtype());
    let [sum, product] = uninit([rows.div_ceil(TILE), channels], cuda)?;
    let grad = grad.address(dtype, cuda)?;
    let [output, mask, masked] = match gate {
        Gate::Open => [0; 3],
        Gate::Mask { mask, masked } => [0, mask.pointer::<u8>(cuda)?, masked.address(dtype, cuda)?],
        Gate::Output(output) => [output.address(dtype, cuda)?, 0, grad],
    };
    let params = ReduceParams {
        input: input.address(dtype, cuda)?,
        mean: mean.pointer::<f32>(cuda)?,
        output,
        mask,
        grad,
        masked,
        sum: sum.pointer::<f32>(cuda)?,
        product: product.pointer::<f32>(cuda)?,
        rows: small("batchnorm", rows)?,
        channels: small("batchnorm", channels)?,
    };
    over_rows(cuda, &REDUCE, dtype, [rows, channels], &params)?;
    Ok(TileSums { sum, product })
}

pub fn coefficients(
    cuda: &Arc<CudaDevice>,
    sums: &TileSums,
    moments: &Moments,
    scale: &Tensor,
    eps: f32,
    batch: bool,
) -> Result<Coefficients> {
    let (tiles, channels) = (sums.sum.shape().rows(), sums.sum.shape().last());
    let width = merge_width(tiles);
    let [scale_grad, shift_grad, a, b, c] = uninit([channels], cuda)?;
    let params = CoefficientsParams {
        sum: sums.sum.pointer::<f32>(cuda)?,
        product: sums.product.pointer::<f32>(cuda)?,
        mean: moments.mean.pointer::<f32>(cuda)?,
        variance: moments.variance.pointer::<f32>(cuda)?,
        scale: scale.pointer::<f32>(cuda)?,
        scale_grad: scale_grad.pointer::<f32>(cuda)?,
        shift_grad: shift_grad.pointer::<f32>(cuda)?,
        a: a.pointer::<f32>(cuda)?,
        b: b.pointer::<f32>(cuda)?,
        c: c.pointer::<f32>(cuda)?,
        rows: small("batchnorm", moments.rows)?,
        tiles: small("batchnorm", tiles)?,
        channels: small("batchnorm", channels)?,
        width,
        eps,
        batch: batch.into(),
    };
    cuda.launch(&COEFFICIENTS, merge_grid(channels, width), 0, &params)?;
    Ok(Coefficients { scale_grad, shift_grad, a, b, c })
}

impl Branch {
    const NONE: Branch = Branch { input: 0, a: 0, b: 0, c: 0, input_grad: 0 };

    /// The branch, and the tensor that it writes.
    fn new(cuda: &Arc<CudaDevice>, dtype: DType, input: &Tensor, of: &Coefficients) -> Result<(Self, Tensor)> {
        let input_grad = Tensor::uninit_of(dtype, input.shape(), cuda)?;
        let branch = Self {
            input: input.address(dtype, cuda)?,
            a: of.a.pointer::<f32>(cuda)?,
            b: of.b.pointer::<f32>(cuda)?,
            c: of.c.pointer::<f32>(cuda)?,
            input_grad: input_grad.address(dtype, cuda)?,
        };
        Ok((branch, input_grad))
    }
}

impl InputGradParams {
    fn new(cuda: &CudaDevice, grad: &Tensor, branches: [Branch; 2]) -> Result<Self> {
        Ok(Self {
            grad: grad.address(grad.dtype(), cuda)?,
            branches,
            rows: small("batchnorm", grad.shape().rows())?,
            channels: small("batchnorm", grad.shape().last())?,
        })
    }
}

/// `a · grad + b · input + c`.
pub fn input_grad(cuda: &Arc<CudaDevice>, grad: &Tensor, input: &Tensor, of: &Coefficients) -> Result<Tensor> {
    let (branch, input_grad) = Branch::new(cuda, grad.dtype(), input, of)?;
    let params = InputGradParams::new(cuda, grad, [branch, Branch::NONE])?;
    over_rows(cuda, &INPUT_GRAD, grad.dtype(), [grad.shape().rows(), grad.shape().last()], &params)?;
    Ok(input_grad)
}

/// The same for two inputs and their coefficients, of a multiple of 8 channels.
pub fn input_grad_pair(
    cuda: &Arc<CudaDevice>,
    grad: &Tensor,
    [first, second]: [(&Tensor, &Coefficients); 2],
) -> Result<[Tensor; 2]> {
    let (branch, input_grad) = Branch::new(cuda, grad.dtype(), first.0, first.1)?;
    let (other, other_grad) = Branch::new(cuda, grad.dtype(), second.0, second.1)?;
    let params = InputGradParams::new(cuda, grad, [branch, other])?;
    let blocks = [grad.shape().rows(), grad.shape().last().div_ceil(CHANNELS)];
    over_tiles(cuda, INPUT_GRAD_PAIR.of(grad.dtype())?, blocks, &params)?;
    Ok([input_grad, other_grad])
}

/// The sums of the backward pass come from one pass over the gradient, which masks it too.
pub(in crate::ops::batchnorm) fn backward(
    cuda: &Arc<CudaDevice>,
    grad: &mut Tensor,
    saved: &Saved,
    needs_input: bool,
) -> Result<Backward> {
    let Saved { input, scale, moments, output, batch, eps } = saved;
    let gate = match output {
        Some(output) => {
            // In place, unless someone else has it too.
            grad.address_mut(grad.dtype(), cuda)?;
            Gate::Output(output)
        }
        None => Gate::Open,
    };
    let sums = reduce(cuda, grad, input, &moments.mean, gate)?;
    let of = coefficients(cuda, &sums, moments, scale, *eps, *batch)?;
    let input = if needs_input { Some(input_grad(cuda, grad, input, &of)?) } else { None };
    Ok(Backward { input, scale: of.scale_grad, shift: of.shift_grad })
}
