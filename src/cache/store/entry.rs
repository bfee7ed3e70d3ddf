//! The rows of one entry.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    About, Store,
    chunk::{self, Fault, Head, Values},
    folder::{CHUNK_EXTENSION, Holder, chunk_files},
    map::{Map, MappedRows},
};
use crate::{Error, Result, cache::Key, files::write_atomically};

/// Bytes of values after which a chunk is written.
pub(super) const CHUNK_BYTES: u64 = 8 << 20;

/// The rows of one entry of a [`Store`], found by the keys of their samples.
///
/// Values that are read are always those of the disk: rows that are still buffered are as rounded as they will be
/// there. What other processes append after the opening is not seen.
#[derive(Debug)]
pub struct Entry {
    store: Store,
    key: Key,
    about: About,
    elements: usize,
    row_bytes: u64,
    folder: PathBuf,
    /// Shows other processes that the entry is open. `None` where that cannot be shown.
    holder: Option<Holder>,
    /// By their first rows.
    chunks: Vec<Chunk>,
    buffer: Buffer,
    rows: HashMap<Key, u32>,
    /// Whether a chunk was written, so that the store has been looked through.
    counted: bool,
    /// Whether a chunk could not be written. Rows then stay in the buffer.
    failed: bool,
    notes: Mutex<Vec<String>>,
}

/// Rows that are not in a chunk yet.
#[derive(Debug, Default)]
struct Buffer {
    /// Number of the first.
    first: u32,
    samples: Vec<Key>,
    bytes: Vec<u8>,
}

/// Rows of one file.
#[derive(Debug)]
pub(super) struct Chunk {
    path: PathBuf,
    /// Number of the first row.
    first: u32,
    values: Values,
    /// The file, once a row was asked for; `None` if it turned out to be of no use.
    map: OnceLock<Option<Arc<Map>>>,
    /// Whether a row of it was found since it was opened.
    found: AtomicBool,
}

impl Entry {
    pub(super) fn open(store: &Store, key: &Key, about: &About) -> Result<Self> {
        let (Some(elements), Some(row_bytes)) = (about.elements(), about.row_bytes()) else {
            return Err(Error::shape("cache", format!("a row cannot be of shape {:?}", about.dims)));
        };
        let folder = store.folder.join(about.id(key));
        let mut entry = Self {
            store: store.clone(),
            key: *key,
            about: about.clone(),
            elements,
            row_bytes,
            folder,
            holder: None,
            chunks: Vec::new(),
            buffer: Buffer::default(),
            rows: HashMap::new(),
            counted: false,
            failed: false,
            notes: Mutex::default(),
        };
        // Nobody removes the entry meanwhile. Where that cannot be had, rows may be missing later.
        let writing = store.lock(store.patience).ok().flatten();
        if let Some(writing) = &writing {
            writing.sweep(&entry.folder);
        }
        entry.holder = Holder::of(&entry.folder);
        drop(writing);
        let files = chunk_files(&entry.folder).map_err(|error| Error::io(&entry.folder, error))?;
        for (path, _) in files {
            match Head::read(&path).and_then(|head| entry.check(head)) {
                Ok(head) => entry.add(path, head),
                Err(fault) => entry.drop_file(&path, fault),
            }
        }
        Ok(entry)
    }

    /// A head, if it is of this entry.
    fn check(&self, head: Head) -> Result<Head, Fault> {
        let About { dims, stored, .. } = &head.about;
        if head.key != self.key || *dims != self.about.dims || *stored != self.about.stored {
            return Err(Fault::Damaged("it is of another entry".into()));
        }
        Ok(head)
    }

    fn add(&mut self, path: PathBuf, head: Head) {
        let first = self.buffer.first;
        // Row numbers have an end, which no disk reaches.
        let Some(next) = u32::try_from(head.samples.len()).ok().and_then(|rows| first.checked_add(rows)) else {
            return;
        };
        self.rows.extend(head.samples.into_iter().zip(first..));
        self.chunks.push(Chunk::new(path, first, head.values));
        self.buffer.first = next;
    }

