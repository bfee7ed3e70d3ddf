//! Activations of a frozen prefix, computed once. An entry is found by a key made from everything that decides its
//! content but the sample, and its rows by what a sample is, so nothing stale is ever served: what changed has another
//! key. Labels are no part of either.

mod activations;
mod chunk;
mod file_key;
mod key;
mod rows;
pub mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

pub use activations::Activations;
pub use file_key::FileKeys;
pub use key::{Key, KeyBuilder};

use crate::{Device, Error, Result, Tensor, device::available_memory};
use chunk::Chunk;
use rows::Rows;
use store::Store;

/// Share of the host memory that is free at first that the cache may take: one in so many.
const SHARE: u64 = 2;

/// Selections of samples that a GPU may hold: those of the training, validation and test set.
const SELECTIONS: usize = 3;

/// Where the activation of a sample is to be found, and what is to be known of the sample.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    /// The entry.
    pub entry: Key,
    /// The row. `None` if the sample has no identity, its file being gone.
    pub row: Option<Key>,
    /// The sample's label.
    pub label: u32,
    /// The sample's position in its split.
    pub index: u32,
}

/// Where rows are served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// From host memory, where they are written to disk beside it if there is a folder for them.
    Memory,
    /// From disk, row by row, for those that host memory has no room for.
    Disk,
}

/// Entries in host memory, and on disk where a folder is set. Those that were used least recently go where there is no
/// room.
#[derive(Debug, Default)]
pub struct ActivationCache {
    /// The last is the one that was used last.
    entries: Vec<(Key, Rows)>,
    /// What was selected last, where a GPU holds it.
    selections: Vec<(Key, Arc<Activations>)>,
    limit: OnceLock<u64>,
    /// Where entries are kept from one run to the next; `None` too when that has failed.
    folder: Option<PathBuf>,
    budget: Option<u64>,
    notes: Vec<String>,
}

impl ActivationCache {
    /// Sets the bytes that entries may take. Default: half of the memory that is free when they are first asked for, so
    /// that what is kept does not change with what others take meanwhile.
    pub fn set_limit(&mut self, bytes: u64) {
        self.limit = bytes.into();
    }

    /// Keeps entries in a folder too, from one run to the next. Default: in memory alone.
    pub fn set_folder(&mut self, folder: Option<PathBuf>) {
        self.folder = folder;
    }

    /// Sets the bytes that the folder may take. Default: [`store::DEFAULT_BUDGET`].
    pub fn set_budget(&mut self, bytes: u64) {
        self.budget = Some(bytes);
    }

    /// What is to be said of the folder since this was last asked: what was damaged, or why it is not used any more.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Brings rows from disk into memory, or makes them readable where they are, as far as they are there.
    pub fn load(&mut self, missing: &[Sought], about: &store::About, home: Home) {
        let mut entries: HashMap<Key, Vec<Key>> = HashMap::new();
        for Sought { entry, row, .. } in missing {
            entries.entry(*entry).or_default().extend(row);
        }
        for (entry, rows) in entries {
            if let Err(error) = self.load_entry(entry, &rows, about, home) {
                return self.give_up(&error);
            }
        }
    }

