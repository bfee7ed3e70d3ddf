//! Convolution on the tape.

use super::{Epilogue, Geometry, TileMoments, forward, forward_with_moments, input_grad, weight_grad};
use crate::{
    Result, Tensor,
    autograd::{Tape, Var},
};

/// The convolution of `input` `[N, H, W, C]` with `weight` `[K, R, S, C / groups]`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the extents do not fit.
pub fn conv(tape: &mut Tape, input: &Var, weight: &Var, geometry: Geometry) -> Result<Var> {
    let output = forward(input.value(), weight.value(), geometry, Epilogue::default())?;
    Ok(record(tape, input, weight, geometry, output))
}

/// As [`conv`], with the output's moments as of [`forward_with_moments`].
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the extents do not fit.
pub fn conv_with_moments(
    tape: &mut Tape,
    input: &Var,
    weight: &Var,
    geometry: Geometry,
) -> Result<(Var, Option<TileMoments>)> {
    let (output, moments) = forward_with_moments(input.value(), weight.value(), geometry)?;
    Ok((record(tape, input, weight, geometry, output), moments))
}

fn record(tape: &mut Tape, input: &Var, weight: &Var, geometry: Geometry, output: Tensor) -> Var {
    let (input_slot, weight_slot) = (input.slot(), weight.slot());
    let (input_shape, weight_shape) = (input.value().shape(), weight.value().shape());
    // Each side is kept only if the other one's gradient asks for it.
    let saved_input = weight.needs_grad().then(|| input.value().clone());
    let saved_weight = input.needs_grad().then(|| weight.value().clone());
    tape.record(&[input, weight], output, move |grad, gradients| {
        if let (Some(slot), Some(input)) = (weight_slot, saved_input) {
            gradients.add(slot, weight_grad(&grad, &input, weight_shape, geometry)?)?;
        }
        if let (Some(slot), Some(weight)) = (input_slot, saved_weight) {
            gradients.add(slot, input_grad(&grad, &weight, input_shape, geometry)?)?;
        }
        Ok(())
    })
}
