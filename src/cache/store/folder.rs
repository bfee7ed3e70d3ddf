//! The folder of a store: what is in it, who uses it, making room.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
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
/// Locked by the process that writes to the store. It holds the bytes that the store takes at most, little-endian.
const LOCK: &str = ".lock";
/// In an entry's folder: its time is that of the entry's last use, and it is locked while the entry is open.
const USED: &str = ".used";

/// The right to write to a store, for as long as this value lives. Temporary files are made by its holder only, so
/// those that it finds are of processes that were killed.
pub(super) struct Writing(File);

impl Writing {
    /// Removes the temporary files of an entry.
    pub fn sweep(&self, entry: &Path) {
        remove_temporaries(entry);
    }

    /// Bytes that the store takes at most: less once files were removed by hand. `None` if nobody has noted them.
    fn total(&self) -> Option<u64> {
        let (mut file, mut bytes) = (&self.0, Vec::new());
        file.rewind().and_then(|()| file.take(9).read_to_end(&mut bytes)).ok()?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    /// Notes what the store will take, before it does: who is killed in between leaves too much here, not too little.
    fn note_total(&self, total: u64) {
        let mut file = &self.0;
        let bytes = total.to_le_bytes();
        let noted = file.rewind().and_then(|()| file.write_all(&bytes));
        if noted.and_then(|()| file.set_len(bytes.len() as u64)).is_err() {
            // Then the next one counts.
            let _ = file.set_len(0);
        }
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

impl Found {
    /// Whether a process has it open. What cannot be told to be closed is taken to be open.
    fn is_open(&self) -> bool {
        match File::options().read(true).append(true).open(self.path.join(USED)) {
            Ok(file) => file.try_lock().is_err(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

impl Store {
    /// Waits for the right to write. `None` on a file system without locks.
    pub(super) fn lock(&self, patience: Duration) -> Result<Option<Writing>> {
        let path = self.folder.join(LOCK);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let file = options.open(&path).map_err(|error| Error::io(&path, error))?;
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

    /// Removes the chunks that were not read for longest, until there is room for `needed` bytes more: those of other
    /// entries that are not open, and the `spare` ones of the entry in `own`. With `count` the folder is looked through
    /// in any case, and not only where there is no room by what was noted.
    pub(super) fn make_room(
        &self,
        needed: u64,
        own: &Path,
        spare: &[&Chunk],
        writing: Option<&Writing>,
        count: bool,
    ) -> Result<()> {
        let fits = |total: u64| total.saturating_add(needed) <= self.budget;
        let mut total = match writing.filter(|_| !count).and_then(Writing::total) {
            Some(total) if fits(total) => total,
            _ => self.count_and_remove(fits, needed, own, spare, writing)?,
        };
        total = total.saturating_add(needed);
        writing.into_iter().for_each(|writing| writing.note_total(total));
        Ok(())
    }

    /// As [`Store::make_room`]; what the store takes then.
    fn count_and_remove(
        &self,
        fits: impl Fn(u64) -> bool,
        needed: u64,
        own: &Path,
        spare: &[&Chunk],
        writing: Option<&Writing>,
    ) -> Result<u64> {
        let entries = self.scan(writing)?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if fits(total) {
            return Ok(total);
        }
        // What can never fit must not cost the others their place.
        let kept = entries.iter().find(|entry| entry.path == own).map_or(0, |entry| entry.bytes);
        let kept = kept.saturating_sub(spare.iter().map(|chunk| bytes_of(chunk.path())).sum());
        if !fits(kept) {
            return Err(self.too_small(kept.saturating_add(needed)));
        }
        let others = entries.iter().filter(|entry| entry.path != own && !entry.is_open());
        let others = others.flat_map(|entry| entry.chunks.iter().map(|(path, _)| (path.as_path(), None)));
        let own = spare.iter().map(|chunk| (chunk.path(), Some(*chunk)));
        let mut files: Vec<(SystemTime, &Path, Option<&Chunk>)> =
            others.chain(own).map(|(path, chunk)| (read_last(path), path, chunk)).collect();
        files.sort_by_key(|(time, path, _)| (*time, *path));
        for (_, path, chunk) in files {
            let bytes = bytes_of(path);
            if fs::remove_file(path).is_ok() {
                total = total.saturating_sub(bytes);
                match (chunk, path.parent()) {
                    (Some(chunk), _) => chunk.forget(),
                    (None, Some(entry)) if chunk_files(entry).is_ok_and(|left| left.is_empty()) => {
                        drop(remove_entry(entry));
                    }
                    _ => {}
                }
            }
            if fits(total) {
                return Ok(total);
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

/// When a chunk was written, or read for the first time by the process that read it last.
fn read_last(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// Bytes for people to read.
fn size_of(bytes: u64) -> String {
    size(usize::try_from(bytes).unwrap_or(usize::MAX))
}
