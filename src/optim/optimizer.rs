//! Optimizers over a model's trainable parameters, with a learning rate and a weight decay per layer group.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    Device, Error, Result, Tensor,
    autograd::{Parameter, ParameterGradients, Parameters},
    device::CudaDevice,
    nn::{Linear, Model},
    ops::{
        head_trainer::Head,
        optimizer::{self, Item, Rate, Rates, Rule, Scaling, Table},
    },
};

/// Which update rule, and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
#[non_exhaustive]
pub enum OptimizerKind {
    /// Stochastic gradient descent; weight decay as an L2 penalty, unless it is decoupled.
    Sgd {
        /// Share of the last update that is kept. Default 0.9.
        momentum: f32,
        /// Nesterov's look-ahead. Default false.
        nesterov: bool,
        /// Whether parameters decay by themselves, by `lr · weight_decay`, not through the gradient and momentum: fastai
        /// 0.7's `use_wd_sched`, fastai 2's `decouple_wd`. Default false.
        #[serde(default)]
        decoupled: bool,
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
        OptimizerKind::Sgd { momentum: 0.9, nesterov: false, decoupled: false }
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

    /// The same with another momentum, or β₁.
    pub fn with_momentum(self, share: f32) -> Self {
        match self {
            OptimizerKind::Sgd { nesterov, decoupled, .. } => {
                OptimizerKind::Sgd { momentum: share, nesterov, decoupled }
            }
            OptimizerKind::AdamW { beta2, eps, .. } => OptimizerKind::AdamW { beta1: share, beta2, eps },
        }
    }

    /// The rule of step `step`, counted from 1.
    fn rule(self, step: u32) -> Rule {
        match self {
            OptimizerKind::Sgd { momentum, nesterov, decoupled } => Rule::Sgd { momentum, nesterov, decoupled },
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
    wd_bn_bias: bool,
    scaling: Scaling,
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
        Self {
            kind,
            state: BTreeMap::new(),
            steps,
            wd_bn_bias: true,
            scaling: Scaling::default(),
            rates: None,
            table: Table::default(),
        }
    }

    /// Whether weight decay is for batchnorms and biases too, or for the weights of convolutions and linear layers
    /// alone (fastai 2's `wd_bn_bias`). Default true.
    pub fn wd_bn_bias(self, on: bool) -> Self {
        Self { wd_bn_bias: on, ..self }
    }

    /// The most that the norm of all gradients together may be: see [`Scaling::clip`]. Default: any.
    pub fn clip_grad(mut self, norm: Option<f32>) -> Self {
        self.scaling.clip = norm;
        self
    }

    /// Whether it bounds the norm of the gradients.
    pub(crate) fn clips(&self) -> bool {
        self.scaling.clip.is_some()
    }

    /// What of `weight_decay` is for batchnorms and biases.
    pub(crate) fn vector_decay(&self, weight_decay: f32) -> f32 {
        if self.wd_bn_bias { weight_decay } else { 0.0 }
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
        self.step_with(model, gradients, lrs, weight_decays, self.kind.momentum())
    }

    /// As [`Optimizer::step`], with a momentum of this step's own.
    pub(crate) fn step_with(
        &mut self,
        model: &mut Model,
        gradients: &ParameterGradients,
        lrs: &[f32],
        weight_decays: &[f32],
        momentum: f32,
    ) -> Result<()> {
        self.prepare(model, lrs, weight_decays, momentum)?;
        // A step that fails does not count.
        self.apply(model, gradients).inspect_err(|_| self.withdraw())
    }

    /// As [`Optimizer::step_with`], where gradients count times `factor`.
    pub(crate) fn step_scaled(
        &mut self,
        model: &mut Model,
        gradients: &ParameterGradients,
        lrs: &[f32],
        weight_decays: &[f32],
        momentum: f32,
        factor: f32,
    ) -> Result<()> {
        self.scaling.factor = factor;
        let outcome = self.step_with(model, gradients, lrs, weight_decays, momentum);
        self.scaling.factor = 1.0;
        outcome
    }

    /// The rule of the step after `ahead` more, with this momentum.
    pub(crate) fn next_rule(&self, ahead: usize, momentum: f32) -> Rule {
        self.kind.with_momentum(momentum).rule(self.steps.saturating_add(ahead as u32 + 1))
    }

    /// Lets `train` make steps of `head` with its buffers; the losses that it returns, one of each step. One that is not
    /// finite, which moves nothing on a processor, does not count there.
    ///
    /// # Errors
    /// Those of `train`; then nothing counts.
    pub(crate) fn head_steps(
        &mut self,
        head: &mut Linear,
        train: impl FnOnce(&mut Head) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let [weight, bias] = head.parameters_mut();
        fill(&mut self.state, self.kind, weight)?;
        fill(&mut self.state, self.kind, bias)?;
        // Both at once, which a map does not lend.
        let mut take = |parameter: &Parameter| self.state.remove(parameter.name()).unwrap_or_default();
        let (mut weight_buffers, mut bias_buffers) = (take(weight), take(bias));
        let losses = train(&mut Head {
            weight: &mut weight.value,
            bias: &mut bias.value,
            weight_buffers: &mut weight_buffers,
            bias_buffers: &mut bias_buffers,
        });
        self.state.insert(weight.name().clone(), weight_buffers);
        self.state.insert(bias.name().clone(), bias_buffers);
        let counts = |loss: &&f32| loss.is_finite() || matches!(weight.value.device(), Device::Cuda(_));
        self.steps += losses.as_ref().map_or(0, |losses| losses.iter().filter(counts).count() as u32);
        losses
    }

    /// Where its rates and buffers lie on `cuda`, unshared, and what else of it decides what a step launches.
    pub(crate) fn fingerprint(&mut self, cuda: &CudaDevice) -> Result<Vec<u64>> {
        let rates = self.rates.iter().filter_map(Rates::resident).map(|rates| rates.pointer::<f32>(cuda));
        let buffers = self.state.values_mut().flatten().map(|buffer| buffer.pointer_mut::<f32>(cuda));
        let clip = self.scaling.clip.map_or(0, |norm| u64::from(norm.to_bits()));
        rates.chain(buffers).chain([Ok(clip)]).collect()
    }

    /// Takes back what [`Optimizer::prepare`] counted: the step was not made.
    pub(crate) fn withdraw(&mut self) {
        self.steps -= 1;
    }

    /// Counts the next step and puts its rates where [`Optimizer::apply`] finds them, which is then captured or
    /// replayed.
    ///
    /// # Errors
    /// [`Error::Setting`] if a group has no rate.
    pub(crate) fn prepare(&mut self, model: &Model, lrs: &[f32], weight_decays: &[f32], momentum: f32) -> Result<()> {
        let groups = model.grouping().names(model.arch()).len();
        if lrs.len() != groups || weight_decays.len() != groups {
            let message = format!("{} and {} given for {groups} layer groups", lrs.len(), weight_decays.len());
            return Err(Error::setting("learning rates and weight decays", message));
        }
        // Two for each group: for weights, and for the rest.
        let decays = |weight_decay: f32| [weight_decay, self.vector_decay(weight_decay)];
        let both = |(&lr, &decay): (&f32, &f32)| decays(decay).map(|weight_decay| Rate { lr, weight_decay });
        let rates: Vec<Rate> = lrs.iter().zip(weight_decays).flat_map(both).collect();
        let rule = self.next_rule(0, momentum);
        match &mut self.rates {
            Some(found) => found.set(rule, &rates, self.scaling, model.device())?,
            none => {
                none.insert(Rates::new(rule, &[], model.device())?).set(rule, &rates, self.scaling, model.device())?
            }
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
            fill(&mut self.state, self.kind, parameter)?;
        }
        let mut state: HashMap<&str, &mut Vec<Tensor>> =
            self.state.iter_mut().map(|(name, buffers)| (&**name, buffers)).collect();
        let mut items = Vec::with_capacity(found.len());
        for (parameter, grad) in found {
            let group = grouping.group(arch, crate::nn::Unit::of(parameter.name()));
            let group = 2 * group + usize::from(!parameter.role().is_weight());
            if let Some(buffers) = state.remove(&**parameter.name()) {
                let packed = parameter.packed.as_mut();
                items.push(Item { parameter: &mut parameter.value, grad, buffers, packed, group });
            }
        }
        optimizer::step(rates, &mut items, &mut self.table)
    }
}

/// Sees to it that `state` has the buffers of `parameter`.
fn fill(state: &mut BTreeMap<Arc<str>, Vec<Tensor>>, kind: OptimizerKind, parameter: &Parameter) -> Result<()> {
    let buffers = state.entry(parameter.name().clone()).or_default();
    if buffers.is_empty() {
        *buffers = kind.fresh_buffers(&parameter.value)?;
    }
    Ok(())
}
