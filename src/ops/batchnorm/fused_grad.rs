//! Batchnorm on the tape as tensor-core networks train it: each activation is read and written once, its ReLU kept as
//! one bit per element, and the sums of the backward pass are taken by whoever completes the gradient.

use super::{
    Moments,
    fused::{
        self, Addend, Normaliser, apply_masked, apply_pooled, coefficients, input_grad, input_grad_pair, reduce,
        reduce_again, reduce_pooled,
    },
};
use crate::{
    Result, Tensor,
    autograd::{Fusion, Gradient, Gradients, Sink, Slot, Tape, TileSums, Var},
    ops::pool::Window,
};

/// A batchnorm that is about to be applied.
pub struct Norm {
    /// What it normalises, `[.., C]`.
    pub input: Var,
    /// γ.
    pub scale: Var,
    /// β.
    pub shift: Var,
    /// The moments and what follows from them.
    pub normaliser: Normaliser,
    /// Whether the moments are those of the input, so that its gradient flows through them too.
    pub batch: bool,
    /// Added to the variance.
    pub eps: f32,
}

/// What is added to a batchnorm's output.
pub enum Shortcut {
    /// An activation.
    Value(Var),
    /// Another batchnorm's output, which is then never stored.
    Normed(Box<Norm>),
}

/// `relu(norm + shortcut)`, shortcut and ReLU as asked.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if extents do not fit or channels are no multiple of 8.
pub fn fused(tape: &mut Tape, norm: Norm, shortcut: Option<Shortcut>, relu: bool) -> Result<Var> {
    let addend = shortcut.as_ref().map(|shortcut| match shortcut {
        Shortcut::Value(value) => Addend::Value(value.value()),
        Shortcut::Normed(norm) => {
            let Normaliser { factor, offset, .. } = &norm.normaliser;
            Addend::Normed { input: norm.input.value(), factor, offset }
        }
    });
    let Normaliser { factor, offset, .. } = &norm.normaliser;
    let (output, mask) = apply_masked(norm.input.value(), factor, offset, addend, relu)?;
    let mut inputs = vec![&norm.input, &norm.scale, &norm.shift];
    match &shortcut {
        None => {}
        Some(Shortcut::Value(value)) => inputs.push(value),
        Some(Shortcut::Normed(other)) => inputs.extend([&other.input, &other.scale, &other.shift]),
    }
    let saved = Saved::of(&norm);
    let saved_shortcut = shortcut.as_ref().map(|shortcut| match shortcut {
        Shortcut::Value(value) => SavedShortcut::Value(value.slot()),
        Shortcut::Normed(norm) => SavedShortcut::Normed(Box::new(Saved::of(norm))),
    });
    let sink = Sink { mask, input: saved.input.clone(), mean: saved.moments.mean.clone() };
    let fusion = Fusion { sink: Some(sink.clone()), completes: None };
    Ok(tape.record_fused(&inputs, output, fusion, move |gradient, gradients| {
        let (grad, sums) = match gradient {
            Gradient { value, sums: Some(sums) } => (value, sums),
            Gradient { value, sums: None } => reduce(&value, &sink)?,
        };
        let own = saved.parameter_grads(&sums, gradients)?;
        match saved_shortcut {
            Some(SavedShortcut::Normed(other)) => {
                let sums = reduce_again(&grad, &other.input, &other.moments.mean)?;
                let others = other.parameter_grads(&sums, gradients)?;
                if let (Some(slot), Some(other_slot)) = (saved.input_slot, other.input_slot) {
                    let [value, other] = input_grad_pair(&grad, [(&saved.input, &own), (&other.input, &others)])?;
                    gradients.add(slot, value)?;
                    return gradients.add(other_slot, other);
                }
                saved.input_grad(&grad, &own, gradients)?;
                other.input_grad(&grad, &others, gradients)
            }
            Some(SavedShortcut::Value(slot)) => {
                saved.input_grad(&grad, &own, gradients)?;
                slot.map_or(Ok(()), |slot| gradients.add(slot, grad))
            }
            None => saved.input_grad(&grad, &own, gradients),
        }
    }))
}

/// `max_pool(relu(norm))`: the stem of a network, whose large activation is read once and never written again.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if extents do not fit or channels are no multiple of 8.
pub fn fused_pooled(tape: &mut Tape, norm: Norm, window: Window) -> Result<Var> {
    let Normaliser { factor, offset, .. } = norm.normaliser.clone();
    let (output, positions) = apply_pooled(norm.input.value(), &factor, &offset, window)?;
    let saved = Saved::of(&norm);
    Ok(tape.record(&[&norm.input, &norm.scale, &norm.shift], output, move |grad, gradients| {
        let Saved { input, moments, .. } = &saved;
        let sums = reduce_pooled(&grad, input, &positions, &factor, &offset, &moments.mean, window)?;
        let own = saved.parameter_grads(&sums, gradients)?;
        let Some(slot) = saved.input_slot else { return Ok(()) };
        gradients.add(slot, fused::input_grad_pooled(&grad, input, &positions, &factor, &offset, window, &own)?)
    }))
}

/// What the backward pass needs of a batchnorm.
struct Saved {
    input: Tensor,
    scale: Tensor,
    moments: Moments,
    batch: bool,
    eps: f32,
    input_slot: Option<Slot>,
    scale_slot: Option<Slot>,
    shift_slot: Option<Slot>,
}

/// The same of what was added to it.
enum SavedShortcut {
    Value(Option<Slot>),
    Normed(Box<Saved>),
}

impl Saved {
    fn of(norm: &Norm) -> Self {
        Self {
            input: norm.input.value().clone(),
            scale: norm.scale.value().clone(),
            moments: norm.normaliser.moments.clone(),
            batch: norm.batch,
            eps: norm.eps,
            input_slot: norm.input.slot(),
            scale_slot: norm.scale.slot(),
            shift_slot: norm.shift.slot(),
        }
    }

    /// Adds the gradients of scale and shift, and returns what the input's is made with.
    fn parameter_grads(&self, sums: &TileSums, gradients: &mut Gradients) -> Result<fused::Coefficients> {
        let found = coefficients(sums, &self.moments, &self.scale, self.eps, self.batch)?;
        if let Some(slot) = self.scale_slot {
            gradients.add(slot, found.scale_grad.clone())?;
        }
        if let Some(slot) = self.shift_slot {
            gradients.add(slot, found.shift_grad.clone())?;
        }
        Ok(found)
    }

    fn input_grad(&self, grad: &Tensor, found: &fused::Coefficients, gradients: &mut Gradients) -> Result<()> {
        let Some(slot) = self.input_slot else { return Ok(()) };
        gradients.add(slot, input_grad(grad, &self.input, found)?)
    }
}
