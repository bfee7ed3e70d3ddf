//! Batchnorm on the tape.

use super::{FixedNorm, Moments, apply, cpu, cuda};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
};

/// Learned factor and offset, `[C]` each.
pub struct Affine<'a> {
    /// γ.
    pub scale: &'a Var,
    /// β.
    pub shift: &'a Var,
}

/// What follows the batchnorm in the same pass over memory.
#[derive(Clone, Copy, Default)]
pub struct Fused<'a> {
    /// Added to the normalised value.
    pub residual: Option<&'a Var>,
    /// Whether a ReLU comes last.
    pub relu: bool,
}

/// Normalises `input` `[.., C]` by `moments`. With `batch` the moments are those of `input` itself and the gradient
/// flows through them too; otherwise they are constants (running statistics).
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the channel counts differ.
pub fn batchnorm(
    tape: &mut Tape,
    input: &Var,
    affine: Affine,
    moments: &Moments,
    batch: bool,
    eps: f32,
    fused: Fused,
) -> Result<Var> {
    let Affine { scale, shift } = affine;
    let Moments { mean, variance, .. } = moments;
    let (factor, offset) = FixedNorm { scale: scale.value(), shift: shift.value(), mean, variance, eps }.fold()?;
    let residual = fused.residual.map(Var::value);
    let output = apply(input.value(), &factor, &offset, residual, fused.relu)?;

    let constant = Var::constant(output.clone());
    let inputs = [input, scale, shift, fused.residual.unwrap_or(&constant)];
    let slots = inputs.map(Var::slot);
    let saved = Saved {
        input: input.value().clone(),
        scale: scale.value().clone(),
        moments: moments.clone(),
        output: fused.relu.then(|| output.clone()),
        batch,
        eps,
    };
    Ok(tape.record(&inputs, output, move |mut grad, gradients| {
        let [input_slot, scale_slot, shift_slot, residual_slot] = slots;
        let needs_input = input_slot.is_some();
        let backward = match &grad.device().clone() {
            Device::Cuda(device) => cuda::backward(device, &mut grad, &saved, needs_input)?,
            Device::Cpu(device) => cpu::backward(device, &mut grad, &saved, needs_input)?,
        };
        if let Some(slot) = scale_slot {
            gradients.add(slot, backward.scale)?;
        }
        if let Some(slot) = shift_slot {
            gradients.add(slot, backward.shift)?;
        }
        if let (Some(slot), Some(input)) = (input_slot, backward.input) {
            gradients.add(slot, input)?;
        }
        if let Some(slot) = residual_slot {
            gradients.add(slot, grad)?;
        }
        Ok(())
    }))
}

/// What the backward pass needs of the forward pass.
pub(super) struct Saved {
    pub input: Tensor,
    pub scale: Tensor,
    pub moments: Moments,
    /// With a ReLU: where it is not positive, no gradient passes.
    pub output: Option<Tensor>,
    pub batch: bool,
    pub eps: f32,
}

/// Gradients. With `σ = √(variance + eps)`, `S = Σ grad`, `P = Σ grad · (x − mean)` over `M` rows:
/// `d shift = S`, `d scale = P / σ`, and
/// `d x = scale / σ · (grad − S / M − (x − mean) · P / (σ² · M))`, the last two terms only with batch statistics.
pub(super) struct Backward {
    /// Of the input, if it is needed.
    pub input: Option<Tensor>,
    pub scale: Tensor,
    pub shift: Tensor,
}
