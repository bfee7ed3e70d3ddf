//! What decides the content of a cache entry, hashed.

use std::{fmt, path::Path};

use crate::{
    Error, Result,
    autograd::{Parameter, Parameters},
};

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
    /// Starts from the engine's version and the device kind, whose rounding differs.
    pub fn new(device: &str) -> Self {
        let mut builder = Self(blake3::Hasher::new());
        builder.text(env!("CARGO_PKG_VERSION")).text(device);
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

    /// Adds every parameter and statistic: names and values.
    ///
    /// # Errors
    /// Those of fetching a parameter from its device.
    pub fn parameters(&mut self, model: &dyn Parameters) -> Result<&mut Self> {
        let mut outcome = Ok(());
        model.visit(&mut |parameter: &Parameter| {
            self.text(parameter.name());
            match parameter.value.to_vec::<f32>() {
                Ok(values) => drop(self.bytes(bytemuck::cast_slice(&values))),
                Err(error) => outcome = Err(error),
            }
        });
        outcome.map(|()| self)
    }

    /// Adds a file's identity: path, length and time of last change.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone.
    pub fn file(&mut self, path: &Path) -> Result<&mut Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let changed = metadata.modified().map_err(|error| Error::io(path, error))?;
        let changed = changed.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.bytes(path.as_os_str().as_encoded_bytes());
        Ok(self.bytes(&metadata.len().to_le_bytes()).bytes(&changed.to_le_bytes()))
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
    fn a_files_length_and_time_count() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|error| Error::io("", error))?;
        let path = folder.path().join("a");
        let key = || KeyBuilder::new("cpu").file(&path).map(|builder| builder.finish());
        std::fs::write(&path, "1").unwrap();
        let first = key()?;
        assert_eq!(first, key()?);
        std::fs::write(&path, "22").unwrap();
        let longer = key()?;
        assert_ne!(first, longer);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_ne!(longer, key()?);
        std::fs::remove_file(&path).unwrap();
        assert!(key().is_err());
        Ok(())
    }
}
