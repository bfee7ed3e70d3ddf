//! Flags that say what a step of training minimises, and how it moves.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use unfreeze::{
    Error, Result,
    learner::{ClassWeights, Learner, Sampling, StepOptions},
    ops::loss::CrossEntropy,
    optim::OptimizerKind,
};

use super::options::{Switch, count};

/// The training step.
#[derive(Args, Clone)]
pub struct StepFlags {
    /// Update rule
    #[arg(long, value_enum, default_value_t = Rule::Sgd)]
    optimizer: Rule,
    /// Momentum of SGD, or AdamW's first beta
    #[arg(long, default_value_t = 0.9, value_name = "M", value_parser = share)]
    momentum: f32,
    /// SGD with Nesterov's look-ahead
    #[arg(long)]
    nesterov: bool,
    /// SGD whose weight decay is kept out of gradient and momentum, as AdamW's always is
    #[arg(long)]
    decouple_wd: bool,
    /// Weight decay for batchnorms and biases too, or for the weights of convolutions and linear layers alone
    #[arg(long, value_enum, default_value_t = Switch::On)]
    wd_bn_bias: Switch,
    /// Shorten the gradients where the norm of all of them together is larger than this
    #[arg(long, value_name = "NORM")]
    clip_grad: Option<f32>,
    /// Make a step of the averaged gradients of N batches, for a larger batch than fits into memory (on a GPU without
    /// graphs); schedule and records count steps
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count)]
    accumulate: usize,
    /// Mix pairs of training samples and their labels, in shares drawn from Beta(ALPHA, ALPHA); 0.4 is usual
    #[arg(long, value_name = "ALPHA")]
    mixup: Option<f32>,
    /// Paste a box of another image into each training image, and mix the labels by its area; 1 is usual. With --mixup
    /// each batch gets one of the two. Without effect on cached activations
    #[arg(long, value_name = "ALPHA")]
    cutmix: Option<f32>,
    #[command(flatten)]
    pub learning: Learning,
}

/// Averages of the weights.
#[derive(Args, Clone)]
pub struct AverageFlags {
    /// Also keep a moving average of the weights, RUN/ema.safetensors, which after each step takes 1 - DECAY of the new
    /// ones, over about 1 / (1 - DECAY) steps; 0.9998 is usual for long trainings
    #[arg(long, value_name = "DECAY")]
    ema: Option<f32>,
    /// Also average the weights at the ends of epochs, or of cycles, from epoch START on, counted from 1 in each part
    /// of the recipe: RUN/swa.safetensors (stochastic weight averaging)
    #[arg(long, value_name = "START", value_parser = count)]
    swa: Option<usize>,
}

/// What is learned from which images.
#[derive(Args, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Learning {
    /// Share of each target that is spread evenly over all classes; 0.1 is usual
    #[arg(long, default_value_t = 0.0, value_name = "E", value_parser = share)]
    label_smoothing: f32,
    /// How much each class counts in the training loss: balanced (inverse to its number of training images), or a
    /// weight for each class in the order of their names
    #[arg(long, value_name = "balanced|V,V")]
    #[serde(skip_serializing_if = "Option::is_none")]
    class_weights: Option<ClassWeights>,
    /// Which training images an epoch sees: shuffled (each once), or weighted (as many, drawn with replacement, each
    /// class as often as any other)
    #[arg(long, default_value_t, value_name = "NAME")]
    sample: Sampling,
}

impl Learning {
    /// `learner` as this says.
    pub fn set(&self, learner: Learner) -> Result<Learner> {
        let loss = CrossEntropy { label_smoothing: self.label_smoothing, ..CrossEntropy::default() };
        let learner = learner.loss(loss).sampling(self.sample);
        match &self.class_weights {
            Some(weights) => learner.class_weights(weights),
            None => Ok(learner),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Rule {
    Sgd,
    Adamw,
}

impl StepFlags {
    /// How steps are made.
    pub fn options(&self) -> Result<StepOptions> {
        let optimizer = match self.optimizer {
            Rule::Sgd => {
                OptimizerKind::Sgd { momentum: self.momentum, nesterov: self.nesterov, decoupled: self.decouple_wd }
            }
            Rule::Adamw if self.nesterov || self.decouple_wd => {
                let message = "adamw has no Nesterov step, and its weight decay is decoupled already; leave out \
                               --nesterov and --decouple-wd";
                return Err(Error::setting("optimizer", message));
            }
            Rule::Adamw => OptimizerKind::adamw().with_momentum(self.momentum),
        };
        Ok(StepOptions {
            optimizer,
            wd_bn_bias: self.wd_bn_bias == Switch::On,
            clip_grad: self.clip_grad,
            accumulate: self.accumulate,
            mixup: self.mixup,
            cutmix: self.cutmix,
            ..StepOptions::default()
        })
    }
}

impl AverageFlags {
    /// `options` with these averages.
    pub fn with(&self, options: StepOptions) -> StepOptions {
        StepOptions { ema: self.ema, swa: self.swa, ..options }
    }
}

/// A share from 0 to below 1.
fn share(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("give a number from 0 to below 1".into()),
    }
}
