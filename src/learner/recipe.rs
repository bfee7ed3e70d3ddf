//! The recipe in one call: the head on cached activations, then everything with a learning rate per layer group.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{EarlyStopping, Fit, Learner, ReduceLrOnPlateau, StepOptions, Unfreeze};
use crate::{
    Error, Result,
    data::Split,
    optim::{FreezeOut, OneCycle, PerGroup, Triangle, TriangleTail, WarmUp},
};

/// Which parts of the recipe to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parts {
    /// The head, then the whole network.
    #[default]
    Full,
    /// The head alone.
    Head,
    /// The whole network alone.
    Finetune,
}

/// What the learning rates of the second part follow. Those that know no restarts go once over as many epochs as the
/// cycles add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Course {
    /// A half cosine in each cycle: [`Schedule::Restarts`](crate::optim::Schedule::Restarts).
    #[default]
    Restarts,
    /// [`Fit::one_cycle`] with its defaults.
    OneCycle,
    /// [`Fit::flat_cosine`], falling in the last quarter.
    FlatCosine,
    /// [`Fit::triangular`] cycles with their defaults, all of one length.
    Triangular,
    /// [`Fit::triangular_tail`] cycles with their defaults, all of one length.
    TriangularTail,
    /// No change.
    Constant,
}

impl Course {
    /// Of `cycles`, or of the `whole` that they add up to, with momentum at the ends of a cycle and at its peak.
    fn over(self, cycles: Fit, whole: Fit, momentum: Option<[f64; 2]>) -> Fit {
        match self {
            Course::Restarts => cycles,
            Course::OneCycle => {
                let usual = OneCycle::default();
                let momentum = momentum.map(|[ends, peak]| [ends, peak, ends]).or(usual.momentum);
                whole.one_cycle(OneCycle { momentum, ..usual })
            }
            Course::FlatCosine => whole.flat_cosine(0.75, 1e5),
            Course::Triangular => cycles.triangular(Triangle { momentum, ..Triangle::default() }),
            Course::TriangularTail => cycles.triangular_tail(TriangleTail { momentum, ..TriangleTail::default() }),
            Course::Constant => whole,
        }
    }

    /// Whether its momentum moves with its rates.
    fn moves_momentum(self) -> bool {
        matches!(self, Course::OneCycle | Course::Triangular | Course::TriangularTail)
    }
}

/// The recipe's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Which parts to run. Default: both.
    pub parts: Parts,
    /// Epochs of the head at a constant rate. Default 10.
    pub epochs: usize,
    /// Learning rates. One value is the head's in the first part; in the second, where the head is trained already, the
    /// groups get a geometric range from a thousandth to a tenth of it. Other forms are those of the second part, the
    /// last group's being the head's in the first. Default 0.01.
    pub lr: PerGroup,
    /// Weight decays. Default 0.
    pub wd: PerGroup,
    /// Cycles of the second part. Default 3.
    pub cycles: usize,
    /// Epochs of its first cycle. Default 1.
    pub cycle_len: usize,
    /// Growth of its cycles. Default 2, so that the defaults make 1 + 2 + 4 epochs.
    pub cycle_mult: usize,
    /// What its rates follow. Default: restarts.
    #[serde(default)]
    pub schedule: Course,
    /// Momentum at the ends of a cycle and at its peak, of the schedules where it moves against the rates: one cycle and
    /// triangles. Default: that of the optimizer, or for one cycle fastai 2's .95 and .85.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum_range: Option<[f64; 2]>,
    /// Epochs, or a part of one, in which its rates rise to those of the schedule: see [`Fit::warm_up`]. Default 0.
    #[serde(default)]
    pub warm_up: f64,
    /// Sides of the images, in pixels, at which the last part is run one after the other; an earlier part is run at the
    /// first (progressive resizing, Howard 2018). The parts' names then end in the size, and snapshots are those of the
    /// last size. Default: none, the size of the data set alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<usize>,
    /// How the backbone becomes trainable in the second part. Default: at once. Gradually, there is an epoch first for
    /// each group that comes in before the last one.
    #[serde(default)]
    pub unfreeze: Unfreeze,
    /// Freezes layer groups one after the other in the second part, in place of [`schedule`](Self::schedule): see
    /// [`Fit::freeze_out`]. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_out: Option<FreezeOut>,
    /// Ends a fit early: see [`Fit::early_stopping`]. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Lowers the rates of a fit: see [`Fit::reduce_on_plateau`]. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_on_plateau: Option<ReduceLrOnPlateau>,
    /// Whether the head trains on cached activations: see [`Learner::precompute`]. The second part does where it leaves
    /// leading layers frozen and would show the same images without: where nothing is random in training, or `views`
    /// are. Default true.
    pub precompute: bool,
    /// Views of each training image whose activations are cached: see [`Learner::precompute_views`]. Default 1, the
    /// clean one, without augmentation.
    #[serde(default = "one")]
    pub views: usize,
    /// Epochs after which other views are drawn: see [`Learner::renew_views_every`]. Default 0: never.
    #[serde(default)]
    pub renew_views: usize,
    /// First layer group trained in the second part. Default 0: all.
    pub freeze_to: isize,
    /// Whether batchnorms keep their running statistics in the second part. Default `None`: they do where the backbone
    /// is pretrained and the head was trained on it first, because statistics of small batches of a narrow subject
    /// shift the features that the head has learned from.
    pub bn_freeze: Option<bool>,
    /// What the snapshots after each cycle of the second part are called: see [`Fit::snapshots`]. Default: none are
    /// written.
    #[serde(skip)]
    pub snapshots: Option<PathBuf>,
    /// How the steps of both parts are made.
    #[serde(default)]
    pub options: StepOptions,
}

