//! Batch normalisation over the last dimension (Ioffe & Szegedy 2015), with the residual addition and the ReLU that
//! follow it in a ResNet: `relu((x − mean) / √(variance + eps) · scale + shift + residual)`.

mod cpu;
pub(super) mod cuda;
mod grad;
#[cfg(test)]
mod tests;

pub use grad::{Affine, Fused, batchnorm};

use super::{conv::TileMoments, expect_shape};
use crate::{Device, Error, Result, Tensor};

/// Mean and variance of each channel.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `[C]`.
    pub mean: Tensor,
    /// `[C]`, biased (divided by the number of rows): what normalisation uses.
    pub variance: Tensor,
    /// Rows that the moments were taken over.
    pub rows: usize,
}

impl Moments {
    /// Mean and variance over all rows of `input` `[.., C]`, by centred sums merged in a fixed order (Chan et al.).
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer than two rows: one sample has no variance.
    pub fn of(input: &Tensor) -> Result<Self> {
        let rows = input.shape().rows();
        enough(rows, input)?;
        let (mean, variance) = match input.device() {
            Device::Cuda(device) => cuda::moments(device, input)?,
            Device::Cpu(cpu) => cpu::moments(cpu, input)?,
        };
        Ok(Self { mean, variance, rows })
    }

    /// As [`Moments::of`], from what a convolution on a GPU left of each tile of its output.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer than two rows, or the tiles are not on a GPU.
    pub fn of_tiles(tiles: &TileMoments) -> Result<Self> {
        let TileMoments { rows, rows_per_tile, mean, m2 } = tiles;
        enough(*rows, mean)?;
        let (mean, variance) = match mean.device() {
            Device::Cuda(device) => cuda::merge(device, mean, m2, *rows, *rows_per_tile)?,
            Device::Cpu(_) => return Err(Error::shape("batchnorm", "moments of tiles are taken on a GPU alone")),
        };
        Ok(Self { mean, variance, rows: *rows })
    }

    /// Moves running statistics towards these moments, on their device:
    /// `running = (1 − momentum) · running + momentum · moment`, with the unbiased variance, as PyTorch does.
    ///
    /// # Errors
    /// [`Error::Shape`] if the channel counts differ.
    pub fn update_running(&self, momentum: f32, mean: &mut Tensor, variance: &mut Tensor) -> Result<()> {
        expect_shape("batchnorm", "running mean", mean, self.mean.shape())?;
        expect_shape("batchnorm", "running variance", variance, self.variance.shape())?;
        let unbiased = self.rows as f32 / (self.rows as f32 - 1.0);
        match &self.mean.device().clone() {
            Device::Cuda(device) => cuda::update_running(device, self, momentum, unbiased, mean, variance),
            Device::Cpu(_) => {
                cpu::blend(mean, &self.mean, momentum, 1.0)?;
                cpu::blend(variance, &self.variance, momentum, unbiased)
            }
        }
    }
}

/// What a batchnorm with ReLU asks of the gradient of its output, so that whoever computes it takes the sums in the same
/// pass.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Which outputs were positive, u8 `[rows, C / 8]`: bit j of a byte tells of channel 8·b + j. Without a ReLU none.
    pub mask: Option<Tensor>,
    /// What was normalised.
    pub input: Tensor,
    /// Its mean, f32 `[C]`.
    pub mean: Tensor,
}

/// Sums of a gradient g per tile of rows and channel, f32 `[tiles, C]`.
#[derive(Clone, Debug)]
pub struct TileSums {
    /// Of g.
    pub sum: Tensor,
    /// Of g · (y − mean), where y is what the batchnorm normalised.
    pub product: Tensor,
}

fn enough(rows: usize, input: &Tensor) -> Result<()> {
    if rows < 2 || input.shape().last() == 0 {
        let message = format!("batch statistics need more than one value per channel, got {}", input.shape());
        return Err(Error::shape("batchnorm", message));
    }
    Ok(())
}

/// `[C]` factor and offset that carry out a batchnorm with fixed statistics, for a convolution's epilogue.
///
/// # Errors
/// [`Error::Shape`] if the channel counts differ.
pub fn fold(scale: &Tensor, shift: &Tensor, mean: &Tensor, variance: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    for (what, tensor) in [("shift", shift), ("mean", mean), ("variance", variance)] {
        expect_shape("batchnorm", what, tensor, scale.shape())?;
    }
    match scale.device() {
        Device::Cuda(device) => cuda::fold(device, scale, shift, mean, variance, eps),
        Device::Cpu(_) => cpu::fold(scale, shift, mean, variance, eps),
    }
}

/// `relu(input · factor + offset + residual)`, with the last two optional. `input` is `[.., C]`.
fn apply(input: &Tensor, factor: &Tensor, offset: &Tensor, residual: Option<&Tensor>, relu: bool) -> Result<Tensor> {
    let channels = input.shape().last();
    if channels == 0 {
        return Err(Error::shape("batchnorm", format!("{} has no channel", input.shape())));
    }
    expect_shape("batchnorm", "scale", factor, [channels])?;
    if let Some(residual) = residual {
        expect_shape("batchnorm", "residual", residual, input.shape())?;
    }
    match input.device() {
        Device::Cuda(device) => cuda::apply(device, input, factor, offset, residual, relu),
        Device::Cpu(cpu) => cpu::apply(cpu, input, factor, offset, residual, relu),
    }
}
