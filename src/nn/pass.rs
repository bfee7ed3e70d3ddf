//! One pass through a network: its tape, its mode, its randomness, and the batch statistics it met.

use std::sync::Arc;

use crate::{
    autograd::{Parameter, Tape, Var},
    ops::batchnorm::Moments,
    random::Random,
};

/// What layers need beside their input. A forward pass changes nothing in the network: batch statistics are collected
/// here and applied by [`Model::update_statistics`](super::Model::update_statistics).
pub struct Pass {
    /// Where operations are recorded.
    pub tape: Tape,
    training: bool,
    seed: u64,
    step: u64,
    statistics: Vec<(Arc<str>, Moments)>,
}

impl Pass {
    /// A training pass: gradients are recorded, dropout is active (its masks decided by `seed` and `step`), trainable
    /// batchnorms use batch statistics.
    pub fn training(seed: u64, step: u64) -> Self {
        Self { tape: Tape::new(), training: true, seed, step, statistics: Vec::new() }
    }

    /// An evaluation pass: no gradients, no dropout, running statistics.
    pub fn evaluation() -> Self {
        Self { tape: Tape::inference(), training: false, seed: 0, step: 0, statistics: Vec::new() }
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

    /// The random stream of a layer in this step.
    pub(super) fn random(&self, layer: &str) -> Random {
        Random::stream(self.seed, layer, &[self.step])
    }
}
