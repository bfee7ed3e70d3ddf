//! Many training steps of a linear classifier at once, on a GPU in one launch: what is left of a step when the backbone
//! is frozen and its activations are cached, and too little for a launch, or a tensor, per operation.

mod cpu;
pub(super) mod cuda;
#[cfg(test)]
mod tests;

use super::{expect_shape, loss::CrossEntropy, matrix, optimizer::Rule};
use crate::{Device, Error, Result, Tensor};

/// Most rows of a batch whose steps on a GPU are, bit for bit, those of separate operations.
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

/// Makes the steps, on the device that holds the features; returns the loss of each, `[steps]`. The bits are those of
/// separate operations and [`optimizer::step`](super::optimizer::step), on a GPU for batches of at most [`EXACT_ROWS`].
/// A processor ends with the first step whose loss is not finite, which moves nothing.
///
/// # Errors
/// [`Error::Shape`] if extents do not fit, a batch is empty or names a sample that does not exist; then nothing has
/// moved.
pub fn train(head: &mut Head, samples: Samples, steps: Steps, options: &CrossEntropy) -> Result<Tensor> {
    let [count, width] = matrix("head trainer", samples.features)?;
    expect_shape("head trainer", "labels", samples.labels, [count])?;
    fit(head, [count, width], &steps, options)?;
    match samples.features.device().clone() {
        Device::Cuda(cuda) => cuda::train(&cuda, head, samples, steps, options),
        device @ Device::Cpu(_) => {
            let (features, labels) = (samples.features.as_slice::<f32>()?, samples.labels.as_slice::<u32>()?);
            let sample = |row: u32| (&features[row as usize * width..][..width], labels[row as usize]);
            let losses = train_rows(head, [count, width], sample, steps, options)?;
            let count = losses.len();
            Tensor::new(losses, [count], &device)
        }
    }
}

/// As [`train`] on a processor, where the features and the class of each of `count` samples lie anywhere.
///
/// # Errors
/// As of [`train`]; [`Error::Device`] for a head on a GPU.
pub(crate) fn train_rows<'a>(
    head: &mut Head,
    [count, width]: [usize; 2],
    sample: impl Fn(u32) -> (&'a [f32], u32),
    steps: Steps,
    options: &CrossEntropy,
) -> Result<Vec<f32>> {
    fit(head, [count, width], &steps, options)?;
    match head.weight.device().clone() {
        Device::Cpu(cpu) => cpu::train(&cpu, head, sample, &steps, options),
        device => {
            let message = "samples in host memory train no head there".into();
            Err(Error::Device { device: device.to_string(), message })
        }
    }
}

/// Whether all extents fit, and every batch has samples, which are below `count`.
fn fit(head: &Head, [count, width]: [usize; 2], steps: &Steps, options: &CrossEntropy) -> Result<()> {
    let [classes, _] = matrix("head trainer", head.weight)?;
    expect_shape("head trainer", "weight", head.weight, [classes, width])?;
    expect_shape("head trainer", "bias", head.bias, [classes])?;
    if let Some(weights) = &options.class_weights {
        expect_shape("head trainer", "class weights", weights, [classes])?;
    }
    let Steps { batches, lrs, rules, .. } = *steps;
    if lrs.len() != batches.len() || rules.len() != batches.len() {
        let message = format!("{} rates and {} rules for {} steps", lrs.len(), rules.len(), batches.len());
        return Err(Error::shape("head trainer", message));
    }
    if batches.iter().any(|batch| batch.is_empty() || batch.iter().any(|row| *row as usize >= count)) {
        return Err(Error::shape("head trainer", format!("a batch is empty or beyond the {count} samples")));
    }
    for (parameter, buffers) in [(&*head.weight, &*head.weight_buffers), (&*head.bias, &*head.bias_buffers)] {
        if let Some(rule) = rules.iter().find(|rule| rule.buffers() != buffers.len()) {
            return Err(Error::shape("head trainer", format!("{} buffers, not {}", buffers.len(), rule.buffers())));
        }
        buffers.iter().try_for_each(|buffer| expect_shape("head trainer", "buffer", buffer, parameter.shape()))?;
    }
    Ok(())
}
