//! Gradual unfreezing.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{EpochRecord, Fit, Learner};
use crate::{Error, Result};

/// How the backbone becomes trainable in the second part of a recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unfreeze {
    /// At its start.
    #[default]
    AtOnce,
    /// One layer group more with each epoch, from the last one: see [`Learner::gradual_unfreeze`].
    Gradual,
}

impl Learner {
    /// Runs `fit` several times, each time with one layer group more that is trained: first those from `first` on, at
    /// last those from `last` on; negative numbers count from the end. An epoch for each group, and then the whole
    /// network, is what Howard & Ruder 2018 ([arXiv 1801.06146](https://arxiv.org/abs/1801.06146)) do. Returns the
    /// records of all; each fit is named after the group that it unfreezes.
    ///
    /// ```no_run
    /// use unfreeze::prelude::*;
    /// # fn with(learner: Learner) -> unfreeze::Result<()> {
    /// let mut learner = learner.grouping(Grouping::PerStage);
    /// learner.fit(Fit::epochs(1).lr(1e-2))?; // the head
    /// learner.gradual_unfreeze(-2, 1, &Fit::cycles(1).lr(PerGroup::Range(1e-5, 1e-3)))?;
    /// learner.unfreeze();
    /// learner.fit(Fit::cycles(3).lr(PerGroup::Range(1e-5, 1e-3)))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if there are no such groups, or `first` comes before `last`; as [`Learner::fit`].
    pub fn gradual_unfreeze(&mut self, first: isize, last: isize, fit: &Fit) -> Result<&[EpochRecord]> {
        let (highest, lowest) = (self.state.position(first)?, self.state.position(last)?);
        if highest < lowest {
            let message =
                format!("group {first} comes before {last}; unfreezing goes from the last group to the first");
            return Err(Error::setting("unfreeze", message));
        }
        let mut made: Option<Range<usize>> = None;
        for group in (lowest..=highest).rev() {
            self.freeze_to(group as isize)?;
            let phase = format!("unfreeze {}", self.state.names()[group]);
            let records = self.fitted(fit.clone().phase(phase))?.records;
            made = Some(made.map_or(records.start, |made| made.start)..records.end);
        }
        Ok(&self.history[made.unwrap_or_default()])
    }
}
