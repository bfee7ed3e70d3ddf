//! Pooling: the stem's maximum, the global average, and fastai's adaptive concatenation of maximum and average.
//!
//! Maps are f32, on a GPU also bf16 with a multiple of 4 channels, and their gradients are of the same type. What is
//! pooled over all positions is f32.

mod cpu;
pub(super) mod cuda;
mod grad;
#[cfg(test)]
mod tests;

pub use grad::{average_pool, concat_pool, max_pool};

use super::nhwc;
use crate::{Device, Error, Result, Tensor};

/// A square window of a maximum pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side length.
    pub size: usize,
    /// Step.
    pub stride: usize,
    /// Border, which never wins.
    pub padding: usize,
}

impl Window {
    /// The ResNet stem's window.
    pub const STEM: Window = Window { size: 3, stride: 2, padding: 1 };

    pub(super) fn output(&self, extent: usize) -> Result<usize> {
        let Window { size, stride, padding } = *self;
        if size == 0 || stride == 0 || extent == 0 || padding * 2 > size || extent + 2 * padding < size {
            return Err(Error::shape("max pool", format!("{self:?} does not fit an extent of {extent}")));
        }
        Ok((extent + 2 * padding - size) / stride + 1)
    }
}

/// The maximum of each window, `[N, P, Q, C]`, and where it lies within the input's image (`y · W + x`, the first of
/// equals; a NaN wins).
///
/// # Errors
/// [`Error::Shape`] if the window does not fit.
pub fn max_forward(input: &Tensor, window: Window) -> Result<(Tensor, Tensor)> {
    let (extents, output) = extents(input, window)?;
    match input.device() {
        Device::Cuda(device) => cuda::max_forward(device, input, extents, window, output),
        Device::Cpu(cpu) => cpu::max_forward::<true>(cpu, input, extents, window, output),
    }
}

/// The maximum of each window alone; see [`max_forward`].
///
/// # Errors
/// [`Error::Shape`] if the window does not fit.
pub fn max_values(input: &Tensor, window: Window) -> Result<Tensor> {
    let (extents, output) = extents(input, window)?;
    let (values, _) = match input.device() {
        Device::Cuda(device) => cuda::max_forward(device, input, extents, window, output)?,
        Device::Cpu(cpu) => cpu::max_forward::<false>(cpu, input, extents, window, output)?,
    };
    Ok(values)
}

/// Those of the input and of the output of a maximum pool.
fn extents(input: &Tensor, window: Window) -> Result<([usize; 4], [usize; 4])> {
    let [n, h, w, c] = nhwc("max pool", input)?;
    Ok(([n, h, w, c], [n, window.output(h)?, window.output(w)?, c]))
}

/// The average over all positions, `[N, C]`.
///
/// # Errors
/// [`Error::Shape`] if `input` is no activation or has no position.
pub fn average_forward(input: &Tensor) -> Result<Tensor> {
    let extents = positions("average pool", input)?;
    match input.device() {
        Device::Cuda(device) => cuda::average_forward(device, input, extents),
        Device::Cpu(cpu) => cpu::average_forward(cpu, input, extents),
    }
}

/// Maximum and average over all positions side by side, `[N, 2·C]` (maximum first, as fastai 0.7), and where each
/// maximum lies, `[N, C]`.
///
/// # Errors
/// [`Error::Shape`] if `input` is no activation or has no position.
pub fn concat_forward(input: &Tensor) -> Result<(Tensor, Tensor)> {
    let extents = positions("concat pool", input)?;
    match input.device() {
        Device::Cuda(device) => cuda::concat_forward(device, input, extents),
        Device::Cpu(cpu) => cpu::concat_forward(cpu, input, extents),
    }
}

fn positions(op: &'static str, input: &Tensor) -> Result<[usize; 4]> {
    let extents = nhwc(op, input)?;
    if extents[1] * extents[2] == 0 {
        return Err(Error::shape(op, format!("{} has no position to pool over", input.shape())));
    }
    Ok(extents)
}
