//! Log-softmax and cross entropy: `loss = −Σ target · log softmax(logits)`, averaged over the batch.

mod cpu;
mod grad;
#[cfg(test)]
mod tests;

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
        Device::Cuda(cuda) => Err(cuda.error("this operation has no kernel yet")),
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
        Device::Cuda(cuda) => Err(cuda.error("this operation has no kernel yet")),
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
        Device::Cuda(cuda) => Err(cuda.error("this operation has no kernel yet")),
        Device::Cpu(_) => cpu::cross_entropy(logits, target, options),
    }
}
