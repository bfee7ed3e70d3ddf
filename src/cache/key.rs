//! What decides the content of a cache entry, hashed.

use std::{
    fmt,
    fs::File,
    io::{Seek, SeekFrom},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    Error, Result,
    autograd::{Parameter, Parameters},
};

/// Bytes at a file's end that are always looked at. A PNG has the checksum of all its pixels there.
const TAIL: u64 = 4096;

/// To be raised by every change of the engine that makes activations other bits.
const ROUNDING: u32 = 1;

/// Names an entry by all that decides its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub(super) [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Collects what decides an entry's content. Each part is hashed with its length, so that parts cannot run together.
pub struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// Starts from the engine's version and [what computes](crate::Device::arithmetic), whose rounding differs.
    pub fn new(device: &str) -> Self {
        let mut builder = Self(blake3::Hasher::new());
        builder.text(env!("CARGO_PKG_VERSION")).text(&ROUNDING.to_string()).text(device);
        builder
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Adds another key.
    pub fn key(&mut self, key: &Key) -> &mut Self {
        self.bytes(&key.0)
    }

    /// Adds every parameter and statistic that `counts` says is one: names and values.
    ///
    /// # Errors
    /// Those of fetching a parameter from its device.
    pub fn parameters(&mut self, model: &dyn Parameters, counts: impl Fn(&str) -> bool) -> Result<&mut Self> {
        let mut outcome = Ok(());
        model.visit(&mut |parameter: &Parameter| {
            if !counts(parameter.name()) {
                return;
            }
            self.text(parameter.name());
            match parameter.value.to_vec::<f32>() {
                Ok(values) => drop(self.bytes(bytemuck::cast_slice(&values))),
                Err(error) => outcome = Err(error),
            }
        });
        outcome.map(|()| self)
    }

    /// Adds a file's identity: its path within `root`, so that a data set may be moved, its length, its time of last
    /// change, and its last 4 KiB, for two files may have all the rest in common that a program wrote at once, or an
    /// archive gave one time. With `content` all of its bytes take the place of the time and these.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone or cannot be read.
    pub fn file(&mut self, root: &Path, path: &Path, content: bool) -> Result<&mut Self> {
        let failed = |error| Error::io(path, error);
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let changed = metadata.modified().map_err(failed)?;
        let nanoseconds = |time: Duration| time.as_nanos() as i128;
        let changed = match changed.duration_since(UNIX_EPOCH) {
            Ok(after) => nanoseconds(after),
            Err(before) => -nanoseconds(before.duration()),
        };
        self.bytes(path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes());
        self.bytes(&metadata.len().to_le_bytes());
        if !content {
            self.bytes(&changed.to_le_bytes());
            file.seek(SeekFrom::Start(metadata.len().saturating_sub(TAIL))).map_err(failed)?;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(failed)?;
        Ok(self.bytes(&[u8::from(content)]).bytes(hasher.finalize().as_bytes()))
    }

    /// The key.
    pub fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[&str]| {
            let mut builder = KeyBuilder::new("cpu");
            for part in parts {
                builder.text(part);
            }
            builder.finish()
        };
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
    }

    #[test]
    fn a_files_name_length_and_time_count_and_its_content_if_asked() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|error| Error::io("", error))?;
        let (root, path) = (folder.path(), folder.path().join("a"));
        let key = |path: &Path, content| KeyBuilder::new("").file(root, path, content).map(|builder| builder.finish());
        let both = || Ok::<_, Error>([key(&path, false)?, key(&path, true)?]);
        let age = || File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        std::fs::write(&path, "1".repeat(5000)).unwrap();
        let first = both()?;
        assert_eq!(first, both()?);
        assert_ne!(first[0], first[1]);
        std::fs::write(&path, "1".repeat(5001)).unwrap();
        let longer = both()?;
        assert!(first[0] != longer[0] && first[1] != longer[1]);
        age();
        let older = both()?;
        assert!(longer[0] != older[0] && longer[1] == older[1]);
        std::fs::write(&path, "1".repeat(5000) + "2").unwrap();
        age();
        let other = both()?;
        assert!(older[0] != other[0] && older[1] != other[1]);
        // The one thing that only a look at all of the content shows.
        std::fs::write(&path, "2".to_string() + &"1".repeat(5000)).unwrap();
        age();
        let altered = both()?;
        assert!(older[0] == altered[0] && older[1] != altered[1]);
        let renamed = root.join("b");
        std::fs::rename(&path, &renamed).unwrap();
        assert_ne!(key(&renamed, false)?, altered[0]);
        assert!(key(&path, false).is_err());
        // The folder itself may be moved.
        let elsewhere = root.join("c");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::rename(&renamed, elsewhere.join("a")).unwrap();
        let moved = KeyBuilder::new("").file(&elsewhere, &elsewhere.join("a"), true)?.finish();
        assert_eq!(moved, altered[1]);
        Ok(())
    }
}
