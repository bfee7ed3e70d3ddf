//! The folder of a store: what is in it, who uses it, making room.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{ID, Store, entry::Chunk};
use crate::{
    Error, Result,
    error::size,
    files::{TEMPORARY, remove_temporaries},
};

pub(super) const CHUNK_EXTENSION: &str = "chunk";
/// Locked by the process that writes to the store.
const LOCK: &str = ".lock";
/// In an entry's folder: its time is that of the entry's last use, and it is locked while the entry is open.
const USED: &str = ".used";

/// The right to write to a store, for as long as this value lives. Temporary files are made by its holder only, so
/// those that it finds are of processes that were killed.
pub(super) struct Writing(#[expect(dead_code, reason = "the lock ends when the file is closed")] File);

impl Writing {
    /// Removes the temporary files of an entry.
    pub fn sweep(&self, entry: &Path) {
        remove_temporaries(entry);
    }
}

/// Shows that an entry is open.
#[derive(Debug)]
pub(super) struct Holder {
    file: File,
    path: PathBuf,
}

impl Holder {
    /// Notes the use of the entry in `folder`. `None` if there is no such folder, or it cannot be written to.
    pub fn of(folder: &Path) -> Option<Self> {
        let path = folder.join(USED);
        let file = File::options().create(true).read(true).append(true).open(&path).ok()?;
        let holder = Self { file, path };
        holder.touch();
        // Without locks its rows may be missing later.
        let _ = holder.file.try_lock_shared();
        Some(holder)
    }

    /// Whether the entry has not been removed since.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Without the right time the entry is at most removed too early.
    fn touch(&self) {
        let _ = self.file.set_modified(SystemTime::now());
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.touch();
    }
}

/// An entry's folder.
pub(super) struct Found {
    pub id: String,
    path: PathBuf,
    pub used: SystemTime,
    /// Its chunks by name, and their bytes.
    pub chunks: Vec<(PathBuf, u64)>,
    /// Bytes of all its files.
    pub bytes: u64,
}

impl Store {
    /// Waits for the right to write. `None` on a file system without locks.
    pub(super) fn lock(&self, patience: Duration) -> Result<Option<Writing>> {
        let path = self.folder.join(LOCK);
        let file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Writing(file))),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if begun.elapsed() < patience => thread::sleep(Duration::from_millis(2)),
                Err(TryLockError::WouldBlock) => {
                    let message = "another process has been writing to this cache for long, or is stopped";
                    return Err(Error::data(&self.folder, message));
                }
            }
        }
    }

    /// Removes what was not used for longest, until there is room for `needed` bytes more: other entries that are not
    /// open, then the `spare` chunks of the entry in `own`.
    pub(super) fn make_room(&self, needed: u64, own: &Path, spare: &[&Chunk], writing: Option<&Writing>) -> Result<()> {
        let mut entries = self.scan(writing)?;
        entries.sort_by_key(|entry| entry.used);
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let fits = |total: u64| total.saturating_add(needed) <= self.budget;
        if fits(total) {
            return Ok(());
        }
        // What can never fit must not cost the others their place.
        let kept = entries.iter().find(|entry| entry.path == own).map_or(0, |entry| entry.bytes);
        let kept = kept.saturating_sub(spare.iter().map(|chunk| bytes_of(chunk.path())).sum());
        if !fits(kept) {
            return Err(self.too_small(kept.saturating_add(needed)));
        }
        for entry in entries.iter().filter(|entry| entry.path != own) {
            // What cannot be told to be closed is taken to be open.
            let is_open = match File::options().read(true).append(true).open(entry.path.join(USED)) {
                Ok(file) => file.try_lock().is_err(),
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            };
            if !is_open {
                let (freed, _) = remove_entry(&entry.path);
                total = total.saturating_sub(freed);
            }
            if fits(total) {
                return Ok(());
            }
        }
        for chunk in spare {
            let bytes = bytes_of(chunk.path());
            if fs::remove_file(chunk.path()).is_ok() {
                chunk.forget();
                total = total.saturating_sub(bytes);
            }
            if fits(total) {
                return Ok(());
            }
        }
        let message = format!("what is in use leaves no room in the cache's budget of {}", size_of(self.budget));
        Err(Error::data(&self.folder, message))
    }

    pub(super) fn too_small(&self, needed: u64) -> Error {
        let (needed, budget) = (size_of(needed), size_of(self.budget));
        Error::data(&self.folder, format!("the activations take {needed}, the cache's budget is {budget}"))
    }

    /// All entries, once what killed processes have left behind is swept away.
    pub(super) fn scan(&self, writing: Option<&Writing>) -> Result<Vec<Found>> {
        let folders = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            outcome => outcome.map_err(|error| Error::io(&self.folder, error))?,
        };
        let mut found = Vec::new();
        for folder in folders {
            let folder = folder.map_err(|error| Error::io(&self.folder, error))?;
            let (path, id) = (folder.path(), folder.file_name().to_string_lossy().into_owned());
            let is_id = id.len() == ID && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            // Not what a link leads to.
            if !is_id || !folder.file_type().is_ok_and(|file_type| file_type.is_dir()) {
                continue;
            }
            if let Some(writing) = writing {
                writing.sweep(&path);
            }
            let read = || io::Result::Ok((chunk_files(&path)?, files(&path, is_temporary)?));
            let (chunks, temporaries) = match read() {
                // Another user's is no concern of this one.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
                outcome => outcome.map_err(|error| Error::io(&path, error))?,
            };
            let bytes = chunks.iter().chain(&temporaries).map(|(_, bytes)| bytes).sum();
            let used = fs::metadata(path.join(USED)).or_else(|_| fs::metadata(&path));
            let used = used.and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Found { id, path, used, chunks, bytes });
        }
        Ok(found)
    }
}

/// The chunks of an entry by name, and their bytes. None if there is no such folder.
pub(super) fn chunk_files(entry: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    files(entry, |name| Path::new(name).extension().is_some_and(|extension| extension == CHUNK_EXTENSION))
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

/// The files in a folder whose names are wanted. Links and what else is no file are none.
fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<(PathBuf, u64)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        outcome => outcome?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        // One that has gone since is none.
        if let Ok(found) = entry.metadata()
            && found.is_file()
            && wanted(&entry.file_name().to_string_lossy())
        {
            files.push((entry.path(), found.len()));
        }
    }
    files.sort();
    Ok(files)
}

/// Removes what is a store's in the folder of an entry, and the folder. Returns the bytes freed, even if that fails in
/// between.
pub(super) fn remove_entry(entry: &Path) -> (u64, Result<()>) {
    let mut freed = 0;
    let mut remove = || {
        let fail = |error| Error::io(entry, error);
        let chunks = chunk_files(entry).map_err(fail)?;
        // Last of all what shows that it is there.
        let others = files(entry, |name| is_temporary(name) || name == USED).map_err(fail)?;
        for (path, bytes) in chunks.into_iter().chain(others) {
            remove_file(&path)?;
            freed += bytes;
        }
        match fs::remove_dir(entry) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
            _ => Ok(()),
        }
    };
    let outcome = remove();
    (freed, outcome)
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// Bytes for people to read.
fn size_of(bytes: u64) -> String {
    size(usize::try_from(bytes).unwrap_or(usize::MAX))
}
