//! Convolution on the tape.

use super::{
    Epilogue, Geometry, TileMoments, forward, forward_with_moments, input_grad,
    mma::{self, GradFinish, Partial},
    weight_grad,
};
use crate::{
    Result, Tensor,
    autograd::{Fusion, Gradient, Packed, Rest, Sink, Strided, Tape, TileSums, Var},
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

/// The convolution of `input` with `weight` on tensor cores, which read `packed`, and with `moments` those of its
/// output. On the way back it completes the gradient of its input where it can, and takes the sums that the input's
/// sink asks for.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the extents do not fit.
pub fn conv_packed(
    tape: &mut Tape,
    input: &Var,
    weight: &Var,
    packed: &Packed,
    geometry: Geometry,
    moments: bool,
) -> Result<(Var, Option<TileMoments>)> {
    let (output, moments) = match moments {
        true => {
            mma::forward_with_moments(input.value(), packed, geometry).map(|(output, tiles)| (output, Some(tiles)))?
        }
        false => (mma::forward(input.value(), packed, geometry, Epilogue::default())?, None),
    };
    let (input_slot, weight_slot) = (input.slot(), weight.slot());
    let (input_shape, weight_shape) = (input.value().shape(), weight.value().shape());
    let saved_input = weight.needs_grad().then(|| input.value().clone());
    let saved_weight = input.needs_grad().then(|| packed.clone());
    let sink = input.sink().cloned();
    let fusion = Fusion { completes: Some(input), ..Fusion::default() };
    let output = tape.record_fused(&[input, weight], output, fusion, move |gradient, gradients| {
        let grad = gradient.value;
        if let (Some(slot), Some(input)) = (weight_slot, saved_input) {
            gradients.add(slot, mma::weight_grad(&grad, &input, weight_shape, geometry)?)?;
        }
        let (Some(slot), Some(packed)) = (input_slot, saved_weight) else { return Ok(()) };
        let whole = |finish: GradFinish| mma::input_grad(&grad, &packed, input_shape, geometry, finish);
        if let Some(rest) = gradients.take_rest(slot) {
            let gradient = complete(rest, sink.as_deref(), whole)?;
            gradients.finish(slot, gradient);
        } else if geometry.stride > 1 && weight_shape.dims()[1..3] == [1, 1] && gradients.takes_strided(slot) {
            let value = mma::input_grad_strided(&grad, &packed)?;
            gradients.add_strided(slot, Strided { value, stride: geometry.stride });
        } else {
            gradients.add(slot, whole(GradFinish::default())?.0)?;
        }
        Ok(())
    });
    Ok((output, moments))
}

/// The gradient of which `rest` is there and `last` computes the last part.
fn complete(
    rest: Rest,
    sink: Option<&Sink>,
    last: impl FnOnce(GradFinish) -> Result<(Tensor, Option<TileSums>)>,
) -> Result<Gradient> {
    let strided =
        rest.strided.as_ref().map(|Strided { value, stride }| Partial::Strided { grad: value, stride: *stride });
    let (partial, later) = match (strided, &rest.dense) {
        (Some(strided), dense) => (Some(strided), dense.as_ref()),
        (None, dense) => (dense.as_ref().map(Partial::Dense), None),
    };
    // With two parts there, one is left to be added afterwards, and the sums to the sink's owner.
    let (mut value, sums) = last(GradFinish { partial, sink: sink.filter(|_| later.is_none()) })?;
    if let Some(later) = later {
        value.add_assign(later)?;
    }
    Ok(Gradient { value, sums })
}
