//! Batchnorm on the GPU: `kernels/batchnorm.cu`. Every number stays on the device.

use std::sync::Arc;

use super::{
    Moments,
    grad::{Backward, Saved},
};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{optional, small},
};

/// Threads of a block.
const THREADS: u32 = 256;
/// Groups of channels that a block of a kernel over rows takes, and rows of its tile: `COLUMNS` and `TILE`.
const COLUMNS: usize = 16;
const TILE: usize = 128;
/// Channels that a block takes which merges tiles: `MERGED`.
const MERGED: usize = 8;

kernel_params! {
    struct MomentsParams {
        input: u64,
        mean: u64,
        m2: u64,
        rows: u32,
        channels: u32,
    }
}

kernel_params! {
    struct MergeParams {
        tile_mean: u64,
        tile_m2: u64,
        mean: u64,
        variance: u64,
        rows: u32,
        tile_rows: u32,
        channels: u32,
    }
}

kernel_params! {
    struct RunningParams {
        mean: u64,
        variance: u64,
        running_mean: u64,
        running_variance: u64,
        channels: u32,
        momentum: f32,
        unbiased: f32,
    }
}

kernel_params! {
    struct FoldParams {
        scale: u64,
        shift: u64,
        mean: u64,
        variance: u64,
        factor: u64,
        offset: u64,
        channels: u32,
        eps: f32,
    }
}

kernel_params! {
    struct ApplyParams {
        input: u64,
        factor: u64,
        offset: u64,
        residual: u64,
        output: u64,
        rows: u32,
        channels: u32,
        relu: u32,
    }
}

kernel_params! {
    struct ReduceParams {
        input: u64,
        mean: u64,
        output: u64,
        grad: u64,
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
        eps: f32,
        batch: u32,
    }
}

kernel_params! {
    struct InputGradParams {
        grad: u64,
        input: u64,
        a: u64,
        b: u64,
        c: u64,
        input_grad: u64,
        rows: u32,
        channels: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "batchnorm",
    text: include_str!("../../../kernels/batchnorm.cu"),
    archs: F32_ARCHS,
    entries: &[
        "batchnorm_moments_x1",
        "batchnorm_moments_x4",
        "batchnorm_merge",
        "batchnorm_running",
        "batchnorm_fold",
        "batchnorm_apply_x1",
        "batchnorm_apply_x4",
        "batchnorm_reduce_x1",
        "batchnorm_reduce_x4",
        "batchnorm_coefficients",
        "batchnorm_input_grad_x1",
        "batchnorm_input_grad_x4",
    ],
    layouts: &[
        MomentsParams::LAYOUT,
        MergeParams::LAYOUT,
        RunningParams::LAYOUT,
        FoldParams::LAYOUT,
        ApplyParams::LAYOUT,
        ReduceParams::LAYOUT,
        CoefficientsParams::LAYOUT,
        InputGradParams::LAYOUT,
    ],
};

/// The kernels of one and of four channels per thread.
type ByWidth<P> = [Kernel<P>; 2];

const fn by_width<P: Params>(one: &'static str, four: &'static str) -> ByWidth<P> {
    [Kernel::new(&SOURCE, one, THREADS), Kernel::new(&SOURCE, four, THREADS)]
}

static MOMENTS: ByWidth<MomentsParams> = by_width("batchnorm_moments_x1", "batchnorm_moments_x4");
static MERGE: Kernel<MergeParams> = Kernel::new(&SOURCE, "batchnorm_merge", THREADS);
static RUNNING: Kernel<RunningParams> = Kernel::new(&SOURCE, "batchnorm_running", THREADS);
static FOLD: Kernel<FoldParams> = Kernel::new(&SOURCE, "batchnorm_fold", THREADS);
static APPLY: ByWidth<ApplyParams> = by_width("batchnorm_apply_x1", "batchnorm_apply_x4");
static REDUCE: ByWidth<ReduceParams> = by_width("batchnorm_reduce_x1", "batchnorm_reduce_x4");
static COEFFICIENTS: Kernel<CoefficientsParams> = Kernel::new(&SOURCE, "batchnorm_coefficients", THREADS);
static INPUT_GRAD: ByWidth<InputGradParams> = by_width("batchnorm_input_grad_x1", "batchnorm_input_grad_x4");

/// Launches a kernel over rows: a block per tile and group of channels.
fn over_rows<P: Params>(
    cuda: &CudaDevice,
    kernels: &ByWidth<P>,
    rows: usize,
    channels: usize,
    params: &P,
) -> Result<()> {
    let vector = channels.is_multiple_of(4);
    let across = channels.div_ceil(COLUMNS * if vector { 4 } else { 1 });
    cuda.launch(&kernels[usize::from(vector)], [rows.div_ceil(TILE) * across, 1, 1], 0, params)
}

/// Launches a kernel that has a thread per channel.
fn per_channel<P: Params>(cuda: &CudaDevice, kernel: &Kernel<P>, channels: usize, params: &P) -> Result<()> {
    cuda.launch(kernel, [channels.div_ceil(THREADS as usize), 1, 1], 0, params)
}

/// `N` tensors of a shape, to be written.
fn uninit<const N: usize>(shape: impl Into<crate::Shape>, cuda: &Arc<CudaDevice>) -> Result<[Tensor; N]> {
    let shape = shape.into();
    let tensors = (0..N).map(|_| Tensor::uninit::<f32>(shape, cuda)).collect::<Result<Vec<_>>>()?;
    Ok(tensors.try_into().unwrap_or_else(|_| unreachable!("N tensors")))
}

pub fn moments(cuda: &Arc<CudaDevice>, input: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, channels) = (input.shape().rows(), input.shape().last());
    let [tile_mean, tile_m2] = uninit([rows.div_ceil(TILE), channels], cuda)?;
    let params = MomentsParams {
        input: input.pointer::<f32>(cuda)?,
        mean: tile_mean.pointer::<f32>(cuda)?,
        m2: tile_m2.pointer::<f32>(cuda)?,
        rows: small("batchnorm", rows)?,
        channels: small("batchnorm", channels)?,
    };
    over_rows(cuda, &MOMENTS, rows, channels, &params)?;
    merge(cuda, &tile_mean, &tile_m2, rows, TILE)
}