    /// Values of a row.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The number of the row of a sample, if it is there.
    pub fn find(&self, sample: &Key) -> Option<u32> {
        let row = *self.rows.get(sample)?;
        match self.chunk(row) {
            Some(chunk) if chunk.is_lost() => None,
            Some(chunk) => {
                chunk.found.store(true, Ordering::Relaxed);
                Some(row)
            }
            None => Some(row),
        }
    }

    /// Reads a row. `false` says that it is lost: its chunk is damaged, or has been removed. [`Entry::find`] does not
    /// find the rows of that chunk from then on; they are to be computed and appended anew. The first row that is read
    /// of a chunk costs the comparison of its checksum.
    ///
    /// # Errors
    /// [`Error::Shape`] if there was never such a row, or `values` is not [`Entry::elements`] long.
    pub fn read(&self, row: u32, values: &mut [f32]) -> Result<bool> {
        let rows = self.next_row();
        if row >= rows || values.len() != self.elements {
            let message =
                format!("row {row} of {rows} cannot be read into {} values; a row has {}", values.len(), self.elements);
            return Err(Error::shape("cache", message));
        }
        if self.chunk(row).is_none() {
            let (at, row_bytes) = ((row - self.buffer.first) as usize, self.row_bytes as usize);
            self.about.stored.decode(&self.buffer.bytes[at * row_bytes..][..row_bytes], values);
            return Ok(true);
        }
        let Some((rows, at)) = self.mapped(row) else { return Ok(false) };
        self.about.stored.decode(rows.row(at as usize), values);
        Ok(true)
    }

    /// The rows of the chunk of a row, and the row's number among them. `None` if it is lost, see [`Entry::read`], or
    /// not written yet.
    pub(in crate::cache) fn mapped(&self, row: u32) -> Option<(MappedRows, u32)> {
        let chunk = self.chunk(row)?;
        let map = chunk.map.get_or_init(|| self.map(chunk)).clone()?;
        let (first, offset) = (chunk.first, chunk.values.offset as usize);
        let (row_bytes, stored) = (self.row_bytes as usize, self.about.stored);
        Some((MappedRows { map, first, offset, row_bytes, stored }, row - first))
    }

    /// Adds the rows `[samples.len(), …]` of samples; they are found at once. Rows are written in chunks of about 8
    /// MiB; [`Entry::flush`] writes what remains, and so does the end of the entry. A sample that is there already is
    /// there twice, and found where it was added last.
    ///
    /// # Errors
    /// [`Error::Shape`] if `values` is not [`Entry::elements`] for each sample. [`Error::Io`] if a chunk cannot be
    /// written, and [`Error::Data`] if the budget has no room for it, or another process has been writing for long:
    /// once, and from then on nothing more is written. In these cases the rows are there nevertheless: they stay in
    /// memory as long as the entry is open.
    pub fn append(&mut self, samples: &[Key], values: &[f32]) -> Result<()> {
        let rows = u32::try_from(samples.len()).ok().filter(|rows| self.next_row().checked_add(*rows).is_some());
        if rows.is_none() || samples.len().checked_mul(self.elements) != Some(values.len()) {
            let (rows, elements) = (samples.len(), self.elements);
            let message = format!("{} values are not those of {rows} rows of {elements}", values.len());
            return Err(Error::shape("cache", message));
        }
        let rows_of_chunk = (CHUNK_BYTES / self.row_bytes).max(1) as usize;
        let mut outcome = Ok(());
        for (sample, values) in samples.iter().zip(values.chunks_exact(self.elements)) {
            self.rows.insert(*sample, self.next_row());
            self.buffer.samples.push(*sample);
            self.about.stored.encode(values, &mut self.buffer.bytes);
            if !self.failed && self.buffer.samples.len() >= rows_of_chunk {
                outcome = self.write();
            }
        }
        outcome
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// As [`Entry::append`].
    pub fn flush(&mut self) -> Result<()> {
        if self.failed || self.buffer.samples.is_empty() { Ok(()) } else { self.write() }
    }

    /// Whether the store's budget could ever hold so many rows of this entry: to be asked before they are computed.
    ///
    /// # Errors
    /// [`Error::Data`] if not.
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        let needed = self.about.disk_bytes(rows);
        match needed.filter(|needed| *needed <= self.store.budget) {
            Some(_) => Ok(()),
            None => Err(self.store.too_small(needed.unwrap_or(u64::MAX))),
        }
    }

