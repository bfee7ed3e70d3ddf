//! Moments and normalisation: `kernels/batchnorm.cu`.

use std::sync::Arc;

use super::{Kernels, MERGE_THREADS, THREADS, TILE, kernels, merge_grid, merge_width, over_rows, uninit};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Field, Kernel, Params, Source, kernel_params},
    },
    ops::{
        batchnorm::{
            FixedNorm, Moments,
            fused::{Addend, RunningUpdate},
        },
        conv::TileMoments,
        optimizer::Table,
        small,
    },
};

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
    /// What makes a factor and an offset; all zero where they are not wanted.
    struct Fold {
        scale: u64,
        shift: u64,
        factor: u64,
        offset: u64,
        eps: f32,
    }
}

impl Field for Fold {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct MergeParams {
        tile_mean: u64,
        tile_m2: u64,
        mean: u64,
        variance: u64,
        fold: Fold,
        rows: u32,
        tile_rows: u32,
        channels: u32,
        width: u32,
    }
}

kernel_params! {
    struct FoldParams {
        mean: u64,
        variance: u64,
        fold: Fold,
        channels: u32,
    }
}

kernel_params! {
    /// One batchnorm's running statistics.
    struct Running {
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
    struct RunningTable {
        entries: u64,
    }
}

kernel_params! {
    struct ApplyParams {
        input: u64,
        factor: u64,
        offset: u64,
        residual: u64,
        residual_factor: u64,
        residual_offset: u64,
        output: u64,
        mask: u64,
        rows: u32,
        channels: u32,
        relu: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "batchnorm",
    text: include_str!("../../../../kernels/batchnorm.cu"),
    archs: F32_ARCHS,
    entries: &[
        "batchnorm_moments_x1",
        "batchnorm_moments_x4",
        "batchnorm_moments_bf16",
        "batchnorm_merge",
        "batchnorm_fold",
        "batchnorm_running",
        "batchnorm_apply_x1",
        "batchnorm_apply_x4",
        "batchnorm_apply_bf16",
    ],
    layouts: &[
        MomentsParams::LAYOUT,
        Fold::LAYOUT,
        MergeParams::LAYOUT,
        FoldParams::LAYOUT,
        Running::LAYOUT,
        RunningTable::LAYOUT,
        ApplyParams::LAYOUT,
    ],
};

static MOMENTS: Kernels<MomentsParams> =
    kernels(&SOURCE, ["batchnorm_moments_x1", "batchnorm_moments_x4", "batchnorm_moments_bf16"]);
static MERGE: Kernel<MergeParams> = Kernel::new(&SOURCE, "batchnorm_merge", MERGE_THREADS);
static FOLD: Kernel<FoldParams> = Kernel::new(&SOURCE, "batchnorm_fold", THREADS);
static RUNNING: Kernel<RunningTable> = Kernel::new(&SOURCE, "batchnorm_running", THREADS);
static APPLY: Kernels<ApplyParams> =
    kernels(&SOURCE, ["batchnorm_apply_x1", "batchnorm_apply_x4", "batchnorm_apply_bf16"]);

/// Blocks of a kernel that has a thread per channel.
fn per_channel(channels: usize) -> usize {
    channels.div_ceil(THREADS as usize)
}

/// Scale and shift `[C]`, and what is added to the variance.
pub type Learned<'a> = (&'a Tensor, &'a Tensor, f32);

impl Fold {
    const NONE: Fold = Fold { scale: 0, shift: 0, factor: 0, offset: 0, eps: 0.0 };

    fn new(cuda: &CudaDevice, (scale, shift, eps): Learned, [factor, offset]: &[Tensor; 2]) -> Result<Self> {
        Ok(Self {
            scale: scale.pointer::<f32>(cuda)?,
            shift: shift.pointer::<f32>(cuda)?,
            factor: factor.pointer::<f32>(cuda)?,
            offset: offset.pointer::<f32>(cuda)?,
            eps,
        })
    }
}

/// Means and sums of squared distances from them, per tile of TILE rows.
pub fn moments(cuda: &Arc<CudaDevice>, input: &Tensor) -> Result<TileMoments> {
    let (rows, channels) = (input.shape().rows(), input.shape().last());
    let [mean, m2] = uninit([rows.div_ceil(TILE), channels], cuda)?;
    let params = MomentsParams {
        input: input.address(input.dtype(), cuda)?,
        mean: mean.pointer::<f32>(cuda)?,
        m2: m2.pointer::<f32>(cuda)?,
        rows: small("batchnorm", rows)?,
        channels: small("batchnorm", channels)?,
    };
    over_rows(cuda, &MOMENTS, input.dtype(), [rows, channels], &params)?;
    Ok(TileMoments { rows, rows_per_tile: TILE, mean, m2 })
}

/// Mean and biased variance from those of tiles; with `learned` factor and offset too, which are empty without.
pub fn merge(cuda: &Arc<CudaDevice>, tiles: &TileMoments, learned: Option<Learned>) -> Result<(Moments, [Tensor; 2])> {
    let TileMoments { rows, rows_per_tile, mean: tile_mean, m2: tile_m2 } = tiles;
    let channels = tile_mean.shape().last();
    let [mean, variance] = uninit([channels], cuda)?;
    let folded = uninit([if learned.is_some() { channels } else { 0 }], cuda)?;
    let width = merge_width(rows.div_ceil(*rows_per_tile));
    let params = MergeParams {
        tile_mean: tile_mean.pointer::<f32>(cuda)?,
        tile_m2: tile_m2.pointer::<f32>(cuda)?,
        mean: mean.pointer::<f32>(cuda)?,
        variance: variance.pointer::<f32>(cuda)?,
        fold: learned.map_or(Ok(Fold::NONE), |learned| Fold::new(cuda, learned, &folded))?,
        rows: small("batchnorm", *rows)?,
        tile_rows: small("batchnorm", *rows_per_tile)?,
        channels: small("batchnorm", channels)?,
        width,
    };
    cuda.launch(&MERGE, merge_grid(channels, width), 0, &params)?;
    Ok((Moments { mean, variance, rows: *rows }, folded))
}

/// Factor and offset of a batchnorm.
pub fn fold(cuda: &Arc<CudaDevice>, norm: &FixedNorm) -> Result<(Tensor, Tensor)> {
    let FixedNorm { scale, shift, mean, variance, eps } = *norm;
    let channels = scale.shape().elements();
    let folded = uninit([channels], cuda)?;
    let params = FoldParams {
        mean: mean.pointer::<f32>(cuda)?,
        variance: variance.pointer::<f32>(cuda)?,
        fold: Fold::new(cuda, (scale, shift, eps), &folded)?,
        channels: small("batchnorm", channels)?,
    };
    cuda.launch(&FOLD, [per_channel(channels), 1, 1], 0, &params)?;
    let [factor, offset] = folded;
    Ok((factor, offset))
}

impl Running {
    fn new(cuda: &CudaDevice, update: &mut RunningUpdate) -> Result<Self> {
        let RunningUpdate { moments, momentum, mean, variance } = update;
        Ok(Self {
            mean: moments.mean.pointer::<f32>(cuda)?,
            variance: moments.variance.pointer::<f32>(cuda)?,
            running_mean: mean.pointer_mut::<f32>(cuda)?,
            running_variance: variance.pointer_mut::<f32>(cuda)?,
            channels: small("batchnorm", moments.mean.shape().elements())?,
            momentum: *momentum,
            unbiased: moments.unbiased(),
        })
    }
}

pub fn update_running(cuda: &Arc<CudaDevice>, updates: &mut [RunningUpdate], table: &mut Table) -> Result<()> {
    let entries = updates.iter_mut().map(|update| Running::new(cuda, update)).collect::<Result<Vec<_>>>()?;
    let channels = entries.iter().map(|entry| entry.channels).max().unwrap_or(0) as usize;
    let entries = table.address(cuda, entries.iter().flat_map(Params::to_bytes).collect())?;
    cuda.launch(&RUNNING, [per_channel(channels), updates.len(), 1], 0, &RunningTable { entries })
}

/// The output, and where `masked` a bit for each element that says whether it is positive.
pub fn apply(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    [factor, offset]: [&Tensor; 2],
    addend: Option<Addend>,
    relu: bool,
    masked: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, channels, dtype) = (input.shape().rows(), input.shape().last(), input.dtype());
    let output = Tensor::uninit_of(dtype, input.shape(), cuda)?;
    let mask = if masked { Some(Tensor::uninit::<u8>([rows, channels / 8], cuda)?) } else { None };
    let [residual, residual_factor, residual_offset] = match addend {
        None => [0; 3],
        Some(Addend::Value(value)) => [value.address(dtype, cuda)?, 0, 0],
        Some(Addend::Normed { input, factor, offset }) => {
            [input.address(dtype, cuda)?, factor.pointer::<f32>(cuda)?, offset.pointer::<f32>(cuda)?]
        }
    };
    let params = ApplyParams {
        input: input.address(dtype, cuda)?,
        factor: factor.pointer::<f32>(cuda)?,
        offset: offset.pointer::<f32>(cuda)?,
        residual,
        residual_factor,
        residual_offset,
        output: output.address(dtype, cuda)?,
        mask: crate::ops::optional::<u8>(cuda, mask.as_ref())?,
        rows: small("batchnorm", rows)?,
        channels: small("batchnorm", channels)?,
        relu: relu.into(),
    };
    over_rows(cuda, &APPLY, dtype, [rows, channels], &params)?;
    Ok((output, mask))
}