/// Mean and biased variance over `rows` from those of tiles of `tile_rows` (the last may have fewer): the means and the
/// sums of squared distances from them, `[tiles, C]` each.
pub fn merge(
    cuda: &Arc<CudaDevice>,
    tile_mean: &Tensor,
    tile_m2: &Tensor,
    rows: usize,
    tile_rows: usize,
) -> Result<(Tensor, Tensor)> {
    let channels = tile_mean.shape().last();
    let [mean, variance] = uninit([channels], cuda)?;
    let params = MergeParams {
        tile_mean: tile_mean.pointer::<f32>(cuda)?,
        tile_m2: tile_m2.pointer::<f32>(cuda)?,
        mean: mean.pointer::<f32>(cuda)?,
        variance: variance.pointer::<f32>(cuda)?,
        rows: small("batchnorm", rows)?,
        tile_rows: small("batchnorm", tile_rows)?,
        channels: small("batchnorm", channels)?,
    };
    cuda.launch(&MERGE, [channels.div_ceil(MERGED), 1, 1], 0, &params)?;
    Ok((mean, variance))
}

pub fn update_running(
    cuda: &CudaDevice,
    moments: &Moments,
    momentum: f32,
    unbiased: f32,
    running_mean: &mut Tensor,
    running_variance: &mut Tensor,
) -> Result<()> {
    let channels = moments.mean.shape().elements();
    let params = RunningParams {
        mean: moments.mean.pointer::<f32>(cuda)?,
        variance: moments.variance.pointer::<f32>(cuda)?,
        running_mean: running_mean.pointer_mut::<f32>(cuda)?,
        running_variance: running_variance.pointer_mut::<f32>(cuda)?,
        channels: small("batchnorm", channels)?,
        momentum,
        unbiased,
    };
    per_channel(cuda, &RUNNING, channels, &params)
}

