//! What is decided from the records of the epochs so far, and from nothing else, so that a resumed run decides the
//! same. After fastai 2's callbacks, with their defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{EpochRecord, Fit, Learner, Metric};
use crate::{Error, Result};

/// Ends a fit when what is watched no longer gets better: fastai 2's `EarlyStoppingCallback`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// `train_loss`, `valid_loss` or the name of a metric. Losses and errors are the better the lower they are, the
    /// others the higher. Default `valid_loss`.
    pub monitor: String,
    /// What counts as better must be so by more than this. Default 0.
    pub min_delta: f32,
    /// Epochs in a row without a new best after which the fit ends. Default 1.
    pub patience: usize,
}

impl Default for EarlyStopping {
    fn default() -> Self {
        Self { monitor: VALID_LOSS.into(), min_delta: 0.0, patience: 1 }
    }
}

impl EarlyStopping {
    /// Whether a fit with these epochs ends.
    pub(super) fn stops(&self, records: &[EpochRecord]) -> bool {
        let waited = bests(records, &self.monitor, self.min_delta).into_iter().rev().take_while(|best| !best).count();
        waited >= self.patience.max(1)
    }

    pub(super) fn check(&self) -> Result<()> {
        check("early_stopping", &self.monitor, self.min_delta)
    }
}

/// Lowers the learning rates of a fit when what is watched no longer gets better: fastai 2's `ReduceLROnPlateau`.
/// Whatever the schedule says is lowered by the same factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReduceLrOnPlateau {
    /// As [`EarlyStopping::monitor`].
    pub monitor: String,
    /// As [`EarlyStopping::min_delta`].
    pub min_delta: f32,
    /// Epochs in a row without a new best after which the rates are lowered, and again after as many more. Default 1.
    pub patience: usize,
    /// What they are divided by. Default 10.
    pub factor: f32,
    /// No group's rate is lowered below this. Default 0.
    pub min_lr: f32,
}

impl Default for ReduceLrOnPlateau {
    fn default() -> Self {
        Self { monitor: VALID_LOSS.into(), min_delta: 0.0, patience: 1, factor: 10.0, min_lr: 0.0 }
    }
}

impl ReduceLrOnPlateau {
    /// A rate after these epochs of a fit.
    pub(super) fn reduced(&self, lr: f32, records: &[EpochRecord]) -> f32 {
        let (mut waited, mut lowered) = (0, lr);
        for best in bests(records, &self.monitor, self.min_delta) {
            waited = if best { 0 } else { waited + 1 };
            if waited >= self.patience.max(1) {
                waited = 0;
                lowered = (lowered / self.factor).max(self.min_lr.min(lr));
            }
        }
        lowered
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(self.factor >= 1.0 && self.factor.is_finite()) {
            let message = format!("divides the rates by {}; give a number from 1 on", self.factor);
            return Err(Error::setting("reduce_on_plateau", message));
        }
        if !(self.min_lr >= 0.0 && self.min_lr.is_finite()) {
            return Err(Error::setting("reduce_on_plateau", format!("{} is no lowest rate", self.min_lr)));
        }
        check("reduce_on_plateau", &self.monitor, self.min_delta)
    }
}

/// Keeps the network of the best epoch in a file: fastai 2's `SaveModelCallback`. Otherwise than there, it is the best
/// of all the learner's epochs, not of each fit, and the network goes on as it is; load the file to go back to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaveModel {
    /// Where to.
    pub path: PathBuf,
    /// As [`EarlyStopping::monitor`].
    pub monitor: String,
    /// As [`EarlyStopping::min_delta`].
    pub min_delta: f32,
}

impl SaveModel {
    /// To `path`, when the loss on the validation set is lower than ever.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), monitor: VALID_LOSS.into(), min_delta: 0.0 }
    }

    /// Whether the last of these epochs is the best so far.
    pub(super) fn is_best(&self, records: &[EpochRecord]) -> bool {
        bests(records, &self.monitor, self.min_delta).last().is_some_and(|best| *best)
    }

    /// Checks that what it watches is recorded.
    ///
    /// # Errors
    /// [`Error::Setting`] listing what is.
    pub fn validate(&self) -> Result<()> {
        check("save_best", &self.monitor, self.min_delta)
    }
}

impl Learner {
    /// Whether `monitor` is something that this learner's epochs record.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `setting`, and what is recorded.
    pub fn check_monitor(&self, setting: &str, monitor: &str) -> Result<()> {
        let known: Vec<String> =
            [TRAIN_LOSS, VALID_LOSS].map(String::from).into_iter().chain(self.measures()).collect();
        match known.iter().any(|name| name == monitor) {
            true => Ok(()),
            false => {
                let message =
                    format!("'{monitor}' is not recorded; give one of {}, or record it too", known.join(", "));
                Err(Error::setting(setting, message))
            }
        }
    }

