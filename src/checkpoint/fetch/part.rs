//! What there is of a file that is being fetched, and the lock that one process holds meanwhile.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Ended, Failure, local, remote, retries::Cause};
use crate::checkpoint::catalog::{Fetching, LONGEST, sha256};

/// Waits until no other process fetches the file at `path`, and keeps others from it while the lock is held. `None`
/// where the file system knows no locks.
///
/// The locked file stays: were it removed, one process could hold the lock on it while another locks its successor.
pub(super) fn lock(path: &Path, tell: &mut dyn FnMut(Fetching)) -> Option<File> {
    let folder = path.parent()?.join(".locks");
    fs::create_dir_all(&folder).ok()?;
    let file = File::options().create(true).truncate(false).write(true).open(folder.join(path.file_name()?)).ok()?;
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => {
            tell(Fetching::Waiting { path });
            file.lock().ok().map(|()| file)
        }
        Err(TryLockError::Error(_)) => None,
    }
}

/// What there is of a file. It is opened for each change alone, since a system may refuse to move an open file.
pub(super) struct Part {
    /// Where the whole is to lie, which is what the user hears of.
    place: PathBuf,
    path: PathBuf,
    etag: PathBuf,
    /// Whether a later process may go on with it.
    stays: bool,
}

impl Part {
    /// Of the file at `path`: the one part of it where a lock is held, one of its own elsewhere.
    pub(super) fn of(path: &Path, locked: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let beside = |suffix: &str| {
            let mut name = OsString::from(path);
            name.push(suffix);
            PathBuf::from(name)
        };
        let suffix = match locked {
            true => ".part".into(),
            false => format!(".{}-{}.part", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        };
        Self { place: path.into(), path: beside(&suffix), etag: beside(&format!("{suffix}.etag")), stays: locked }
    }

    /// Bytes that are there.
    pub(super) fn length(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The version of the file that it is of.
    pub(super) fn version(&self) -> Option<String> {
        fs::read_to_string(&self.etag).ok()
    }

    pub(super) fn note_version(&self, version: &str) -> Result<(), Failure> {
        fs::write(&self.etag, version).map_err(local(&self.place))
    }

    /// The hash of what is there.
    pub(super) fn sha256(&self) -> Result<String, Failure> {
        sha256(&self.path).map_err(local(&self.place))
    }

    /// Forgets what is there.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        remove(&self.etag).and_then(|()| remove(&self.path)).map_err(local(&self.place))
    }

    /// Moves it, whole, to its place.
    pub(super) fn put(self) -> Result<(), Failure> {
        let synced = File::options().append(true).open(&self.path).and_then(|file| file.sync_all());
        synced.and_then(|()| fs::rename(&self.path, &self.place)).map_err(local(&self.place))
    }

    /// Appends what `body` sends, of a file of which `done` bytes are there.
    pub(super) fn append(
        &self,
        mut body: impl Read,
        mut done: u64,
        total: Option<u64>,
        tell: &mut dyn FnMut(Fetching),
    ) -> Result<(), Ended> {
        let failed = local(&self.place);
        let mut file = File::options().create(true).append(true).open(&self.path).map_err(&failed)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            tell(Fetching::Progress { done, total });
            if done.max(total.unwrap_or(0)) > LONGEST {
                self.clear()?;
                return Err(remote("the server sends more than a checkpoint can be").into());
            }
            match body.read(&mut buffer) {
                Ok(0) if total.is_some_and(|total| done < total) => {
                    return Err(Ended::Cut("the connection was closed before the end".into(), Cause::Connection));
                }
                Ok(0) => return Ok(()),
                Ok(count) => {
                    file.write_all(&buffer[..count]).map_err(&failed)?;
                    done += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Ended::Cut(format!("the connection was cut: {error}"), Cause::Connection)),
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Where nothing came, or it is in its place, there is nothing to go on with.
        if !self.stays || self.length() == 0 {
            let _ = self.clear();
        }
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
