//! Activations on disk, kept from one run to the next.
//!
//! A [`Store`] is a folder with a folder for each [`Entry`], named after all that decides the entry's values. In it are
//! chunks: files of some MiB that say themselves what they hold, with checksums. A chunk is written under a temporary
//! name and renamed into its place when it is whole and on the disk; after that it is never changed, at most removed.
//! So an interrupted fill leaves whole chunks, which the next one finds, and at most a temporary file, which it
//! removes.
//!
//! What is damaged, cut off, of another entry or of another version of the format is found by the checksums before a
//! value of it is served; it is noted, removed and missing from then on. What is missing is never an error: it is
//! computed anew and appended.
//!
//! Several processes may use a store at once. They write one after the other, which keeps the store within its budget,
//! and may remove what another one reads: a file that is mapped stays until it is let go. An entry that is open is not
//! removed to make room for another one. On a file system without locks it may be, temporary files stay until their
//! entry is removed, and the budget may be exceeded by a chunk of each process.

mod chunk;
mod entry;
mod folder;
mod map;
#[cfg(test)]
mod tests;
mod upkeep;

pub use entry::Entry;
pub(super) use map::MappedRows;
pub use upkeep::{Damaged, Listed, Verified};

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use half::bf16;
use serde::{Deserialize, Serialize};

use super::Key;
use crate::{Error, Result, files};

/// Bytes that a store takes at most where nothing else is said: 10 GiB.
pub const DEFAULT_BUDGET: u64 = 10 << 30;

/// How long one waits while another process writes a chunk, before it is taken to be stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder of activations on disk.
///
/// ```
/// use unfreeze::cache::{KeyBuilder, store::{About, Store, Stored}};
///
/// # fn main() -> unfreeze::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// let store = Store::open(folder, 1 << 30)?;
/// let about = About { dims: vec![4], stored: Stored::F32, ..About::default() };
/// let key = KeyBuilder::new("cpu").text("weights, transforms, boundary").finish();
/// let sample = KeyBuilder::new("cpu").text("cat/1.png").finish();
///
/// let mut entry = store.entry(&key, &about)?;
/// assert_eq!(entry.find(&sample), None);
/// entry.append(&[sample], &[1.0, 2.0, 3.0, 4.0])?;
/// drop(entry); // writes what is buffered
///
/// let entry = store.entry(&key, &about)?;
/// let mut values = [0.0; 4];
/// let row = entry.find(&sample).unwrap();
/// assert!(entry.read(row, &mut values)?);
/// assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    budget: u64,
    patience: Duration,
}

/// What the values of an entry are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// 32-bit floats: the values as they are.
    #[default]
    F32,
    /// bfloat16, in half the space: values are rounded to the nearest, of two equally near ones to the even one. Those
    /// that were computed in bfloat16 come back as they were.
    Bf16,
}

impl Stored {
    /// Bytes of a value.
    fn bytes(self) -> u64 {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 => 2,
        }
    }

    fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Stored::F32 => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
            Stored::Bf16 => {
                values.iter().for_each(|value| bytes.extend_from_slice(&bf16::from_f32(*value).to_le_bytes()));
            }
        }
    }

    fn decode(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Stored::F32 => {
                let stored = bytes.as_chunks().0.iter();
                values.iter_mut().zip(stored).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
            }
            Stored::Bf16 => {
                let stored = bytes.as_chunks().0.iter();
                values.iter_mut().zip(stored).for_each(|(value, bytes)| *value = bf16::from_le_bytes(*bytes).to_f32());
            }
        }
    }
}

/// What the rows of an entry are. The dimensions and the type are part of the entry's identity; the rest is for people,
/// and shown by `unfreeze cache list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Dimensions of a row, such as `[1024]` or `[14, 14, 256]`.
    pub dims: Vec<usize>,
    /// What its values are stored as.
    pub stored: Stored,
    /// The architecture, such as `resnet34`.
    pub arch: String,
    /// The last layer that was computed, such as `layer3` or `avgpool`.
    pub boundary: String,
    /// Side of the images, in pixels.
    pub size: usize,
    /// What computed it, and how: device and precision.
    pub computed: String,
    /// The folder of the images.
    pub data: String,
}

impl About {
    /// Values of a row; `None` if they are none, or more than can be counted.
    fn elements(&self) -> Option<usize> {
        let elements = self.dims.iter().try_fold(1usize, |elements, dim| elements.checked_mul(*dim));
        elements.filter(|elements| *elements > 0)
    }

    /// Bytes of a row; `None` if it has no values, or more than can be counted.
    pub(crate) fn row_bytes(&self) -> Option<u64> {
        (self.elements()? as u64).checked_mul(self.stored.bytes())
    }

    /// Bytes of so many rows on disk, but for the beginnings of their files; `None` if those cannot be counted.
    pub(crate) fn disk_bytes(&self, rows: usize) -> Option<u64> {
        (rows as u64).checked_mul(self.row_bytes()?.checked_add(chunk::HASH)?)
    }

    /// The name of an entry's folder: a hash of its key and of the form of its rows, as hexadecimal digits.
    fn id(&self, key: &Key) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&key.0).update(&self.stored.bytes().to_le_bytes());
        for dim in &self.dims {
            hasher.update(&(*dim as u64).to_le_bytes());
        }
        hasher.finalize().to_hex()[..ID].to_owned()
    }
}

/// Digits of an entry's name.
const ID: usize = 32;

impl Store {
    /// Opens a store that takes at most `budget` bytes, and makes its folder if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if `folder` is no folder and cannot be made one.
    pub fn open(folder: impl Into<PathBuf>, budget: u64) -> Result<Self> {
        let folder = folder.into();
        match fs::create_dir_all(&folder) {
            Ok(()) => Ok(Self { folder, budget, patience: PATIENCE }),
            Err(_) if folder.is_file() => Err(not_a_folder(&folder)),
            Err(error) => Err(Error::io(folder, error)),
        }
    }

    /// The store in `folder`, to be looked at: no folder is made, and one that is not there is an empty store. The
    /// budget is the default one.
    ///
    /// # Errors
    /// [`Error::Io`] if `folder` is no folder.
    pub fn at(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        match folder.is_file() {
            true => Err(not_a_folder(&folder)),
            false => Ok(Self { folder, budget: DEFAULT_BUDGET, patience: PATIENCE }),
        }
    }

    /// Where a user's activations are: in `UNFREEZE_CACHE`, else in the user's cache folder. `None` where neither is
    /// known.
    pub fn default_folder() -> Option<PathBuf> {
        files::cache_folder("activations")
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the entry under `key`, which must be made of all that decides the values but the sample; it need not be
    /// there yet. The heads of its chunks are read and checked; what cannot be used is noted, see [`Entry::notes`].
    ///
    /// # Errors
    /// [`Error::Shape`] if a row holds nothing; [`Error::Io`] if the entry's folder is there and cannot be read.
    pub fn entry(&self, key: &Key, about: &About) -> Result<Entry> {
        Entry::open(self, key, about)
    }
}

fn not_a_folder(path: &Path) -> Error {
    Error::io(path, io::Error::new(io::ErrorKind::NotADirectory, "is not a folder"))
}
