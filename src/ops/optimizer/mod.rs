//! One optimizer step on one parameter.

mod cpu;
#[cfg(test)]
mod tests;

use super::expect_shape;
use crate::{Device, Error, Result, Tensor};

/// Settings of one SGD step.
#[derive(Clone, Copy, Debug)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f32,
    /// Share of the last update that is kept.
    pub momentum: f32,
    /// L2 penalty added to the gradient, as in PyTorch and fastai 0.7.
    pub weight_decay: f32,
    /// Nesterov's look-ahead.
    pub nesterov: bool,
}

/// `g += weight_decay · p; b = momentum · b + g; p −= lr · (nesterov ? g + momentum · b : b)`.
///
/// With a momentum buffer of zeros the first step is PyTorch's (`b = g`).
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn sgd(parameter: &mut Tensor, grad: &Tensor, buffer: &mut Tensor, step: SgdStep) -> Result<()> {
    expect_shape("sgd", "gradient", grad, parameter.shape())?;
    expect_shape("sgd", "momentum buffer", buffer, parameter.shape())?;
    match &parameter.device().clone() {
        Device::Cuda(cuda) => return Err(cuda.error("this operation has no kernel yet")),
        Device::Cpu(cpu) => cpu::sgd(cpu, parameter, grad, buffer, step),
    }
}

/// Settings of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number of this step, from 1; corrects the bias of the means.
    pub step: u32,
}

/// AdamW (Loshchilov & Hutter 2017): `p −= lr · weight_decay · p`, then Adam with bias correction.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Setting`] for a step 0, whose correction would divide by zero.
pub fn adamw(
    parameter: &mut Tensor,
    grad: &Tensor,
    mean: &mut Tensor,
    square: &mut Tensor,
    step: AdamWStep,
) -> Result<()> {
    if step.step == 0 {
        return Err(Error::setting("adamw step", "steps are numbered from 1"));
    }
    expect_shape("adamw", "gradient", grad, parameter.shape())?;
    expect_shape("adamw", "mean", mean, parameter.shape())?;
    expect_shape("adamw", "mean square", square, parameter.shape())?;
    match &parameter.device().clone() {
        Device::Cuda(cuda) => return Err(cuda.error("this operation has no kernel yet")),
        Device::Cpu(cpu) => cpu::adamw(cpu, parameter, grad, mean, square, step),
    }
}
