//! Optimizers over a model's trainable parameters, with a learning rate and a weight decay per layer group.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, Tensor,
    autograd::{ParameterGradients, Parameters},
    nn::Model,
    ops::optimizer::{self, Item, Rate, Rates, Rule, Table},
};

/// Which update rule, and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
#[non_exhaustive]
pub enum OptimizerKind {
    /// Stochastic gradient descent; weight decay as an L2 penalty.
    Sgd {
        /// Share of the last update that is kept. Default 0.9.
        momentum: f32,
        /// Nesterov's look-ahead. Default false.
        nesterov: bool,
    },
    /// AdamW; weight decay decoupled.
    AdamW {
        /// Decay of the mean of gradients. Default 0.9.
        beta1: f32,
        /// Decay of the mean of squared gradients. Default 0.99, as fastai.
        beta2: f32,
        /// Added to the root of the mean square. Default 1e-5, as fastai.
        eps: f32,
    },
}

impl Default for OptimizerKind {
    fn default() -> Self {
        OptimizerKind::Sgd { momentum: 0.9, nesterov: false }
    }
}

impl OptimizerKind {
    /// AdamW with its default constants.
    pub fn adamw() -> Self {
        OptimizerKind::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-5 }
    }

    /// The momentum, or what takes its place: the share of the last gradients that is kept.
    pub fn momentum(self) -> f32 {
        match self {
            OptimizerKind::Sgd { momentum, .. } => momentum,
            OptimizerKind::AdamW { beta1, .. } => beta1,
        }
    }

    /// The rule of step `step`, counted from 1.
    fn rule(self, step: u32) -> Rule {
        match self {
            OptimizerKind::Sgd { momentum, nesterov } => Rule::Sgd { momentum, nesterov },
            OptimizerKind::AdamW { beta1, beta2, eps } => Rule::AdamW { beta1, beta2, eps, step },
        }
    }

    /// Zeros in the shape of `value`, as many as the rule keeps.
    fn fresh_buffers(self, value: &Tensor) -> Result<Vec<Tensor>> {
        (0..self.rule(1).buffers()).map(|_| Tensor::zeros(value.shape(), value.device())).collect()
    }
}

/// An update rule with its state: one or two buffers per parameter that it has met.
#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    state: BTreeMap<Arc<str>, Vec<Tensor>>,
    steps: u32,
    rates: Option<Rates>,
    table: Table,
}

impl Optimizer {
    /// A fresh optimizer.
    pub fn new(kind: OptimizerKind) -> Self {
        Self::restored(kind, 0)
    }

    /// An optimizer that has made `steps` steps, still without buffers.
    pub(crate) fn restored(kind: OptimizerKind, steps: u32) -> Self {
        Self { kind, state: BTreeMap::new(), steps, rates: None, table: Table::default() }
    }

    /// The update rule.
    pub fn kind(&self) -> OptimizerKind {
        self.kind
    }

    /// Steps made so far.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Its buffers: the parameter's name, a number, the values.
    pub fn buffers(&self) -> impl Iterator<Item = (&Arc<str>, usize, &Tensor)> {
        self.state
            .iter()
            .flat_map(|(name, buffers)| buffers.iter().enumerate().map(move |(number, buffer)| (name, number, buffer)))
    }

    /// Sets buffer `number` of the parameter called `name`; a number that the rule does not use has no effect.
    pub(crate) fn set_buffer(&mut self, name: &Arc<str>, number: usize, buffer: Tensor) -> Result<()> {
        let buffers = self.state.entry(name.clone()).or_default();
        if buffers.is_empty() {
            *buffers = self.kind.fresh_buffers(&buffer)?;
        }
        if let Some(place) = buffers.get_mut(number) {
            *place = buffer;
        }
        Ok(())
    }

    /// Moves every trainable parameter of `model` that has a gradient. `lrs` and `weight_decays` hold one value per
    /// layer group.
    ///
    /// # Errors
    /// [`Error::Shape`] if a gradient's shape is not its parameter's; [`Error::Setting`] if a group has no rate.
    pub fn step(
        &mut self,
        model: &mut Model,
        gradients: &ParameterGradients,
        lrs: &[f32],
        weight_decays: &[f32],
    ) -> Result<()> {
        self.prepare(model, lrs, weight_decays)?;
        // A step that fails does not count.
        self.apply(model, gradients).inspect_err(|_| self.steps -= 1)
    }

    /// Counts the next step and puts its rates where [`Optimizer::apply`] finds them, which is then captured or replayed.
    ///
    /// # Errors
    /// [`Error::Setting`] if a group has no rate.
    pub(crate) fn prepare(&mut self, model: &Model, lrs: &[f32], weight_decays: &[f32]) -> Result<()> {
        let groups = model.grouping().names(model.arch()).len();
        if lrs.len() != groups || weight_decays.len() != groups {
            let message = format!("{} and {} given for {groups} layer groups", lrs.len(), weight_decays.len());
            return Err(Error::setting("learning rates and weight decays", message));
        }
        let rates = lrs.iter().zip(weight_decays).map(|(&lr, &weight_decay)| Rate { lr, weight_decay });
        let (rates, rule) = (rates.collect::<Vec<_>>(), self.kind.rule(self.steps + 1));
        match &mut self.rates {
            Some(found) => found.set(rule, &rates, model.device())?,
            none => *none = Some(Rates::new(rule, &rates, model.device())?),
        }
        self.steps += 1;
        Ok(())
    }

    /// Moves every trainable parameter that has a gradient, with the rates of [`Optimizer::prepare`].
    ///
    /// # Errors
    /// [`Error::Shape`] if a gradient's shape is not its parameter's; [`Error::OutOfMemory`].
    pub(crate) fn apply(&mut self, model: &mut Model, gradients: &ParameterGradients) -> Result<()> {
        let Some(rates) = &self.rates else { return Err(Error::setting("learning rates", "none were prepared")) };
        let (grouping, arch) = (model.grouping(), model.arch());
        let mut found = Vec::new();
        model.visit_mut(&mut |parameter| {
            if let Some(grad) = gradients.get(parameter.name()).filter(|_| parameter.is_trainable()) {
                found.push((parameter, grad));
            }
        });
        for (parameter, _) in &found {
            let buffers = self.state.entry(parameter.name().clone()).or_default();
            if buffers.is_empty() {
                *buffers = self.kind.fresh_buffers(&parameter.value)?;
            }
        }
        let mut state: HashMap<&str, &mut Vec<Tensor>> =
            self.state.iter_mut().map(|(name, buffers)| (&**name, buffers)).collect();
        let mut items = Vec::with_capacity(found.len());
        for (parameter, grad) in found {
            let group = grouping.group(arch, crate::nn::Unit::of(parameter.name()));
            if let Some(buffers) = state.remove(&**parameter.name()) {
                let packed = parameter.packed.as_mut();
                items.push(Item { parameter: &mut parameter.value, grad, buffers, packed, group });
            }
        }
        optimizer::step(rates, &mut items, &mut self.table)
    }
}
