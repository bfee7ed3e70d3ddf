//! The fully connected layer on the tape.

use super::{cpu, forward};
use crate::{
    Device, Result,
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
    Ok(tape.record(&[input, weight, bias], output, move |grad, gradients| match &grad.device().clone() {
        Device::Cuda(cuda) => Err(cuda.error("this operation has no kernel yet")),
        Device::Cpu(cpu) => {
            if let (Some(slot), Some(input)) = (weight_slot, saved_input) {
                gradients.add(slot, cpu::weight_grad(cpu, &grad, &input)?)?;
            }
            if let (Some(slot), Some(weight)) = (input_slot, saved_weight) {
                gradients.add(slot, cpu::input_grad(cpu, &grad, &weight)?)?;
            }
            if let Some(slot) = bias_slot {
                gradients.add(slot, cpu::bias_grad(&grad)?)?;
            }
            Ok(())
        }
    }))
}