    /// Whether what `fit` watches is recorded.
    pub(super) fn check_watched(&self, fit: &Fit) -> Result<()> {
        let stopping = fit.early_stopping.as_ref().map(|options| ("early_stopping", &options.monitor));
        let plateau = fit.reduce_on_plateau.as_ref().map(|options| ("reduce_on_plateau", &options.monitor));
        let best = self.save_best.as_ref().map(|options| ("save_best", &options.monitor));
        let mut watched = [stopping, plateau, best].into_iter().flatten();
        watched.try_for_each(|(setting, monitor)| self.check_monitor(setting, monitor))
    }

    /// Saves the network if the last epoch is the best.
    pub(super) fn save_if_best(&self) -> Result<()> {
        match &self.save_best {
            Some(options) if options.is_best(&self.history) => self.save(&options.path),
            _ => Ok(()),
        }
    }
}

const TRAIN_LOSS: &str = "train_loss";
const VALID_LOSS: &str = "valid_loss";

/// What `record` says of what is watched.
fn value(record: &EpochRecord, monitor: &str) -> f32 {
    match monitor {
        VALID_LOSS => record.valid_loss,
        TRAIN_LOSS => record.train_loss,
        metric => record.metrics.get(metric).copied().unwrap_or(f32::NAN),
    }
}

/// Of each epoch, whether it is better than all before.
fn bests(records: &[EpochRecord], monitor: &str, min_delta: f32) -> Vec<bool> {
    let lower = monitor.contains("loss") || monitor.parse().is_ok_and(|metric: Metric| metric.is_error());
    let sign = if lower { -1.0 } else { 1.0 };
    let mut best = f32::NEG_INFINITY;
    let is_best = |record: &EpochRecord| {
        let value = sign * value(record, monitor);
        let found = value - min_delta > best;
        best = if found { value } else { best };
        found
    };
    records.iter().map(is_best).collect()
}

/// Whether `monitor` is something that can be recorded.
fn check(setting: &str, monitor: &str, min_delta: f32) -> Result<()> {
    if ![TRAIN_LOSS, VALID_LOSS].contains(&monitor) && monitor.parse::<Metric>().is_err() {
        let message = format!("'{monitor}' is not recorded; give {TRAIN_LOSS}, {VALID_LOSS} or a metric");
        return Err(Error::setting(setting, message));
    }
    match min_delta >= 0.0 && min_delta.is_finite() {
        true => Ok(()),
        false => Err(Error::setting(setting, format!("{min_delta} is no least difference; give one from 0 up"))),
    }
}

/// A loss that is so many times the lowest one has run away, as in fastai 0.7.
const RUN_AWAY: f32 = 4.0;
/// fastai 0.7's share of the old in its smoothed loss, and steps before a lowest one counts.
const SMOOTHING: f32 = 0.98;
const IGNORED: usize = 10;

/// Tells when a loss runs away: fastai 0.7's `stop_div`. Smoothed anew in each epoch, so that it depends on the records
/// of those before and the steps of this one alone.
pub(super) struct RunAway {
    smoothed: f32,
    weight: f32,
    steps: usize,
    lowest: f32,
}

impl RunAway {
    /// At the start of an epoch after these of the same fit.
    pub(super) fn after(records: &[EpochRecord]) -> Self {
        let lowest = records.iter().map(|record| record.train_loss).fold(f32::INFINITY, f32::min);
        Self { smoothed: 0.0, weight: 0.0, steps: 0, lowest }
    }

