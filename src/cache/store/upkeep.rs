//! Looking after a store: what is in it, whether that is whole, and getting rid of it.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    About, Store,
    chunk::{Fault, Head},
    folder::{Found, chunk_files, remove_entry, remove_file},
};
use crate::{Error, Result};

/// An entry, as `unfreeze cache list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Its name: 32 hexadecimal digits.
    pub id: String,
    /// What its rows are; `None` if no chunk can be read.
    pub about: Option<About>,
    /// All folders that its images come from.
    pub data: Vec<String>,
    /// Samples that it has a row of.
    pub rows: usize,
    /// Its files.
    pub chunks: usize,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// When it was opened or closed last.
    pub used: SystemTime,
}

impl Listed {
    /// The one of `entries` whose name begins with `id`.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is none, or more than one.
    pub fn pick<'a>(entries: &'a [Self], id: &str) -> Result<&'a Self> {
        let begun = id.to_ascii_lowercase();
        let mut matching = entries.iter().filter(|entry| !begun.is_empty() && entry.id.starts_with(&begun));
        let message = match (matching.next(), matching.next()) {
            (Some(entry), None) => return Ok(entry),
            (None, _) => format!("no entry is called '{id}'; `unfreeze cache list` names those there are"),
            (Some(one), Some(other)) => format!("'{id}' may be {} or {}; give more digits", one.id, other.id),
        };
        Err(Error::setting("cache", message))
    }
}

/// What [`Store::verify`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Files that were checked.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are of no use.
    pub damaged: Vec<Damaged>,
}

/// A file of a store that is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Store {
    /// The entries, those that were used last first.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut entries: Vec<Listed> = self.scan(None)?.into_iter().map(listed).collect();
        entries.sort_by(|a, b| b.used.cmp(&a.used).then(a.id.cmp(&b.id)));
        Ok(entries)
    }

    /// Reads every chunk and compares its checksums. With `remove`, those that are damaged are removed; those that
    /// cannot be read stay.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder cannot be read, or a file cannot be removed.
    pub fn verify(&self, remove: bool) -> Result<Verified> {
        let mut verified = Verified::default();
        for entry in self.scan(None)? {
            for (path, bytes) in entry.chunks {
                verified.chunks += 1;
                verified.bytes += bytes;
                let reason = match head_of(&path, &entry.id).and_then(|head| head.values.check(&path)) {
                    Ok(_) | Err(Fault::Gone) => continue,
                    Err(Fault::Unreadable(error)) => format!("it cannot be read: {error}"),
                    Err(Fault::Damaged(reason)) => {
                        if remove {
                            remove_file(&path)?;
                        }
                        reason
                    }
                };
                verified.damaged.push(Damaged { path, reason });
            }
        }
        Ok(verified)
    }

    /// Removes an entry, and returns the bytes freed. A process that has it open keeps what it has read already, and
    /// misses the rest.
    ///
    /// # Errors
    /// [`Error::Io`] if a file of it cannot be removed, or the folder holds files of others; [`Error::Data`] if another
    /// process has been writing for long.
    pub fn clear(&self, entry: &Listed) -> Result<u64> {
        let _writing = self.lock(self.patience)?;
        let (freed, outcome) = remove_entry(&self.folder.join(&entry.id));
        outcome.map(|()| freed)
    }
}

impl Store {
    /// As [`Store::clear`], of the files alone whose images come from the folder `data`: an entry may have images of
    /// several.
    ///
    /// # Errors
    /// As [`Store::clear`].
    pub fn clear_data(&self, entry: &Listed, data: &Path) -> Result<u64> {
        let _writing = self.lock(self.patience)?;
        let folder = self.folder.join(&entry.id);
        let chunks = chunk_files(&folder).map_err(|error| Error::io(&folder, error))?;
        let (mut freed, count) = (0, chunks.len());
        let of_data = |path: &Path| head_of(path, &entry.id).is_ok_and(|head| Path::new(&head.about.data) == data);
        let chosen: Vec<(PathBuf, u64)> = chunks.into_iter().filter(|(path, _)| of_data(path)).collect();
        let all = chosen.len() == count;
        for (path, bytes) in chosen {
            remove_file(&path)?;
            freed += bytes;
        }
        match all {
            true => remove_entry(&folder).1.map(|()| freed),
            false => Ok(freed),
        }
    }
}

/// The head of a chunk in the folder of the entry `id`.
fn head_of(path: &Path, id: &str) -> Result<Head, Fault> {
    let head = Head::read(path)?;
    if head.about.id(&head.key) == id { Ok(head) } else { Err(Fault::Damaged("it is of another entry".into())) }
}

fn listed(entry: Found) -> Listed {
    let Found { id, used, bytes, chunks, .. } = entry;
    let heads: Vec<Head> = chunks.iter().filter_map(|(path, _)| head_of(path, &id).ok()).collect();
    let samples: HashSet<_> = heads.iter().flat_map(|head| &head.samples).collect();
    let data: BTreeSet<_> = heads.iter().map(|head| head.about.data.clone()).collect();
    let about = heads.first().map(|head| head.about.clone());
    Listed { id, about, data: data.into_iter().collect(), rows: samples.len(), chunks: chunks.len(), bytes, used }
}
