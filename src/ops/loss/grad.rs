//! Losses on the tape.

use super::{CrossEntropy, Target, cpu, forward, log_softmax_forward};
use crate::{
    Device, Result,
    autograd::{Tape, Var},
};

/// `log softmax` of each row `[N, classes]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `logits` is no matrix.
pub fn log_softmax(tape: &mut Tape, logits: &Var) -> Result<Var> {
    let output = log_softmax_forward(logits.value())?;
    let (slot, saved) = (logits.slot(), output.clone());
    Ok(tape.record(&[logits], output, move |grad, gradients| match (slot, grad.device()) {
        (Some(_), Device::Cuda(cuda)) => Err(cuda.error("this operation has no kernel yet")),
        (Some(slot), Device::Cpu(_)) => gradients.add(slot, cpu::log_softmax_grad(&grad, &saved)?),
        (None, _) => Ok(()),
    }))
}

/// Cross entropy of `logits` `[N, classes]`, averaged over the batch: a scalar.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if extents do not fit or a label names no class.
pub fn cross_entropy(tape: &mut Tape, logits: &Var, target: &Target, options: &CrossEntropy) -> Result<Var> {
    let (loss, logits_grad) = forward(logits.value(), target, options)?;
    let slot = logits.slot();
    Ok(tape.record(&[logits], loss, move |grad, gradients| match (slot, grad.device()) {
        (Some(_), Device::Cuda(cuda)) => Err(cuda.error("this operation has no kernel yet")),
        (Some(slot), Device::Cpu(_)) => gradients.add(slot, cpu::scale(&logits_grad, grad.scalar()?)?),
        (None, _) => Ok(()),
    }))
}
