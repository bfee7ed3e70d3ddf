//! A warm-up in front of a schedule.

use super::linear;
use crate::{Error, Result};

/// Rates that rise in a straight line to those of the schedule, as torch's `LinearLR` chained with it: a factor from
/// `1 / div` at the first step to 1 at the step after the last (Goyal et al. 2017). The schedule itself is not moved,
/// so that cycles still end where epochs do.
///
/// ```
/// use unfreeze::optim::WarmUp;
/// let rising: Vec<f64> = (0..4).map(|step| WarmUp::epochs(0.5).at(step, 6)).collect();
/// assert_eq!(rising, [0.25, 0.5, 0.75, 1.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WarmUp {
    length: Length,
    div: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Length {
    Steps(usize),
    Epochs(f64),
}

impl WarmUp {
    /// Over so many steps.
    pub fn steps(count: usize) -> Self {
        Self { length: Length::Steps(count), div: 4.0 }
    }

    /// Over so many epochs, or such a part of one.
    pub fn epochs(count: f64) -> Self {
        Self { length: Length::Epochs(count), div: 4.0 }
    }

    /// What the rates are divided by at the first step. Default 4, as in fastai 0.7's `warm_up`.
    pub fn start_div(self, div: f64) -> Self {
        Self { div, ..self }
    }

    /// The factor on the rates of `step`, counted from 0, where an epoch has `epoch_steps`.
    pub fn at(&self, step: usize, epoch_steps: usize) -> f64 {
        let steps = self.length(epoch_steps);
        if step as f64 >= steps { 1.0 } else { linear(1.0 / self.div, 1.0, step as f64 / steps) }
    }

    /// Its steps.
    fn length(&self, epoch_steps: usize) -> f64 {
        match self.length {
            Length::Steps(count) => count as f64,
            Length::Epochs(count) => (count * epoch_steps as f64).round(),
        }
    }

    /// Whether it makes sense in a fit of so many epochs, each of so many steps where that is known.
    pub(crate) fn check(&self, epochs: usize, epoch_steps: Option<usize>) -> Result<()> {
        if !(self.div >= 1.0 && self.div.is_finite()) {
            let message = format!("the first rate is divided by {}; give a number from 1 on", self.div);
            return Err(Error::setting("warm_up", message));
        }
        let (longer, what) = match self.length {
            Length::Epochs(count) => (!(0.0..=epochs as f64).contains(&count), format!("{count} epochs")),
            Length::Steps(count) => (epoch_steps.is_some_and(|steps| count > epochs * steps), format!("{count} steps")),
        };
        match longer {
            true => Err(Error::setting("warm_up", format!("{what}, but the fit has {epochs} epochs; give fewer"))),
            false => Ok(()),
        }
    }
}
