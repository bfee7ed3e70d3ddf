//! Optimizer steps: all parameters at once, each with rates of its own.

mod cpu;
pub(super) mod cuda;
#[cfg(test)]
mod tests;

use super::expect_shape;
pub use crate::device::cuda::Table;
use crate::{Device, Error, Result, Tensor};

/// How parameters move.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// `g += weight_decay · p; b = momentum · b + g; p −= lr · (nesterov ? g + momentum · b : b)`, as in PyTorch and
    /// fastai 0.7. With a buffer of zeros the first step is PyTorch's (`b = g`).
    Sgd {
        /// Share of the last update that is kept.
        momentum: f32,
        /// Nesterov's look-ahead.
        nesterov: bool,
    },
    /// AdamW (Loshchilov & Hutter 2017): `p −= lr · weight_decay · p`, then Adam with bias correction.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f32,
        /// Decay of the mean of squared gradients.
        beta2: f32,
        /// Added to the root of the mean square.
        eps: f32,
        /// Number of this step, from 1; corrects the bias of the means.
        step: u32,
    },
}

impl Rule {
    /// Buffers that it keeps for a parameter, zeros at first: of SGD the momentum, of AdamW the mean of gradients and
    /// that of squared gradients.
    pub fn buffers(self) -> usize {
        match self {
            Rule::Sgd { .. } => 1,
            Rule::AdamW { .. } => 2,
        }
    }

    /// What AdamW divides its means by.
    pub(super) fn corrections(beta1: f32, beta2: f32, step: u32) -> [f32; 2] {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let share = |beta: f32| 1.0 - f64::from(beta).powi(exponent);
        [share(beta1) as f32, share(beta2).sqrt() as f32]
    }
}

/// A parameter to be moved.
pub struct Item<'a> {
    /// Its value.
    pub parameter: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// As many as [`Rule::buffers`].
    pub buffers: &'a mut [Tensor],
    /// Learning rate.
    pub lr: f32,
    /// Weight decay: with SGD an L2 penalty added to the gradient, with AdamW decoupled from it.
    pub weight_decay: f32,
}

/// Moves every parameter of `items`, which lie on one device.
///
/// # Errors
/// [`Error::Shape`] if shapes differ or buffers are missing; [`Error::Setting`] for a step 0 of AdamW, whose correction
/// would divide by zero. Then nothing has moved.
pub fn step(rule: Rule, items: &mut [Item], table: &mut Table) -> Result<()> {
    if let Rule::AdamW { step: 0, .. } = rule {
        return Err(Error::setting("adamw step", "steps are numbered from 1"));
    }
    for item in &*items {
        expect_shape("optimizer", "gradient", item.grad, item.parameter.shape())?;
        if item.buffers.len() != rule.buffers() {
            let message = format!("{} buffers for a rule of {}", item.buffers.len(), rule.buffers());
            return Err(Error::shape("optimizer", message));
        }
        item.buffers
            .iter()
            .try_for_each(|buffer| expect_shape("optimizer", "buffer", buffer, item.parameter.shape()))?;
    }
    match items.first().map(|item| item.parameter.device().clone()) {
        None => Ok(()),
        Some(Device::Cuda(device)) => cuda::step(&device, rule, items, table),
        Some(Device::Cpu(device)) => items.iter_mut().try_for_each(|item| cpu::step(&device, rule, item)),
    }
}
