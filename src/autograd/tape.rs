//! The tape: a list of closures, run backwards.

use std::{collections::BTreeMap, sync::Arc};

use super::{Gradient, Gradients, Parameter, Sink};
use crate::{Error, Result, Tensor};

/// Gradients of a loss, by parameter name.
pub type ParameterGradients = BTreeMap<Arc<str>, Tensor>;

/// A tensor that may depend on a trainable parameter.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    slot: Option<Slot>,
    sink: Option<Arc<Sink>>,
}

impl Var {
    /// A value that no gradient flows into.
    pub fn constant(value: Tensor) -> Self {
        Self { value, slot: None, sink: None }
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

    /// What its producer asks of its gradient.
    pub fn sink(&self) -> Option<&Arc<Sink>> {
        self.sink.as_ref()
    }

    /// Whether a gradient flows into it.
    pub fn needs_grad(&self) -> bool {
        self.slot.is_some()
    }
}

/// The place of one variable's gradient on the tape.
#[derive(Clone, Copy, Debug)]
pub struct Slot(pub(super) usize);

type Backward = Box<dyn FnOnce(Gradient, &mut Gradients) -> Result<()> + Send>;

struct Node {
    inputs: Vec<Slot>,
    output: Slot,
    backward: Backward,
}

/// How an operation works together with those around it on the backward pass.
#[derive(Default)]
pub struct Fusion<'a> {
    /// What it asks of the gradient of its output.
    pub sink: Option<Sink>,
    /// The input whose gradient it completes by [`Gradients::take_rest`] where its part is the last.
    pub completes: Option<&'a Var>,
}

/// What is known of a slot before the backward pass.
#[derive(Clone, Copy, Default)]
struct Uses {
    /// Operations that take the variable.
    count: usize,
    /// Whether the first of them, which comes last on the way back, completes its gradient.
    completed: bool,
}

