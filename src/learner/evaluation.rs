//! How good the network is on a split.

use std::path::Path;

use super::{Event, Learner, Metric, Objective, feed::Fed, metrics::THRESHOLD, precompute::Boundary};
use crate::{
    Error, Result, Tensor,
    autograd::{Tape, Var},
    data::{LoaderOptions, Split, Targets, Task},
    nn::Pass,
    ops::{
        loss::{CrossEntropy, Target, softmax},
        pointwise_loss::{Pointwise, sigmoid},
    },
};

/// Predictions on a split, and how good they are.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// What is told of the samples.
    pub task: Task,
    /// The probability from which on a label is given, 0.5 by default: see [`Evaluation::at_threshold`].
    pub threshold: f32,
    /// Cross entropy, averaged over the samples; for labels binary cross entropy, for numbers the loss that was
    /// trained, averaged over all of them too.
    pub loss: f32,
    /// Share of samples whose most probable class is theirs; of all labels that are rightly given or not, at the
    /// threshold (fastai's `accuracy_thresh`); of numbers there is none, and this is no number.
    pub accuracy: f32,
    /// `[samples, classes]`, row by row; each label's own, or the numbers themselves.
    pub probabilities: Vec<f32>,
    /// Class of each sample; for other tasks the row of its targets in its data set.
    pub labels: Vec<u32>,
    /// For other tasks, `[samples, classes]`: 1 for labels that hold, or the numbers. Empty where they are not known.
    pub targets: Vec<f32>,
    /// Position of each sample in its split.
    pub indices: Vec<u32>,
}

impl Default for Evaluation {
    /// Of nothing.
    fn default() -> Self {
        Self {
            task: Task::default(),
            threshold: THRESHOLD,
            loss: 0.0,
            accuracy: 0.0,
            probabilities: Vec::new(),
            labels: Vec::new(),
            targets: Vec::new(),
            indices: Vec::new(),
        }
    }
}

/// What is averaged where several evaluations become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mean {
    /// Probabilities, as fastai.
    #[default]
    Probabilities,
    /// Logits: the geometric mean of probabilities, which lets no single one decide.
    Logits,
}

impl Evaluation {
    /// The same probabilities, with labels given from `threshold` on. One below 0.5 gives more of them: fastai 1's
    /// lesson on satellite images takes 0.2.
    pub fn at_threshold(mut self, threshold: f32) -> Self {
        self.threshold = threshold;
        self.accuracy = self.metric(Metric::Accuracy).unwrap_or(f64::NAN) as f32;
        self
    }

    /// The average of evaluations of the same samples, each with its share, which add up to 1.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is none, or they are not of the same samples.
    pub(super) fn average(shares: &[(f64, &Evaluation)], mean: Mean) -> Result<Evaluation> {
        let Some((_, first)) = shares.first() else { return Err(Error::shape("average", "of no evaluations")) };
        let same = |other: &Evaluation| {
            (&other.indices, &other.labels, &other.targets) == (&first.indices, &first.labels, &first.targets)
                && (other.task, other.probabilities.len()) == (first.task, first.probabilities.len())
        };
        if !shares.iter().all(|(_, other)| same(other)) {
            return Err(Error::shape("average", "of evaluations of other samples, or of other classes"));
        }
        // Numbers have neither probabilities nor logits.
        let mean = if first.task == Task::Regression { Mean::Probabilities } else { mean };
        // What has underflown is not impossible.
        let log = |p: f32| f64::from(p.max(f32::MIN_POSITIVE)).ln();
        let term = |p: f32| match (mean, first.task) {
            (Mean::Probabilities, _) => f64::from(p),
            (Mean::Logits, Task::MultiLabel) => log(p) - log(1.0 - p),
            (Mean::Logits, _) => log(p),
        };
        let mut average = Evaluation {
            task: first.task,
            threshold: first.threshold,
            labels: first.labels.clone(),
            targets: first.targets.clone(),
            indices: first.indices.clone(),
            ..Self::default()
        };
        let classes = first.probabilities.len() / first.labels.len().max(1);
        for row in 0..first.labels.len() {
            let of = |at: usize| shares.iter().map(|(share, other)| share * term(other.probabilities[at])).sum::<f64>();
            let mut values: Vec<f64> = (row * classes..(row + 1) * classes).map(of).collect();
            if (mean, first.task) == (Mean::Logits, Task::MultiLabel) {
                values.iter_mut().for_each(|value| *value = 1.0 / (1.0 + (-*value).exp()));
            } else if mean == Mean::Logits {
                let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                values.iter_mut().for_each(|value| *value = (*value - most).exp());
                let sum: f64 = values.iter().sum();
                values.iter_mut().for_each(|value| *value /= sum);
            }
            average.probabilities.extend(values.into_iter().map(|value| value as f32));
        }
        average.score();
        Ok(average)
    }
}

impl Learner {
    fn tally(&self) -> Tally {
        Tally::new(self.data.task(), self.threshold, self.pointwise, self.data.targets())
    }