    /// What was found to be damaged since this was last asked, a sentence to each file.
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.noted())
    }

    fn noted(&self) -> MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_row(&self) -> u32 {
        self.buffer.first + self.buffer.samples.len() as u32
    }

    /// The chunk of a row, unless it is in the buffer.
    fn chunk(&self, row: u32) -> Option<&Chunk> {
        let after = self.chunks.partition_point(|chunk| chunk.first <= row);
        after.checked_sub(1).filter(|_| row < self.buffer.first).map(|index| &self.chunks[index])
    }

    fn map(&self, chunk: &Chunk) -> Option<Arc<Map>> {
        chunk.values.map(&chunk.path).map_err(|fault| self.drop_file(&chunk.path, fault)).ok().map(Arc::new)
    }

    /// Notes why a file is of no use, and removes it if that will not change.
    fn drop_file(&self, path: &Path, fault: Fault) {
        let place = path.display();
        match fault {
            Fault::Gone => {}
            Fault::Unreadable(error) => self.noted().push(format!("{place}: cannot be read, and is left out: {error}")),
            Fault::Damaged(reason) => {
                self.noted().push(format!("{place}: damaged, its rows are computed anew: {reason}"));
                // Where it cannot be removed it is noted again the next time.
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Writes the buffer as a chunk.
    fn write(&mut self) -> Result<()> {
        let written = self.try_write();
        match written {
            Ok(chunk) => {
                self.counted = true;
                let first = self.next_row();
                self.chunks.push(chunk);
                self.buffer = Buffer { first, ..Buffer::default() };
                Ok(())
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    fn try_write(&mut self) -> Result<Chunk> {
        let fail = |error: io::Error| Error::io(&self.folder, error);
        let Buffer { first, samples, bytes } = &self.buffer;
        let (head, values) = chunk::begin(&self.key, &self.about, samples, bytes).map_err(fail)?;
        // Equal rows, which two processes computed, are one file.
        let name = blake3::hash(&head).to_hex();
        let path = self.folder.join(&name[..super::ID]).with_extension(CHUNK_EXTENSION);

        fs::create_dir_all(&self.store.folder).map_err(fail)?;
        let writing = self.store.lock(self.store.patience)?;
        let spare: Vec<&Chunk> = self.chunks.iter().filter(|chunk| !chunk.found.load(Ordering::Relaxed)).collect();
        let needed = values.offset + values.length;
        self.store.make_room(needed, &self.folder, &spare, writing.as_ref(), !self.counted)?;
        fs::create_dir_all(&self.folder).map_err(fail)?;
        write_atomically(&path, |file| {
            file.write_all(&head)?;
            file.write_all(bytes)
        })?;
        if !self.holder.as_ref().is_some_and(Holder::is_there) {
            self.holder = Holder::of(&self.folder);
        }
        let chunk = Chunk::new(path, *first, values);
        chunk.found.store(true, Ordering::Relaxed);
        // While nobody may remove it: what is written can be read from here on.
        if chunk.map.get_or_init(|| self.map(&chunk)).is_none() {
            return Err(Error::data(&chunk.path, "does not read as it was written"));
        }
        Ok(chunk)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What is lost is computed anew.
        let _ = self.flush();
    }
}

impl Chunk {
    fn new(path: PathBuf, first: u32, values: Values) -> Self {
        Self { path, first, values, map: OnceLock::new(), found: AtomicBool::new(false) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes its rows missing, unless they are read already.
    pub(super) fn forget(&self) {
        let _ = self.map.set(None);
    }

    fn is_lost(&self) -> bool {
        matches!(self.map.get(), Some(None))
    }
}
