//! A search for the learning rate: a short training whose rate grows from step to step, undone at the end.
//! Smith, "Cyclical Learning Rates for Training Neural Networks", 2015 (arXiv 1506.01186); fastai 0.7's `lr_find`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    Event, Learner, StepOptions, Suggestion,
    precompute::Boundary,
    suggestion,
    train::{Made, State},
};
use crate::{
    Error, Result,
    data::{Split, batches},
    nn::FreezeState,
    optim::{Decay, Optimizer, OptimizerKind, PerGroup, Schedule},
};

/// The search stops where the smoothed loss is so many times the lowest one, as in fastai 0.7.
const EXPLODED: f32 = 4.0;

/// Options of a search for the learning rate.
///
/// ```no_run
/// # use unfreeze::prelude::*;
/// # fn search(learner: &mut Learner) -> unfreeze::Result<()> {
/// let found = learner.lr_find(LrFind::default().steps(200))?;
/// println!("{:?}", found.suggestion);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LrFind {
    start: f32,
    end: f32,
    /// `None` for those of an epoch.
    steps: Option<usize>,
    rule: Suggestion,
    ratios: PerGroup,
    weight_decay: PerGroup,
    options: StepOptions,
}

impl Default for LrFind {
    fn default() -> Self {
        Self {
            start: 1e-5,
            end: 10.0,
            steps: Some(100),
            rule: Suggestion::default(),
            ratios: PerGroup::All(1.0),
            weight_decay: PerGroup::All(0.0),
            options: StepOptions::default(),
        }
    }
}

impl LrFind {
    /// The first rate. Default 1e-5.
    pub fn start(mut self, lr: f32) -> Self {
        self.start = lr;
        self
    }

    /// The rate of the last step, if the search comes that far. Default 10.
    pub fn end(mut self, lr: f32) -> Self {
        self.end = lr;
        self
    }

    /// Number of steps. Default 100, whatever the size of the data set: a small one is gone through several times.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self
    }

    /// As many steps as an epoch has, as fastai 0.7. A set of fewer than ten batches needs [`LrFind::steps`].
    pub fn one_epoch(mut self) -> Self {
        self.steps = None;
        self
    }

    /// Which rate is suggested. Default [`Suggestion::Minimum`].
    pub fn suggest(mut self, rule: Suggestion) -> Self {
        self.rule = rule;
        self
    }

    /// How the layer groups' rates relate: as in [`Fit::lr`](super::Fit::lr), of which only the ratios count. The last
    /// group's rate runs from start to end. Default: the same rate for all.
    pub fn ratios(mut self, lr: impl Into<PerGroup>) -> Self {
        self.ratios = lr.into();
        self
    }

    /// Weight decays, as [`Fit::wd`](super::Fit::wd). Default 0.
    pub fn wd(mut self, weight_decay: impl Into<PerGroup>) -> Self {
        self.weight_decay = weight_decay.into();
        self
    }

    /// The update rule. Default SGD with momentum 0.9.
    pub fn optimizer(mut self, kind: OptimizerKind) -> Self {
        self.options.optimizer = kind;
        self
    }

    /// How its steps are made, as in [`Fit::options`](super::Fit::options): the rate to train with is that of the steps
    /// that will be made. Averages of weights are not kept.
    pub fn options(mut self, options: StepOptions) -> Self {
        self.options = StepOptions { ema: None, swa: None, ..options };
        self
    }

    /// From the first rate to the last, by the same factor at each of so many steps.
    fn schedule(&self, steps: usize) -> Schedule {
        let factor = f64::from(self.end) / f64::from(self.start);
        Schedule::Decaying { steps: steps - 1, lr: (Decay::Exponential, factor), momentum: None }
    }

    /// Number of steps, where an epoch has `epoch`.
    fn count(&self, epoch: usize) -> Result<usize> {
        const STEPS: std::ops::RangeInclusive<usize> = 10..=1_000_000;
        let steps = self.steps.unwrap_or(epoch);
        if STEPS.contains(&steps) {
            return Ok(steps);
        }
        let epoch = if self.steps.is_none() { ", those of an epoch," } else { "" };
        Err(Error::setting("steps", format!("{steps}{epoch} is not between 10 and 1000000")))
    }

    /// Each group's rate as a multiple of the last one's.
    fn resolve(&self, state: &FreezeState) -> Result<Vec<f32>> {
        if !(self.start > 0.0 && self.start.is_finite()) {
            return Err(Error::setting("start", format!("{} is no first rate; give a positive one", self.start)));
        }
        if !(self.end > self.start && self.end.is_finite()) {
            let message = format!("{} is no last rate; give one above the first, {}", self.end, self.start);
            return Err(Error::setting("end", message));
        }
        let lrs = self.ratios.resolve("lr", state)?;
        let last = lrs.last().copied().unwrap_or_default();
        if last <= 0.0 {
            return Err(Error::setting(
                "lr",
                "the last layer group's rate must be positive, since the others follow it",
            ));
        }
        Ok(lrs.iter().map(|lr| lr / last).collect())
    }
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LrFound {
    /// The last group's rate at each step.
    pub lrs: Vec<f32>,
    /// Loss of each step's batch.
    pub losses: Vec<f32>,
    /// The same, smoothed.
    pub smoothed: Vec<f32>,
    /// The rate to start with, by the rule that was [asked for](LrFind::suggest): one of the next three. `None` if the
    /// loss never falls.
    pub suggestion: Option<f32>,
    /// By [`Suggestion::Minimum`].
    pub minimum: Option<f32>,
    /// By [`Suggestion::Steepest`].
    pub steepest: Option<f32>,
    /// By [`Suggestion::Valley`].
    pub valley: Option<f32>,
}

