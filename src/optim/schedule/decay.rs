//! How a value falls, or rises, over a phase of training.

use super::{cosine, linear};

/// The way from a first value to a last one, as fastai 0.7's `DecayType`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Decay {
    /// The first value throughout.
    #[default]
    Constant,
    /// A straight line.
    Linear,
    /// Half a cosine.
    Cosine,
    /// The same factor at each step; both values must be positive.
    Exponential,
    /// As a power of what is left of the way.
    Polynomial(f64),
}

impl Decay {
    /// The value at `at` of the way from `from` to `to`, 0 at the first step and 1 after the last.
    pub fn between(self, from: f64, to: f64, at: f64) -> f64 {
        match self {
            Decay::Constant => from,
            Decay::Linear => linear(from, to, at),
            Decay::Cosine => cosine(from, to, at),
            Decay::Exponential => from * (to / from).powf(at),
            Decay::Polynomial(power) => to + (from - to) * (1.0 - at).max(0.0).powf(power),
        }
    }
}
