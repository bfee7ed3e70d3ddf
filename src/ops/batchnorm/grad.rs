//! Batchnorm on the tape.

use super::{Moments, apply, cpu, fold};
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
    let (factor, offset) = fold(scale.value(), shift.value(), &moments.mean, &moments.variance, eps)?;
    let residual = fused.residual.map(Var::value);
    let output = apply(input.value(), &factor, &offset, residual, fused.relu)?;

    let constant = Var::constant(output.clone());
    let inputs = [input, scale, shift, fused.residual.unwrap_or(&constant)];
    let slots = inputs.map(Var::slot);
    let (x, scale, moments) = (input.value().clone(), scale.value().clone(), moments.clone());
    let saved_output = fused.relu.then(|| output.clone());
    Ok(tape.record(&inputs, output, move |mut grad, gradients| {
        if let Some(output) = saved_output {
            match &x.device().clone() {
                Device::Cuda(cuda) => return Err(cuda.error("this operation has no kernel yet")),
                Device::Cpu(cpu) => cpu::mask_by_output(cpu, &mut grad, &output)?,
            }
        }
        let [input_slot, scale_slot, shift_slot, residual_slot] = slots;
        let backward = backward(&grad, &x, &scale, &moments, batch, eps, input_slot.is_some())?;
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

struct Backward {
    input: Option<Tensor>,
    scale: Tensor,
    shift: Tensor,
}

/// With `σ = √(variance + eps)`, `S = Σ grad`, `P = Σ grad · (x − mean)` over `M` rows:
/// `d shift = S`, `d scale = P / σ`, and
/// `d x = scale / σ · (grad − S / M − (x − mean) · P / (σ² · M))`, the last two terms only with batch statistics.
fn backward(
    grad: &Tensor,
    input: &Tensor,
    scale: &Tensor,
    moments: &Moments,
    batch: bool,
    eps: f32,
    needs_input: bool,
) -> Result<Backward> {
    match input.device() {
        Device::Cuda(cuda) => return Err(cuda.error("this operation has no kernel yet")),
        Device::Cpu(cpu) => {
            let (sum, product) = cpu::reduce(cpu, grad, input, &moments.mean)?;
            let (mean, variance) = (moments.mean.as_slice::<f32>()?, moments.variance.as_slice::<f32>()?);
            let scale_slice = scale.as_slice::<f32>()?;
            let (channels, rows) = (mean.len(), input.shape().rows() as f64);
            let inverse = |channel: usize| (f64::from(variance[channel]) + f64::from(eps)).sqrt().recip();
            let scale_grad = (0..channels).map(|channel| (product[channel] * inverse(channel)) as f32).collect();
            let shift_grad = sum.iter().map(|sum| *sum as f32).collect();
            let coefficients = |channel: usize| {
                let a = f64::from(scale_slice[channel]) * inverse(channel);
                if !batch {
                    return [a as f32, 0.0, 0.0];
                }
                let b = -a * inverse(channel).powi(2) * product[channel] / rows;
                let c = -a * sum[channel] / rows - b * f64::from(mean[channel]);
                [a as f32, b as f32, c as f32]
            };
            let input_grad = match needs_input {
                true => Some(cpu::combine(cpu, grad, input, &(0..channels).map(coefficients).collect::<Vec<_>>())?),
                false => None,
            };
            let device = input.device();
            Ok(Backward {
                input: input_grad,
                scale: Tensor::new(scale_grad, [channels], device)?,
                shift: Tensor::new(shift_grad, [channels], device)?,
            })
        }
    }
}