fn one() -> usize {
    1
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            parts: Parts::Full,
            epochs: 10,
            lr: PerGroup::All(1e-2),
            wd: PerGroup::All(0.0),
            cycles: 3,
            cycle_len: 1,
            cycle_mult: 2,
            schedule: Course::default(),
            momentum_range: None,
            warm_up: 0.0,
            sizes: Vec::new(),
            unfreeze: Unfreeze::default(),
            freeze_out: None,
            early_stopping: None,
            reduce_on_plateau: None,
            precompute: true,
            views: 1,
            renew_views: 0,
            freeze_to: 0,
            bn_freeze: None,
            snapshots: None,
            options: StepOptions::default(),
        }
    }
}

impl Recipe {
    fn finetune_lr(&self) -> PerGroup {
        match self.lr {
            PerGroup::All(lr) if lr > 0.0 => PerGroup::Range(lr / 1000.0, lr / 10.0),
            _ => self.lr.clone(),
        }
    }

    /// The first part: `head`.
    pub fn head(&self) -> Fit {
        // Weight decays per group are checked in full before the first epoch, not only when the second part starts.
        self.equipped(Fit::epochs(self.epochs).lr(self.lr.last()).wd(self.wd.clone()).phase("head"))
    }

    /// The second part: `finetune`.
    pub fn finetune(&self) -> Fit {
        let cycles = Fit::cycles(self.cycles).cycle_len(self.cycle_len).cycle_mult(self.cycle_mult);
        // Where cycles make no sense, they say so themselves.
        let whole = cycles.total_epochs().map_or(cycles.clone(), Fit::epochs);
        let fit = match (self.freeze_out, self.schedule) {
            (Some(options), Course::Restarts | Course::Constant) => whole.freeze_out(options),
            // Refused, where the epochs are added up.
            (Some(options), _) => cycles.freeze_out(options),
            (None, course) => course.over(cycles, whole, self.momentum_range),
        };
        let fit = fit.lr(self.finetune_lr()).wd(self.wd.clone()).phase("finetune");
        let fit = if self.warm_up == 0.0 { fit } else { fit.warm_up(WarmUp::epochs(self.warm_up)) };
        let fit = self.equipped(fit);
        match &self.snapshots {
            Some(prefix) => fit.snapshots(prefix),
            None => fit,
        }
    }

    /// An epoch with one group more that is trained.
    fn unfreezing(&self) -> Fit {
        self.equipped(Fit::cycles(1).lr(self.finetune_lr()).wd(self.wd.clone()))
    }

    fn equipped(&self, fit: Fit) -> Fit {
        let fit = fit.options(self.options.clone());
        let fit = match &self.early_stopping {
            Some(options) => fit.early_stopping(options.clone()),
            None => fit,
        };
        match &self.reduce_on_plateau {
            Some(options) => fit.reduce_on_plateau(options.clone()),
            None => fit,
        }
    }

    fn check_momentum_range(&self) -> Result<()> {
        if self.momentum_range.is_some() && (self.freeze_out.is_some() || !self.schedule.moves_momentum()) {
            let message = "is of schedules in which momentum moves: one-cycle, triangular, triangular-tail";
            return Err(Error::setting("momentum_range", message));
        }
        Ok(())
    }

    /// Checks everything that can be checked before the first epoch.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the value that makes no sense.
    pub fn validate(&self, learner: &Learner) -> Result<()> {
        learner.check_batch_size()?;
        self.options.validate()?;
        self.check_momentum_range()?;
        let mut state = learner.freeze_state().clone();
        self.lr.resolve("lr", &state)?;
        self.wd.resolve("wd", &state)?;
        if self.parts != Parts::Finetune {
            self.head().total_epochs()?;
        }
        if self.parts != Parts::Head {
            self.finetune().total_epochs()?;
        }
        state.freeze_to(self.freeze_to)?;
        self.sizes.iter().try_for_each(|size| learner.transforms().clone().at_size(*size).validate())
    }
}

impl Learner {
    /// Runs the recipe; `part_done` is called after each part. What is frozen afterwards is what the last part froze;
    /// [`Learner::bn_freeze`] is as before.
    ///
    /// # Errors
    /// As [`Recipe::validate`], [`Learner::fit`], and those of `part_done`.
    pub fn run(&mut self, recipe: &Recipe, mut part_done: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        recipe.validate(self)?;
        if recipe.parts != Parts::Head {
            // Better now than when the head has been trained.
            self.freeze_to(recipe.freeze_to)?;
            for size in recipe.sizes.iter().copied().chain([self.transforms().size]) {
                self.set_size(size);
                self.check_memory(self.data.batch_size.min(self.samples(Split::Train)), true)?;
            }
        }
        if let Some(first) = recipe.sizes.first() {
            self.set_size(*first);
        }
        let freeze_norms = self.freeze_norms;
        let outcome = self.run_parts(recipe, &mut part_done);
        self.bn_freeze(freeze_norms);
        outcome
    }

