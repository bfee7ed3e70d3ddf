//! What is decided from the records of the epochs so far, and from nothing else, so that a resumed run decides the same.

use super::EpochRecord;

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
