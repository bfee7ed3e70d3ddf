//! fastai 2's recipe in one call.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{EpochRecord, Fit, Learner};
use crate::{
    Error, Result,
    data::Split,
    optim::{OneCycle, OptimizerKind, PerGroup},
};

/// Options of [`Learner::fine_tune`], named as fastai 2's `fine_tune` names them, and with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FineTune {
    /// Epochs of the whole network. Default 1; 0 trains the head alone.
    pub epochs: usize,
    /// Highest learning rate of the head while the rest is frozen; half of it after that. Default 2e-3.
    pub base_lr: f32,
    /// Epochs of the head before. Default 1; 0 leaves them out.
    pub freeze_epochs: usize,
    /// How many times the first layer group's rate goes into the last one's. Default 100.
    pub lr_mult: f32,
    /// Share of the whole network's steps in which its rates rise. Default 0.3.
    pub pct_start: f64,
    /// What its rates are divided by at the start. Default 5.
    pub div: f64,
    /// Weight decays. Default 0.01, fastai's for AdamW.
    pub wd: PerGroup,
}

impl Default for FineTune {
    fn default() -> Self {
        Self {
            epochs: 1,
            base_lr: 2e-3,
            freeze_epochs: 1,
            lr_mult: 100.0,
            pct_start: 0.3,
            div: 5.0,
            wd: PerGroup::All(0.01),
        }
    }
}

impl FineTune {
    /// So many epochs of the whole network.
    pub fn epochs(count: usize) -> Self {
        Self { epochs: count, ..Self::default() }
    }

    /// The fit of the head: `head`, one cycle whose rate rises for all but the last hundredth of it.
    pub fn head(&self) -> Fit {
        let cycle = OneCycle { rising: 0.99, ..OneCycle::default() };
        self.fit(self.freeze_epochs).lr(self.base_lr).one_cycle(cycle).phase("head")
    }

    /// The fit of the whole network: `finetune`, one cycle with rates from `base_lr / 2 / lr_mult` to `base_lr / 2`.
    pub fn whole(&self) -> Fit {
        let cycle = OneCycle { rising: self.pct_start, div: self.div, ..OneCycle::default() };
        let lr = self.base_lr / 2.0;
        self.fit(self.epochs).lr(PerGroup::Range(lr / self.lr_mult, lr)).one_cycle(cycle).phase("finetune")
    }

    fn fit(&self, epochs: usize) -> Fit {
        // fastai 2 spares batchnorms and biases the decay.
        Fit::epochs(epochs).wd(self.wd.clone()).wd_bn_bias(false).optimizer(OptimizerKind::adamw())
    }

    /// Checks everything that can be checked before the first epoch.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the value that makes no sense.
    pub fn validate(&self, learner: &Learner) -> Result<()> {
        learner.check_batch_size()?;
        if !(self.lr_mult > 0.0 && self.lr_mult.is_finite()) {
            return Err(Error::setting("lr_mult", format!("{} is no ratio; give a positive one", self.lr_mult)));
        }
        let parts = [(self.freeze_epochs, self.head()), (self.epochs, self.whole())];
        let mut parts = parts.iter().filter(|(epochs, _)| *epochs > 0).map(|(_, fit)| fit).peekable();
        if parts.peek().is_none() {
            return Err(Error::setting("epochs", "0 trains nothing; give at least 1"));
        }
        parts.try_for_each(|fit| {
            fit.total_epochs()?;
            fit.lr.resolve("lr", &learner.state)?;
            fit.weight_decay.resolve("wd", &learner.state).map(drop)
        })
    }
}

impl Learner {
    /// fastai 2's recipe: the head with the rest frozen, then the whole network with rates that grow from its first to
    /// its last layer group, each in one cycle of AdamW. The head is trained on cached activations where
    /// [`Learner::precompute`] is on. Everything is trainable afterwards. Returns the records of its epochs.
    ///
    /// Otherwise than there, batchnorms of the frozen backbone stay as they are.
    ///
    /// ```no_run
    /// # use unfreeze::{learner::FineTune, prelude::*};
    /// # fn with(learner: &mut Learner) -> unfreeze::Result<()> {
    /// learner.fine_tune(&FineTune::epochs(3))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`FineTune::validate`] and [`Learner::fit`].
    pub fn fine_tune(&mut self, options: &FineTune) -> Result<&[EpochRecord]> {
        options.validate(self)?;
        let precompute = self.precompute;
        let outcome = self.fine_tune_parts(options);
        self.precompute = precompute;
        Ok(&self.history[outcome?])
    }

    /// Runs the parts; their epochs, as numbered in the history.
    fn fine_tune_parts(&mut self, options: &FineTune) -> Result<Range<usize>> {
        if options.epochs > 0 {
            // Better now than when the head has been trained.
            self.unfreeze();
            self.check_memory(self.data.batch_size.min(self.samples(Split::Train)), true)?;
        }
        let mut made: Option<Range<usize>> = None;
        if options.freeze_epochs > 0 {
            self.freeze();
            made = Some(self.fitted(options.head())?.records);
        }
        self.unfreeze();
        self.precompute = false;
        if options.epochs > 0 {
            let records = self.fitted(options.whole())?.records;
            made = Some(made.map_or(records.start, |made| made.start)..records.end);
        }
        Ok(made.unwrap_or_default())
    }
}
