//! What an image file is, for its activations to be found again.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use blake3::{Hash, Hasher};

use super::{Key, KeyBuilder};
use crate::{Error, Result};

/// Bytes at a file's end that are looked at. A PNG has the checksum of all its pixels there.
const TAIL: u64 = 4096;

/// A file that changed so short a time ago may change again without its time showing it: no file system counts in
/// steps as long as this.
const STEP: Duration = Duration::from_secs(2);

/// Names files by what they are, and remembers the ends of those that it has read.
#[derive(Debug, Default)]
pub struct FileKeys {
    ends: Mutex<HashMap<PathBuf, End>>,
}

/// Of a file of this length and this time of last change.
#[derive(Clone, Copy, Debug)]
struct End {
    length: u64,
    changed: SystemTime,
    hash: Hash,
}

impl FileKeys {
    /// A file's key: its path within `root`, so that a data set may be moved, its length, its time of last change, and
    /// its last 4 KiB, for two files may have all the rest in common that a program wrote at once, or an archive gave
    /// one time. These are read once, as long as length and time stay. With `content` all of its bytes take the place
    /// of the time and these, and are read whenever they are asked for.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone or cannot be read.
    pub fn key(&self, root: &Path, path: &Path, content: bool) -> Result<Key> {
        let failed = |error| Error::io(path, error);
        let metadata = path.metadata().map_err(failed)?;
        let changed = metadata.modified().map_err(failed)?;
        let hash = if content { hash(path, 0) } else { self.end(path, &metadata, changed) }.map_err(failed)?;
        let mut key = KeyBuilder::new("file");
        key.bytes(path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes());
        key.bytes(&metadata.len().to_le_bytes());
        if !content {
            let nanoseconds = |time: Duration| time.as_nanos() as i128;
            let changed = match changed.duration_since(UNIX_EPOCH) {
                Ok(after) => nanoseconds(after),
                Err(before) => -nanoseconds(before.duration()),
            };
            key.bytes(&changed.to_le_bytes());
        }
        Ok(key.bytes(&[u8::from(content)]).bytes(hash.as_bytes()).finish())
    }

    /// Hash of a file's end.
    fn end(&self, path: &Path, metadata: &Metadata, changed: SystemTime) -> io::Result<Hash> {
        let length = metadata.len();
        let ends = || self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ends().get(path).copied().filter(|end| (end.length, end.changed) == (length, changed));
        if let Some(known) = known {
            return Ok(known.hash);
        }
        let now = SystemTime::now();
        let hash = hash(path, length.saturating_sub(TAIL))?;
        if now.duration_since(changed).is_ok_and(|age| age > STEP) {
            ends().insert(path.to_owned(), End { length, changed, hash });
        }
        Ok(hash)
    }
}

/// Hash of a file's bytes from `start` on.
fn hash(path: &Path, start: u64) -> io::Result<Hash> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut hasher = Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn set_time(path: &Path, time: SystemTime) {
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_files_name_length_and_time_count_and_its_content_if_asked() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let (root, path) = (folder.path(), folder.path().join("a"));
        let key = |path: &Path, content| FileKeys::default().key(root, path, content);
        let both = || Ok::<_, Error>([key(&path, false)?, key(&path, true)?]);
        fs::write(&path, "1".repeat(5000)).unwrap();
        let first = both()?;
        assert_eq!(first, both()?);
        assert_ne!(first[0], first[1]);
        fs::write(&path, "1".repeat(5001)).unwrap();
        let longer = both()?;
        assert!(first[0] != longer[0] && first[1] != longer[1]);
        set_time(&path, UNIX_EPOCH);
        let older = both()?;
        assert!(longer[0] != older[0] && longer[1] == older[1]);
        fs::write(&path, "1".repeat(5000) + "2").unwrap();
        set_time(&path, UNIX_EPOCH);
        let other = both()?;
        assert!(older[0] != other[0] && older[1] != other[1]);
        // The one thing that only a look at all of the content shows.
        fs::write(&path, "2".to_string() + &"1".repeat(5000)).unwrap();
        set_time(&path, UNIX_EPOCH);
        let altered = both()?;
        assert!(older[0] == altered[0] && older[1] != altered[1]);
        let renamed = root.join("b");
        fs::rename(&path, &renamed).unwrap();
        assert_ne!(key(&renamed, false)?, altered[0]);
        assert!(key(&path, false).is_err());
        // The folder itself may be moved.
        let elsewhere = root.join("c");
        fs::create_dir(&elsewhere).unwrap();
        fs::rename(&renamed, elsewhere.join("a")).unwrap();
        assert_eq!(FileKeys::default().key(&elsewhere, &elsewhere.join("a"), true)?, altered[1]);
        Ok(())
    }

    #[test]
    fn an_end_is_read_again_when_the_file_changes_or_has_just_changed() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let (root, path, keys) = (folder.path(), folder.path().join("a"), FileKeys::default());
        let write = |text: &str, time: SystemTime| {
            fs::write(&path, text).unwrap();
            set_time(&path, time);
        };
        let key = || keys.key(root, &path, false);
        write("one", UNIX_EPOCH);
        let one = key()?;
        // Not read again, which nothing else can tell.
        write("two", UNIX_EPOCH);
        assert_eq!(key()?, one);
        assert_ne!(keys.key(root, &path, true)?, FileKeys::default().key(root, &path, false)?);
        assert_ne!(FileKeys::default().key(root, &path, false)?, one);
        write("four", UNIX_EPOCH);
        assert_eq!(key()?, FileKeys::default().key(root, &path, false)?);
        write("five", UNIX_EPOCH + STEP);
        assert_eq!(key()?, FileKeys::default().key(root, &path, false)?);
        let now = SystemTime::now();
        write("more", now);
        let more = key()?;
        write("less", now);
        assert_ne!(key()?, more);
        Ok(())
    }
}
