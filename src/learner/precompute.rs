//! Activations of the frozen prefix of the network, from the cache or computed: what is asked for, and what an epoch
//! shows.

mod fill;
mod keys;

pub(super) use keys::{Decisive, about, prefix_key, row_key};

use std::{fmt, path::PathBuf};

use super::{Input, Learner};
use crate::{
    Error, Result, Tensor,
    cache::Home,
    data::{LoaderOptions, Split, Views},
    error::size,
};

/// Where the prefix ends whose activations are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// After so many units of the backbone.
    Units(usize),
    /// After the head's pool.
    Pool,
}

impl Boundary {
    /// A batch of activations on its way into the rest of the network.
    pub fn input(self, batch: Tensor) -> Input {
        match self {
            Boundary::Units(units) => Input::Activation { units, output: batch },
            Boundary::Pool => Input::Features(batch),
        }
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Boundary::Units(units) => write!(f, "{units} units"),
            Boundary::Pool => f.write_str("pool"),
        }
    }
}

/// Which views of training images precompute shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Views of each image, the clean one among them.
    count: usize,
    /// Epochs after which others are drawn; 0 for never.
    renewed_every: usize,
}

impl Default for Shown {
    fn default() -> Self {
        Self { count: 1, renewed_every: 0 }
    }
}

impl Learner {
    /// Whether activations of the leading layers that are frozen, and keep running statistics, are computed once and
    /// cached: pooled features where the whole backbone is frozen, else the activation at the last frozen block. The
    /// rest of the network trains on them, and is validated on them. An execution detail, not a state: what is frozen
    /// decides at each epoch what is cached, with a backbone that is trainable from its first layer on nothing is, and
    /// whatever changes the activations makes them new. They end on the same bits as activations that are computed
    /// anew.
    ///
    /// Training then sees the clean view of each image; if augmentation is set, a [note](super::Event::Note) says so.
    /// See [`Learner::precompute_views`] for more views. Activations that would take more than half of the memory that
    /// is free are read from disk, batch by batch, if there is a [folder](Learner::cache_folder) with room for them, and
    /// computed anew all the same if not; a note says how large they are.
    pub fn precompute(&mut self, on: bool) {
        (self.precompute, self.shown.count) = (on, 1);
    }

    /// As [`Learner::precompute`], with so many views of each training image: the clean one, and others augmented as in
    /// training, which the seed and the file's path decide. An epoch shows one view of each image; each image shows all
    /// of its views in turn, starting at one of its own. A view is computed in the first epoch that shows it. One view
    /// is the clean one alone.
    ///
    /// # Errors
    /// [`Error::Setting`] for no views.
    pub fn precompute_views(&mut self, count: usize) -> Result<()> {
        if count == 0 {
            return Err(Error::setting("precompute", "0 views are none; 1 is the clean one, more are augmented"));
        }
        (self.precompute, self.shown.count) = (true, count);
        Ok(())
    }

    /// After so many epochs other augmented views are drawn, and computed as they are shown; epochs are counted through
    /// all fits. Default 0: never.
    pub fn renew_views_every(&mut self, epochs: usize) {
        self.shown.renewed_every = epochs;
    }

    /// Host memory, in bytes, that cached activations may take. Default: half of what is free or theirs.
    pub fn precompute_memory(&mut self, bytes: u64) {
        self.cache.set_limit(bytes);
    }