pub fn fold(
    cuda: &Arc<CudaDevice>,
    scale: &Tensor,
    shift: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let channels = scale.shape().elements();
    let [factor, offset] = uninit([channels], cuda)?;
    let params = FoldParams {
        scale: scale.pointer::<f32>(cuda)?,
        shift: shift.pointer::<f32>(cuda)?,
        mean: mean.pointer::<f32>(cuda)?,
        variance: variance.pointer::<f32>(cuda)?,
        factor: factor.pointer::<f32>(cuda)?,
        offset: offset.pointer::<f32>(cuda)?,
        channels: small("batchnorm", channels)?,
        eps,
    };
    per_channel(cuda, &FOLD, channels, &params)?;
    Ok((factor, offset))
}

pub fn apply(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    factor: &Tensor,
    offset: &Tensor,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let (rows, channels) = (input.shape().rows(), input.shape().last());
    let output = Tensor::uninit::<f32>(input.shape(), cuda)?;
    let params = ApplyParams {
        input: input.pointer::<f32>(cuda)?,
        factor: factor.pointer::<f32>(cuda)?,
        offset: offset.pointer::<f32>(cuda)?,
        residual: optional::<f32>(cuda, residual)?,
        output: output.pointer::<f32>(cuda)?,
        rows: small("batchnorm", rows)?,
        channels: small("batchnorm", channels)?,
        relu: relu.into(),
    };
    over_rows(cuda, &APPLY, rows, channels, &params)?;
    Ok(output)
}

/// The sums of the backward pass come from one pass over the gradient, which masks it too.
pub(super) fn backward(
    cuda: &Arc<CudaDevice>,
    grad: &mut Tensor,
    saved: &Saved,
    needs_input: bool,
) -> Result<Backward> {
    let (rows, channels) = (saved.input.shape().rows(), saved.input.shape().last());
    let tiles = rows.div_ceil(TILE);
    let (rows32, channels32) = (small("batchnorm", rows)?, small("batchnorm", channels)?);
    let [sum, product] = uninit([tiles, channels], cuda)?;
    let params = ReduceParams {
        input: saved.input.pointer::<f32>(cuda)?,
        mean: saved.moments.mean.pointer::<f32>(cuda)?,
        output: optional::<f32>(cuda, saved.output.as_ref())?,
        grad: if saved.output.is_some() { grad.pointer_mut::<f32>(cuda)? } else { grad.pointer::<f32>(cuda)? },
        sum: sum.pointer::<f32>(cuda)?,
        product: product.pointer::<f32>(cuda)?,
        rows: rows32,
        channels: channels32,
    };
    over_rows(cuda, &REDUCE, rows, channels, &params)?;

    let [scale_grad, shift_grad, a, b, c] = uninit([channels], cuda)?;
    let params = CoefficientsParams {
        sum: sum.pointer::<f32>(cuda)?,
        product: product.pointer::<f32>(cuda)?,
        mean: saved.moments.mean.pointer::<f32>(cuda)?,
        variance: saved.moments.variance.pointer::<f32>(cuda)?,
        scale: saved.scale.pointer::<f32>(cuda)?,
        scale_grad: scale_grad.pointer::<f32>(cuda)?,
        shift_grad: shift_grad.pointer::<f32>(cuda)?,
        a: a.pointer::<f32>(cuda)?,
        b: b.pointer::<f32>(cuda)?,
        c: c.pointer::<f32>(cuda)?,
        rows: rows32,
        tiles: small("batchnorm", tiles)?,
        channels: channels32,
        eps: saved.eps,
        batch: saved.batch.into(),
    };
    cuda.launch(&COEFFICIENTS, [channels.div_ceil(MERGED), 1, 1], 0, &params)?;

    let mut backward = Backward { input: None, scale: scale_grad, shift: shift_grad };
    if needs_input {
        let input_grad = Tensor::uninit::<f32>(saved.input.shape(), cuda)?;
        let params = InputGradParams {
            grad: grad.pointer::<f32>(cuda)?,
            input: saved.input.pointer::<f32>(cuda)?,
            a: a.pointer::<f32>(cuda)?,
            b: b.pointer::<f32>(cuda)?,
            c: c.pointer::<f32>(cuda)?,
            input_grad: input_grad.pointer::<f32>(cuda)?,
            rows: rows32,
            channels: channels32,
        };
        over_rows(cuda, &INPUT_GRAD, rows, channels, &params)?;
        backward.input = Some(input_grad);
    }
    Ok(backward)
}
