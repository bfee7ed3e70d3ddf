//! Activations from memory, from disk, or computed.

use std::{collections::HashSet, sync::Arc};

use super::Boundary;
use crate::{
    Error, Result,
    autograd::Var,
    cache::{ActivationCache, Activations, Home, Key, Sought},
    data::{Batch, LoaderOptions, Split, decode},
    learner::{Event, Learner, feed::Fed},
    nn::Pass,
};

impl Learner {
    /// The activations of a split's samples, of the views that `options` shows, and where they end: those that the cache
    /// does not have are computed. `None` if nothing can be cached.
    pub(in crate::learner) fn cached(
        &mut self,
        split: Split,
        options: &LoaderOptions,
    ) -> Result<Option<(Boundary, Arc<Activations>)>> {
        let Some((boundary, home)) = self.home(split)? else { return Ok(None) };
        let sought = self.sought(split, boundary, options)?;
        // What was left out as undecodable must not be left out in silence where that is an error.
        let strict = self.data.is_strict();
        let is_there = |cache: &ActivationCache, s: &Sought| if strict { cache.holds(s) } else { cache.knows(s) };
        let mut missing: Vec<u32> = sought.iter().filter(|s| !is_there(&self.cache, s)).map(|s| s.index).collect();
        if !missing.is_empty() {
            let entries: HashSet<Key> = sought.iter().map(|sought| sought.entry).collect();
            let entries = Vec::from_iter(entries);
            let bytes = missing.len() as u64 * self.row_bytes(boundary);
            if home == Home::Memory && !self.cache.make_room(bytes, &entries) {
                // Rows of files that have changed since take it.
                entries.iter().for_each(|entry| self.cache.remove(entry));
                missing = sought.iter().map(|sought| sought.index).collect();
            }
            if home == Home::Disk {
                // What is mapped keeps its place on disk, whatever makes room there.
                self.cache.keep_latest(&entries);
            }
            self.cache.release(&entries);
            let samples: Vec<Sought> = missing.iter().map(|index| sought[*index as usize]).collect();
            self.cache.load(&samples, &self.about(boundary), home);
            missing.retain(|index| !is_there(&self.cache, &sought[*index as usize]));
            for entry in entries.iter().filter(|_| home == Home::Memory) {
                let rows = missing.iter().filter(|index| sought[**index as usize].entry == *entry).count();
                self.cache.prepare(entry, rows);
            }
            self.tell_of_disk()?;
            if !missing.is_empty() && self.cache.keeps_in(home) {
                let filled = self.fill(split, (boundary, home), options, &sought, &entries, missing);
                // What was computed is kept, whatever ended the work.
                self.cache.flush();
                self.tell_of_disk()?;
                filled?;
            }
        }
        // A disk that has failed leaves some of them nowhere.
        if !self.cache.keeps_in(home) {
            return Ok(None);
        }
        Ok(Some((boundary, self.cache.select(&sought, &self.device)?)))
    }

    fn tell_of_disk(&mut self) -> Result<()> {
        self.cache.take_notes().into_iter().try_for_each(|note| self.note(note))
    }

    /// Computes what is `missing`. What was computed stays, whatever ends the work: a disk that fails does, where it is
    /// all there is.
    fn fill(
        &mut self,
        split: Split,
        (boundary, home): (Boundary, Home),
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
                let now = self.row_keys(split, &batch.indices, options);
                for entry in entries {
                    let mut rows = Vec::new();
                    for (position, (&index, now)) in batch.indices.iter().zip(&now).enumerate() {
                        match sought[index as usize] {
                            Sought { entry: of, .. } if of != *entry => {}
                            Sought { row: Some(row), .. } if *now == Some(row) => rows.push((position, row)),
                            _ => drop(changed.insert(index)),
                        }
                    }
                    if !rows.is_empty() {
                        self.cache.add(*entry, output.value(), &rows, home)?;
                    }
                }
                if !self.cache.keeps_in(home) {
                    return Ok(());
                }
            }
            self.tell(&Event::Caching { split, done, total })?;
        }
        self.cache.flush();
        if home == Home::Disk {
            let samples: Vec<Sought> = missing.iter().map(|index| sought[*index as usize]).collect();
            self.cache.load(&samples, &self.about(boundary), home);
        }
        if !self.cache.keeps_in(home) {
            return Ok(());
        }
        for index in &changed {
            let path = self.data.items(split)[*index as usize].path.display().to_string();
            self.note(format!("skipped {path}: it changed while it was read"))?;
        }
        for sought in missing.iter().filter(|index| !changed.contains(index)).map(|index| &sought[*index as usize]) {
            let Some(row) = sought.row.filter(|_| !self.cache.knows(sought)) else { continue };
            // What could not be read may be another time.
            let path = &self.data.items(split)[sought.index as usize].path;
            if decode(path).is_err_and(|error| !matches!(error, Error::Io { .. })) {
                self.cache.add_failed(sought.entry, row);
            }
        }
        Ok(())
    }

    /// The prefix's output for a batch of images.
    pub(super) fn prefix(&self, boundary: Boundary, images: &Var) -> Result<Var> {
        let mut pass = Pass::evaluation();
        match boundary {
            Boundary::Units(units) => self.model.backbone.forward_units(&mut pass, images, 0..units),
            Boundary::Pool => self.model.features(&mut pass, images),
        }
    }

    /// Tells of files that could not be decoded, each once.
    pub(in crate::learner) fn report_failures(&mut self, batch: &Batch) -> Result<()> {
        batch.failed.iter().try_for_each(|failed| self.note(format!("skipped {failed}")))
    }
}