    /// Keeps cached activations in a folder too, from one run to the next: rows are looked for in memory, then there,
    /// then computed. Several learners and processes may share it. Should it be of no use, or the disk fail, a
    /// [note](super::Event::Note) says so and memory serves alone. Default: none;
    /// [`Store::default_folder`](crate::cache::store::Store::default_folder) is the one of the program.
    pub fn cache_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache.set_folder(Some(folder.into()));
        self
    }

    /// Bytes that the folder of cached activations may take; the entries that were used least recently make room.
    /// Default: 10 GiB.
    pub fn cache_budget(mut self, bytes: u64) -> Self {
        self.cache.set_budget(bytes);
        self
    }

    /// Computes the activations of a split that a fit as it is set up now would use, all views of a training set, as
    /// far as the cache does not have them, and returns how many there are.
    ///
    /// # Errors
    /// [`Error::Setting`] if nothing can be cached: precompute is off, nothing is frozen, or it is too large;
    /// [`Error::Cancelled`]; errors of files.
    pub fn fill_cache(&mut self, split: Split) -> Result<usize> {
        let nothing = || {
            let message =
                "nothing can be cached: it is off, no leading layers are frozen, or memory and disk are too small";
            Error::setting("precompute", message)
        };
        if split != Split::Train {
            let (_, activations) = self.cached(split, &LoaderOptions::evaluation())?.ok_or_else(nothing)?;
            return Ok(activations.rows());
        }
        let mut rows = 0;
        for pass in 0..self.views(0).map_or(1, |views| views.count) {
            let views = self.views(0).map(|views| Views { pass: pass as u64, ..views });
            let options = LoaderOptions { views, ..LoaderOptions::evaluation() };
            let (_, activations) = self.cached(split, &options)?.ok_or_else(nothing)?;
            rows += activations.rows();
        }
        Ok(rows)
    }

    /// Where the prefix ends whose activations can be cached; `None` if there is none, or precompute is off.
    pub(super) fn boundary(&self) -> Option<Boundary> {
        match self.model.backbone.frozen_units() {
            _ if !self.precompute => None,
            0 => None,
            units if units == self.model.backbone.units() => Some(Boundary::Pool),
            units => Some(Boundary::Units(units)),
        }
    }

    /// As [`Learner::boundary`]; `None` too if there is no room for the activations.
    pub(super) fn cached_at(&mut self, split: Split) -> Result<Option<Boundary>> {
        Ok(self.home(split)?.map(|(boundary, _)| boundary))
    }

    /// The boundary, and where its activations are served from: memory if it has room for them, else disk.
    fn home(&mut self, split: Split) -> Result<Option<(Boundary, Home)>> {
        let Some(boundary) = self.boundary() else { return Ok(None) };
        // What a fit goes through again and again must be there together.
        let mut samples = self.samples(Split::Train) * self.views(0).map_or(1, |views| views.count);
        samples += self.samples(Split::Valid);
        if split == Split::Test {
            samples += self.samples(Split::Test);
        }
        let bytes = samples as u64 * self.row_bytes(boundary);
        if bytes <= self.cache.limit() {
            return Ok(Some((boundary, Home::Memory)));
        }
        let (bytes, limit) = (size(bytes as usize), self.cache.disk_limit());
        if self.about(boundary).disk_bytes(samples).is_some_and(|bytes| bytes <= limit) {
            let message = format!("cached activations take {bytes}, more than half of the memory that is free");
            self.note(format!("{message}: they are read from disk"))?;
            return Ok(Some((boundary, Home::Disk)));
        }
        let message = format!("cached activations would take {bytes}, more than half of the memory that is free");
        let disk =
            if limit > 0 { format!(" and more than the disk's {}", size(limit as usize)) } else { String::new() };
        self.note(format!("{message}{disk}: they are computed anew"))?;
        Ok(None)
    }

    /// Bytes of the activation of an image.
    fn row_bytes(&self, boundary: Boundary) -> u64 {
        self.about(boundary).row_bytes().unwrap_or(u64::MAX)
    }

    /// What an epoch of training shows, by its number in the history.
    pub(super) fn training_options(&mut self, epoch: u64) -> Result<LoaderOptions> {
        let options = LoaderOptions::training(self.seed, epoch);
        if self.boundary().is_none() {
            return Ok(options);
        }
        let views = self.views(epoch);
        if views.is_none() && self.shown.count > 1 {
            self.note("nothing is random in the transforms, so that every view is the clean one".into())?;
        } else if views.is_none() && *self.transforms() != self.transforms().evaluation() {
            let message = "precompute is on: training sees clean views alone, augmentation has no effect";
            self.note(message.into())?;
        }
        Ok(LoaderOptions { augment: false, views, ..options })
    }

    /// The views of training images, where there are several.
    fn views(&self, epoch: u64) -> Option<Views> {
        let Shown { count, renewed_every } = self.shown;
        let generation = epoch.checked_div(renewed_every as u64).unwrap_or(0);
        let root = self.data.root().to_owned();
        let views = || Views { seed: self.seed, count, generation, pass: epoch, root };
        (count > 1 && self.transforms().is_random()).then(views)
    }
}

#[cfg(test)]
mod tests;
