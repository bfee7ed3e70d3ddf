//! What a fit should do.

use crate::{
    Error, Result,
    optim::{OptimizerKind, PerGroup, Schedule},
};

/// Options of one fit: epochs at a constant rate, or cycles of SGD with restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    pub(super) phase: String,
    pub(super) lr: PerGroup,
    pub(super) weight_decay: PerGroup,
    pub(super) optimizer: OptimizerKind,
    length: Length,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Length {
    Epochs(usize),
    Cycles { count: usize, len: usize, mult: usize },
}

impl Fit {
    /// So many epochs at a constant learning rate.
    pub fn epochs(count: usize) -> Self {
        Self::new(Length::Epochs(count))
    }

    /// So many cycles, in each of which the rate falls along a cosine; see [`Schedule::Restarts`].
    pub fn cycles(count: usize) -> Self {
        Self::new(Length::Cycles { count, len: 1, mult: 1 })
    }

    fn new(length: Length) -> Self {
        Self {
            phase: "fit".into(),
            lr: PerGroup::All(1e-2),
            weight_decay: PerGroup::All(0.0),
            optimizer: OptimizerKind::default(),
            length,
        }
    }

    /// Epochs of the first cycle. Default 1. Turns epochs into as many cycles.
    pub fn cycle_len(mut self, epochs: usize) -> Self {
        let (count, _, mult) = self.as_cycles();
        self.length = Length::Cycles { count, len: epochs, mult };
        self
    }

    /// How much longer each cycle is than the one before. Default 1. Turns epochs into as many cycles.
    pub fn cycle_mult(mut self, factor: usize) -> Self {
        let (count, len, _) = self.as_cycles();
        self.length = Length::Cycles { count, len, mult: factor };
        self
    }

    /// Learning rates: one value, one per layer group, or `PerGroup::Range`. Default 0.01.
    pub fn lr(mut self, lr: impl Into<PerGroup>) -> Self {
        self.lr = lr.into();
        self
    }

    /// Weight decays, as [`Fit::lr`]. Default 0.
    pub fn wd(mut self, weight_decay: impl Into<PerGroup>) -> Self {
        self.weight_decay = weight_decay.into();
        self
    }

    /// The update rule. Default SGD with momentum 0.9. Each fit starts with fresh state, as in fastai 0.7.
    pub fn optimizer(mut self, kind: OptimizerKind) -> Self {
        self.optimizer = kind;
        self
    }

    /// A name for the records. Default `fit`.
    pub fn phase(mut self, name: impl Into<String>) -> Self {
        self.phase = name.into();
        self
    }

    /// Epochs in all: `len · (1 + mult + mult² + …)` for cycles.
    ///
    /// # Errors
    /// [`Error::Setting`] if that is nothing, or absurdly much.
    pub fn total_epochs(&self) -> Result<usize> {
        const MOST: usize = 1_000_000;
        let total = match self.length {
            Length::Epochs(count) => Some(count),
            Length::Cycles { count, len, mult } => (0..count.min(MOST))
                .try_fold((0usize, len), |(sum, len), _| Some((sum.checked_add(len)?, len.checked_mul(mult.max(1))?)))
                .map(|(sum, _)| sum),
        };
        match (self.length, total) {
            (Length::Epochs(0), _) => Err(Error::setting("epochs", "0 trains nothing; give at least 1")),
            (Length::Cycles { count, len, mult }, _) if [count, len, mult].contains(&0) => {
                let message = format!("{count} cycles of {len} epochs, times {mult}: each must be at least 1");
                Err(Error::setting("cycles", message))
            }
            (_, Some(total)) if total <= MOST => Ok(total),
            _ => Err(Error::setting("cycles", format!("the cycles add up to more than {MOST} epochs"))),
        }
    }

    pub(super) fn schedule(&self, steps_per_epoch: usize) -> Schedule {
        match self.length {
            Length::Epochs(count) => Schedule::Constant { steps: count * steps_per_epoch },
            Length::Cycles { count, len, mult } => {
                Schedule::Restarts { cycle_steps: len * steps_per_epoch, cycle_mult: mult, cycles: count }
            }
        }
    }

    fn as_cycles(&self) -> (usize, usize, usize) {
        match self.length {
            Length::Epochs(count) => (count, 1, 1),
            Length::Cycles { count, len, mult } => (count, len, mult),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_add_up_as_in_fastai() -> Result<()> {
        // a·n if r = 1, else a·(1 − rⁿ) / (1 − r)
        assert_eq!(Fit::epochs(4).total_epochs()?, 4);
        assert_eq!(Fit::cycles(3).cycle_len(2).total_epochs()?, 6);
        assert_eq!(Fit::cycles(3).cycle_len(1).cycle_mult(2).total_epochs()?, 7);
        assert_eq!(Fit::cycles(2).cycle_len(2).cycle_mult(3).total_epochs()?, 8);
        for nothing in [Fit::epochs(0), Fit::cycles(0), Fit::cycles(1).cycle_len(0), Fit::cycles(99).cycle_mult(9)] {
            assert!(nothing.total_epochs().is_err());
        }
        assert!(Fit::cycles(usize::MAX).cycle_len(2).total_epochs().is_err(), "too many to multiply");
        Ok(())
    }
}
