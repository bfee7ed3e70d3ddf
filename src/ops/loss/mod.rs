//! Log-softmax and cross entropy: `loss = −Σ target · log softmax(logits)`, averaged over the batch.

mod cpu;
pub(super) mod cuda;
mod grad;
#[cfg(test)]
mod tests;

pub(super) use cpu::{Targets, loss_and_grad};
pub use grad::{cross_entropy, log_softmax};

use super::{expect_shape, matrix};
use crate::{Device, Error, Result, Tensor};

/// What a sample should be.
#[derive(Clone, Debug)]
pub enum Target {
    /// One class per sample, u32 `[N]`.
    Labels(Tensor),
    /// A distribution per sample, f32 `[N, classes]`.
    Soft(Tensor),
}

impl Target {
    /// The target of samples that should be of these of `classes` classes.
    ///
    /// # Errors
    /// [`Error::Shape`] if a label names no class. A GPU cannot say so without being waited for: there such a label,
    /// were it not found here, makes the loss NaN.
    pub fn labels(labels: Vec<u32>, classes: usize, device: &Device) -> Result<Self> {
        check_labels(&labels, classes)?;
        let n = labels.len();
        Ok(Target::Labels(Tensor::new(labels, [n], device)?))
    }
}

/// # Errors
/// [`Error::Shape`] naming a label that is none of `classes` classes.
pub(crate) fn check_labels(labels: &[u32], classes: usize) -> Result<()> {
    match labels.iter().enumerate().find(|(_, label)| **label as usize >= classes) {
        None => Ok(()),
        Some((row, label)) => {
            let message = format!("label {label} of sample {row} is not below the {classes} classes");
            Err(Error::shape("cross entropy", message))
        }
    }
}

/// Options of the cross entropy.
#[derive(Clone, Debug, Default)]
pub struct CrossEntropy {
    /// Share of each target spread evenly over all classes (Szegedy et al. 2015). Default 0.
    pub label_smoothing: f32,
    /// Factor per class `[classes]`. With labels the mean is weighted by them, as in PyTorch.
    pub class_weights: Option<Tensor>,
}

/// `log softmax` of each row `[N, classes]`.
///
/// # Errors
/// [`Error::Shape`] if `logits` is no matrix.
pub fn log_softmax_forward(logits: &Tensor) -> Result<Tensor> {
    matrix("log softmax", logits)?;
    match logits.device() {
        Device::Cuda(device) => cuda::log_softmax(device, logits, false),
        Device::Cpu(_) => cpu::log_softmax(logits),
    }
}

/// `softmax` of each row `[N, classes]`.
///
/// # Errors
/// [`Error::Shape`] if `logits` is no matrix.
pub fn softmax(logits: &Tensor) -> Result<Tensor> {
    matrix("softmax", logits)?;
    match logits.device() {
        Device::Cuda(device) => cuda::log_softmax(device, logits, true),
        Device::Cpu(_) => cpu::exp(&cpu::log_softmax(logits)?),
    }
}

/// The loss, averaged over the batch, and its gradient `[N, classes]`.
///
/// # Errors
/// [`Error::Shape`] if extents do not fit or a label names no class; [`Error::Setting`] for a smoothing outside
/// `[0, 1]`.
fn forward(logits: &Tensor, target: &Target, options: &CrossEntropy) -> Result<(Tensor, Tensor)> {
    let [n, classes] = matrix("cross entropy", logits)?;
    if !(0.0..=1.0).contains(&options.label_smoothing) {
        let message = format!("{} is not between 0 and 1", options.label_smoothing);
        return Err(Error::setting("label smoothing", message));
    }
    if let Some(weights) = &options.class_weights {
        expect_shape("cross entropy", "class weights", weights, [classes])?;
    }
    match target {
        Target::Labels(labels) => expect_shape("cross entropy", "labels", labels, [n])?,
        Target::Soft(targets) => expect_shape("cross entropy", "targets", targets, [n, classes])?,
    }
    match logits.device() {
        Device::Cuda(device) => cuda::cross_entropy(device, logits, target, options),
        Device::Cpu(cpu) => cpu::cross_entropy(cpu, logits, target, options),
    }
}

/// How many rows of `logits` `[N, classes]` are right, a u32 scalar: the label's logit is above those before it and not
/// below those after it, so that of equals the first is the prediction. A row with a NaN is wrong.
///
/// # Errors
/// [`Error::Shape`] if extents do not fit.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let [n, _] = matrix("correct", logits)?;
    expect_shape("correct", "labels", labels, [n])?;
    match logits.device() {
        Device::Cuda(device) => cuda::correct(device, logits, labels),
        Device::Cpu(_) => cpu::correct(logits, labels),
    }
}