    /// Whether the loss has run away with this step's.
    pub(super) fn with(&mut self, loss: f32) -> bool {
        self.smoothed = SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * loss;
        self.weight = SMOOTHING * self.weight + (1.0 - SMOOTHING);
        let smoothed = self.smoothed / self.weight;
        let away = smoothed > RUN_AWAY * self.lowest;
        if self.steps > IGNORED {
            self.lowest = self.lowest.min(smoothed);
        }
        self.steps += 1;
        away
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn records(values: &[f32]) -> Vec<EpochRecord> {
        let record = |value: &f32| EpochRecord {
            phase: "fit".into(),
            epoch: 0,
            train_loss: 1.0,
            valid_loss: *value,
            metrics: BTreeMap::from([("accuracy".into(), *value)]),
            lrs: vec![],
            seconds: 0.0,
            images_per_second: 0.0,
            device: "cpu".into(),
            cached: false,
        };
        values.iter().map(record).collect()
    }

    /// After how many of these epochs a fit ends.
    fn ends(stopping: &EarlyStopping, values: &[f32]) -> Option<usize> {
        (1..=values.len()).find(|count| stopping.stops(&records(&values[..*count])))
    }

    /// Worked through by hand from fastai 2's `TrackerCallback` and `EarlyStoppingCallback`.
    #[test]
    fn a_fit_stops_where_fastais_does() {
        let stopping = EarlyStopping::default();
        assert_eq!(ends(&stopping, &[1.0, 0.9, 0.8]), None);
        assert_eq!(ends(&stopping, &[1.0, 0.9, 0.9, 0.1]), Some(3), "equal is not better");
        let patient = EarlyStopping { patience: 2, ..stopping.clone() };
        assert_eq!(ends(&patient, &[1.0, 1.1, 0.9, 1.0, 0.95, 0.1]), Some(5), "the best starts the count anew");
        let delta = EarlyStopping { min_delta: 0.15, ..stopping.clone() };
        assert_eq!(ends(&delta, &[1.0, 0.8, 0.7]), Some(3), "a little better is not better");
        let accuracy = EarlyStopping { monitor: "accuracy".into(), ..stopping };
        assert_eq!(ends(&accuracy, &[0.5, 0.6, 0.55]), Some(3));
        assert_eq!(ends(&accuracy, &[0.5, f32::NAN, 0.9]), Some(2), "what is no number is not better");
    }

    #[test]
    fn rates_fall_where_fastais_do() {
        let plateau = ReduceLrOnPlateau { patience: 2, ..ReduceLrOnPlateau::default() };
        let values = [1.0, 0.9, 0.95, 0.92, 0.91, 0.93, 0.5, 0.6, 0.6];
        let lrs: Vec<f32> = (0..=values.len()).map(|count| plateau.reduced(0.1, &records(&values[..count]))).collect();
        let expected = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.0001];
        assert!(lrs.iter().zip(expected).all(|(lr, expected)| (lr / expected - 1.0).abs() < 1e-6), "{lrs:?}");
        let bounded = ReduceLrOnPlateau { min_lr: 0.004, ..plateau };
        assert_eq!(bounded.reduced(0.1, &records(&values)), 0.004);
        assert_eq!(bounded.reduced(0.002, &records(&values)), 0.002, "no rate is raised");
    }

    #[test]
    fn the_best_epoch_is_told_and_what_is_not_recorded_refused() {
        let save = SaveModel { monitor: "accuracy".into(), ..SaveModel::new("best") };
        let values = [0.5, 0.7, 0.7, 0.6, 0.8];
        let best: Vec<bool> = (1..=5).map(|count| save.is_best(&records(&values[..count]))).collect();
        assert_eq!(best, [true, true, false, false, true]);
        assert!(save.validate().is_ok() && EarlyStopping::default().check().is_ok());
        let message = SaveModel { monitor: "acuracy".into(), ..save }.validate().unwrap_err().to_string();
        assert_eq!(message, "save_best: 'acuracy' is not recorded; give train_loss, valid_loss or a metric");
        let odd = ReduceLrOnPlateau { factor: 0.0, ..ReduceLrOnPlateau::default() };
        assert!(odd.check().unwrap_err().to_string().contains("divides the rates by 0"));
        let odd = EarlyStopping { min_delta: f32::NAN, ..EarlyStopping::default() };
        assert!(odd.check().unwrap_err().to_string().contains("NaN"));
    }

    /// As fastai 0.7's `OptimScheduler`: the smoothed loss against the lowest after the eleventh step.
    #[test]
    fn a_loss_runs_away_at_four_times_the_lowest() {
        let steps = |mut watch: RunAway, losses: &[f32]| losses.iter().position(|loss| watch.with(*loss));
        let calm = [1.0; 30];
        assert_eq!(steps(RunAway::after(&[]), &calm), None);
        // Weighted means of thirty ones and n hundreds, the last of weight 1, that before 0.98 …
        let away = [calm.as_slice(), &[100.0; 9]].concat();
        let smoothed = |n: usize| {
            let weights: Vec<f64> = (0..30 + n).map(|age| 0.98f64.powi(age as i32)).collect();
            let sum: f64 = weights.iter().enumerate().map(|(age, w)| if age < n { 100.0 * w } else { *w }).sum();
            sum / weights.iter().sum::<f64>()
        };
        let expected = (1..).find(|n| smoothed(*n) > 4.0).unwrap();
        assert_eq!(steps(RunAway::after(&[]), &away), Some(30 + expected - 1));
        assert_eq!(steps(RunAway::after(&[]), &away[25..]), None, "nothing to compare with yet");
        assert_eq!(steps(RunAway::after(&records(&[1.0])), &[3.9, 4.2]), Some(1), "but for the epochs before");
    }
}
