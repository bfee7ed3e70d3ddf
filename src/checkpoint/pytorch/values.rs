//! Where the values of storages lie, and reading a tensor's out of one.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{Mutex, PoisonError},
};

use zip::{CompressionMethod, ZipReadOptions};

use super::{
    super::{
        FileDtype,
        guard::Archive,
        strides::{in_row_order, row_major},
    },
    view::View,
};

/// The storages of a file, which stays open.
pub(super) enum Storages {
    /// In the file as they are: the first byte and how many there are, by key.
    Plain(Mutex<File>, HashMap<String, (u64, u64)>),
    /// Entries of an archive, and what their names begin with.
    Zip(Mutex<Archive>, String),
}

impl Storages {
    /// Bytes of a storage; `None` if it is not there.
    pub fn size(&self, key: &str) -> Option<u64> {
        match self {
            Storages::Plain(_, places) => places.get(key).map(|(_, length)| *length),
            Storages::Zip(archive, root) => {
                let archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                let index = archive.index_for_name(&format!("{root}{key}"))?;
                Some(archive.by_index_data(index).ok()?.size())
            }
        }
    }

    /// How much is read for a tensor, or comes of it.
    pub fn bytes_to_read(&self, view: &View) -> u64 {
        let (elements, reach) = view.extent().unwrap_or_default();
        let first = if self.is_compressed(&view.storage) { 0 } else { view.offset };
        let read = if elements == 0 { 0 } else { reach - first };
        (elements.max(read) as u64).saturating_mul(view.dtype.size() as u64)
    }

    fn is_compressed(&self, key: &str) -> bool {
        let Storages::Zip(archive, root) = self else { return false };
        let archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
        let index = archive.index_for_name(&format!("{root}{key}"));
        let entry = index.and_then(|index| archive.by_index_data(index).ok());
        entry.is_some_and(|entry| entry.compression() != CompressionMethod::Stored)
    }

    /// A tensor's bytes in row-major order. Nothing of the storage is read but what lies between its first element and
    /// its last; of a compressed one also what comes before.
    pub fn read(&self, view: &View) -> io::Result<Vec<u8>> {
        let (elements, reach) = view.extent().unwrap_or_default();
        if elements == 0 {
            return Ok(Vec::new());
        }
        let size = view.dtype.size();
        let (start, end) = ((view.offset * size) as u64, (reach * size) as u64);
        // Before anything is allocated: the file may claim any number of elements.
        if self.size(&view.storage).is_none_or(|size| size < end) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file lacks values of it"));
        }
        let mut bytes = self.window(&view.storage, start, (end - start) as usize)?;
        // The stride of an extent of 1 leads nowhere.
        let steps = view.shape.iter().zip(view.strides.iter().zip(row_major(&view.shape)));
        if steps.into_iter().any(|(extent, (stride, row))| *extent > 1 && *stride != row) {
            bytes = in_row_order(&bytes, &view.shape, &view.strides, size);
        }
        if view.dtype == FileDtype::Bool {
            bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        Ok(bytes)
    }

    fn window(&self, key: &str, start: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self {
            Storages::Plain(file, places) => {
                let first = places.get(key).map_or(0, |(first, _)| *first);
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(first + start))?;
                file.read_exact(&mut bytes)?;
            }
            Storages::Zip(archive, root) => {
                let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                let index = archive.index_for_name(&format!("{root}{key}")).ok_or(io::ErrorKind::NotFound)?;
                let entry = archive.by_index_data(index)?;
                let is_stored = entry.compression() == CompressionMethod::Stored;
                let (whole, checksum) = (length as u64 == entry.size(), entry.crc32());
                if is_stored && !whole {
                    let mut entry = archive.by_index_seek(index)?;
                    entry.seek(SeekFrom::Start(start))?;
                    entry.read_exact(&mut bytes)?;
                    return Ok(bytes);
                }
                // `torch.save` may leave the checksum out. It is compared where the entry ends.
                let options = ZipReadOptions::new().ignore_crc32(checksum == 0);
                let mut entry = archive.by_index_with_options(index, options)?;
                io::copy(&mut entry.by_ref().take(start), &mut io::sink())?;
                entry.read_exact(&mut bytes)?;
                if whole && entry.read(&mut [0])? > 0 {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "an entry is longer than it says"));
                }
            }
        }
        Ok(bytes)
    }
}
