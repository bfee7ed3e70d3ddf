//! How good predictions are: pure functions of probabilities and classes, with scikit-learn's definitions.

mod confusion;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use confusion::{Average, Confusion, Counts};

use super::{Evaluation, Learner, evaluation::best};
use crate::{Error, Result, data::Task};

/// A label is given where its probability is at least this, unless another threshold is set.
pub(super) const THRESHOLD: f32 = 0.5;

/// # Errors
/// [`Error::Setting`] if `threshold` is not between 0 and 1, or the task has no use for it.
pub(super) fn check_threshold(threshold: f32, task: Task) -> Result<()> {
    if task != Task::MultiLabel {
        return Err(Error::setting("threshold", format!("is for multi-label, and the task is {task}")));
    }
    match threshold > 0.0 && threshold < 1.0 {
        true => Ok(()),
        false => Err(Error::setting("threshold", format!("{threshold} is not between 0 and 1"))),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

/// A number that says how good predictions are. Written `accuracy`, `top5`, `precision`, `recall`, `f1` or `f0.5`
/// (means over the classes; `precision-micro` and so on: over all samples), `auc`, `log_loss`; of numbers `mae`, `rmse`
/// and `r2`. Labels of which several may hold are given at a threshold, a probability of 0.5 by default.
///
/// ```
/// use unfreeze::learner::{Average, Metric};
/// assert_eq!("f2".parse::<Metric>()?, Metric::FBeta(2.0, Average::Macro));
/// # Ok::<_, unfreeze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// Share of samples whose most probable class is theirs.
    Accuracy,
    /// Share of samples whose class is among their so many most probable ones.
    TopK(usize),
    /// Share of the samples predicted as a class that are of it.
    Precision(Average),
    /// Share of a class's samples that are predicted as it.
    Recall(Average),
    /// Their harmonic mean, in which recall counts β² times as much as precision.
    FBeta(f64, Average),
    /// Area under the receiver operating characteristic of each class against the rest, averaged over the classes.
    Auc,
    /// Cross entropy.
    LogLoss,
    /// Mean absolute error of numbers.
    Mae,
    /// Root of their mean squared error.
    Rmse,
    /// Coefficient of determination: 1 − squared errors / squared deviations from the mean, of each number, averaged.
    R2,
}

impl Metric {
    /// What is measured of a task where nothing else is asked for.
    pub fn usual(task: Task) -> Self {
        match task {
            Task::SingleLabel | Task::MultiLabel => Metric::Accuracy,
            Task::Regression => Metric::Mae,
        }
    }

    /// Whether it is the better the lower it is.
    pub(super) fn is_error(self) -> bool {
        matches!(self, Metric::LogLoss | Metric::Mae | Metric::Rmse)
    }

    /// Whether it says anything of predictions of so many classes.
    ///
    /// # Errors
    /// [`Error::Setting`] if not.
    pub fn check(&self, task: Task, classes: usize) -> Result<()> {
        let of_numbers = matches!(self, Metric::Mae | Metric::Rmse | Metric::R2);
        let of_classes = matches!(self, Metric::TopK(_));
        if of_numbers != (task == Task::Regression) || of_classes && task != Task::SingleLabel {
            return Err(Error::setting("metrics", format!("{self} says nothing of {task}")));
        }
        match *self {
            Metric::TopK(k) if k == 0 || k >= classes => {
                let message = format!("{self} of {classes} classes says nothing; give 1 to {}", classes.max(2) - 1);
                Err(Error::setting("metrics", message))
            }
            Metric::FBeta(beta, _) if !(beta > 0.0 && beta.is_finite()) => {
                Err(Error::setting("metrics", format!("{self}: {beta} is no weight of recall; give a positive number")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Metric::Accuracy => f.write_str("accuracy"),
            Metric::TopK(k) => write!(f, "top{k}"),
            Metric::Precision(average) => write!(f, "precision{}", average.suffix()),
            Metric::Recall(average) => write!(f, "recall{}", average.suffix()),
            Metric::FBeta(beta, average) => write!(f, "f{beta}{}", average.suffix()),
            Metric::Auc => f.write_str("auc"),
            Metric::LogLoss => f.write_str("log_loss"),
            Metric::Mae => f.write_str("mae"),
            Metric::Rmse => f.write_str("rmse"),
            Metric::R2 => f.write_str("r2"),
        }
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, average) = match text.strip_suffix(Average::Micro.suffix()) {
            Some(name) => (name, Average::Micro),
            None => (text, Average::Macro),
        };
        let number = |prefix: &str| name.strip_prefix(prefix);
        let metric = match (name, average) {
            ("accuracy", Average::Macro) => Some(Metric::Accuracy),
            ("auc", Average::Macro) => Some(Metric::Auc),
            ("log_loss", Average::Macro) => Some(Metric::LogLoss),
            ("mae", Average::Macro) => Some(Metric::Mae),
            ("rmse", Average::Macro) => Some(Metric::Rmse),
            ("r2", Average::Macro) => Some(Metric::R2),
            ("precision", _) => Some(Metric::Precision(average)),
            ("recall", _) => Some(Metric::Recall(average)),
            (_, Average::Macro) if number("top").is_some() => {
                number("top").and_then(|k| k.parse().ok()).map(Metric::TopK)
            }
            _ => number("f").and_then(|beta| beta.parse().ok()).map(|beta| Metric::FBeta(beta, average)),
        };
        metric.ok_or_else(|| {
            let known = "accuracy, topK, precision, recall, fBETA, auc and log_loss, such as top5 and f1, or \
                         precision-micro for a mean over all samples; of numbers mae, rmse and r2";
            Error::setting("metrics", format!("'{text}' is unknown; there are {known}"))
        })
    }
}

impl TryFrom<String> for Metric {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.to_string()
    }
}

impl Evaluation {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.probabilities.len() / self.labels.len().max(1)
    }

    /// Each sample's probabilities and its class.
    pub fn rows(&self) -> impl Iterator<Item = (&[f32], u32)> {
        self.probabilities.chunks_exact(self.classes().max(1)).zip(self.labels.iter().copied())
    }

    /// How often each class was taken for each; nothing where images have no single class.
    pub fn confusion(&self) -> Confusion {
        let single = self.rows().filter(|_| self.task == Task::SingleLabel);
        Confusion::new(self.classes(), single.map(|(row, label)| (label as usize, best(row))))
    }

    /// How often each class, or label, was found.
    pub fn counts(&self) -> Vec<Counts> {
        let confusion = self.confusion();
        let class = |class| match self.task {
            Task::SingleLabel => confusion.class(class),
            Task::MultiLabel => self.column(class).fold(Counts::default(), |counts, (p, holds)| {
                let (given, holds) = (p >= self.threshold, holds > 0.5);
                Counts {
                    hits: counts.hits + usize::from(given && holds),
                    predicted: counts.predicted + usize::from(given),
                    support: counts.support + usize::from(holds),
                }
            }),
            Task::Regression => Counts::default(),
        };
        (0..self.classes()).map(class).collect()
    }

    /// Each sample's output for `class` and its target; none where targets are not known.
    fn column(&self, class: usize) -> impl Iterator<Item = (f32, f32)> {
        let outputs = self.probabilities.iter().zip(&self.targets).skip(class);
        outputs.step_by(self.classes().max(1)).map(|(output, target)| (*output, *target))
    }

    /// Sets loss and accuracy to what the probabilities make them.
    pub(super) fn score(&mut self) {
        self.accuracy = self.metric(Metric::Accuracy).unwrap_or(f64::NAN) as f32;
        let loss = if self.task == Task::Regression { Metric::Mae } else { Metric::LogLoss };
        self.loss = self.metric(loss).unwrap_or(f64::NAN) as f32;
    }

    /// A metric; `None` if it is not defined for these samples, as the area of one class without the rest.
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        if self.task != Task::SingleLabel && self.targets.is_empty() {
            return None;
        }
        let of_numbers = matches!(metric, Metric::Mae | Metric::Rmse | Metric::R2);
        if of_numbers != (self.task == Task::Regression) {
            return None;
        }
        let average = |average: Average, metric: &dyn Fn(&Counts) -> Option<f64>| average.of(&self.counts(), metric);
        match metric {
            Metric::Accuracy if self.task == Task::MultiLabel => {
                let right = |(p, target): (&f32, &f32)| (*p >= self.threshold) == (*target > 0.5);
                Some(mean(self.probabilities.iter().zip(&self.targets).map(|pair| f64::from(u8::from(right(pair))))))
            }
            Metric::Accuracy => (self.task == Task::SingleLabel).then(|| self.top_k(1)),
            Metric::TopK(k) => (self.task == Task::SingleLabel).then(|| self.top_k(k)),
            Metric::Precision(of) => average(of, &Counts::precision),
            Metric::Recall(of) => average(of, &Counts::recall),
            Metric::FBeta(beta, of) => average(of, &|counts| counts.f_beta(beta)),
            Metric::Auc => {
                let areas: Vec<f64> = (0..self.classes()).filter_map(|class| self.auc(class)).collect();
                (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
            }
            Metric::LogLoss => Some(self.log_loss()),
            Metric::Mae => Some(mean(self.errors().map(f64::abs))),
            Metric::Rmse => Some(mean(self.errors().map(|error| error * error)).sqrt()),
            Metric::R2 => {
                let columns: Vec<f64> = (0..self.classes()).filter_map(|class| self.r2(class)).collect();
                (!columns.is_empty()).then(|| mean(columns.into_iter()))
            }
        }
    }

    /// Share of samples whose class is among their `k` most probable ones; of equal ones the first is the more
    /// probable, and what is no number is never right.
    pub fn top_k(&self, k: usize) -> f64 {
        let is_within = |(row, label): &(&[f32], u32)| {
            let label = *label as usize;
            let Some(own) = row.get(label).filter(|own| !own.is_nan()) else { return false };
            let before = row[..label].iter().filter(|other| **other >= *own).count();
            before + row[label..].iter().filter(|other| *other > own).count() < k
        };
        self.rows().filter(is_within).count() as f64 / self.labels.len().max(1) as f64
    }

    /// Area under the receiver operating characteristic of `class` against the rest: how often a sample of it gets a
    /// higher probability of it than another sample, ties counting half (Mann & Whitney 1947, by midranks). `None` if
    /// all samples are of it, or none is, or a probability is no number.
    pub fn auc(&self, class: usize) -> Option<f64> {
        let mut scores: Vec<(f32, bool)> = self
            .rows()
            .enumerate()
            .map(|(at, (row, label))| {
                let own = match self.task {
                    Task::SingleLabel => label as usize == class,
                    Task::MultiLabel | Task::Regression => *self.targets.get(at * row.len() + class)? > 0.5,
                };
                Some((*row.get(class).filter(|p| !p.is_nan())?, own))
            })
            .collect::<Option<_>>()?;
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let own = scores.iter().filter(|(_, own)| *own).count();
        let rest = scores.len() - own;
        if own == 0 || rest == 0 {
            return None;
        }
        let (mut rank_sum, mut before) = (0f64, 0usize);
        for equals in scores.chunk_by(|a, b| a.0 == b.0) {
            // Ranks count from 1.
            let midrank = before as f64 + (equals.len() + 1) as f64 / 2.0;
            rank_sum += midrank * equals.iter().filter(|(_, own)| *own).count() as f64;
            before += equals.len();
        }
        let (own, rest) = (own as f64, rest as f64);
        Some((rank_sum - own * (own + 1.0) / 2.0) / (own * rest))
    }

    /// Cross entropy of the probabilities, which are taken for no less than the smallest normal f32.
    pub fn log_loss(&self) -> f64 {
        let log = |p: f32| f64::from(p.max(f32::MIN_POSITIVE)).ln();
        if self.task != Task::SingleLabel {
            let loss = |(p, t): (&f32, &f32)| -f64::from(*t) * log(*p) - f64::from(1.0 - t) * log(1.0 - p);
            return mean(self.probabilities.iter().zip(&self.targets).map(loss));
        }
        let loss = |(row, label): (&[f32], u32)| {
            let own = row.get(label as usize).copied().unwrap_or_default();
            0.0 - log(own)
        };
        mean(self.rows().map(loss))
    }

    /// By how much each number is off.
    fn errors(&self) -> impl Iterator<Item = f64> {
        self.probabilities.iter().zip(&self.targets).map(|(output, target)| f64::from(*output) - f64::from(*target))
    }

    /// How much of the variation of number `class` is told; `None` where it does not vary.
    pub fn r2(&self, class: usize) -> Option<f64> {
        let average = mean(self.column(class).map(|(_, target)| f64::from(target)));
        let sum = |of: &dyn Fn(f64, f64) -> f64| {
            self.column(class).map(|(output, target)| of(output.into(), target.into())).sum::<f64>()
        };
        let varied = sum(&|_, target| (target - average).powi(2));
        (varied > 0.0).then(|| 1.0 - sum(&|output, target| (output - target).powi(2)) / varied)
    }
}

impl Learner {
    /// The probability from which on a label is given, in metrics and in predictions of the model that is saved.
    /// Default 0.5.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is not between 0 and 1, or the task is not [multi-label](Task::MultiLabel).
    pub fn label_threshold(mut self, threshold: f32) -> Result<Self> {
        check_threshold(threshold, self.data.task())?;
        self.threshold = threshold;
        Ok(self)
    }

    /// What is measured on the validation set at the end of each epoch, and recorded, beside the accuracy, for numbers
    /// the mean absolute error. Default: nothing more.
    ///
    /// # Errors
    /// [`Error::Setting`] for one that says nothing of so many classes as there are.
    pub fn metrics(mut self, metrics: impl IntoIterator<Item = Metric>) -> Result<Self> {
        self.metrics = metrics.into_iter().collect();
        self.metrics.iter().try_for_each(|metric| metric.check(self.data.task(), self.data.classes().len()))?;
        Ok(self)
    }

    fn recorded(&self) -> impl Iterator<Item = Metric> {
        self.metrics.iter().copied().chain([Metric::usual(self.data.task())])
    }

    /// Names of the metrics of an epoch.
    pub(super) fn measures(&self) -> impl Iterator<Item = String> {
        self.recorded().map(|metric| metric.to_string())
    }

    /// The metrics of an epoch, those left out that are not defined.
    pub(super) fn measured(&self, valid: &Evaluation) -> BTreeMap<String, f32> {
        let metrics = self.recorded();
        metrics.filter_map(|metric| Some((metric.to_string(), valid.metric(metric)? as f32))).collect()
    }
}
