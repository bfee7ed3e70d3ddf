//! How good predictions are, class by class: pure functions of the records.

use crate::learner::PredictionRecord;

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<usize>,
}

/// How well one class is recognised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassMetrics {
    /// Share of the samples predicted as this class that are of it; `None` if it was never predicted.
    pub precision: Option<f64>,
    /// Share of its samples that were predicted as it; `None` if it has none.
    pub recall: Option<f64>,
    /// Harmonic mean of the two; `None` if the class neither occurs nor is predicted.
    pub f1: Option<f64>,
    /// Number of its samples.
    pub support: usize,
}

impl Confusion {
    /// Counts predictions. Records of classes beyond `classes` are left out.
    pub fn new(classes: usize, predictions: &[PredictionRecord]) -> Self {
        let mut counts = vec![0; classes * classes];
        for record in predictions {
            let (label, predicted) = (record.label as usize, record.predicted());
            if label < classes && predicted < classes {
                counts[label * classes + predicted] += 1;
            }
        }
        Self { classes, counts }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How many samples of class `label` were predicted as class `predicted`.
    pub fn count(&self, label: usize, predicted: usize) -> usize {
        self.counts[label * self.classes + predicted]
    }

    /// Number of samples of class `label`.
    pub fn support(&self, label: usize) -> usize {
        self.counts[label * self.classes..][..self.classes].iter().sum()
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Number of samples predicted as what they are.
    pub fn correct(&self) -> usize {
        (0..self.classes).map(|class| self.count(class, class)).sum()
    }

    /// Precision, recall, F1 and support of one class.
    pub fn metrics(&self, class: usize) -> ClassMetrics {
        let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        let hits = self.count(class, class);
        let predicted: usize = (0..self.classes).map(|label| self.count(label, class)).sum();
        let support = self.support(class);
        ClassMetrics {
            precision: share(hits, predicted),
            recall: share(hits, support),
            f1: share(2 * hits, predicted + support),
            support,
        }
    }

    /// Pairs `(label, predicted, count)` of classes that were confused, the most frequent first.
    pub fn most_confused(&self) -> Vec<(usize, usize, usize)> {
        let pairs = (0..self.classes).flat_map(|label| (0..self.classes).map(move |predicted| (label, predicted)));
        let mut pairs: Vec<_> = pairs
            .map(|(label, predicted)| (label, predicted, self.count(label, predicted)))
            .filter(|&(label, predicted, count)| label != predicted && count > 0)
            .collect();
        pairs.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
        pairs
    }
}

/// Wrong predictions, those first that give the true class the least probability.
pub fn most_wrong(predictions: &[PredictionRecord]) -> Vec<&PredictionRecord> {
    let truth = |record: &PredictionRecord| record.probabilities.get(record.label as usize).copied().unwrap_or(0.0);
    let mut wrong: Vec<_> = predictions.iter().filter(|record| record.predicted() != record.label as usize).collect();
    wrong.sort_by(|a, b| truth(a).total_cmp(&truth(b)));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(label: u32, probabilities: &[f32]) -> PredictionRecord {
        PredictionRecord { file: format!("{label}.png"), label, probabilities: probabilities.to_vec() }
    }

    /// Three classes; by hand:
    /// ```text
    ///        predicted  0  1  2
    /// true 0            2  1  0
    ///      1            1  3  0
    ///      2            0  0  0
    /// ```
    fn confusion() -> Confusion {
        let (zero, one) = ([0.7, 0.2, 0.1], [0.1, 0.6, 0.3]);
        let of =
            |label: u32, probabilities: &[[f32; 3]]| probabilities.iter().map(|p| record(label, p)).collect::<Vec<_>>();
        Confusion::new(3, &[of(0, &[zero, zero, one]), of(1, &[zero, one, one, one])].concat())
    }

    #[test]
    fn counts_and_metrics_equal_those_by_hand() {
        let confusion = confusion();
        assert_eq!(confusion.counts, [2, 1, 0, 1, 3, 0, 0, 0, 0]);
        assert_eq!((confusion.samples(), confusion.correct(), confusion.classes()), (7, 5, 3));
        let close = |found: Option<f64>, expected: f64| found.is_some_and(|found| (found - expected).abs() < 1e-12);
        let zero = confusion.metrics(0);
        assert!(close(zero.precision, 2.0 / 3.0) && close(zero.recall, 2.0 / 3.0) && close(zero.f1, 2.0 / 3.0));
        let one = confusion.metrics(1);
        assert!(close(one.precision, 0.75) && close(one.recall, 0.75) && close(one.f1, 0.75) && one.support == 4);
        assert_eq!(confusion.metrics(2), ClassMetrics { precision: None, recall: None, f1: None, support: 0 });
        assert_eq!(confusion.most_confused(), [(0, 1, 1), (1, 0, 1)]);
    }

    /// Of 1 + 4 samples of class 0, one is found; class 1 is never predicted correctly.
    #[test]
    fn precision_recall_and_f1_are_not_mixed_up() {
        let guess = [[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]];
        let confusion = Confusion::new(2, &guess.map(|p| record(0, &p)));
        let zero = confusion.metrics(0);
        assert_eq!((zero.precision, zero.recall, zero.f1), (Some(1.0), Some(0.2), Some(2.0 / 6.0)));
        assert_eq!(
            confusion.metrics(1),
            ClassMetrics { precision: Some(0.0), recall: None, f1: Some(0.0), support: 0 }
        );
        assert_eq!(confusion.most_confused(), [(0, 1, 4)]);
    }

    #[test]
    fn most_wrong_are_those_sure_of_something_else() {
        let records =
            [record(0, &[0.4, 0.6]), record(0, &[0.9, 0.1]), record(1, &[0.99, 0.01]), record(1, &[0.7, 0.3])];
        let labels: Vec<_> = most_wrong(&records).iter().map(|r| r.probabilities[r.label as usize]).collect();
        assert_eq!(labels, [0.01, 0.3, 0.4]);
    }
}
