//! How a fit makes its steps.

use serde::{Deserialize, Serialize};

use super::Fit;
use crate::{
    Error, Result,
    optim::{Optimizer, OptimizerKind},
};

/// What a fit does in each step beside following its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepOptions {
    /// The update rule. Default: SGD with momentum 0.9.
    pub optimizer: OptimizerKind,
    /// Whether weight decay is for batchnorms and biases too. Default true.
    pub wd_bn_bias: bool,
    /// The most that the norm of all gradients together may be; larger ones are shortened to it. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f32>,
    /// Batches of a step, at least 1. Their gradients are averaged over all their samples, as one large batch's would
    /// be, but each batch has batchnorm statistics (and with class weights a mean) of its own. The batches left at the
    /// end of an epoch make a smaller step. Steps are what schedules and records count. Default 1.
    pub accumulate: usize,
    /// The α of MixUp (fastai 2: 0.4): each sample takes in a share of another of its batch, and so does its label. On
    /// cached activations too. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f32>,
    /// The α of CutMix (fastai 2: 1): each image takes in a box of another's pixels. With MixUp too, half of the
    /// batches get the one and half the other. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f32>,
    /// The decay of an exponential moving average of the weights. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f32>,
    /// The first epoch, counted from 1, whose weights go into an average over epochs. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swa: Option<usize>,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::default(),
            wd_bn_bias: true,
            clip_grad: None,
            accumulate: 1,
            mixup: None,
            cutmix: None,
            ema: None,
            swa: None,
        }
    }
}

impl StepOptions {
    /// `optimizer` as these options want it.
    pub(super) fn equip(&self, optimizer: Optimizer) -> Optimizer {
        optimizer.wd_bn_bias(self.wd_bn_bias).clip_grad(self.clip_grad)
    }

    /// # Errors
    /// [`Error::Setting`] naming a value that makes no sense.
    pub(super) fn validate(&self) -> Result<()> {
        if let Some(norm) = self.clip_grad.filter(|norm| !(norm.is_finite() && *norm > 0.0)) {
            return Err(Error::setting("clip_grad", format!("{norm} is no norm; give a finite value above 0")));
        }
        if self.accumulate == 0 {
            return Err(Error::setting("accumulate", "0 batches make no step; give at least 1"));
        }
        if let Some(decay) = self.ema.filter(|decay| !(0.0..1.0).contains(decay)) {
            return Err(Error::setting("ema", format!("{decay} is no decay; give a number from 0 to below 1")));
        }
        self.validate_mixing()
    }

    /// Whether many of its steps may be made at once.
    pub(super) fn are_plain(&self) -> bool {
        self.clip_grad.is_none() && self.accumulate == 1 && self.mixup.or(self.cutmix).or(self.ema).is_none()
    }

    /// Steps that so many batches make.
    pub(super) fn steps(&self, batches: usize) -> usize {
        batches.div_ceil(self.accumulate.max(1))
    }
}

impl Fit {
    /// How its steps are made, all at once; the other methods set one of these options each.
    pub fn options(mut self, options: StepOptions) -> Self {
        self.options = options;
        self
    }

    /// The update rule. Default SGD with momentum 0.9. Each fit starts with fresh state, as in fastai 0.7.
    pub fn optimizer(mut self, kind: OptimizerKind) -> Self {
        self.options.optimizer = kind;
        self
    }

    /// Whether weight decay is for batchnorms and biases too, not for the weights of convolutions and linear layers
    /// alone: fastai 2's option of this name. Default true, as in fastai 0.7.
    pub fn wd_bn_bias(mut self, on: bool) -> Self {
        self.options.wd_bn_bias = on;
        self
    }
    /// Bounds the norm of all gradients together, which are shortened to it where it is larger: PyTorch's
    /// `clip_grad_norm_`, fastai's `clip`. Default: any norm.
    pub fn clip_grad(mut self, norm: f32) -> Self {
        self.options.clip_grad = Some(norm);
        self
    }
    /// Makes a step of the gradients of so many batches: see [`StepOptions::accumulate`]. On a GPU such steps are
    /// launched one operation after another. Default 1.
    pub fn accumulate(mut self, batches: usize) -> Self {
        self.options.accumulate = batches;
        self
    }
    /// Mixes the samples of each batch by MixUp: see [`StepOptions::mixup`] and [`Mixing`](super::Mixing). The loss of
    /// the records is that of the mixed batches; validation is of clean ones. Default: none.
    pub fn mixup(mut self, alpha: f32) -> Self {
        self.options.mixup = Some(alpha);
        self
    }

    /// Mixes the images of each batch by CutMix: see [`StepOptions::cutmix`] and [`Mixing`](super::Mixing). It has no
    /// effect on cached activations, which a note says. Default: none.
    pub fn cutmix(mut self, alpha: f32) -> Self {
        self.options.cutmix = Some(alpha);
        self
    }
    /// Follows the weights of trained layer groups, batchnorm statistics included, with an exponential moving average:
    /// `ema += (1 − decay) · (weights − ema)` after each step, from where the fit begins, as timm's `ModelEmaV2` (whose
    /// decay of 0.9998 averages over some 5000 steps). See [`Learner::swap_average`](super::Learner::swap_average).
    /// Default: none.
    pub fn ema(mut self, decay: f32) -> Self {
        self.options.ema = Some(decay);
        self
    }

    /// Averages the weights at the ends of epochs, or in a fit of cycles at their ends, from epoch `start` on, counted
    /// from 1 as fastai 0.7's `swa_start`: stochastic weight averaging (Izmailov et al. 2018,
    /// [arXiv 1803.05407](https://arxiv.org/abs/1803.05407)). When the fit is over, one pass over the training set
    /// estimates the batchnorm statistics of the average. See
    /// [`Learner::swap_average`](super::Learner::swap_average). Default: none.
    pub fn swa(mut self, start: usize) -> Self {
        self.options.swa = Some(start);
        self
    }
}
