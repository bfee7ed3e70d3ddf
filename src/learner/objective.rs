//! What training minimises: for single labels the cross entropy, for several labels and for numbers a loss of each.

use super::{Labels, Learner, Sampling};
use crate::{
    Error, Result,
    autograd::{Tape, Var},
    data::Task,
    device::CudaDevice,
    ops::{
        loss::{CrossEntropy, Target, cross_entropy},
        pointwise_loss::{Pointwise, pointwise_loss},
    },
};

/// What a step minimises.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'a> {
    /// For classes, or shares of them; class weights lie on the network's device.
    CrossEntropy(&'a CrossEntropy),
    /// For [`Labels::Shares`] that are targets of the outputs.
    Pointwise(Pointwise),
}

/// What of an objective decides its launches.
#[derive(Clone, PartialEq)]
pub(super) enum Kind {
    CrossEntropy { label_smoothing: f32, class_weights: Option<u64> },
    Pointwise(Pointwise),
}

impl<'a> Objective<'a> {
    /// The cross entropy, but where there is a loss of each output.
    pub(super) fn of(cross_entropy: &'a CrossEntropy, pointwise: Option<Pointwise>) -> Self {
        pointwise.map_or(Objective::CrossEntropy(cross_entropy), Objective::Pointwise)
    }

    /// The loss of a batch, a scalar.
    pub(super) fn loss(self, tape: &mut Tape, outputs: &Var, target: &Target) -> Result<Var> {
        match (self, target) {
            (Objective::CrossEntropy(options), _) => cross_entropy(tape, outputs, target, options),
            (Objective::Pointwise(loss), Target::Soft(targets)) => pointwise_loss(tape, outputs, targets, loss, None),
            (Objective::Pointwise(loss), Target::Labels(_)) => {
                Err(Error::shape("pointwise loss", format!("{loss:?} has a target for each output, not a class")))
            }
        }
    }

    pub(super) fn kind(self, cuda: &CudaDevice) -> Result<Kind> {
        Ok(match self {
            Objective::CrossEntropy(CrossEntropy { label_smoothing, class_weights }) => {
                let class_weights = class_weights.as_ref().map(|weights| weights.pointer::<f32>(cuda)).transpose()?;
                Kind::CrossEntropy { label_smoothing: *label_smoothing, class_weights }
            }
            Objective::Pointwise(loss) => Kind::Pointwise(loss),
        })
    }
}

/// The loss of each output that suits a task; `None` for single labels.
pub(super) fn pointwise(task: Task) -> Option<Pointwise> {
    match task {
        Task::SingleLabel => None,
        Task::MultiLabel => Some(Pointwise::Binary),
        Task::Regression => Some(Pointwise::Absolute),
    }
}

impl Learner {
    /// What is lost by numbers that are off, in [regression](Task::Regression). Default: the absolute error, as in
    /// fastai 0.7.
    ///
    /// # Errors
    /// [`Error::Setting`] where it does not suit the data set's task.
    pub fn regression_loss(mut self, loss: Pointwise) -> Result<Self> {
        let task = self.data.task();
        if task != Task::Regression || loss == Pointwise::Binary {
            let message = format!("{loss:?} does not suit {task}; for regression there are Absolute and Squared");
            return Err(Error::setting("regression_loss", message));
        }
        self.pointwise = Some(loss);
        Ok(self)
    }

    /// What the samples of a batch should be, by the labels of their items.
    pub(super) fn labels(&self, labels: Vec<u32>) -> Result<Labels> {
        match self.data.targets() {
            Some(targets) => Ok(Labels::Shares(targets.gather(&labels)?)),
            None => Ok(Labels::Classes(labels)),
        }
    }

    /// # Errors
    /// [`Error::Setting`] that names `setting`, which is for single labels, where the task is another.
    pub(super) fn single_labels(&self, setting: &str) -> Result<()> {
        match self.data.task() {
            Task::SingleLabel => Ok(()),
            task => Err(Error::setting(setting, format!("is for single labels, and the task is {task}"))),
        }
    }

    /// # Errors
    /// [`Error::Setting`] for an option that the task has no use for.
    pub(super) fn check_loss(&self) -> Result<()> {
        let CrossEntropy { label_smoothing, class_weights } = &self.loss;
        let set = [
            ("label_smoothing", *label_smoothing != 0.0),
            ("class_weights", class_weights.is_some()),
            ("sample", self.sampling == Sampling::Weighted),
        ];
        set.into_iter().filter(|(_, set)| *set).try_for_each(|(setting, _)| self.single_labels(setting))
    }
}
