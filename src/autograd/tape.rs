//! The tape: a list of closures, run backwards.

use std::{collections::BTreeMap, sync::Arc};

use super::Parameter;
use crate::{Error, Result, Tensor};

/// Gradients of a loss, by parameter name.
pub type ParameterGradients = BTreeMap<Arc<str>, Tensor>;

/// A tensor that may depend on a trainable parameter.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    slot: Option<Slot>,
}

impl Var {
    /// A value that no gradient flows into.
    pub fn constant(value: Tensor) -> Self {
        Self { value, slot: None }
    }

    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The tensor, without its history.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Where its gradient is collected; `None` if nothing trainable lies behind it.
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// Whether a gradient flows into it.
    pub fn needs_grad(&self) -> bool {
        self.slot.is_some()
    }
}

/// The place of one variable's gradient on the tape.
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize);

/// The gradients collected so far during a backward pass.
pub struct Gradients {
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Adds `gradient` to what `slot` has already received.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn add(&mut self, slot: Slot, gradient: Tensor) -> Result<()> {
        match &mut self.slots[slot.0] {
            Some(sum) => sum.add_assign(&gradient),
            empty => {
                *empty = Some(gradient);
                Ok(())
            }
        }
    }
}

type Backward = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<()> + Send>;

struct Node {
    output: Slot,
    backward: Backward,
}

/// Records operations whose inputs need a gradient, and nothing else: a frozen prefix leaves no node and keeps no
/// activation, and the backward pass ends at the first trainable parameter.
#[derive(Default)]
pub struct Tape {
    recording: bool,
    slots: usize,
    nodes: Vec<Node>,
    parameters: Vec<(Slot, Arc<str>)>,
}

impl Tape {
    /// A tape that records.
    pub fn new() -> Self {
        Self { recording: true, ..Self::default() }
    }

    /// A tape that treats every parameter as a constant, for evaluation.
    pub fn inference() -> Self {
        Self::default()
    }

    /// Brings a parameter onto the tape; a frozen one becomes a constant.
    pub fn parameter(&mut self, parameter: &Parameter) -> Var {
        if !(self.recording && parameter.is_trainable()) {
            return Var::constant(parameter.value.clone());
        }
        let slot = self.new_slot();
        self.parameters.push((slot, parameter.name().clone()));
        Var { value: parameter.value.clone(), slot: Some(slot) }
    }

    /// A leaf whose gradient [`Tape::backward`] reports under `name`.
    pub fn leaf(&mut self, name: &str, value: Tensor) -> Var {
        let slot = self.new_slot();
        self.parameters.push((slot, name.into()));
        Var { value, slot: Some(slot) }
    }

    /// Turns an operation's output into a variable. If one of `inputs` needs a gradient, `backward` is kept; it
    /// receives the gradient of the output and adds those of the inputs.
    pub fn record(
        &mut self,
        inputs: &[&Var],
        value: Tensor,
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Var {
        if !inputs.iter().any(|input| input.needs_grad()) {
            return Var::constant(value);
        }
        let output = self.new_slot();
        self.nodes.push(Node { output, backward: Box::new(backward) });
        Var { value, slot: Some(output) }
    }

    /// Operations recorded so far.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The gradient of `loss`, a scalar, for every parameter on the tape.
    ///
    /// # Errors
    /// [`Error::Setting`] if nothing trainable lies behind the loss.
    pub fn backward(self, loss: &Var) -> Result<ParameterGradients> {
        let seed = Tensor::full(loss.value.shape(), 1.0, loss.value.device());
        self.backward_from(loss, seed)
    }

    /// As [`Tape::backward`], from the gradient `seed` of `output`.
    ///
    /// # Errors
    /// [`Error::Setting`] if nothing trainable lies behind `output`.
    pub fn backward_from(self, output: &Var, seed: Tensor) -> Result<ParameterGradients> {
        let Some(slot) = output.slot else {
            return Err(Error::setting("backward", "every parameter is frozen; unfreeze at least one layer group"));
        };
        let mut gradients = Gradients { slots: (0..self.slots).map(|_| None).collect() };
        gradients.slots[slot.0] = Some(seed);
        for node in self.nodes.into_iter().rev() {
            if let Some(gradient) = gradients.slots[node.output.0].take() {
                (node.backward)(gradient, &mut gradients)?;
            }
        }
        let mut by_name = ParameterGradients::new();
        for (slot, name) in self.parameters {
            let Some(gradient) = gradients.slots[slot.0].take() else { continue };
            match by_name.get_mut(&name) {
                Some(sum) => sum.add_assign(&gradient)?,
                None => drop(by_name.insert(name, gradient)),
            }
        }
        Ok(by_name)
    }

    fn new_slot(&mut self) -> Slot {
        self.slots += 1;
        Slot(self.slots - 1)
    }
}
