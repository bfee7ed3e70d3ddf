//! Optimizer steps: all parameters at once, each with the rates of its group. Where weights have copies for tensor
//! cores, a step writes them too.

mod cpu;
pub(super) mod cuda;
#[cfg(test)]
mod tests;

use super::expect_shape;
pub use crate::device::cuda::Table;
use crate::{Device, Error, Result, Tensor, autograd::Packed};
pub(super) use cpu::{Moves, parts, slices};

/// How parameters move.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// `g += weight_decay · p; b = momentum · b + g; p −= lr · (nesterov ? g + momentum · b : b)`, as in PyTorch and
    /// fastai 0.7. With a buffer of zeros the first step is PyTorch's (`b = g`). Decoupled,
    /// `p −= lr · weight_decay · p` comes first instead, and `g` stays (Loshchilov & Hutter 2017; fastai 0.7's
    /// `use_wd_sched`).
    Sgd {
        /// Share of the last update that is kept.
        momentum: f32,
        /// Nesterov's look-ahead.
        nesterov: bool,
        /// Whether weight decay is kept out of the gradient.
        decoupled: bool,
    },
    /// AdamW (Loshchilov & Hutter 2017): `p −= lr · weight_decay · p`, then Adam with bias correction.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f32,
        /// Decay of the mean of squared gradients.
        beta2: f32,
        /// Added to the root of the mean square.
        eps: f32,
        /// Number of this step, from 1; corrects the bias of the means.
        step: u32,
    },
}

impl Rule {
    /// Buffers that it keeps for a parameter, zeros at first: of SGD the momentum, of AdamW the mean of gradients and
    /// that of squared gradients.
    pub fn buffers(self) -> usize {
        match self {
            Rule::Sgd { .. } => 1,
            Rule::AdamW { .. } => 2,
        }
    }

    /// What of it may move from step to step, as kernels take it: momentum or β₁, AdamW's corrections; last a factor of
    /// gradients, none.
    pub(super) fn moving(self) -> [f32; 4] {
        match self {
            Rule::Sgd { momentum, .. } => [momentum, 1.0, 1.0, 1.0],
            Rule::AdamW { beta1, beta2, step, .. } => {
                let [correction1, correction2] = Self::corrections(beta1, beta2, step);
                [beta1, correction1, correction2, 1.0]
            }
        }
    }

    /// What AdamW divides its means by.
    fn corrections(beta1: f32, beta2: f32, step: u32) -> [f32; 2] {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let share = |beta: f32| 1.0 - f64::from(beta).powi(exponent);
        [share(beta1) as f32, share(beta2).sqrt() as f32]
    }
}

/// A parameter to be moved.
pub struct Item<'a> {
    /// Its value.
    pub parameter: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// As many as [`Rule::buffers`].
    pub buffers: &'a mut [Tensor],
    /// Its copies for tensor cores.
    pub packed: Option<&'a mut Packed>,
    /// Number of the group whose rates are its.
    pub group: usize,
}

/// How fast a group of parameters moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub lr: f32,
    /// Weight decay: with plain SGD an L2 penalty added to the gradient, else decoupled from it.
    pub weight_decay: f32,
}

/// What all gradients are multiplied by before they move anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// A factor. Default 1.
    pub factor: f32,
    /// The most that their norm may be, that of all of them together after the factor: beyond it they are multiplied by
    /// `clip / (norm + 1e-6)` too, as by PyTorch's `clip_grad_norm_`. Default: any.
    pub clip: Option<f32>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self { factor: 1.0, clip: None }
    }
}

/// What is new in each step: the rates of each group, the momentum, and of AdamW the number of the step. On a GPU they
/// lie in its memory, where a step that was captured finds them.
#[derive(Debug)]
pub struct Rates {
    rule: Rule,
    groups: Vec<Rate>,
    scaling: Scaling,
    resident: Option<Tensor>,
}

impl Rates {
    /// Those of a step on `device`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a step 0 of AdamW, whose correction would divide by zero; [`Error::OutOfMemory`].
    pub fn new(rule: Rule, groups: &[Rate], device: &Device) -> Result<Self> {
        let mut rates = Self { rule, groups: Vec::new(), scaling: Scaling::default(), resident: None };
        rates.set(rule, groups, Scaling::default(), device)?;
        Ok(rates)
    }

    /// Those on a GPU: what moves of the rule, then learning rate and weight decay of each group.
    pub(crate) fn resident(&self) -> Option<&Tensor> {
        self.resident.as_ref()
    }

    /// Sets those of the next step, and what its gradients are multiplied by; in place where there are as many.
    ///
    /// # Errors
    /// As of [`Rates::new`].
    pub fn set(&mut self, rule: Rule, groups: &[Rate], scaling: Scaling, device: &Device) -> Result<()> {
        if let Rule::AdamW { step: 0, .. } = rule {
            return Err(Error::setting("adamw step", "steps are numbered from 1"));
        }
        (self.rule, self.groups, self.scaling) = (rule, groups.to_vec(), scaling);
        if let Device::Cpu(_) = device {
            return Ok(());
        }
        let rates = groups.iter().flat_map(|rate| [rate.lr, rate.weight_decay]);
        let [momentum, correction1, correction2, _] = rule.moving();
        let moving = [momentum, correction1, correction2, scaling.factor];
        let values: Vec<f32> = moving.into_iter().chain(rates).collect();
        match &mut self.resident {
            Some(resident) if resident.device().is(device) && resident.dims() == [values.len()] => {
                resident.overwrite(&values)
            }
            resident => {
                let shape = [values.len()];
                *resident = Some(Tensor::new(values, shape, device)?);
                Ok(())
            }
        }
    }
}

impl Clone for Rates {
    /// Without what lies on a GPU, whose place is one owner's.
    fn clone(&self) -> Self {
        Self { groups: self.groups.clone(), resident: None, ..*self }
    }
}

/// Moves every parameter of `items`, which lie on one device.
///
/// # Errors
/// [`Error::Shape`] if shapes differ or buffers are missing; [`Error::Setting`] if there are no rates for a group. Then
/// nothing has moved.
pub fn step(rates: &Rates, items: &mut [Item], table: &mut Table) -> Result<()> {
    for item in &*items {
        expect_shape("optimizer", "gradient", item.grad, item.parameter.shape())?;
        if item.buffers.len() != rates.rule.buffers() {
            let message = format!("{} buffers for a rule of {}", item.buffers.len(), rates.rule.buffers());
            return Err(Error::shape("optimizer", message));
        }
        item.buffers
            .iter()
            .try_for_each(|buffer| expect_shape("optimizer", "buffer", buffer, item.parameter.shape()))?;
        if item.group >= rates.groups.len() {
            let message = format!("there are none for group {}, only for {}", item.group, rates.groups.len());
            return Err(Error::setting("learning rates", message));
        }
    }
    match items.first().map(|item| item.parameter.device().clone()) {
        None => Ok(()),
        Some(Device::Cuda(device)) => cuda::step(&device, rates, items, table),
        Some(Device::Cpu(device)) => {
            let scale = cpu::scale(&device, rates.scaling, items)?;
            items.iter_mut().try_for_each(|item| {
                let moves = Moves::new(rates.rule, rates.groups[item.group], scale);
                cpu::step(&device, moves, item)
            })
        }
    }
}
