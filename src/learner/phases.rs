//! A training in phases, each with settings of its own.

use std::ops::Range;

use super::{EpochRecord, Fit, Learner, train::Fitted};
use crate::{
    Error, Result,
    data::ImageData,
    optim::{Decay, OptimizerKind, PerGroup},
};

/// A phase of [`Learner::fit_phases`], as fastai 0.7's `TrainingPhase`.
#[derive(Clone, Debug)]
pub struct Phase {
    epochs: usize,
    lr: PerGroup,
    lr_end: Option<(f32, Decay)>,
    momentum: Option<f32>,
    momentum_end: Option<(f32, Decay)>,
    weight_decay: PerGroup,
    optimizer: OptimizerKind,
    freeze_to: Option<isize>,
    data: Option<ImageData>,
    stop_div: bool,
    name: Option<String>,
}

impl Phase {
    /// A phase of so many epochs.
    pub fn epochs(count: usize) -> Self {
        Self {
            epochs: count,
            lr: PerGroup::All(1e-2),
            lr_end: None,
            momentum: None,
            momentum_end: None,
            weight_decay: PerGroup::All(0.0),
            optimizer: OptimizerKind::default(),
            freeze_to: None,
            data: None,
            stop_div: false,
            name: None,
        }
    }

    /// Learning rates, as [`Fit::lr`]. Default 0.01.
    pub fn lr(self, lr: impl Into<PerGroup>) -> Self {
        Self { lr: lr.into(), ..self }
    }

    /// The last layer group's rate at the end of the phase, and the way there; the others keep their ratio to it.
    /// Default: rates stay as they are.
    pub fn lr_to(self, lr: f32, decay: Decay) -> Self {
        Self { lr_end: Some((lr, decay)), ..self }
    }

    /// Momentum, or AdamW's β₁. Default: the optimizer's own.
    pub fn momentum(self, momentum: f32) -> Self {
        Self { momentum: Some(momentum), ..self }
    }

    /// The momentum at the end of the phase, and the way there. Default: it stays as it is.
    pub fn momentum_to(self, momentum: f32, decay: Decay) -> Self {
        Self { momentum_end: Some((momentum, decay)), ..self }
    }

    /// Weight decays, as [`Fit::wd`]. Default 0.
    pub fn wd(self, weight_decay: impl Into<PerGroup>) -> Self {
        Self { weight_decay: weight_decay.into(), ..self }
    }

    /// The update rule. Default SGD with momentum 0.9. Each phase starts with fresh state, as each fit.
    pub fn optimizer(self, kind: OptimizerKind) -> Self {
        Self { optimizer: kind, ..self }
    }

    /// Freezes all layer groups before `first`, as [`Learner::freeze_to`]. Default: what is frozen stays so.
    pub fn freeze_to(self, first: isize) -> Self {
        Self { freeze_to: Some(first), ..self }
    }

    /// Images to go on with, as [`Learner::set_data`]: larger ones, mostly. Default: those of the phase before.
    pub fn data(self, data: ImageData) -> Self {
        Self { data: Some(data), ..self }
    }

    /// As [`Fit::stop_div`]; the phases after this one are then left out. Default false.
    pub fn stop_div(self, on: bool) -> Self {
        Self { stop_div: on, ..self }
    }

