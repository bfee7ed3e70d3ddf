//! Global memory: allocations of lazily made pages, each with its initialised bytes and its race records.

pub(crate) mod store;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::fault::{Fault, FaultKind};

/// Bytes in a page.
pub(crate) const PAGE: usize = 1 << 14;

/// One page of data. Fresh bytes are 0xFF: NaN in every floating-point format.
pub(crate) struct Page {
    pub words: Box<[AtomicU32]>,
    /// One bit for each byte that has been written.
    pub written: Box<[AtomicU32]>,
    /// Who accessed what in the current launch, by granules of 1, 2 and 4 bytes.
    races: [OnceLock<Box<Races>>; 3],
}

/// The last write and the last read of every granule; see `machine::global` for the packing.
pub(crate) struct Races {
    pub writes: Box<[AtomicU64]>,
    pub reads: Box<[AtomicU64]>,
}

impl Page {
    fn new() -> Box<Page> {
        Box::new(Page {
            words: (0..PAGE / 4).map(|_| AtomicU32::new(u32::MAX)).collect(),
            written: (0..PAGE / 32).map(|_| AtomicU32::new(0)).collect(),
            races: Default::default(),
        })
    }

    /// The race records for granules of `1 << shift` bytes.
    #[inline(always)]
    pub fn races(&self, shift: u32) -> &Races {
        self.races[shift as usize].get_or_init(|| {
            let zeros = || (0..PAGE >> shift).map(|_| AtomicU64::new(0)).collect();
            Box::new(Races { writes: zeros(), reads: zeros() })
        })
    }

    /// Forgets all race records.
    pub fn forget_races(&self) {
        for races in self.races.iter().filter_map(|r| r.get()) {
            races.writes.iter().chain(&races.reads).for_each(|r| r.store(0, Relaxed));
        }
    }

    #[inline(always)]
    pub fn all_written(&self, offset: usize, bytes: u32) -> bool {
        let mask = (u32::MAX >> (32 - bytes)) << (offset % 32);
        self.written[offset / 32].load(Relaxed) & mask == mask
    }

    #[inline(always)]
    pub fn mark_written(&self, offset: usize, bytes: u32) {
        let mask = (u32::MAX >> (32 - bytes)) << (offset % 32);
        if self.written[offset / 32].load(Relaxed) & mask != mask {
            self.written[offset / 32].fetch_or(mask, Relaxed);
        }
    }

    fn byte(&self, at: usize) -> u8 {
        (self.words[at / 4].load(Relaxed) >> (8 * (at % 4))) as u8
    }

    fn set_byte(&self, at: usize, byte: u8) {
        let shift = 8 * (at % 4);
        let update = |word: u32| Some(word & !(0xFF << shift) | u32::from(byte) << shift);
        // The update never declines.
        let _ = self.words[at / 4].fetch_update(Relaxed, Relaxed, update);
    }
}

/// A stretch of memory from `Gpu::alloc`, or a module's variable.
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: usize,
    pub name: Arc<str>,
    /// A `.const` variable.
    pub constant: bool,
    pages: Box<[OnceLock<Box<Page>>]>,
}

impl Allocation {
    pub fn new(base: u64, bytes: usize, name: &str, constant: bool) -> Allocation {
        let pages = (0..bytes.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Allocation { base, bytes, name: name.into(), constant, pages }
    }

    /// The page at a byte offset, if anything was ever written to it.
    #[inline(always)]
    pub fn page(&self, offset: usize) -> Option<&Page> {
        self.pages[offset / PAGE].get().map(|p| &**p)
    }

    /// The page at a byte offset, made if need be.
    #[inline(always)]
    pub fn make_page(&self, offset: usize) -> &Page {
        self.pages[offset / PAGE].get_or_init(Page::new)
    }

    pub fn pages(&self) -> impl Iterator<Item = &Page> {
        self.pages.iter().filter_map(|p| p.get()).map(|p| &**p)
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.each(offset, bytes.len(), |page, at, range| {
            let part = &bytes[range];
            let page = page.make_page(at);
            let mut i = 0;
            while i < part.len() {
                let within = (at + i) % PAGE;
                if within.is_multiple_of(4) && part.len() - i >= 4 {
                    let word = [part[i], part[i + 1], part[i + 2], part[i + 3]];
                    page.words[within / 4].store(u32::from_le_bytes(word), Relaxed);
                    page.mark_written(within, 4);
                    i += 4;
                } else {
                    page.set_byte(within, part[i]);
                    page.mark_written(within, 1);
                    i += 1;
                }
            }
        });
    }

    /// Copies bytes out; returns the offset of the first one that nothing has written.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Option<usize> {
        let mut unwritten = None;
        let total = bytes.len();
        self.each(offset, total, |page, at, range| {
            let part = &mut bytes[range];
            let Some(page) = page.page(at) else {
                unwritten = unwritten.or(Some(at));
                part.fill(0xFF);
                return;
            };
            let mut i = 0;
            while i < part.len() {
                let within = (at + i) % PAGE;
                let step = if within.is_multiple_of(4) && part.len() - i >= 4 { 4 } else { 1 };
                if unwritten.is_none() && !page.all_written(within, step as u32) {
                    let first = (0..step).find(|&j| !page.all_written(within + j, 1)).unwrap_or(0);
                    unwritten = Some(at + i + first);
                }
                if step == 4 {
                    part[i..i + 4].copy_from_slice(&page.words[within / 4].load(Relaxed).to_le_bytes());
                } else {
                    part[i] = page.byte(within);
                }
                i += step;
            }
        });
        unwritten
    }