/// Records operations whose inputs need a gradient, and nothing else: a frozen prefix leaves no node and keeps no
/// activation, and the backward pass ends at the first trainable parameter.
#[derive(Default)]
pub struct Tape {
    recording: bool,
    slots: Vec<Uses>,
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
        Var { value: parameter.value.clone(), slot: Some(slot), sink: None }
    }

    /// A leaf whose gradient [`Tape::backward`] reports under `name`.
    pub fn leaf(&mut self, name: &str, value: Tensor) -> Var {
        let slot = self.new_slot();
        self.parameters.push((slot, name.into()));
        Var { value, slot: Some(slot), sink: None }
    }

    /// Turns an operation's output into a variable. If one of `inputs` needs a gradient, `backward` is kept; it
    /// receives the gradient of the output and adds those of the inputs.
    pub fn record(
        &mut self,
        inputs: &[&Var],
        value: Tensor,
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Var {
        self.record_fused(inputs, value, Fusion::default(), |gradient, gradients| backward(gradient.value, gradients))
    }

    /// As [`Tape::record`], for an operation that shares passes over memory with its neighbours: `backward` receives a
    /// gradient that may have been masked and summed as the output's sink asks.
    pub fn record_fused(
        &mut self,
        inputs: &[&Var],
        value: Tensor,
        fusion: Fusion,
        backward: impl FnOnce(Gradient, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Var {
        let inputs: Vec<Slot> = inputs.iter().filter_map(|input| input.slot).collect();
        if inputs.is_empty() {
            return Var::constant(value);
        }
        if let Some(slot) = fusion.completes.and_then(Var::slot) {
            let uses = &mut self.slots[slot.0];
            uses.completed = uses.count == 0;
        }
        inputs.iter().for_each(|input| self.slots[input.0].count += 1);
        let output = self.new_slot();
        self.nodes.push(Node { inputs, output, backward: Box::new(backward) });
        Var { value, slot: Some(output), sink: fusion.sink.map(Arc::new) }
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
        let seed = Tensor::full(loss.value.shape(), 1.0, loss.value.device())?;
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
        let mut gradients = Gradients::new(self.slots.into_iter().map(|uses| (uses.count, uses.completed)));
        gradients.finish(slot, Gradient { value: seed, sums: None });
        for node in self.nodes.into_iter().rev() {
            // Whether it runs or not, after this node nothing more comes from it.
            node.inputs.iter().for_each(|input| gradients.arrive(*input));
            if let Some(gradient) = gradients.take(node.output)? {
                (node.backward)(gradient, &mut gradients)?;
            }
        }
        let mut by_name = ParameterGradients::new();
        for (slot, name) in self.parameters {
            let Some(Gradient { value, .. }) = gradients.take(slot)? else { continue };
            match by_name.get_mut(&name) {
                Some(sum) => sum.add_assign(&value)?,
                None => drop(by_name.insert(name, value)),
            }
        }
        Ok(by_name)
    }

    fn new_slot(&mut self) -> Slot {
        self.slots.push(Uses::default());
        Slot(self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Device,
        autograd::Role,
        ops::{elementwise::relu, linear::linear},
    };

    /// Three linear layers with a ReLU after each of the first two, layers from `trainable` on not frozen.
    fn network(trainable: usize, device: &Device) -> Vec<[Parameter; 2]> {
        let layer = |index: usize| {
            let weight = Tensor::new(vec![0.5, 0.25, 1.0, 0.75], [2, 2], device).expect("four elements");
            let mut weight = Parameter::new(format!("{index}.weight"), Role::LinearWeight, weight);
            let mut bias =
                Parameter::new(format!("{index}.bias"), Role::LinearBias, Tensor::zeros([2], device).unwrap());
            weight.set_trainable(index >= trainable);
            bias.set_trainable(index >= trainable);
            [weight, bias]
        };
        (0..3).map(layer).collect()
    }

    fn run(tape: &mut Tape, layers: &[[Parameter; 2]], device: &Device) -> Result<Var> {
        let mut x = Var::constant(Tensor::full([3, 2], 1.0, device).unwrap());
        for (index, layer) in layers.iter().enumerate() {
            let [weight, bias] = layer.each_ref().map(|parameter| tape.parameter(parameter));
            x = linear(tape, &x, &weight, &bias)?;
            if index + 1 < layers.len() {
                x = relu(tape, &x)?;
            }
        }
        Ok(x)
    }

    #[test]
    fn a_frozen_prefix_leaves_nothing_on_the_tape() -> Result<()> {
        let device = Device::cpu(1)?;
        let mut whole = None;
        for (trainable, nodes) in [(0, 5), (1, 3), (2, 1)] {
            let mut tape = Tape::new();
            let output = run(&mut tape, &network(trainable, &device), &device)?;
            assert_eq!(tape.len(), nodes, "trainable from layer {trainable}");
            let grads = tape.backward(&output)?;
            let names: Vec<String> =
                (trainable..3).flat_map(|index| ["bias", "weight"].map(|part| format!("{index}.{part}"))).collect();
            assert_eq!(grads.keys().map(|name| &**name).collect::<Vec<_>>(), names);
            // Freezing what lies before changes no gradient.
            let whole = whole.get_or_insert_with(|| grads.clone());
            for (name, grad) in &grads {
                assert_eq!(grad.to_vec::<f32>()?, whole[name].to_vec::<f32>()?, "{name}");
                assert!(grad.to_vec::<f32>()?.iter().any(|grad| *grad != 0.0), "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_backward_pass_stops_at_the_first_trainable_parameter() -> Result<()> {
        let device = Device::cpu(1)?;
        let mut tape = Tape::new();
        let constant = Var::constant(Tensor::zeros([2], &device).unwrap());
        let must_not_run = |_: Tensor, _: &mut Gradients| panic!("nothing trainable lies behind this");
        let frozen = tape.record(&[&constant], Tensor::zeros([2], &device).unwrap(), must_not_run);
        assert!(tape.is_empty() && !frozen.needs_grad());
        let trainable = tape.leaf("p", Tensor::full([2], 2.0, &device).unwrap());
        // A branch that the loss does not use stays unvisited too.
        tape.record(&[&trainable], Tensor::zeros([2], &device).unwrap(), must_not_run);
        let slot = trainable.slot().expect("a leaf has a slot");
        let loss = tape.record(&[&frozen, &trainable], Tensor::zeros([2], &device).unwrap(), move |grad, gradients| {
            gradients.add(slot, grad)
        });
        assert_eq!(tape.len(), 2);
        assert_eq!(tape.backward(&loss)?["p"].to_vec::<f32>()?, [1.0; 2]);
        Ok(())
    }

    #[test]
    fn with_everything_frozen_backward_says_so() -> Result<()> {
        let device = Device::cpu(1)?;
        for (mut tape, trainable) in [(Tape::new(), 3), (Tape::inference(), 0)] {
            let output = run(&mut tape, &network(trainable, &device), &device)?;
            assert!(tape.is_empty());
            let error = tape.backward(&output).expect_err("everything is frozen").to_string();
            assert!(error.contains("every parameter is frozen") && error.contains("unfreeze"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_parameter_used_twice_gets_the_sum() -> Result<()> {
        let device = Device::cpu(1)?;
        let layers = network(0, &device);
        let mut tape = Tape::new();
        let x = tape.parameter(&layers[0][1]);
        let y = tape.parameter(&layers[0][1]);
        let sum = crate::ops::elementwise::add(&mut tape, &x, &y)?;
        assert_eq!(tape.backward(&sum)?["0.bias"].to_vec::<f32>()?, [2.0; 2]);
        Ok(())
    }

    /// A leaf taken by `first`, which completes its gradient, and then by operations that add 10 and 100 to it; `skip`
    /// leaves out the one that adds 10. What `first` found there, and the gradient.
    fn completed(skip: bool) -> Result<(Option<f32>, bool, f32)> {
        let device = Device::cpu(1)?;
        let value = || Tensor::zeros([1], &device);
        let mut tape = Tape::new();
        let leaf = tape.leaf("x", value()?);
        let slot = leaf.slot().expect("a leaf has one");
        let found = Arc::new(std::sync::Mutex::new((None, false)));
        let seen = found.clone();
        let fusion = Fusion { completes: Some(&leaf), ..Fusion::default() };
        let first = tape.record_fused(&[&leaf], value()?, fusion, move |_, gradients| {
            let rest = gradients.take_rest(slot).expect("its part is the last");
            let dense = rest.dense.map(|dense| dense.scalar()).transpose()?;
            seen.lock().unwrap().0 = dense;
            let one = Tensor::full([1], dense.unwrap_or(0.0) + 1.0, &Device::cpu(1)?)?;
            gradients.finish(slot, Gradient { value: one, sums: None });
            Ok(())
        });
        let adds = |amount: f32, found: Arc<std::sync::Mutex<(Option<f32>, bool)>>| {
            move |_: Tensor, gradients: &mut Gradients| {
                assert!(gradients.take_rest(slot).is_none(), "more is to come");
                found.lock().unwrap().1 |= gradients.takes_strided(slot);
                gradients.add(slot, Tensor::full([1], amount, &Device::cpu(1)?)?)
            }
        };
        let second = tape.record(&[&leaf], value()?, adds(10.0, found.clone()));
        let third = tape.record(&[&leaf], value()?, adds(100.0, found.clone()));
        let second = if skip { Var::constant(second.into_value()) } else { second };
        let inputs = [&first, &second, &third];
        let slots = inputs.map(Var::slot);
        let sum = tape.record(&inputs, value()?, move |grad, gradients| {
            slots.into_iter().flatten().try_for_each(|slot| gradients.add(slot, grad.clone()))
        });
        let gradient = tape.backward(&sum)?["x"].scalar()?;
        let found = *found.lock().unwrap();
        Ok((found.0, found.1, gradient))
    }

    #[test]
    fn the_last_part_of_a_gradient_can_complete_it() -> Result<()> {
        assert_eq!(completed(false)?, (Some(110.0), true, 111.0));
        // An operation that the loss does not use is not waited for.
        assert_eq!(completed(true)?, (Some(100.0), true, 101.0));
        Ok(())
    }
}
