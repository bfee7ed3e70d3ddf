//! Files mapped into memory: the only `unsafe` outside the devices.

use std::{fs::File, io, sync::Arc};

use memmap2::Mmap;

use super::Stored;

/// The bytes of a file of the store, read from the disk where and when they are looked at.
#[derive(Debug)]
pub(super) struct Map(Mmap);

impl Map {
    /// Maps a chunk's file, which must be of this length.
    ///
    /// # Errors
    /// Those of the operating system; [`io::ErrorKind::UnexpectedEof`] if the file is of another length.
    pub fn new(file: &File, length: u64) -> io::Result<Self> {
        // SAFETY: a mapping is unsound where its file changes, and raises SIGBUS where it is cut off. No process of
        // this program does either to a chunk: it is written under another name, renamed into its place when it is
        // whole, and later at most unlinked or replaced, which leaves a mapped file as it is. The length is looked at
        // once more when the mapping stands, so that a file that had been cut off before is not read beyond its end.
        let map = unsafe { Mmap::map(file) }?;
        if map.len() as u64 != length || file.metadata()?.len() != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(map))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The rows of a chunk in its file. They stay readable whatever becomes of that.
#[derive(Clone, Debug)]
pub(in crate::cache) struct MappedRows {
    pub(super) map: Arc<Map>,
    /// Number of the first row in its entry.
    pub(super) first: u32,
    /// Where the values begin.
    pub(super) offset: usize,
    pub(super) row_bytes: usize,
    pub(super) stored: Stored,
}

impl MappedRows {
    /// Number of the first row in its entry, as it was opened.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// What the values are stored as.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// The values of a row of the chunk, little-endian.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.map.bytes()[self.offset + row * self.row_bytes..][..self.row_bytes]
    }
}
