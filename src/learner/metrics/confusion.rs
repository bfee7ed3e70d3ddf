//! The confusion matrix, and what follows from its counts.

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<usize>,
}

/// How often one class, or any, was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples of the class predicted as it.
    pub hits: usize,
    /// Samples predicted as it.
    pub predicted: usize,
    /// Samples of it.
    pub support: usize,
}

/// How the numbers of several classes become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Average {
    /// The mean over all classes that occur or are predicted. As in scikit-learn, one that is never predicted has a
    /// precision of 0 there, one without samples a recall of 0.
    #[default]
    Macro,
    /// That of the sums of their counts. Where each sample has one class, it is the accuracy.
    Micro,
}

impl Average {
    /// What distinguishes the name of a metric.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Average::Macro => "",
            Average::Micro => "-micro",
        }
    }
}

impl Average {
    /// One number of the `metric` of these classes; `None` if there are no samples.
    pub(super) fn of(self, classes: &[Counts], metric: impl Fn(&Counts) -> Option<f64>) -> Option<f64> {
        match self {
            Average::Macro => {
                let seen = classes.iter().filter(|class| class.predicted + class.support > 0);
                let values: Vec<f64> = seen.map(|class| metric(class).unwrap_or(0.0)).collect();
                share(values.iter().sum(), values.len() as f64)
            }
            Average::Micro => metric(&classes.iter().fold(Counts::default(), |sum, class| Counts {
                hits: sum.hits + class.hits,
                predicted: sum.predicted + class.predicted,
                support: sum.support + class.support,
            })),
        }
    }
}

impl Counts {
    /// Share of the samples predicted as this class that are of it; `None` if there is none.
    pub fn precision(&self) -> Option<f64> {
        share(self.hits as f64, self.predicted as f64)
    }

    /// Share of its samples that were predicted as it; `None` if there is none.
    pub fn recall(&self) -> Option<f64> {
        share(self.hits as f64, self.support as f64)
    }

    /// `(1 + β²) · precision · recall / (β² · precision + recall)`: their harmonic mean for β = 1, nearer to recall for
    /// a larger one. `None` if the class neither occurs nor is predicted.
    pub fn f_beta(&self, beta: f64) -> Option<f64> {
        let square = beta * beta;
        share((1.0 + square) * self.hits as f64, self.predicted as f64 + square * self.support as f64)
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

impl Confusion {
    /// Counts pairs of a sample's class and the one predicted. Those beyond `classes` are left out.
    pub fn new(classes: usize, pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut counts = vec![0; classes * classes];
        for (label, predicted) in pairs {
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

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Number of samples predicted as what they are.
    pub fn correct(&self) -> usize {
        (0..self.classes).map(|class| self.count(class, class)).sum()
    }

    /// How often one class was found.
    pub fn class(&self, class: usize) -> Counts {
        Counts {
            hits: self.count(class, class),
            predicted: (0..self.classes).map(|label| self.count(label, class)).sum(),
            support: self.counts[class * self.classes..][..self.classes].iter().sum(),
        }
    }

    /// One number of the classes' `metric`; `None` if there are no samples.
    pub fn average(&self, average: Average, metric: impl Fn(&Counts) -> Option<f64>) -> Option<f64> {
        average.of(&(0..self.classes).map(|class| self.class(class)).collect::<Vec<_>>(), metric)
    }

    /// Triples `(label, predicted, count)` of classes that were confused at least `min` times, the most frequent first.
    pub fn most_confused(&self, min: usize) -> Vec<(usize, usize, usize)> {
        let pairs = (0..self.classes).flat_map(|label| (0..self.classes).map(move |predicted| (label, predicted)));
        let mut pairs: Vec<_> = pairs
            .map(|(label, predicted)| (label, predicted, self.count(label, predicted)))
            .filter(|&(label, predicted, count)| label != predicted && count >= min.max(1))
            .collect();
        pairs.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
        pairs
    }
}