    /// Sets whether the views of `recipe` are cached.
    fn show(&mut self, recipe: &Recipe, cached: bool) -> Result<()> {
        self.renew_views_every(recipe.renew_views);
        match cached {
            true => self.precompute_views(recipe.views),
            false => {
                self.precompute(false);
                Ok(())
            }
        }
    }

    fn run_parts(&mut self, recipe: &Recipe, part_done: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if recipe.parts != Parts::Finetune {
            self.freeze();
            self.bn_freeze(false);
            self.show(recipe, recipe.precompute)?;
            if recipe.parts == Parts::Head {
                return self.at_each_size(&recipe.sizes, &recipe.head(), "head", part_done);
            }
            self.fit(recipe.head())?;
            if !self.is_catching_up() {
                part_done(self)?;
            }
        }
        self.precompute(false);
        self.bn_freeze(recipe.bn_freeze.unwrap_or(self.pretrained && recipe.parts == Parts::Full));
        if recipe.unfreeze == Unfreeze::Gradual {
            let groups = self.state.names().len() as isize;
            let first = if recipe.parts == Parts::Full { groups - 2 } else { groups - 1 };
            let last = self.state.position(recipe.freeze_to)? as isize + 1;
            if first >= last {
                self.gradual_unfreeze(first, last, &recipe.unfreezing())?;
            }
        }
        self.freeze_to(recipe.freeze_to)?;
        let alike = recipe.views > 1 || !self.transforms().is_random();
        let frozen = self.model.backbone.frozen_units() > 0;
        self.show(recipe, recipe.precompute && alike && frozen)?;
        self.at_each_size(&recipe.sizes, &recipe.finetune(), "finetune", part_done)
    }

    /// Runs `fit`, called `phase`, at each of these sizes, or once at that of the data.
    fn at_each_size(
        &mut self,
        sizes: &[usize],
        fit: &Fit,
        phase: &str,
        part_done: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let Some((last, before)) = sizes.split_last() else {
            self.fit(fit.clone())?;
            return part_done(self);
        };
        for size in before {
            self.set_size(*size);
            let mut fit = fit.clone();
            fit.snapshots = None;
            self.fit(fit.phase(format!("{phase}-{size}")))?;
            if !self.is_catching_up() {
                part_done(self)?;
            }
        }
        self.set_size(*last);
        self.fit(fit.clone().phase(format!("{phase}-{last}")))?;
        part_done(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Schedule;

    #[test]
    fn the_second_part_follows_the_course_asked_for() {
        let of = |schedule, cycle_mult| Recipe { schedule, cycle_mult, ..Recipe::default() }.finetune();
        for (course, cycle_mult, epochs) in [
            (Course::Restarts, 2, 7),
            (Course::OneCycle, 2, 7),
            (Course::FlatCosine, 2, 7),
            (Course::Constant, 2, 7),
            (Course::Triangular, 1, 3),
            (Course::TriangularTail, 1, 3),
        ] {
            let fit = of(course, cycle_mult);
            assert_eq!((fit.total_epochs().unwrap(), fit.schedule(5).steps()), (epochs, 5 * epochs), "{course:?}");
        }
        assert!(matches!(of(Course::OneCycle, 2).schedule(5), Schedule::OneCycle { steps: 35, .. }));
        assert!(matches!(of(Course::TriangularTail, 1).schedule(5), Schedule::TriangularTail { cycles: 3, .. }));
        let momentum = |schedule, at| {
            let recipe = Recipe { schedule, cycle_mult: 1, momentum_range: Some([0.95, 0.8]), ..Recipe::default() };
            recipe.finetune().schedule(8).at(at).momentum
        };
        for (course, peak) in [(Course::OneCycle, 6), (Course::Triangular, 1), (Course::TriangularTail, 3)] {
            let [start, peak] = [0, peak].map(|at| momentum(course, at).unwrap());
            assert!((start - 0.95).abs() < 1e-9 && (peak - 0.8).abs() < 1e-9, "{course:?}: {start}, {peak}");
        }
        assert_eq!(momentum(Course::Restarts, 3), None);
        let message = |recipe: Recipe| recipe.finetune().total_epochs().unwrap_err().to_string();
        assert!(message(Recipe { schedule: Course::Triangular, ..Recipe::default() }).contains("cycle_mult"));
        let nothing = Recipe { schedule: Course::OneCycle, cycles: 0, ..Recipe::default() };
        assert!(message(nothing).contains("0 cycles"));
        assert!(message(Recipe { warm_up: 8.0, ..Recipe::default() }).contains("warm_up: 8 epochs"));
    }
}
