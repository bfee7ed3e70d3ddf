//! FreezeOut in a fit: layer groups that are frozen one after the other.

use super::Learner;
use crate::{nn::FreezeState, optim::FreezeOut};

/// When which layer group of a fit is frozen.
pub(super) struct Freezing {
    options: FreezeOut,
    /// The share of the fit after which each group is; 0 for those that were from the start.
    ends: Vec<f64>,
    steps: usize,
}

impl Freezing {
    /// Of the trainable groups of `state`, in a fit of so many steps.
    pub fn new(options: FreezeOut, state: &FreezeState, steps: usize) -> Self {
        let groups = 0..state.names().len();
        let trainable = groups.clone().filter(|group| state.is_trainable(*group)).count();
        let mut ends = options.ends(trainable).into_iter();
        let end = |group| if state.is_trainable(group) { ends.next().unwrap_or(1.0) } else { 0.0 };
        Self { options, ends: groups.map(end).collect(), steps }
    }

    /// The factor on the rate of `group` at `step`, counted from 0.
    pub fn factor(&self, group: usize, step: usize) -> f64 {
        let end = self.ends.get(group).copied().unwrap_or_default();
        self.options.factor(end, step as f64 / self.steps.max(1) as f64)
    }
}

impl Learner {
    /// Freezes the groups whose rates have ended by `step`.
    pub(super) fn freeze_out(&mut self, freezing: Option<&Freezing>, step: usize) {
        let Some(freezing) = freezing else { return };
        let ended = |group: &usize| self.state.is_trainable(*group) && freezing.factor(*group, step) == 0.0;
        let ended: Vec<usize> = (0..self.state.names().len()).filter(ended).collect();
        if !ended.is_empty() {
            ended.into_iter().for_each(|group| self.state.freeze_group(group));
            self.apply();
        }
    }
}
