//! The rows of one entry, in memory and on disk.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use super::{
    Home, Key,
    chunk::{Chunk, Place},
    store::{self, About},
};
use crate::Result;

/// Bytes that are read from disk into one piece of memory.
const READ: usize = 8 << 20;

/// The rows of an entry.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// The entry on disk, once it was looked for.
    pub disk: Option<store::Entry>,
    pub chunks: Vec<Arc<Chunk>>,
    /// Where each row lies; `None` for a sample that cannot be decoded.
    pub places: HashMap<Key, Option<Place>>,
}

impl Rows {
    /// Memory taken, in bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes()).sum()
    }

    /// Keeps rows in memory.
    pub fn hold(&mut self, chunk: Chunk, rows: &[Key]) {
        let number = self.chunks.len() as u32;
        self.places.extend(rows.iter().zip(0..).map(|(key, row)| (*key, Some((number, row)))));
        self.chunks.push(Arc::new(chunk));
    }

    /// Finds rows on disk, as far as they are there, and returns what is to be said of it.
    pub fn load(&mut self, rows: &[Key], about: &About, home: Home) -> Result<Vec<String>> {
        match home {
            Home::Memory => self.read(rows, about)?,
            Home::Disk => self.map(rows, about),
        }
        Ok(self.disk.as_ref().map(store::Entry::notes).unwrap_or_default())
    }

    /// Reads rows into memory.
    fn read(&mut self, rows: &[Key], about: &About) -> Result<()> {
        let Some(disk) = self.disk.take() else { return Ok(()) };
        let width = disk.elements();
        for rows in rows.chunks((READ / size_of::<f32>() / width).max(1)) {
            let (mut values, mut read) = (Vec::new(), Vec::new());
            for (row, number) in rows.iter().filter_map(|row| Some((row, disk.find(row)?))) {
                let end = read.len() * width;
                values.resize(end + width, 0.0);
                // Otherwise it is lost, and computed anew.
                if disk.read(number, &mut values[end..])? {
                    read.push(*row);
                }
            }
            values.truncate(read.len() * width);
            if !read.is_empty() {
                self.hold(Chunk::restored(&about.dims, about.stored, values), &read);
            }
        }
        self.disk = Some(disk);
        Ok(())
    }

    /// Notes where rows lie on disk. Those are whole, and stay readable whatever becomes of their files.
    fn map(&mut self, rows: &[Key], about: &About) {
        let Self { disk: Some(disk), chunks, places } = self else { return };
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        for row in rows {
            let Some((mapped, at)) = disk.find(row).and_then(|number| disk.mapped(number)) else { continue };
            let number = match numbers.entry(mapped.first()) {
                hash_map::Entry::Occupied(known) => *known.get(),
                hash_map::Entry::Vacant(new) => {
                    chunks.push(Arc::new(Chunk::mapped(&about.dims, mapped)));
                    *new.insert(chunks.len() as u32 - 1)
                }
            };
            places.insert(*row, Some((number, at)));
        }
    }
}
