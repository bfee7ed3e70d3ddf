//! Activations of the frozen prefix of the network, from the cache or computed.

use std::{collections::HashSet, fmt, sync::Arc};

use rayon::prelude::*;

use super::{Event, Input, Learner, feed::Fed};
use crate::{
    Error, Result, Tensor,
    autograd::Var,
    cache::{Activations, Key, KeyBuilder, Sought},
    data::{Batch, Item, LoaderOptions, Split, Views},
    error::size,
    nn::{Pass, Unit, cost::Network},
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
    /// Training then sees the clean view of each image; if augmentation is set, an [`Event::Note`] says so. See
    /// [`Learner::precompute_views`] for more views. Activations that would take more than half of the memory that is
    /// free are computed anew all the same, and a note says how large they would be.
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

    /// Where the prefix ends whose activations can be cached; `None` if there is none, or precompute is off.
    pub(super) fn boundary(&self) -> Option<Boundary> {
        match self.model.backbone.frozen_units() {
            _ if !self.precompute => None,
            0 => None,
            units if units == self.model.backbone.units() => Some(Boundary::Pool),
            units => Some(Boundary::Units(units)),
        }
    }

    /// As [`Learner::boundary`]; `None` too if the activations would take too much memory.
    pub(super) fn cached_at(&mut self, split: Split) -> Result<Option<Boundary>> {
        let Some(boundary) = self.boundary() else { return Ok(None) };
        // What a fit goes through again and again must be there together.
        let mut samples = self.samples(Split::Train) * self.views(0).map_or(1, |views| views.count);
        samples += self.samples(Split::Valid);
        if split == Split::Test {
            samples += self.samples(Split::Test);
        }
        let bytes = samples as u64 * self.row_bytes(boundary);
        if bytes <= self.cache.limit() {
            return Ok(Some(boundary));
        }
        self.note(format!(
            "cached activations would take {}, more than half of the memory that is free: they are computed anew",
            size(bytes as usize)
        ))?;
        Ok(None)
    }

    /// Bytes of the activation of an image.
    fn row_bytes(&self, boundary: Boundary) -> u64 {
        let (model, precision) = (&self.model, self.model.precision());
        let (arch, classes, size) = (model.arch(), model.head.classes(), self.transforms().size);
        let bytes = match boundary {
            Boundary::Pool => model.head.inputs() * size_of::<f32>(),
            Boundary::Units(units) => {
                let network = Network { arch, size, batch: 1, classes, precision };
                network.output(units).iter().product::<usize>() * precision.storage().bytes()
            }
        };
        bytes as u64
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

    /// The activations of a split's samples at `boundary`, of the views that `options` shows: those that the cache does
    /// not have are computed.
    pub(super) fn activations(
        &mut self,
        split: Split,
        boundary: Boundary,
        options: &LoaderOptions,
    ) -> Result<Arc<Activations>> {
        let sought = self.sought(split, boundary, options)?;
        let mut missing: Vec<u32> = sought.iter().filter(|s| !self.cache.knows(s)).map(|s| s.index).collect();
        if !missing.is_empty() {
            let entries: HashSet<Key> = sought.iter().map(|sought| sought.entry).collect();
            let entries = Vec::from_iter(entries);
            let bytes = missing.len() as u64 * self.row_bytes(boundary);
            if !self.cache.make_room(bytes, &entries) {
                // Rows of files that have changed since take it.
                entries.iter().for_each(|entry| self.cache.remove(entry));
                missing = sought.iter().map(|sought| sought.index).collect();
            }
            self.fill(split, boundary, options, &sought, &entries, missing)?;
        }
        self.cache.select(&sought, &self.device)
    }

    /// Computes what is `missing`. What was computed stays, whatever ends the work.
    fn fill(
        &mut self,
        split: Split,
        boundary: Boundary,
        options: &LoaderOptions,
        sought: &[Sought],
        entries: &[Key],
        missing: Vec<u32>,
    ) -> Result<()> {
        let (total, mut done) = (missing.len(), 0);
        self.check_memory(self.data.batch_size.min(total), false)?;
        let mut feed = self.feed_of(split, missing.clone(), options)?;
        let mut changed: HashSet<u32> = HashSet::new();
        while let Some(fed) = feed.next() {
            self.cancel.check()?;
            let Fed { batch, images } = fed?;
            done += batch.len() + batch.failed.len();
            self.report_failures(&batch)?;
            if let Some(images) = images.map(Var::constant) {
                let output = self.prefix(boundary, &images)?;
                drop(images);
                feed.prefetch();
                // A file may have been replaced since it was looked at: what was read is then of neither for sure.
                let now = self.identities(split, &batch.indices);
                for entry in entries {
                    let mut rows = Vec::new();
                    for (position, (&index, now)) in batch.indices.iter().zip(&now).enumerate() {
                        match sought[index as usize] {
                            Sought { entry: of, .. } if of != *entry => {}
                            Sought { row: Some(row), .. } if self.row(split, index, *now, options) == Some(row) => {
                                rows.push((position, row));
                            }
                            _ => drop(changed.insert(index)),
                        }
                    }
                    if !rows.is_empty() {
                        self.cache.add(*entry, output.value(), &rows)?;
                    }
                }
            }
            self.tell(&Event::Caching { split, done, total })?;
        }
        for index in &changed {
            let path = self.data.items(split)[*index as usize].path.display().to_string();
            self.note(format!("skipped {path}: it changed while it was read"))?;
        }
        for sought in missing.iter().filter(|index| !changed.contains(index)).map(|index| &sought[*index as usize]) {
            if let Some(row) = sought.row.filter(|_| !self.cache.knows(sought)) {
                self.cache.add_failed(sought.entry, row);
            }
        }
        Ok(())
    }

    /// The prefix's output for a batch of images.
    fn prefix(&self, boundary: Boundary, images: &Var) -> Result<Var> {
        let mut pass = Pass::evaluation();
        match boundary {
            Boundary::Units(units) => self.model.backbone.forward_units(&mut pass, images, 0..units),
            Boundary::Pool => self.model.features(&mut pass, images),
        }
    }

    /// Where the activations of a split's samples are to be found.
    fn sought(&mut self, split: Split, boundary: Boundary, options: &LoaderOptions) -> Result<Vec<Sought>> {
        let clean = self.entry_key(boundary, &LoaderOptions::evaluation())?;
        let drawn = self.entry_key(boundary, options)?;
        let indices: Vec<u32> = (0..self.samples(split) as u32).collect();
        let identities = self.identities(split, &indices);
        let sought = indices.into_iter().zip(identities).map(|(index, identity)| {
            let Item { path, label } = &self.data.items(split)[index as usize];
            let entry = match &options.views {
                Some(views) if views.number(path) == 0 => clean,
                _ => drawn,
            };
            Sought { entry, row: self.row(split, index, identity, options), label: *label, index }
        });
        Ok(sought.collect())
    }

    /// What a sample's file is; `None` if it is gone: whether that is an error is for the loader to say.
    fn identities(&self, split: Split, indices: &[u32]) -> Vec<Option<Key>> {
        let (items, root, content) = (self.data.items(split), self.data.root(), self.data.verifies_content());
        let identity = |index: &u32| {
            let path = &items[*index as usize].path;
            KeyBuilder::new("file").file(root, path, content).ok().map(|key| key.finish())
        };
        self.device.install(|| indices.par_iter().map(identity).collect())
    }

    /// The key of the view of a file that `options` shows.
    fn row(&self, split: Split, index: u32, identity: Option<Key>, options: &LoaderOptions) -> Option<Key> {
        let view = match &options.views {
            Some(views) => match views.number(&self.data.items(split)[index as usize].path) {
                0 => return identity,
                number => format!("view {number}"),
            },
            None if options.augment => format!("epoch {}, position {index}", options.epoch),
            None => return identity,
        };
        identity.map(|identity| KeyBuilder::new("view").key(&identity).text(&view).finish())
    }

    /// Everything that decides activations beside the sample: the prefix's values and statistics, its architecture and
    /// its end, the numbers it computes with, the pipeline to the pixels, and what draws the views.
    fn entry_key(&mut self, boundary: Boundary, options: &LoaderOptions) -> Result<Key> {
        let units = match boundary {
            Boundary::Units(units) => units,
            Boundary::Pool => self.model.backbone.units(),
        };
        let prefix = self.prefix_key(units)?;
        let mut key = KeyBuilder::new(&self.device.to_string());
        key.text(&self.model.precision().to_string());
        key.key(&prefix).text(self.model.arch().name()).text(&boundary.to_string());
        if boundary == Boundary::Pool {
            key.text(self.model.head.pool_name());
        }
        // What was left out as undecodable must not be left out in silence once that is an error.
        key.text(&format!("strict {}", self.data.is_strict()));
        let transforms = match (&options.views, options.augment) {
            (Some(Views { seed, generation, .. }), _) => {
                key.text(&format!("views of seed {seed}, generation {generation}"));
                self.transforms().clone()
            }
            (None, true) => {
                key.text(&format!("drawn by position from seed {}", options.seed));
                self.transforms().clone()
            }
            (None, false) => self.transforms().evaluation(),
        };
        Ok(key.text(&serde_json::json!(transforms).to_string()).finish())
    }

    /// Hash of the values and statistics of the backbone's first `units` units.
    fn prefix_key(&mut self, units: usize) -> Result<Key> {
        if let Some((of, key)) = self.backbone_key
            && of == units
        {
            return Ok(key);
        }
        let end = self.model.units()[units];
        let mut key = KeyBuilder::new(&self.device.to_string());
        let key = key.parameters(&self.model.backbone, |name| Unit::of(name) < end)?.finish();
        self.backbone_key = Some((units, key));
        Ok(key)
    }

    /// Tells of files that could not be decoded, each once.
    pub(super) fn report_failures(&mut self, batch: &Batch) -> Result<()> {
        batch.failed.iter().try_for_each(|failed| self.note(format!("skipped {failed}")))
    }
}

#[cfg(test)]
mod tests;