    fn load_entry(&mut self, entry: Key, rows: &[Key], about: &store::About, home: Home) -> Result<()> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let budget = self.disk_limit();
        let held = self.entry(entry);
        if held.disk.is_none() {
            held.disk = Some(Store::open(folder, budget)?.entry(&entry, about)?);
        }
        let notes = held.load(rows, about, home)?;
        self.notes.extend(notes);
        Ok(())
    }

    /// Closes what is open on disk, but for the entries `kept`: what nobody uses any more may make room there.
    pub fn release(&mut self, kept: &[Key]) {
        self.entries.iter_mut().filter(|(key, _)| !kept.contains(key)).for_each(|(_, rows)| rows.disk = None);
    }

    /// Whether so many rows of an entry could be kept on disk, should they be computed. If not they are kept in memory,
    /// before others there had to make room for nothing.
    pub fn prepare(&mut self, entry: &Key, rows: usize) {
        let Some((_, held)) = self.entries.iter_mut().find(|(key, _)| key == entry) else { return };
        let fits = held.disk.as_ref().map_or(Ok(()), |disk| disk.check_fits(held.places.len() + rows));
        if let Err(error) = fits {
            held.disk = None;
            self.notes.push(format!("these activations are kept in memory alone: {error}"));
        }
    }

    /// Has everything on disk that was added.
    pub fn flush(&mut self) {
        let written =
            self.entries.iter_mut().filter_map(|(_, rows)| rows.disk.as_mut()).try_for_each(store::Entry::flush);
        if let Err(error) = written {
            self.give_up(&error);
        }
    }

    /// Uses memory alone from here on.
    fn give_up(&mut self, error: &Error) {
        self.folder = None;
        self.entries.iter_mut().for_each(|(_, rows)| rows.disk = None);
        self.notes.push(format!("activations are kept in memory alone from here on: {error}"));
    }

    /// Whether what is added can be served from there.
    pub fn keeps_in(&self, home: Home) -> bool {
        home == Home::Memory || self.folder.is_some()
    }

    /// Bytes that entries may take on disk: 0 where there is no folder for them.
    pub fn disk_limit(&self) -> u64 {
        self.folder.as_ref().map_or(0, |_| self.budget.unwrap_or(store::DEFAULT_BUDGET))
    }

    /// Bytes that entries may take in memory.
    pub fn limit(&self) -> u64 {
        *self.limit.get_or_init(|| available_memory().map_or(u64::MAX, |free| free / SHARE))
    }

    /// Bytes that entries take in memory.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|(_, rows)| rows.bytes()).sum()
    }

    /// Whether there is nothing to be computed for a sample: its row is there, or it is known that it cannot be
    /// decoded.
    pub fn knows(&self, sought: &Sought) -> bool {
        let Sought { entry, row: Some(row), .. } = sought else { return false };
        self.rows(entry).is_some_and(|rows| rows.places.contains_key(row))
    }

    /// Whether a sample's row is there.
    pub fn holds(&self, sought: &Sought) -> bool {
        let Sought { entry, row: Some(row), .. } = sought else { return false };
        self.rows(entry).is_some_and(|rows| rows.places.get(row).is_some_and(Option::is_some))
    }

    /// Adds rows of the batch `[n, …]`: for each the position there, and its key. Those that are to be served from disk
    /// are known once they were [flushed](Self::flush) and [loaded](Self::load).
    ///
    /// # Errors
    /// Those of fetching the batch from its device.
    pub fn add(&mut self, entry: Key, batch: &Tensor, rows: &[(usize, Key)], home: Home) -> Result<()> {
        let (positions, keys): (Vec<usize>, Vec<Key>) = rows.iter().copied().unzip();
        let chunk = Chunk::of(batch, &positions)?;
        let held = self.entry(entry);
        let kept = held.disk.as_mut().map_or(Ok(()), |disk| disk.append(&keys, &chunk.to_f32()));
        if home == Home::Memory {
            held.hold(chunk, &keys);
        }
        if let Err(error) = kept {
            self.give_up(&error);
        }
        Ok(())
    }

    /// Remembers that a sample cannot be decoded.
    pub fn add_failed(&mut self, entry: Key, row: Key) {
        self.entry(entry).places.insert(row, None);
    }

    /// Lets entries go, but those `kept`, until there is room for so many bytes more; false if there is none even so.
    pub fn make_room(&mut self, bytes: u64, kept: &[Key]) -> bool {
        let limit = self.limit();
        while self.bytes().saturating_add(bytes) > limit {
            let Some(oldest) = self.entries.iter().position(|(key, _)| !kept.contains(key)) else { return false };
            self.entries.remove(oldest);
            self.selections.clear();
        }
        true
    }

    /// Lets entries go, but those `kept` and as many of the others as a fit goes back to.
    pub fn keep_latest(&mut self, kept: &[Key]) {
        let others = self.entries.iter().filter(|(key, _)| !kept.contains(key)).count();
        let mut surplus = others.saturating_sub(SELECTIONS - 1);
        self.entries.retain(|(key, _)| {
            let goes = surplus > 0 && !kept.contains(key);
            surplus -= usize::from(goes);
            !goes
        });
        self.selections.clear();
    }

    /// Lets an entry go.
    pub fn remove(&mut self, entry: &Key) {
        self.entries.retain(|(key, _)| key != entry);
        self.selections.clear();
    }

    /// The activations of those samples that are there, on `device` too if that is a GPU with room for them.
    ///
    /// # Errors
    /// [`Error::Shape`] if their rows are not of one shape;
    /// [`Error::Device`] if the device failed.
    pub fn select(&mut self, samples: &[Sought], device: &Device) -> Result<Arc<Activations>> {
        let mut used: Vec<Key> = Vec::new();
        for Sought { entry, .. } in samples {
            if !used.contains(entry) {
                used.push(*entry);
                self.touch(entry);
            }
        }
        let Device::Cuda(_) = device else { return Ok(Arc::new(self.selected(samples)?)) };
        let mut key = KeyBuilder::new(&device.to_string());
        for Sought { entry, row, label, index } in samples.iter().filter(|sample| self.knows(sample)) {
            row.iter().fold(key.key(entry), KeyBuilder::key).text(&format!("{label} {index}"));
        }
        let key = key.finish();
        let found = match self.selections.iter().position(|(known, _)| *known == key) {
            Some(at) => self.selections.remove(at).1,
            None => {
                let mut selected = self.selected(samples)?;
                selected.keep_on(device)?;
                Arc::new(selected)
            }
        };
        self.selections.push((key, found.clone()));
        if self.selections.len() > SELECTIONS {
            self.selections.remove(0);
        }
        Ok(found)
    }

    fn selected(&self, samples: &[Sought]) -> Result<Activations> {
        let mut selected = Activations::default();
        let mut numbers: HashMap<(Key, u32), u32> = HashMap::new();
        for Sought { entry, row, label, index } in samples {
            let Some((rows, row)) = self.rows(entry).zip(row.as_ref()) else { continue };
            let Some((chunk, row)) = rows.places.get(row).copied().flatten() else { continue };
            let number = match numbers.entry((*entry, chunk)) {
                hash_map::Entry::Occupied(known) => *known.get(),
                hash_map::Entry::Vacant(new) => *new.insert(selected.add_chunk(rows.chunks[chunk as usize].clone())?),
            };
            selected.add((number, row), *label, *index);
        }
        Ok(selected)
    }

    fn rows(&self, entry: &Key) -> Option<&Rows> {
        self.entries.iter().find(|(key, _)| key == entry).map(|(_, rows)| rows)
    }

    /// Makes an entry the one that was used last.
    fn touch(&mut self, entry: &Key) {
        if let Some(at) = self.entries.iter().position(|(key, _)| key == entry) {
            self.entries[at..].rotate_left(1);
        }
    }

    /// An entry for writing, made if there is none; it was used last.
    fn entry(&mut self, entry: Key) -> &mut Rows {
        if self.rows(&entry).is_none() {
            self.entries.push((entry, Rows::default()));
        }
        self.touch(&entry);
        let last = self.entries.len() - 1;
        &mut self.entries[last].1
    }
}
