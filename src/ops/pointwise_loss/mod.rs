//! Losses that compare each output with a target of its own: binary cross entropy for labels of which several may hold,
//! absolute and squared error for numbers. Averaged over all outputs of the batch.

mod cpu;
pub(super) mod cuda;
#[cfg(test)]
mod tests;

use super::{expect_shape, matrix};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    ops::elementwise::scale,
};

/// What an output `x` loses against its target `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointwise {
    /// `−t log σ(x) − (1 − t) log(1 − σ(x))` of a logit: PyTorch's `BCEWithLogitsLoss`.
    Binary,
    /// `|x − t|`: PyTorch's `L1Loss`, which fastai 0.7 takes for regression.
    Absolute,
    /// `(x − t)²`: PyTorch's `MSELoss`.
    Squared,
}

/// The loss of `outputs` `[N, K]` against `targets` `[N, K]`, each column times its weight of `weights` `[K]`, averaged
/// over all of them: a scalar.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if extents do not fit.
pub fn pointwise_loss(
    tape: &mut Tape,
    outputs: &Var,
    targets: &Tensor,
    loss: Pointwise,
    weights: Option<&Tensor>,
) -> Result<Var> {
    let (value, outputs_grad) = forward(outputs.value(), targets, loss, weights)?;
    let slot = outputs.slot();
    Ok(tape.record(&[outputs], value, move |grad, gradients| match slot {
        Some(slot) => gradients.add(slot, scale(&outputs_grad, &grad)?),
        None => Ok(()),
    }))
}

/// The loss and its gradient `[N, K]`.
fn forward(outputs: &Tensor, targets: &Tensor, loss: Pointwise, weights: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let [n, columns] = matrix("pointwise loss", outputs)?;
    expect_shape("pointwise loss", "targets", targets, [n, columns])?;
    if let Some(weights) = weights {
        expect_shape("pointwise loss", "weights", weights, [columns])?;
    }
    match outputs.device() {
        Device::Cuda(device) => cuda::pointwise_loss(device, outputs, targets, loss, weights),
        Device::Cpu(_) => cpu::pointwise_loss(outputs, targets, loss, weights),
    }
}

/// `1 / (1 + exp(−x))`, which neither overflows nor is ever NaN but for a NaN.
pub fn sigmoid(x: f32) -> f32 {
    let small = f64::from(-x.abs()).exp();
    ((if x < 0.0 { small } else { 1.0 }) / (1.0 + small)) as f32
}
