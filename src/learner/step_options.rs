//! How a fit makes its steps.

use serde::{Deserialize, Serialize};

use super::Fit;
use crate::optim::{Optimizer, OptimizerKind};

/// What a fit does in each step beside following its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepOptions {
    /// The update rule. Default: SGD with momentum 0.9.
    pub optimizer: OptimizerKind,
    /// Whether weight decay is for batchnorms and biases too. Default true.
    pub wd_bn_bias: bool,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self { optimizer: OptimizerKind::default(), wd_bn_bias: true }
    }
}

impl StepOptions {
    /// `optimizer` as these options want it.
    pub(super) fn equip(&self, optimizer: Optimizer) -> Optimizer {
        optimizer.wd_bn_bias(self.wd_bn_bias)
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
}
