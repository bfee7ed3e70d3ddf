//! The fully connected layer on the tape.

use super::{cpu, cuda, forward};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
};

/// `[N, out]` from input `[N, in]`, weight `[out, in]` and bias `[out]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the extents do not fit.
pub fn linear(tape: &mut Tape, input: &Var, weight: &Var, bias: &Var) -> Result<Var> {
    let output = forward(input.value(), weight.value(), bias.value())?;
    let [input_slot, weight_slot, bias_slot] = [input, weight, bias].map(Var::slot);
    let saved_input = weight.needs_grad().then(|| input.value().clone());
    let saved_weight = input.needs_grad().then(|| weight.value().clone());
    Ok(tape.record(&[input, weight, bias], output, move |grad, gradients| {
        if let (Some(slot), Some(input)) = (weight_slot, saved_input) {
            gradients.add(slot, weight_grad(&grad, &input)?)?;
        }
        if let (Some(slot), Some(weight)) = (input_slot, saved_weight) {
            gradients.add(slot, input_grad(&grad, &weight)?)?;
        }
        if let Some(slot) = bias_slot {
            gradients.add(slot, bias_grad(&grad)?)?;
        }
        Ok(())
    }))
}

/// `grad · weight`, `[N, in]`.
fn input_grad(grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match grad.device() {
        Device::Cpu(cpu) => cpu::input_grad(cpu, grad, weight),
        Device::Cuda(cuda) => cuda::input_grad(cuda, grad, weight),
    }
}

/// `gradᵀ · input`, `[out, in]`.
fn weight_grad(grad: &Tensor, input: &Tensor) -> Result<Tensor> {
    match grad.device() {
        Device::Cpu(cpu) => cpu::weight_grad(cpu, grad, input),
        Device::Cuda(cuda) => cuda::weight_grad(cuda, grad, input),
    }
}

/// Sums over rows, `[out]`.
fn bias_grad(grad: &Tensor) -> Result<Tensor> {
    match grad.device() {
        Device::Cpu(_) => cpu::bias_grad(grad),
        Device::Cuda(cuda) => cuda::bias_grad(cuda, grad),
    }
}
