//! The memory of a GPU, dealt out. Blocks come from few large chunks, always at the lowest address where they fit, and
//! free neighbours are joined: what is free then depends only on what is live, so that a training step that begins with
//! the same tensors finds the same addresses every time.

use std::collections::{BTreeMap, HashMap};

use super::Driver;
use crate::{Result, device::MemoryUse};

/// Alignment of blocks, in bytes; that of the widest access, and of a memory sector.
const ALIGNMENT: usize = 256;
/// Bytes of the first chunk; each further one is as large as all before, up to …
const SMALLEST_CHUNK: usize = 32 << 20;
/// … this.
const LARGEST_CHUNK: usize = 1 << 30;

/// Chunks of memory, what of them is free and what is live.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: BTreeMap<u64, usize>,
    /// Free ranges: address and bytes. Neighbours within a chunk are always joined.
    free: BTreeMap<u64, usize>,
    /// Live blocks: bytes taken, bytes asked for.
    live: HashMap<u64, (usize, usize)>,
    in_use: usize,
    peak: usize,
    /// Whether chunks stay where they are even when they hold nothing.
    pinned: bool,
}

impl Arena {
    /// An arena for what is written down now and done later: what a block was once is written to again.
    pub fn pinned() -> Self {
        Self { pinned: true, ..Self::default() }
    }

    /// A block of at least `bytes`, which may be 0.
    pub fn alloc(&mut self, bytes: usize, driver: &dyn Driver) -> Result<u64> {
        let taken = bytes.max(1).next_multiple_of(ALIGNMENT) + driver.properties().guard.next_multiple_of(ALIGNMENT);
        let address = match self.take(taken) {
            Some(address) => address,
            None => {
                self.grow(taken, driver)?;
                self.take(taken).unwrap_or_else(|| unreachable!("a chunk was added that holds the block"))
            }
        };
        self.live.insert(address, (taken, bytes));
        self.in_use += bytes;
        self.peak = self.peak.max(self.in_use);
        driver.carve(address, bytes)?;
        Ok(address)
    }

    /// Sees to it that a block of `bytes` fits into a chunk that is there.
    pub fn reserve(&mut self, bytes: usize, driver: &dyn Driver) -> Result<()> {
        if self.free.values().any(|free| *free >= bytes) { Ok(()) } else { self.grow(bytes, driver) }
    }

    /// Takes back a block.
    pub fn free(&mut self, address: u64, driver: &dyn Driver) {
        if let Some((taken, bytes)) = self.live.remove(&address) {
            self.in_use -= bytes;
            driver.release(address);
            self.give(address, taken);
        }
    }

    /// Gives chunks that hold nothing back to the driver.
    pub fn trim(&mut self, driver: &dyn Driver) {
        self.chunks.retain(|address, bytes| {
            let unused = self.free.get(address) == Some(bytes);
            if unused {
                self.free.remove(address);
                driver.free(*address);
            }
            !unused
        });
    }

    pub fn memory(&self) -> MemoryUse {
        MemoryUse { live: self.in_use, peak: self.peak }
    }

    /// Bytes that are in chunks but not in blocks.
    pub fn unused(&self) -> usize {
        self.free.values().sum()
    }

    /// Bytes of all chunks.
    pub fn held(&self) -> usize {
        self.chunks.values().sum()
    }

    fn take(&mut self, bytes: usize) -> Option<u64> {
        let (address, found) = self.free.iter().find(|(_, found)| **found >= bytes).map(|(a, b)| (*a, *b))?;
        self.free.remove(&address);
        if found > bytes {
            self.free.insert(address + bytes as u64, found - bytes);
        }
        Some(address)
    }

    fn give(&mut self, mut address: u64, mut bytes: usize) {
        let chunk = self.chunks.range(..=address).next_back().map(|(chunk, bytes)| (*chunk, *chunk + *bytes as u64));
        let (start, end) = chunk.unwrap_or((address, address + bytes as u64));
        if let Some((&before, &length)) = self.free.range(start..address).next_back()
            && before + length as u64 == address
        {
            self.free.remove(&before);
            (address, bytes) = (before, bytes + length);
        }
        let after = address + bytes as u64;
        if after < end
            && let Some(length) = self.free.remove(&after)
        {
            bytes += length;
        }
        self.free.insert(address, bytes);
    }

    fn grow(&mut self, bytes: usize, driver: &dyn Driver) -> Result<()> {
        let wanted = self.held().clamp(SMALLEST_CHUNK, LARGEST_CHUNK).max(bytes);
        // Where that much is not left, the block alone may still fit, or may once unused chunks are given back.
        let (address, size) = match driver.alloc(wanted) {
            Ok(address) => (address, wanted),
            Err(_) => {
                if !self.pinned {
                    self.trim(driver);
                }
                (driver.alloc(bytes)?, bytes)
            }
        };
        self.chunks.insert(address, size);
        self.free.insert(address, size);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