    /// Evaluates the network on the clean views of a split, from cached activations where precompute allows.
    ///
    /// # Errors
    /// [`Error::Data`] if no image can be decoded; in strict mode [`Error::Io`] or [`Error::Image`] for the first that
    /// cannot; [`Error::Cancelled`].
    pub fn evaluate(&mut self, split: Split) -> Result<Evaluation> {
        self.evaluate_views(split, LoaderOptions::evaluation())
    }

    /// As [`Learner::evaluate`], of views as `options` say.
    pub(super) fn evaluate_views(&mut self, split: Split, options: LoaderOptions) -> Result<Evaluation> {
        let Some((boundary, activations)) = self.cached(split, &options)? else {
            return self.evaluate_images(split, options);
        };
        let mut tally = self.tally();
        let order: Vec<u32> = (0..self.samples(split) as u32).collect();
        let batches = activations.batches(&order, self.data.batch_size.max(1));
        for rows in batches.into_iter().filter(|rows| !rows.is_empty()) {
            self.cancel.check()?;
            let (batch, labels) = activations.gather(&rows, &self.device)?;
            let logits = boundary.input(batch).logits(&self.model, &mut Pass::evaluation())?;
            let indices = rows.iter().map(|&row| activations.indices()[row as usize]).collect();
            tally.add(logits.into_value(), labels, indices)?;
            if boundary != Boundary::Pool {
                self.tell(&Event::Validating { done: tally.samples(), total: activations.rows() })?;
            }
        }
        tally.finish(self.data.root())
    }

    /// As [`Learner::evaluate_views`], never from the cache.
    fn evaluate_images(&mut self, split: Split, options: LoaderOptions) -> Result<Evaluation> {
        let (mut tally, mut done, total) = (self.tally(), 0, self.samples(split));
        self.check_memory(self.data.batch_size.min(total), false)?;
        let mut feed = self.feed(split, options)?;
        while let Some(fed) = feed.next() {
            self.cancel.check()?;
            let Fed { batch, images } = fed?;
            done += batch.len() + batch.failed.len();
            self.report_failures(&batch)?;
            if let Some(images) = images {
                let logits = self.model.logits(&images)?;
                drop(images);
                feed.prefetch();
                tally.add(logits, batch.labels, batch.indices)?;
            }
            self.tell(&Event::Validating { done, total })?;
        }
        tally.finish(self.data.root())
    }
}

/// Predictions as they come in.
pub(super) struct Tally {
    evaluation: Evaluation,
    pointwise: Option<Pointwise>,
    targets: Option<Targets>,
    loss: f64,
}

impl Tally {
    /// None so far, of images with these targets where they have no single class.
    pub(super) fn new(task: Task, threshold: f32, pointwise: Option<Pointwise>, targets: Option<&Targets>) -> Self {
        let evaluation = Evaluation { task, threshold, ..Evaluation::default() };
        Self { evaluation, pointwise, targets: targets.cloned(), loss: 0.0 }
    }

    pub(super) fn add(&mut self, logits: Tensor, labels: Vec<u32>, indices: Vec<u32>) -> Result<()> {
        let (classes, device) = (logits.shape().last(), logits.device().clone());
        let probabilities = probabilities(self.evaluation.task, &logits)?;
        let target = match (self.pointwise, &self.targets) {
            (None, _) => Some(Target::labels(labels.clone(), classes, &device)?),
            (Some(_), Some(targets)) => {
                let targets = targets.gather(&labels)?;
                self.evaluation.targets.extend(&targets);
                Some(Target::Soft(Tensor::new(targets, [labels.len(), classes], &device)?))
            }
            (Some(_), None) => None,
        };
        if let Some(target) = target {
            // Validation is measured without label smoothing or class weights, so that fits can be compared.
            let plain = CrossEntropy::default();
            let objective = Objective::of(&plain, self.pointwise);
            let loss = objective.loss(&mut Tape::inference(), &Var::constant(logits), &target)?;
            self.loss += f64::from(loss.value().scalar()?) * labels.len() as f64;
        }
        self.evaluation.probabilities.extend(probabilities);
        self.evaluation.labels.extend(labels);
        self.evaluation.indices.extend(indices);
        Ok(())
    }

    /// Samples that came in.
    fn samples(&self) -> usize {
        self.evaluation.labels.len()
    }

    /// What came in, which must be something; `source` is named if not.
    pub(super) fn finish(mut self, source: impl AsRef<Path>) -> Result<Evaluation> {
        if self.evaluation.labels.is_empty() {
            return Err(Error::data(source, "none of the images to evaluate on could be decoded"));
        }
        self.evaluation.score();
        if !self.evaluation.loss.is_nan() {
            // Nearer to the truth than that of rounded probabilities.
            self.evaluation.loss = (self.loss / self.evaluation.labels.len() as f64) as f32;
        }
        Ok(self.evaluation)
    }
}

/// What `logits` `[N, classes]` say for a task, row after row.
pub(super) fn probabilities(task: Task, logits: &Tensor) -> Result<Vec<f32>> {
    match task {
        Task::SingleLabel => softmax(logits)?.to_vec(),
        Task::MultiLabel => Ok(logits.to_vec::<f32>()?.into_iter().map(sigmoid).collect()),
        Task::Regression => logits.to_vec(),
    }
}

/// Position of the largest value, the first of equals.
pub(super) fn best(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}
