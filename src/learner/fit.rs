//! What a fit should do.

use std::path::PathBuf;

use super::{EarlyStopping, ReduceLrOnPlateau, StepOptions};
use crate::{
    Error, Result,
    optim::{Decay, FreezeOut, OneCycle, PerGroup, Point, Schedule, Triangle, TriangleTail, WarmUp},
};

/// Options of one fit: epochs at a constant rate, or cycles of SGD with restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    pub(super) phase: String,
    pub(super) lr: PerGroup,
    pub(super) weight_decay: PerGroup,
    pub(super) options: StepOptions,
    pub(super) snapshots: Option<PathBuf>,
    pub(super) warm_up: Option<WarmUp>,
    pub(super) stop_div: bool,
    pub(super) freeze_out: Option<FreezeOut>,
    pub(super) early_stopping: Option<EarlyStopping>,
    pub(super) reduce_on_plateau: Option<ReduceLrOnPlateau>,
    length: Length,
    curve: Option<Curve>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Length {
    Epochs(usize),
    Cycles { count: usize, len: usize, mult: usize },
}

/// What the learning rate follows, where it is neither constant nor SGD with restarts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Curve {
    Triangular(Triangle),
    TriangularTail(TriangleTail),
    OneCycle(OneCycle),
    FlatCosine { flat: f64, div_final: f64 },
    Decaying { lr: (Decay, f64), momentum: Option<(Decay, [f64; 2])> },
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
            options: StepOptions::default(),
            snapshots: None,
            warm_up: None,
            stop_div: false,
            freeze_out: None,
            early_stopping: None,
            reduce_on_plateau: None,
            length,
            curve: None,
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

    /// Cycles of straight lines instead of cosines, as fastai 0.7's `use_clr`: see [`Schedule::Triangular`].
    pub fn triangular(self, shape: Triangle) -> Self {
        Self { curve: Some(Curve::Triangular(shape)), ..self }
    }

    /// Cycles of straight lines that end in a tail, as fastai 0.7's `use_clr_beta`: see [`Schedule::TriangularTail`].
    pub fn triangular_tail(self, shape: TriangleTail) -> Self {
        Self { curve: Some(Curve::TriangularTail(shape)), ..self }
    }

    /// One cycle of half cosines over all epochs, momentum against the rate, as fastai 2's `fit_one_cycle`: see
    /// [`Schedule::OneCycle`].
    ///
    /// ```
    /// # use unfreeze::{learner::Fit, optim::OneCycle};
    /// let fit = Fit::epochs(3).lr(3e-3).one_cycle(OneCycle::default());
    /// assert_eq!(fit.total_epochs()?, 3);
    /// # Ok::<_, unfreeze::Error>(())
    /// ```
    pub fn one_cycle(self, shape: OneCycle) -> Self {
        Self { curve: Some(Curve::OneCycle(shape)), ..self }
    }

    /// A constant rate that falls along a half cosine after a share `flat` of the steps, to one in `div_final`, as
    /// fastai 2's `fit_flat_cos` (0.75 and 1e5 there).
    pub fn flat_cosine(self, flat: f64, div_final: f64) -> Self {
        Self { curve: Some(Curve::FlatCosine { flat, div_final }), ..self }
    }

    /// The way of the rate, with the factor on it that it leads to, and that of the momentum, with its ends.
    pub(super) fn decaying(self, lr: (Decay, f64), momentum: Option<(Decay, [f64; 2])>) -> Self {
        Self { curve: Some(Curve::Decaying { lr, momentum }), ..self }
    }

    /// Whether the fit ends at the step whose smoothed loss is more than four times the lowest, as with fastai 0.7's
    /// `stop_div`. The loss is smoothed anew in each epoch. One that is no number is an error in any case. Default
    /// false.
    pub fn stop_div(self, on: bool) -> Self {
        Self { stop_div: on, ..self }
    }

    /// Freezes the trainable layer groups one after the other, the first ones first, each with a rate of its own
    /// course; for so many epochs at a constant rate otherwise. After the fit they are trainable again. With
    /// [`Grouping::PerBlock`](crate::nn::Grouping::PerBlock) groups are the paper's layers. Default: none.
    pub fn freeze_out(self, options: FreezeOut) -> Self {
        Self { freeze_out: Some(options), ..self }
    }

    /// Ends the fit early where it no longer gets better. Default: never.
    pub fn early_stopping(self, options: EarlyStopping) -> Self {
        Self { early_stopping: Some(options), ..self }
    }

    /// Lowers the rates where the fit no longer gets better, on top of the schedule. Default: never.
    pub fn reduce_on_plateau(self, options: ReduceLrOnPlateau) -> Self {
        Self { reduce_on_plateau: Some(options), ..self }
    }

    /// Rates that rise to those of the schedule in the first steps, whichever it is. Default: none.
    ///
    /// ```
    /// # use unfreeze::{learner::Fit, optim::WarmUp};
    /// let fit = Fit::cycles(3).cycle_len(2).warm_up(WarmUp::epochs(0.5));
    /// # fit.total_epochs()?;
    /// # Ok::<_, unfreeze::Error>(())
    /// ```
    pub fn warm_up(self, warm_up: WarmUp) -> Self {
        Self { warm_up: Some(warm_up), ..self }
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

    /// Writes the network to `prefix-1.safetensors`, `prefix-2.safetensors` and so on, after the last step of each
    /// cycle (of the fit, where it has none): see [`Ensemble`](super::Ensemble). Default: none.
    pub fn snapshots(self, prefix: impl Into<PathBuf>) -> Self {
        Self { snapshots: Some(prefix.into()), ..self }
    }

    /// A name for the records. Default `fit`.
    pub fn phase(mut self, name: impl Into<String>) -> Self {
        self.phase = name.into();
        self
    }

    /// Epochs in all: `len · (1 + mult + mult² + …)` for cycles.
    ///
    /// # Errors
    /// [`Error::Setting`] if that is nothing, or absurdly much, or the schedule makes no sense.
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
            (_, Some(total)) if total <= MOST => {
                self.warm_up.map_or(Ok(()), |warm_up| warm_up.check(total, None))?;
                self.early_stopping.as_ref().map_or(Ok(()), EarlyStopping::check)?;
                self.reduce_on_plateau.as_ref().map_or(Ok(()), ReduceLrOnPlateau::check)?;
                self.check_freeze_out()?;
                self.check_curve().map(|()| total)
            }
            _ => Err(Error::setting("cycles", format!("the cycles add up to more than {MOST} epochs"))),
        }
    }

    fn check_freeze_out(&self) -> Result<()> {
        let Some(options) = &self.freeze_out else { return Ok(()) };
        if self.curve.is_some() || matches!(self.length, Length::Cycles { .. }) {
            let message = "freezing layers one after the other has a schedule of its own; give epochs and no other";
            return Err(Error::setting("freeze_out", message));
        }
        options.check()
    }

    /// Whether length and shape of the schedule make sense together.
    fn check_curve(&self) -> Result<()> {
        let Some(curve) = self.curve else { return Ok(()) };
        let cycles = matches!(curve, Curve::Triangular(_) | Curve::TriangularTail(_));
        if let Length::Cycles { count, mult, .. } = self.length {
            if cycles && mult > 1 {
                let message = format!("{mult}, but cycles of straight lines are all of one length; give 1");
                return Err(Error::setting("cycle_mult", message));
            }
            if !cycles && count > 1 {
                let message = format!("{count} cycles, but the schedule is one over all epochs; give epochs instead");
                return Err(Error::setting("cycles", message));
            }
        }
        let divisors = match curve {
            Curve::Triangular(Triangle { div, .. }) | Curve::TriangularTail(TriangleTail { div, .. }) => [div; 2],
            Curve::OneCycle(OneCycle { div, div_final, .. }) => [div, div_final],
            Curve::FlatCosine { div_final, .. } => [div_final; 2],
            Curve::Decaying { .. } => [1.0; 2],
        };
        if let Some(div) = divisors.into_iter().find(|div| !(*div >= 1.0 && div.is_finite())) {
            return Err(Error::setting("schedule", format!("the rate is divided by {div}; give a number from 1 on")));
        }
        let share = match curve {
            Curve::Triangular(_) | Curve::Decaying { .. } => 0.0,
            Curve::TriangularTail(TriangleTail { tail_percent, .. }) => tail_percent / 100.0,
            Curve::OneCycle(OneCycle { rising, .. }) => rising,
            Curve::FlatCosine { flat, .. } => flat,
        };
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::setting("schedule", format!("a part of it takes {share} of the steps; give 0 to 1")));
        }
        let momenta = match curve {
            Curve::Triangular(Triangle { momentum, .. }) | Curve::TriangularTail(TriangleTail { momentum, .. }) => {
                momentum.map(Vec::from)
            }
            Curve::OneCycle(OneCycle { momentum, .. }) => momentum.map(Vec::from),
            Curve::Decaying { momentum, .. } => momentum.map(|(_, ends)| Vec::from(ends)),
            Curve::FlatCosine { .. } => None,
        };
        match momenta.unwrap_or_default().into_iter().find(|momentum| !(0.0..1.0).contains(momentum)) {
            Some(momentum) => Err(Error::setting("momentum", format!("{momentum} is not in [0, 1)"))),
            None => Ok(()),
        }
    }

    /// Whether stochastic weight averaging takes in the network of an epoch that ends so.
    pub(super) fn averages_at(&self, end: &Point) -> bool {
        matches!(self.length, Length::Epochs(_)) || end.ends_cycle
    }

    pub(super) fn schedule(&self, steps_per_epoch: usize) -> Schedule {
        let (cycles, len, cycle_mult) = self.as_cycles();
        let cycle_steps = len * steps_per_epoch;
        let steps = cycles * cycle_steps;
        match (self.curve, self.length) {
            (Some(Curve::Triangular(shape)), _) => Schedule::Triangular { cycle_steps, cycles, shape },
            (Some(Curve::TriangularTail(shape)), _) => Schedule::TriangularTail { cycle_steps, cycles, shape },
            (Some(Curve::OneCycle(shape)), _) => Schedule::OneCycle { steps, shape },
            (Some(Curve::FlatCosine { flat, div_final }), _) => Schedule::FlatCosine { steps, flat, div_final },
            (Some(Curve::Decaying { lr, momentum }), _) => Schedule::Decaying { steps, lr, momentum },
            (None, Length::Epochs(_)) => Schedule::Constant { steps },
            (None, Length::Cycles { .. }) => Schedule::Restarts { cycle_steps, cycle_mult, cycles },
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

    #[test]
    fn schedules_span_the_fit_and_odd_ones_are_errors() {
        let one = OneCycle::default();
        for (fit, steps) in [
            (Fit::epochs(3), 30),
            (Fit::epochs(3).one_cycle(one), 30),
            (Fit::epochs(3).flat_cosine(0.75, 1e5), 30),
            (Fit::cycles(3).cycle_len(2).triangular(Triangle::default()), 60),
            (Fit::cycles(1).cycle_len(2).triangular_tail(TriangleTail::default()), 20),
            (Fit::cycles(2).cycle_mult(2), 30),
        ] {
            assert_eq!((fit.schedule(10).steps(), fit.total_epochs().unwrap() * 10), (steps, steps), "{fit:?}");
        }
        let triangle = Triangle::default();
        for (fit, named) in [
            (Fit::cycles(2).cycle_mult(2).triangular(triangle), "cycle_mult"),
            (Fit::cycles(2).one_cycle(one), "cycles"),
            (Fit::cycles(1).triangular(Triangle { div: 0.0, ..triangle }), "divided by 0"),
            (Fit::epochs(1).one_cycle(OneCycle { rising: 1.5, ..one }), "1.5"),
            (Fit::epochs(1).flat_cosine(f64::NAN, 1e5), "NaN"),
            (Fit::epochs(2).warm_up(WarmUp::epochs(2.1)), "warm_up: 2.1 epochs, but the fit has 2"),
            (Fit::epochs(2).warm_up(WarmUp::epochs(f64::NAN)), "warm_up: NaN"),
            (Fit::epochs(2).warm_up(WarmUp::steps(1).start_div(0.5)), "warm_up: the first rate is divided by 0.5"),
            (Fit::epochs(1).one_cycle(OneCycle { momentum: Some([0.9, 1.0, 0.9]), ..one }), "momentum"),
        ] {
            let error = fit.total_epochs().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
