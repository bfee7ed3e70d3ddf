//! What a network gets right and wrong, image by image.

use super::{Confusion, Evaluation, Learner, PredictionRecord};
use crate::{
    Error, Result,
    data::{Split, Task},
};

/// Predictions of images whose classes are known, in an order that tells something: fastai's
/// `ClassificationInterpretation` and 0.7's `ImageModelResults`. Images are given by their positions among
/// [`Interpretation::records`]; equal ones stay in that order.
///
/// ```no_run
/// # use unfreeze::{data::Split, learner::Learner};
/// # fn with(learner: &mut Learner) -> unfreeze::Result<()> {
/// let found = learner.interpret(Split::Valid)?;
/// for (label, predicted, count) in found.most_confused(2) {
///     println!("{} taken for {}: {count}", found.classes()[label], found.classes()[predicted]);
/// }
/// for image in found.top_losses(9) {
///     println!("{}: loss {:.2}", found.records()[image].file, found.records()[image].loss());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Interpretation {
    classes: Vec<String>,
    records: Vec<PredictionRecord>,
    confusion: Confusion,
}

impl Interpretation {
    /// Of these records, whose labels are positions among `classes`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a record that is of another class, or has another number of probabilities.
    pub fn new(classes: &[String], records: Vec<PredictionRecord>) -> Result<Self> {
        let count = classes.len();
        let fits = |record: &&PredictionRecord| record.probabilities.len() == count && (record.label as usize) < count;
        if let Some(record) = records.iter().find(|record| !fits(record)) {
            let (label, given) = (record.label, record.probabilities.len());
            let message = format!("{}: class {label} and {given} probabilities, of {count} classes", record.file);
            return Err(Error::shape("interpretation", message));
        }
        let pairs = records.iter().map(|record| (record.label as usize, record.predicted()));
        Ok(Self { confusion: Confusion::new(count, pairs), classes: classes.to_vec(), records })
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// What is predicted of each image.
    pub fn records(&self) -> &[PredictionRecord] {
        &self.records
    }

    /// How often each class was taken for each.
    pub fn confusion(&self) -> &Confusion {
        &self.confusion
    }

    /// Triples `(label, predicted, count)` of classes that were confused at least `min` times, the most frequent first.
    pub fn most_confused(&self, min: usize) -> Vec<(usize, usize, usize)> {
        self.confusion.most_confused(min)
    }

    /// All together, for [`Evaluation::metric`] and the like.
    pub fn evaluation(&self) -> Evaluation {
        let mut evaluation = Evaluation {
            probabilities: self.records.iter().flat_map(|record| record.probabilities.iter().copied()).collect(),
            labels: self.records.iter().map(|record| record.label).collect(),
            indices: (0..self.records.len() as u32).collect(),
            ..Evaluation::default()
        };
        evaluation.score();
        evaluation
    }

    /// The `k` images of the largest losses, the largest first.
    pub fn top_losses(&self, k: usize) -> Vec<usize> {
        self.first(k, |_| true, |record| record.probability(record.label as usize))
    }

    /// The `k` images of `class` that are predicted as it with the highest probabilities; fastai 0.7 shows 4.
    pub fn most_correct(&self, class: usize, k: usize) -> Vec<usize> {
        self.first(k, |record| is_of(record, class) && is_correct(record), |record| -record.probability(class))
    }

    /// The `k` images of `class` that are predicted as another, those first that get the lowest probability of their
    /// own.
    pub fn most_incorrect(&self, class: usize, k: usize) -> Vec<usize> {
        self.first(k, |record| is_of(record, class) && !is_correct(record), |record| record.probability(class))
    }

    /// The `k` images of any class whose probability of `class` is nearest to that of a guess, one in so many classes.
    pub fn most_uncertain(&self, class: usize, k: usize) -> Vec<usize> {
        let guess = 1.0 / self.classes.len().max(1) as f32;
        self.first(k, |_| true, |record| (record.probability(class) - guess).abs())
    }

    /// The first `k` of those that `are`, in ascending order of `by`.
    fn first(
        &self,
        k: usize,
        are: impl Fn(&PredictionRecord) -> bool,
        by: impl Fn(&PredictionRecord) -> f32,
    ) -> Vec<usize> {
        let mut found: Vec<usize> = (0..self.records.len()).filter(|at| are(&self.records[*at])).collect();
        found.sort_by(|a, b| by(&self.records[*a]).total_cmp(&by(&self.records[*b])));
        found.truncate(k);
        found
    }
}

fn is_of(record: &PredictionRecord, class: usize) -> bool {
    record.label as usize == class
}

fn is_correct(record: &PredictionRecord) -> bool {
    is_of(record, record.predicted())
}

impl Learner {
    /// Evaluates a split to see what is right and wrong in it, from cached activations where precompute allows.
    ///
    /// # Errors
    /// As of [`Learner::evaluate`]; [`Error::Data`] if the classes of its images are not known; [`Error::Setting`] if they
    /// have no single one.
    pub fn interpret(&mut self, split: Split) -> Result<Interpretation> {
        if !self.data.is_labelled(split) {
            return Err(Error::data(self.data.root(), format!("the classes of its {split} images are not known")));
        }
        self.single_labels("interpret")?;
        let found = self.evaluate(split)?;
        Interpretation::new(self.data.classes(), self.records(split, &found))
    }