impl LrFound {
    /// One line of JSON, numbers as short as they read back exactly.
    pub fn to_json(&self) -> String {
        // A struct of numbers and lists always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Sets the suggestions from the curve without its first `ignored` points, whose losses say little yet.
    fn suggest(&mut self, ignored: usize, rule: Suggestion) {
        let smoothed = self.smoothed.get(ignored..).unwrap_or_default();
        let lrs = self.lrs.get(ignored..).unwrap_or_default();
        let lowest = suggestion::lowest(smoothed);
        self.steepest = suggestion::steepest(smoothed, (ignored / 2).max(1)).map(|at| lrs[at]);
        self.valley = suggestion::valley(smoothed).map(|at| lrs[at]);
        // Where the loss still falls at the end, its minimum was not met, and a tenth of the end says nothing.
        self.minimum = match lowest {
            0 => None,
            _ if lowest + 1 == smoothed.len() => self.steepest,
            _ => Some(lrs[lowest] / 10.0),
        };
        self.suggestion = match rule {
            Suggestion::Minimum => self.minimum,
            Suggestion::Steepest => self.steepest,
            Suggestion::Valley => self.valley,
        };
    }
}

/// A debiased exponential moving average. fastai's factor 0.98 averages over about 50 of an epoch's steps, some 350 on
/// its course's data; this is the same share of any number of steps, but at least five, to tell noise from a trend.
struct Average {
    beta: f32,
    mean: f32,
    weight: f32,
}

impl Average {
    fn over(steps: usize) -> Self {
        Self { beta: (1.0 - 7.0 / steps.max(1) as f32).max(0.8), mean: 0.0, weight: 0.0 }
    }

    fn add(&mut self, value: f32) -> f32 {
        self.mean = self.beta * self.mean + (1.0 - self.beta) * value;
        self.weight = self.beta * self.weight + (1.0 - self.beta);
        self.mean / self.weight
    }
}

impl Learner {
    /// Trains for some steps with a growing learning rate and reports the losses. Parameters, statistics and the
    /// position in the random stream are afterwards what they were, bit for bit, after an error too; nothing is added
    /// to the history.
    ///
    /// The search ends early where the loss is no number or four times the lowest, or a callback says
    /// [`Flow::Stop`](super::Flow::Stop).
    ///
    /// # Errors
    /// [`Error::Setting`] for options that make no sense; [`Error::Diverged`] if the first loss is not finite;
    /// [`Error::Cancelled`]; errors of files.
    pub fn lr_find(&mut self, find: LrFind) -> Result<LrFound> {
        find.options.validate()?;
        self.check_batch_size()?;
        self.check_loss()?;
        let epoch = find.options.steps(batches(self.samples(Split::Train), self.data.batch_size).len());
        let count = find.count(epoch)?;
        let ratios = find.resolve(&self.state)?;
        let weight_decays = find.weight_decay.resolve("wd", &self.state)?;
        if self.cached_at(Split::Train)? != Some(Boundary::Pool) {
            self.check_memory(self.data.batch_size.min(self.samples(Split::Train)), true)?;
        }
        // Tensors are shared until they are written to, so this copies only what is trained.
        let (model, steps, backbone_key) = (self.model.clone(), self.steps, self.backbone_key);
        let progress = std::mem::take(&mut self.progress);
        let found = self.search(&find, count, &ratios, weight_decays);
        self.stepper.reset();
        (self.model, self.steps, self.progress) = (model, steps, progress);
        // A frozen backbone's hash, computed meanwhile, stays good.
        self.backbone_key = self.backbone_key.or(backbone_key);
        found
    }