    /// A name for the records. Default `phase-N`, counted from 1.
    pub fn phase(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// What it asks for as phase `number`.
    fn fit(&self, number: usize) -> Result<Fit> {
        let name = self.name.clone().unwrap_or_else(|| format!("phase-{number}"));
        let fit = Fit::epochs(self.epochs).lr(self.lr.clone()).wd(self.weight_decay.clone()).optimizer(self.optimizer);
        let (lr, momentum) = (self.lr_course()?, self.momentum_course()?);
        Ok(fit.stop_div(self.stop_div).phase(name).decaying(lr, momentum))
    }

    /// The way of the rates, and the factor on them at its end.
    fn lr_course(&self) -> Result<(Decay, f64)> {
        let Some((end, decay)) = self.lr_end else { return Ok((Decay::Constant, 1.0)) };
        let start = self.lr.last();
        check("lr", decay, start, end)?;
        if start <= 0.0 {
            let message = "the last layer group's rate must be positive to end at another, since the others follow it";
            return Err(Error::setting("lr", message));
        }
        Ok((decay, f64::from(end) / f64::from(start)))
    }

    fn momentum_course(&self) -> Result<Option<(Decay, [f64; 2])>> {
        if self.momentum.is_none() && self.momentum_end.is_none() {
            return Ok(None);
        }
        let start = self.momentum.unwrap_or(self.optimizer.momentum());
        let (end, decay) = self.momentum_end.unwrap_or((start, Decay::Constant));
        check("momentum", decay, start, end)?;
        Ok(Some((decay, [f64::from(start), f64::from(end)])))
    }
}

/// Whether `decay` leads from `start` to `end`.
fn check(setting: &str, decay: Decay, start: f32, end: f32) -> Result<()> {
    if !(end >= 0.0 && end.is_finite()) {
        return Err(Error::setting(setting, format!("ends at {end}; give a finite value from 0 up")));
    }
    match decay {
        Decay::Exponential if start <= 0.0 || end <= 0.0 => {
            let message = format!("falls exponentially from {start} to {end}; both must be positive");
            Err(Error::setting(setting, message))
        }
        Decay::Polynomial(power) if !(power > 0.0 && power.is_finite()) => {
            Err(Error::setting(setting, format!("falls as the power {power}; give a positive one")))
        }
        _ => Ok(()),
    }
}

impl Learner {
    /// Trains in phases, each with its own epochs, optimizer, rates, frozen groups and images, as fastai 0.7's
    /// `fit_opt_sched`, and returns the records of all. A callback that ends a phase ends the training.
    ///
    /// ```no_run
    /// use unfreeze::{learner::Phase, optim::Decay, prelude::*};
    /// # fn with(learner: &mut Learner, larger: ImageData) -> unfreeze::Result<()> {
    /// learner.fit_phases([
    ///     Phase::epochs(2).lr(1e-2).freeze_to(-1),
    ///     Phase::epochs(3).lr([1e-4, 1e-3, 1e-2]).lr_to(1e-5, Decay::Cosine).freeze_to(0),
    ///     Phase::epochs(1).lr([1e-5, 1e-4, 1e-3]).momentum_to(0.5, Decay::Linear).data(larger),
    /// ])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] and [`Error::Data`], before anything is trained, for a phase that makes no sense; as
    /// [`Learner::fit`].
    pub fn fit_phases(&mut self, phases: impl IntoIterator<Item = Phase>) -> Result<&[EpochRecord]> {
        let phases: Vec<Phase> = phases.into_iter().collect();
        let fits = self.check_phases(&phases)?;
        let mut made: Option<Range<usize>> = None;
        for (phase, fit) in phases.into_iter().zip(fits) {
            if let Some(first) = phase.freeze_to {
                self.freeze_to(first)?;
            }
            if let Some(data) = phase.data {
                self.set_data(data)?;
            }
            let Fitted { records, stopped } = self.fitted(fit)?;
            made = Some(made.map_or(records.start, |made| made.start)..records.end);
            if stopped {
                break;
            }
        }
        Ok(&self.history[made.unwrap_or_default()])
    }

    /// The fits of phases, if all of them make sense.
    fn check_phases(&self, phases: &[Phase]) -> Result<Vec<Fit>> {
        if phases.is_empty() {
            return Err(Error::setting("phases", "there are none; give at least one"));
        }
        let mut state = self.state.clone();
        let check = |(index, phase): (usize, &Phase)| {
            if let Some(first) = phase.freeze_to {
                state.freeze_to(first)?;
            }
            if let Some(data) = &phase.data {
                self.check_data(data)?;
            }
            let fit = phase.fit(index + 1)?;
            fit.total_epochs()?;
            fit.lr.resolve("lr", &state)?;
            fit.weight_decay.resolve("wd", &state)?;
            Ok(fit)
        };
        phases.iter().enumerate().map(check).collect()
    }
}
