//! One pass through a network: its tape, its mode, its randomness, and the batch statistics it met.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    autograd::{Parameter, Tape, Var},
    ops::{
        batchnorm::Moments,
        dropout::{Stream, dropout},
    },
    random::Random,
};

/// What layers need beside their input. A forward pass changes nothing in the network: batch statistics are collected
/// here and applied by [`Model::update_statistics`](super::Model::update_statistics).
pub struct Pass {
    /// Where operations are recorded.
    pub tape: Tape,
    training: bool,
    seed: u64,
    step: Number,
    statistics: Vec<(Arc<str>, Moments)>,
}

/// Number of a step.
enum Number {
    Known(u64),
    /// It lies on the device, as [`Stream::of_step`] takes it.
    Resident(Tensor),
}

impl Pass {
    /// A training pass: gradients are recorded, dropout is active (its masks decided by `seed` and `step`), trainable
    /// batchnorms use batch statistics.
    pub fn training(seed: u64, step: u64) -> Self {
        Self::of_step(seed, Number::Known(step))
    }

    /// As [`Pass::training`], for a pass to be captured: the step's number lies in `step`, u32 `[2]`, its lower half
    /// first.
    pub(crate) fn captured(seed: u64, step: Tensor) -> Self {
        Self::of_step(seed, Number::Resident(step))
    }

    fn of_step(seed: u64, step: Number) -> Self {
        Self { tape: Tape::new(), training: true, seed, step, statistics: Vec::new() }
    }

    /// A training pass of which no gradients are wanted, for its batch statistics alone.
    pub(crate) fn statistics(seed: u64, step: u64) -> Self {
        Self { tape: Tape::inference(), ..Self::training(seed, step) }
    }

    /// An evaluation pass: no gradients, no dropout, running statistics.
    pub fn evaluation() -> Self {
        Self { tape: Tape::inference(), training: false, seed: 0, step: Number::Known(0), statistics: Vec::new() }
    }

    /// Whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// The batch statistics met so far, by batchnorm name; leaves none behind.
    pub fn take_statistics(&mut self) -> Vec<(Arc<str>, Moments)> {
        std::mem::take(&mut self.statistics)
    }

    pub(super) fn parameter(&mut self, parameter: &Parameter) -> Var {
        self.tape.parameter(parameter)
    }

    pub(super) fn report(&mut self, norm: &Arc<str>, moments: Moments) {
        self.statistics.push((norm.clone(), moments));
    }

    /// `input` with elements dropped, in training, by the random stream of `layer` in this step.
    pub(super) fn dropout(&mut self, layer: &str, input: &Var, p: f32) -> Result<Var> {
        if !self.training {
            return Ok(input.clone());
        }
        let stream = match &self.step {
            Number::Known(step) => Stream::from(&Random::stream(self.seed, layer, &[*step])),
            Number::Resident(step) => Stream::of_step(Random::stream(self.seed, layer, &[]), step.clone()),
        };
        dropout(&mut self.tape, input, p, stream)
    }
}
