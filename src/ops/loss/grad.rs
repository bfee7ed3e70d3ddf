//! Losses on the tape.

use super::{CrossEntropy, Target, cpu, cuda, forward, log_softmax_forward};
use crate::{
    Device, Result,
    autograd::{Tape, Var},
    ops::elementwise::scale,
};

/// `log softmax` of each row `[N, classes]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `logits` is no matrix.
pub fn log_softmax(tape: &mut Tape, logits: &Var) -> Result<Var> {
    let output = log_softmax_forward(logits.value())?;
    let (slot, saved) = (logits.slot(), output.clone());
    Ok(tape.record(&[logits], output, move |grad, gradients| {
        let Some(slot) = slot else { return Ok(()) };
        let logits_grad = match grad.device() {
            Device::Cuda(device) => cuda::log_softmax_grad(device, &grad, &saved)?,
            Device::Cpu(_) => cpu::log_softmax_grad(&grad, &saved)?,
        };
        gradients.add(slot, logits_grad)
    }))
}

/// Cross entropy of `logits` `[N, classes]`, averaged over the batch: a scalar.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if extents do not fit or, on the processor, a label names no class; see
/// [`Target::labels`].
pub fn cross_entropy(tape: &mut Tape, logits: &Var, target: &Target, options: &CrossEntropy) -> Result<Var> {
    let (loss, logits_grad) = forward(logits.value(), target, options)?;
    let slot = logits.slot();
    Ok(tape.record(&[logits], loss, move |grad, gradients| match slot {
        Some(slot) => gradients.add(slot, scale(&logits_grad, &grad)?),
        None => Ok(()),
    }))
}