    /// Makes bytes unwritten again.
    pub fn clear(&self, offset: usize, bytes: usize) {
        self.each(offset, bytes, |page, at, range| {
            let Some(page) = page.page(at) else { return };
            for i in at..at + range.len() {
                let within = i % PAGE;
                page.set_byte(within, 0xFF);
                page.written[within / 32].fetch_and(!(1 << (within % 32)), Relaxed);
            }
        });
    }

    /// Copies bytes and whether they are written.
    pub fn copy_to(&self, from: usize, target: &Allocation, to: usize, bytes: usize) {
        let mut buffer = vec![0; bytes];
        self.read(from, &mut buffer);
        target.write(to, &buffer);
        for i in 0..bytes {
            let written = self.page(from + i).is_some_and(|p| p.all_written((from + i) % PAGE, 1));
            if !written {
                target.clear(to + i, 1);
            }
        }
    }

    /// Calls `f(self, offset, range of the buffer)` for every page's share of a range.
    fn each(&self, offset: usize, bytes: usize, mut f: impl FnMut(&Allocation, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let step = (PAGE - at % PAGE).min(bytes - done);
            f(self, at, done..done + step);
            done += step;
        }
    }
}

/// A live buffer: an allocation, or a part that was carved from one.
#[derive(Clone)]
pub(crate) struct Range {
    pub start: u64,
    pub end: u64,
    pub name: Arc<str>,
    pub allocation: Arc<Allocation>,
}

/// A buffer that is no more.
#[derive(Clone)]
pub(crate) struct Dead {
    pub start: u64,
    pub end: u64,
    pub name: Arc<str>,
}

/// All live buffers, sorted by address.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub ranges: Vec<Range>,
    pub dead: Vec<Dead>,
}

impl Table {
    /// The buffer that holds all of `[address, address + bytes)`.
    pub fn find(&self, address: u64, bytes: u64) -> Option<usize> {
        let after = self.ranges.partition_point(|r| r.start <= address);
        let index = after.checked_sub(1)?;
        (address.checked_add(bytes)? <= self.ranges[index].end).then_some(index)
    }

    /// Why an access hits no buffer.
    pub fn explain(&self, address: u64, bytes: u64) -> (FaultKind, String) {
        let after = self.ranges.partition_point(|r| r.start <= address);
        let before = after.checked_sub(1).map(|i| &self.ranges[i]);
        if let Some(range) = before
            && address < range.end
        {
            let over = address.saturating_add(bytes) - range.end;
            let text = format!(
                "{bytes} bytes at byte {} of buffer `{}`: {over} past its end ({} bytes)",
                address - range.start,
                range.name,
                range.end - range.start
            );
            return (FaultKind::OutOfBounds, text);
        }
        if let Some(dead) = self.dead.iter().rev().find(|d| d.start <= address && address < d.end) {
            let text = format!("byte {} of buffer `{}`, which has been freed", address - dead.start, dead.name);
            return (FaultKind::UseAfterFree, text);
        }
        let next = self.ranges.get(after);
        let past = before.map(|r| (address - r.end, r));
        let short = next.map(|r| (r.start - address, r));
        let text = match (past, short) {
            (Some((past, range)), short) if short.as_ref().is_none_or(|s| past <= s.0) => format!(
                "{bytes} bytes, {past} bytes past the end of buffer `{}` ({} bytes)",
                range.name,
                range.end - range.start
            ),
            (_, Some((short, range))) => {
                format!("{bytes} bytes, {short} bytes before the start of buffer `{}`", range.name)
            }
            _ => format!("{bytes} bytes at address {address:#x}, and there is no buffer at all"),
        };
        (FaultKind::OutOfBounds, text)
    }

    pub fn fault(&self, address: u64, bytes: u64, what: &str) -> Fault {
        let (_, text) = self.explain(address, bytes);
        Fault::new(FaultKind::Host, format!("{what}: {text}"))
    }
}