    /// Makes the `steps` of a search.
    fn search(&mut self, find: &LrFind, steps: usize, ratios: &[f32], weight_decays: Vec<f32>) -> Result<LrFound> {
        let (options, schedule) = (find.options.clone(), find.schedule(steps));
        let (optimizer, lrs) = (Optimizer::new(options.optimizer), ratios.iter().map(|ratio| ratio * find.start));
        let mut state = State::new(schedule, lrs.collect(), weight_decays, options.equip(optimizer), options, steps);
        let (mut found, mut average, mut lowest) = (LrFound::default(), Average::over(steps), f32::INFINITY);
        let ignored = steps / 10;
        let mut epoch = self.history.len() as u64;
        let mut source = self.source(epoch)?;
        let (mut left, mut made) = (find.options.steps(source.len()), VecDeque::new());
        for step in 0..steps {
            if made.is_empty() {
                self.cancel.check()?;
                if left == 0 {
                    epoch += 1;
                    source = self.source(epoch)?;
                    left = find.options.steps(source.len());
                }
                made = self.make(&mut source, &mut state, step)?;
            }
            left = left.saturating_sub(1);
            // Of a batch that is of no use the rate is passed over.
            let Some(Made { loss, moves, cause, .. }) = made.pop_front().flatten() else { continue };
            let smoothed = average.add(loss);
            if !smoothed.is_finite() {
                if found.lrs.is_empty() {
                    let cause = cause.unwrap_or("look at weights and images".into());
                    return Err(Error::Diverged(format!("the loss is {loss} before any training: {cause}")));
                }
                break;
            }
            found.lrs.extend(moves.lrs.last());
            found.losses.push(loss);
            found.smoothed.push(smoothed);
            let stop = self.tell(&Event::Finding { step, steps, loss, lrs: &moves.lrs })?;
            if stop || smoothed > EXPLODED * lowest {
                break;
            }
            if step >= ignored {
                lowest = lowest.min(smoothed);
            }
        }
        if found.lrs.is_empty() {
            return Err(self.no_batches());
        }
        found.suggest(ignored, find.rule);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_grow_by_the_same_factor_from_start_to_end() {
        let find = LrFind::default().start(1e-4).end(1.0);
        let schedule = find.schedule(11);
        let lrs: Vec<f32> = (0..11).map(|step| find.start * schedule.at(step).lr as f32).collect();
        assert!(lrs[0] == 1e-4 && (lrs[10] - 1.0).abs() < 1e-6);
        assert!(lrs.windows(2).all(|pair| (pair[1] / pair[0] - 10f32.powf(0.4)).abs() < 1e-4), "{lrs:?}");
    }

    fn found(smoothed: &[f32], rule: Suggestion) -> LrFound {
        let lrs = (0..smoothed.len()).map(|at| 10f32.powi(at as i32 - 4)).collect();
        let mut found = LrFound { lrs, smoothed: smoothed.to_vec(), ..Default::default() };
        found.suggest(1, rule);
        found
    }

    #[test]
    fn suggestions_follow_the_rule_asked_for() {
        use Suggestion::{Minimum, Steepest, Valley};
        // The first point, however low, is ignored.
        let (curve, rules) = ([0.1, 2.0, 1.9, 1.6, 0.6, 0.5, 3.0], [Minimum, Steepest, Valley]);
        for (rule, lr) in rules.into_iter().zip([1.0, 0.1, 1e-3]) {
            let found = found(&curve, rule);
            assert_eq!((found.minimum, found.steepest, found.valley), (Some(1.0), Some(0.1), Some(1e-3)));
            assert_eq!(found.suggestion, Some(lr));
        }
        // Where it still falls at the end, the end says nothing.
        let falling = found(&[0.1, 2.0, 1.9, 1.2, 1.1, 1.0], Minimum);
        assert!(falling.suggestion.is_some() && falling.suggestion == falling.steepest);
        // It never falls; or there is nothing to judge by.
        for flat in [&[0.1, 1.0, 1.0, 1.1][..], &[1.0, 2.0], &[1.0], &[]] {
            for rule in rules {
                assert_eq!(found(flat, rule).suggestion, None, "{flat:?}");
            }
        }
    }

    #[test]
    fn the_average_is_debiased() {
        let mut average = Average::over(100);
        assert!((average.beta - 0.93).abs() < 1e-6 && Average::over(350).beta == 0.98 && Average::over(10).beta == 0.8);
        assert!((average.add(2.0) - 2.0).abs() < 1e-6);
        // Weights 0.93 and 1.
        assert!((average.add(4.0) - (0.93 * 2.0 + 4.0) / 1.93).abs() < 1e-5);
    }
}