    /// An evaluation of a split as it is recorded.
    pub(super) fn records(&self, split: Split, evaluation: &Evaluation) -> Vec<PredictionRecord> {
        let items = self.data.items(split);
        let single = evaluation.task == Task::SingleLabel;
        let record = |(index, (probabilities, label)): (&u32, (&[f32], u32))| PredictionRecord {
            file: self.data.relative(&items[*index as usize].path),
            label: if single { label } else { 0 },
            probabilities: probabilities.to_vec(),
            targets: self.data.targets().and_then(|targets| targets.row(label)).map(Vec::from).unwrap_or_default(),
        };
        evaluation.indices.iter().zip(evaluation.rows()).map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpretation(rows: &[(u32, [f32; 3])]) -> Interpretation {
        let record = |(n, (label, probabilities)): (usize, &(u32, [f32; 3]))| PredictionRecord {
            file: format!("{n}.png"),
            label: *label,
            probabilities: probabilities.to_vec(),
            targets: Vec::new(),
        };
        Interpretation::new(&["a", "b", "c"].map(String::from), rows.iter().enumerate().map(record).collect()).unwrap()
    }

    #[test]
    fn images_are_ordered_as_in_fastai() {
        let found = interpretation(&[
            (0, [0.50, 0.30, 0.20]),
            (0, [0.10, 0.80, 0.10]),
            (0, [0.90, 0.05, 0.05]),
            (1, [0.34, 0.33, 0.33]),
            (0, [0.30, 0.40, 0.30]),
            (2, [0.01, 0.01, 0.98]),
            (0, [0.50, 0.25, 0.25]),
        ]);
        assert_eq!(found.most_correct(0, 4), [2, 0, 6], "equals in their order");
        assert_eq!(found.most_correct(0, 1), [2]);
        assert_eq!(found.most_incorrect(0, 4), [1, 4]);
        assert_eq!(found.most_incorrect(1, 4), [3]);
        assert!(found.most_correct(1, 4).is_empty() && found.most_incorrect(2, 4).is_empty());
        // Of all classes: |p − 1/3| is .007, .033, .167, .167.
        assert_eq!(found.most_uncertain(0, 4), [3, 4, 0, 6]);
        assert_eq!(found.top_losses(3), [1, 4, 3]);
        assert_eq!(found.top_losses(99).len(), 7);
        assert_eq!(found.most_confused(1), [(0, 1, 2), (1, 0, 1)]);
        assert_eq!(found.confusion().class(0).support, 5);
        assert!(interpretation(&[(2, [0.0, 0.0, 1.0])]).records()[0].loss().is_sign_positive());
        let whole = found.evaluation();
        assert!((whole.accuracy - 4.0 / 7.0).abs() < 1e-6 && whole.metric(super::super::Metric::Auc).is_some());
        let mean = found.records().iter().map(PredictionRecord::loss).sum::<f32>() / 7.0;
        assert!((whole.loss - mean).abs() < 1e-6);
    }

    #[test]
    fn records_of_other_classes_are_refused() {
        let classes = ["a", "b"].map(String::from);
        for (label, probabilities) in [(2, vec![0.5; 2]), (0, vec![1.0])] {
            let record = PredictionRecord { file: "x.png".into(), label, probabilities, targets: Vec::new() };
            let error = Interpretation::new(&classes, vec![record]).unwrap_err().to_string();
            assert!(error.contains("x.png") && error.contains("2 classes"), "{error}");
        }
    }
}
