//! The recipe in one call: the head on cached activations, then everything with a learning rate per layer group.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fit, Learner, StepOptions};
use crate::{Result, data::Split, optim::PerGroup};

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
    /// What the snapshots after each cycle of the second part are called: see [`Fit::snapshots`]. Default: none are written.
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
    fn head_lr(&self) -> f32 {
        match &self.lr {
            PerGroup::All(lr) | PerGroup::Range(_, lr) => *lr,
            PerGroup::Each(lrs) => lrs.last().copied().unwrap_or_default(),
        }
    }

    fn finetune_lr(&self) -> PerGroup {
        match self.lr {
            PerGroup::All(lr) if lr > 0.0 => PerGroup::Range(lr / 1000.0, lr / 10.0),
            _ => self.lr.clone(),
        }
    }

    /// The first part: `head`.
    pub fn head(&self) -> Fit {
        // Weight decays per group are checked in full before the first epoch, not only when the second part starts.
        let fit = Fit::epochs(self.epochs).lr(self.head_lr()).wd(self.wd.clone()).phase("head");
        fit.options(self.options.clone())
    }

    /// The second part: `finetune`.
    pub fn finetune(&self) -> Fit {
        let cycles = Fit::cycles(self.cycles).cycle_len(self.cycle_len).cycle_mult(self.cycle_mult);
        let fit = cycles.lr(self.finetune_lr()).wd(self.wd.clone()).phase("finetune").options(self.options.clone());
        match &self.snapshots {
            Some(prefix) => fit.snapshots(prefix),
            None => fit,
        }
    }

    /// Checks everything that can be checked before the first epoch.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) naming the value that makes no sense.
    pub fn validate(&self, learner: &Learner) -> Result<()> {
        learner.check_batch_size()?;
        self.options.validate()?;
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
        Ok(())
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
            self.check_memory(self.data.batch_size.min(self.samples(Split::Train)), true)?;
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
            self.fit(recipe.head())?;
            if !self.is_catching_up() {
                part_done(self)?;
            }
        }
        if recipe.parts != Parts::Head {
            self.freeze_to(recipe.freeze_to)?;
            let alike = recipe.views > 1 || !self.transforms().is_random();
            let frozen = self.model.backbone.frozen_units() > 0;
            self.show(recipe, recipe.precompute && alike && frozen)?;
            self.bn_freeze(recipe.bn_freeze.unwrap_or(self.pretrained && recipe.parts == Parts::Full));
            self.fit(recipe.finetune())?;
            part_done(self)?;
        }
        Ok(())
    }
}
