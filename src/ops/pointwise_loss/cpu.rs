//! Losses output by output on the processor. Rows are short, so one thread is enough; sums are taken in f64.

use super::Pointwise;
use crate::{Result, Tensor};

pub fn pointwise_loss(
    outputs: &Tensor,
    targets: &Tensor,
    loss: Pointwise,
    weights: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let columns = outputs.shape().last();
    let weights = weights.map(|weights| weights.as_slice::<f32>()).transpose()?;
    let count = outputs.shape().elements() as f64;
    let (mut total, mut grad) = (0f64, Vec::with_capacity(outputs.shape().elements()));
    for (at, (x, t)) in outputs.as_slice::<f32>()?.iter().zip(targets.as_slice::<f32>()?).enumerate() {
        let weight = weights.map_or(1.0, |weights| f64::from(weights[at % columns]));
        let (value, slope) = point(loss, f64::from(*x), f64::from(*t));
        total += weight * value;
        grad.push((weight * slope / count) as f32);
    }
    let loss = Tensor::new(vec![(total / count) as f32], [], outputs.device())?;
    Ok((loss, Tensor::new(grad, outputs.shape(), outputs.device())?))
}

/// What one output loses, and the gradient of that.
fn point(loss: Pointwise, x: f64, t: f64) -> (f64, f64) {
    let difference = x - t;
    match loss {
        Pointwise::Binary => {
            // Neither exponential can overflow.
            let small = (-x.abs()).exp();
            let sigmoid = (if x < 0.0 { small } else { 1.0 }) / (1.0 + small);
            (if x > 0.0 { x } else { 0.0 } - x * t + small.ln_1p(), sigmoid - t)
        }
        Pointwise::Absolute if difference == 0.0 => (0.0, 0.0),
        Pointwise::Absolute => (difference.abs(), difference.signum()),
        Pointwise::Squared => (difference * difference, 2.0 * difference),
    }
}
