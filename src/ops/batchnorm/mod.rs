//! Batch normalisation over the last dimension (Ioffe & Szegedy 2015), with the residual addition and the ReLU that
//! follow it in a ResNet: `relu((x − mean) / √(variance + eps) · scale + shift + residual)`.

mod cpu;
pub(super) mod cuda;
pub mod fused;
mod fused_grad;
mod grad;
#[cfg(test)]
mod tests;

pub use fused_grad::{Norm, Shortcut, fused as apply_fused, fused_pooled as apply_fused_pooled};
pub use grad::{Affine, Fused, batchnorm};

use std::sync::Arc;

use super::{conv::TileMoments, expect_shape, optimizer::Table};
pub use crate::autograd::{Sink, TileSums};
use crate::{Device, Error, Result, Tensor, device::CudaDevice};
use fused::{Addend, RunningUpdate};

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
        match input.device() {
            Device::Cuda(device) => Ok(cuda::merge(device, &cuda::moments(device, input)?, None)?.0),
            Device::Cpu(cpu) => {
                let (mean, variance) = cpu::moments(cpu, input)?;
                Ok(Self { mean, variance, rows })
            }
        }
    }

    /// As [`Moments::of`], from what a convolution on a GPU left of each tile of its output.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer than two rows, or the tiles are not on a GPU.
    pub fn of_tiles(tiles: &TileMoments) -> Result<Self> {
        enough(tiles.rows, &tiles.mean)?;
        Ok(cuda::merge(gpu(&tiles.mean)?, tiles, None)?.0)
    }

    /// Moves running statistics towards these moments, on their device:
    /// `running = (1 − momentum) · running + momentum · moment`, with the unbiased variance, as PyTorch does.
    ///
    /// # Errors
    /// [`Error::Shape`] if the channel counts differ.
    pub fn update_running(&self, momentum: f32, mean: &mut Tensor, variance: &mut Tensor) -> Result<()> {
        let update = RunningUpdate { moments: self, momentum, mean, variance };
        fused::update_running(&mut [update], &mut Table::default())
    }

    /// What makes the variance an unbiased one.
    fn unbiased(&self) -> f32 {
        self.rows as f32 / (self.rows as f32 - 1.0)
    }
}

fn enough(rows: usize, input: &Tensor) -> Result<()> {
    if rows < 2 || input.shape().last() == 0 {
        let message = format!("batch statistics need more than one value per channel, got {}", input.shape());
        return Err(Error::shape("batchnorm", message));
    }
    Ok(())
}

/// The GPU of a tensor.
fn gpu(tensor: &Tensor) -> Result<&Arc<CudaDevice>> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device),
        Device::Cpu(_) => Err(Error::shape("batchnorm", "the fused passes and tiles' moments are for GPUs alone")),
    }
}

/// A batchnorm with fixed statistics, mostly running ones: `(x − mean) / √(variance + eps) · scale + shift`.
#[derive(Clone, Copy, Debug)]
pub struct FixedNorm<'a> {
    /// γ, `[C]`.
    pub scale: &'a Tensor,
    /// β, `[C]`.
    pub shift: &'a Tensor,
    /// `[C]`.
    pub mean: &'a Tensor,
    /// `[C]`.
    pub variance: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
}

impl FixedNorm<'_> {
    /// That it is one over `channels`, for the operation `op`.
    pub(super) fn expect(&self, op: &'static str, channels: usize) -> Result<()> {
        let Self { scale, shift, mean, variance, .. } = self;
        [("scale", scale), ("shift", shift), ("mean", mean), ("variance", variance)]
            .into_iter()
            .try_for_each(|(what, tensor)| expect_shape(op, what, tensor, [channels]))
    }

    /// The factor and the offset, `[C]` each, that carry it out: `x · factor + offset`. For passes that read them from
    /// memory, backwards too; a convolution on tensor cores finds the same bits on its way
    /// ([`Epilogue`](super::conv::Epilogue)).
    ///
    /// # Errors
    /// [`Error::Shape`] if the channel counts differ.
    pub fn fold(&self) -> Result<(Tensor, Tensor)> {
        self.expect("batchnorm", self.scale.shape().elements())?;
        match self.scale.device() {
            Device::Cuda(device) => cuda::fold(device, self),
            Device::Cpu(_) => cpu::fold(self),
        }
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
        Device::Cuda(device) => {
            Ok(cuda::apply(device, input, [factor, offset], residual.map(Addend::Value), relu, false)?.0)
        }
        Device::Cpu(cpu) => cpu::apply(cpu, input, factor, offset, residual, relu),
    }
}
