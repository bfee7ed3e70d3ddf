//! A file of rows.
//!
//! | bytes | |
//! |---|---|
//! | 21 | `unfreeze activations` and a line feed |
//! | 4 | version of the format, 1 |
//! | 4 | length of the description |
//! | … | the description, JSON: `key` of the entry, `about`, number of `rows`, checksum of the `values` |
//! | 32 per row | the keys of the samples |
//! | 32 | checksum of all that comes before |
//! | … | the values, row after row |
//!
//! Numbers are little-endian, checksums BLAKE3.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    time::SystemTime,
};

use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};

use super::{About, entry::CHUNK_BYTES, map::Map};
use crate::cache::Key;

/// First bytes of a chunk.
const MAGIC: &[u8] = b"unfreeze activations\n";
const VERSION: u32 = 1;
/// Bytes before the description.
const START: u64 = MAGIC.len() as u64 + 8;
/// Most bytes of a description that are read.
const LONGEST_DESCRIPTION: u32 = 1 << 20;
/// Bytes of the keys of the longest chunk, whose rows are of one bf16.
const MOST_KEYS: u64 = CHUNK_BYTES / 2 * HASH;
/// Bytes of a key, and of a checksum.
pub(super) const HASH: u64 = blake3::OUT_LEN as u64;

/// Why a chunk cannot be used.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is no such file any more.
    Gone,
    /// It cannot be read: its content may be good.
    Unreadable(io::Error),
    /// It is not what was written, or not of this program or entry.
    Damaged(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Fault::Gone,
            io::ErrorKind::UnexpectedEof => Fault::Damaged("it is cut off".into()),
            _ => Fault::Unreadable(error),
        }
    }
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(reason.into()))
}

#[derive(Serialize, Deserialize)]
struct Description {
    key: String,
    about: About,
    rows: u32,
    values: String,
}

/// What comes before the values of a chunk.
#[derive(Debug, PartialEq)]
pub(super) struct Head {
    pub key: Key,
    pub about: About,
    /// The key of each row's sample.
    pub samples: Vec<Key>,
    pub values: Values,
}

/// Where the values of a chunk are in its file, and what they are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Values {
    pub offset: u64,
    pub length: u64,
    hash: Hash,
}

/// The bytes of a chunk before its values.
pub(super) fn begin(key: &Key, about: &About, samples: &[Key], values: &[u8]) -> io::Result<(Vec<u8>, Values)> {
    let rows = u32::try_from(samples.len()).map_err(io::Error::other)?;
    let hash = blake3::hash(values);
    let description =
        Description { key: Hash::from_bytes(key.0).to_string(), about: about.clone(), rows, values: hash.to_string() };
    let description = serde_json::to_string(&description)?;
    let length = u32::try_from(description.len()).ok().filter(|length| *length <= LONGEST_DESCRIPTION);
    let length = length.ok_or_else(|| io::Error::other("the description of the activations is too long"))?;
    let mut bytes = [MAGIC, &VERSION.to_le_bytes(), &length.to_le_bytes(), description.as_bytes()].concat();
    samples.iter().for_each(|sample| bytes.extend_from_slice(&sample.0));
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    let values = Values { offset: bytes.len() as u64, length: values.len() as u64, hash };
    Ok((bytes, values))
}

impl Head {
    /// Reads what comes before the values, and checks it. Nothing is believed before the checksum has matched but for
    /// numbers that the file's length bears out, so that a hostile file costs no more memory than its own length.
    pub fn read(path: &Path) -> Result<Self, Fault> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        more(&mut file, &mut bytes, START)?;
        let Some(numbers) = bytes.strip_prefix(MAGIC) else { return damaged("it is no chunk of activations") };
        let (version, described) = match *numbers {
            [a, b, c, d, e, f, g, h] => (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])),
            _ => return damaged("it is cut off"),
        };
        if version != VERSION {
            return damaged(format!("its format is version {version}, this program knows version {VERSION}"));
        }
        if described > LONGEST_DESCRIPTION {
            return damaged(format!("its description of {described} bytes is too long"));
        }
        more(&mut file, &mut bytes, described.into())?;
        let description: Description = match serde_json::from_slice(&bytes[START as usize..]) {
            Ok(description) => description,
            Err(error) => return damaged(format!("its description does not read: {error}")),
        };
        let (Ok(key), Ok(hash)) = (Hash::from_hex(&description.key), Hash::from_hex(&description.values)) else {
            return damaged("its description holds no checksum");
        };
        let rows = u64::from(description.rows);
        let keys = rows * HASH;
        // A hole in a file costs its maker nothing.
        if keys > MOST_KEYS {
            return damaged(format!("{rows} rows are more than a chunk has"));
        }
        let offset = START + u64::from(described) + keys + HASH;
        let values = description.about.row_bytes().and_then(|row| rows.checked_mul(row));
        let Some(values) = values.filter(|values| *values > 0 && offset.checked_add(*values) == Some(length)) else {
            return damaged(format!("its length of {length} bytes is not that of its {rows} rows"));
        };
        more(&mut file, &mut bytes, keys)?;
        let checksum = blake3::hash(&bytes);
        let mut found = Vec::new();
        more(&mut file, &mut found, HASH)?;
        if found != checksum.as_bytes() {
            return damaged("the checksum of its head does not match");
        }
        let samples = bytes[(START + u64::from(described)) as usize..].as_chunks().0.iter().copied().map(Key).collect();
        let values = Values { offset, length: values, hash };
        Ok(Self { key: Key(*key.as_bytes()), about: description.about, samples, values })
    }
}

/// Reads exactly so many bytes more.
fn more(file: &mut File, bytes: &mut Vec<u8>, count: u64) -> Result<(), Fault> {
    match file.take(count).read_to_end(bytes)? as u64 {
        read if read == count => Ok(()),
        _ => damaged("it is cut off"),
    }
}

impl Values {
    /// Reads the values and compares their checksum. They are read, not mapped: a part of the disk that cannot be read
    /// is then an error, and not a signal.
    pub fn check(&self, path: &Path) -> Result<File, Fault> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() != self.offset + self.length {
            return damaged("its length has changed");
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut hasher = Hasher::new();
        hasher.update_reader((&file).take(self.length))?;
        if hasher.finalize() != self.hash {
            return damaged("the checksum of its values does not match");
        }
        Ok(file)
    }

    /// Checks the values and maps the file, whose time becomes that of this use.
    pub fn map(&self, path: &Path) -> Result<Map, Fault> {
        let file = self.check(path)?;
        // Without the right time it is at most removed too early.
        let _ = file.set_modified(SystemTime::now());
        Ok(Map::new(&file, self.offset + self.length)?)
    }
}
