//! Many training steps of a linear classifier in one launch, on features that lie on the GPU: what is left of a step
//! when the backbone is frozen and its activations are cached, and too little for a launch per operation.

pub(super) mod cuda;
#[cfg(test)]
mod tests;

use super::{loss::CrossEntropy, optimizer::Rule};
use crate::{Device, Error, Result, Tensor};

/// Most rows of a batch whose steps are, bit for bit, those of separate operations.
pub const EXACT_ROWS: usize = 256;

/// The classifier, each tensor with the buffers of its optimizer ([`Rule::buffers`]).
pub struct Head<'a> {
    /// `[classes, F]`.
    pub weight: &'a mut Tensor,
    /// `[classes]`.
    pub bias: &'a mut Tensor,
    /// Like the weight, each.
    pub weight_buffers: &'a mut [Tensor],
    /// Like the bias, each.
    pub bias_buffers: &'a mut [Tensor],
}

/// What it learns from.
#[derive(Clone, Copy)]
pub struct Samples<'a> {
    /// `[count, F]`.
    pub features: &'a Tensor,
    /// Class of each, u32 `[count]`.
    pub labels: &'a Tensor,
}

/// The steps: each has samples and a learning rate.
#[derive(Clone, Copy)]
pub struct Steps<'a> {
    /// Numbers of the samples of each step; none is empty.
    pub batches: &'a [Vec<u32>],
    /// One per step.
    pub lrs: &'a [f32],
    /// Of the weight, and of the bias.
    pub weight_decays: [f32; 2],
    /// One per step, which differ in the momentum, or β₁ and the number of the step, alone.
    pub rules: &'a [Rule],
}

/// Makes the steps, on the GPU that holds the features; returns the loss of each, `[steps]`. The bits are those of
/// separate operations and [`optimizer::step`](super::optimizer::step), for batches of at most [`EXACT_ROWS`].
///
/// # Errors
/// [`Error::Shape`] if extents do not fit, a batch is empty or names a sample that does not exist; then nothing has
/// moved. [`Error::Device`] on a processor.
pub fn train(head: &mut Head, samples: Samples, steps: Steps, options: &CrossEntropy) -> Result<Tensor> {
    match samples.features.device().clone() {
        Device::Cuda(cuda) => cuda::train(&cuda, head, samples, steps, options),
        device @ Device::Cpu(_) => {
            let message = "heads are trained in one launch on a GPU alone; step by step here".into();
            Err(Error::Device { device: device.to_string(), message })
        }
    }
}
