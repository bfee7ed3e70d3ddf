//! A block's shared memory: data, who wrote and read each granule when, bank conflicts.
//!
//! Records are stamped with the block's clock, which goes on from block to block: what is older than the block's
//! start was written by an earlier one, and counts as unwritten.

use super::Context;
use super::access::{Shape, Units};
use super::block::Block;
use super::race::ordered_in_block;
use super::regs::{Bits, FULL, LANES};
use super::trouble::{Step, coordinates, triple, trouble};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ptx::module::SHARED_BASE;

/// An asynchronous copy is to fill the granule.
pub(crate) const IN_FLIGHT: u32 = u32::MAX;
/// In writes: clock (21 bits), strong, thread (10).
const WRITE_STRONG: u32 = 1 << 10;
const LAST_CLOCK: u32 = (1 << 21) - 2;
/// In reads: clock (25 bits), strong, several lanes, lane (5).
const READ_STRONG: u32 = 1 << 6;
const MANY: u32 = 1 << 5;

pub(crate) struct Shared {
    pub words: Vec<u32>,
    pub bytes: u64,
    /// log2 of a granule's bytes.
    pub shift: u32,
    pub writes: Vec<u32>,
    /// For each warp.
    reads: Vec<Vec<u32>>,
}

impl Shared {
    pub fn new(context: &Context) -> Shared {
        let bytes = context.entry.dynamic_base as u64 - SHARED_BASE as u64 + u64::from(context.launch.dynamic_shared);
        let shift = context.entry.traits.shared_granule.trailing_zeros();
        let granules = ((bytes as usize).div_ceil(4) * 4) >> shift;
        Shared {
            words: vec![u32::MAX; (bytes as usize).div_ceil(4)],
            bytes,
            shift,
            writes: vec![0; granules],
            reads: vec![vec![0; granules]; context.warps()],
        }
    }

    /// Forgets who accessed what.
    pub fn forget(&mut self) {
        self.writes.fill(0);
        self.reads.iter_mut().for_each(|r| r.fill(0));
    }

    /// The byte offset of an address.
    #[inline(always)]
    pub fn offset(&self, address: u64, bytes: u32, lane: usize) -> Step<usize> {
        let offset = address.wrapping_sub(SHARED_BASE as u64);
        if offset < self.bytes && self.bytes - offset >= u64::from(bytes) {
            return Ok(offset as usize);
        }
        self.outside(address, bytes, lane)
    }

    #[cold]
    fn outside(&self, address: u64, bytes: u32, lane: usize) -> Step<usize> {
        let offset = address.wrapping_sub(SHARED_BASE as u64) as i64;
        let text = format!("{bytes} bytes at byte {offset} of shared memory, and the block has {}", self.bytes);
        trouble(FaultKind::OutOfBounds, lane, text)
    }
}

fn write_record(warp: &Warp, lane: usize, strong: bool) -> u32 {
    let strong = if strong { WRITE_STRONG } else { 0 };
    warp.clock.now.min(LAST_CLOCK) << 11 | strong | Block::thread(warp, lane)
}

/// Whether a granule was written by this block, and that is ordered before every lane of the warp.
#[inline(always)]
fn written_before(block: &Block, warp: &Warp, granule: usize) -> bool {
    (block.shared.writes[granule] >> 11).wrapping_sub(block.start) < warp.clock.least - block.start
}

/// Checks a read of a granule against the last write to it.
#[inline(always)]
pub(crate) fn check_read(block: &Block, warp: &Warp, granule: usize, lane: usize, strong: bool) -> Step {
    if written_before(block, warp, granule) {
        return Ok(());
    }
    check_last_write(block, warp, granule, lane, strong, 0, "reads")
}

#[inline(never)]
fn check_last_write(
    block: &Block,
    warp: &Warp,
    granule: usize,
    lane: usize,
    strong: bool,
    same: u32,
    does: &str,
) -> Step {
    let write = block.shared.writes[granule];
    let byte = granule << block.shared.shift;
    if write == IN_FLIGHT {
        let text =
            format!("{does} byte {byte} of shared memory, which an asynchronous copy (cp.async) is still to fill");
        return trouble(FaultKind::InFlight, lane, text);
    }
    let (clock, thread) = (write >> 11, write & 0x3FF);
    if clock < block.start {
        if does == "writes" {
            return Ok(());
        }
        let text = format!(
            "reads byte {byte} of shared memory, which no thread of the block has written: never, or not yet because a barrier is missing"
        );
        return trouble(FaultKind::UninitialisedMemory, lane, text);
    }
    let in_warp = thread as usize / 32 == warp.index;
    if thread == Block::thread(warp, lane)
        || strong && write & WRITE_STRONG != 0
        || in_warp && same >> (thread % 32) & 1 == 1
        || ordered_in_block(block, warp, lane, thread, clock)
    {
        return Ok(());
    }
    race(block, lane, does, byte, thread, "wrote")
}

#[cold]
fn race(block: &Block, lane: usize, does: &str, byte: usize, thread: u32, did: &str) -> Step {
    let thread = triple(coordinates(thread.into(), block.context.launch.block));
    let text = format!("{does} byte {byte} of shared memory, which thread {thread} {did} with no barrier in between");
    trouble(FaultKind::Race, lane, text)
}

/// Notes a read; who writes later is checked against it.
#[inline(always)]
fn note_read(read: &mut u32, record: u32) {
    let old = *read;
    if old >> 7 == record >> 7 && old != record {
        let many = if (old ^ record) & 31 != 0 { MANY } else { (old | record) & MANY };
        *read = record & !READ_STRONG | (record & old & READ_STRONG) | many;
    } else {
        *read = record;
    }
}

/// Checks a write to a granule against the last write and all reads.
#[inline(always)]
pub(crate) fn check_write(block: &Block, warp: &Warp, granule: usize, lane: usize, strong: bool, same: u32) -> Step {
    let shared = &block.shared;
    if shared.writes[granule] >> 11 >= warp.clock.least {
        check_last_write(block, warp, granule, lane, strong, same, "writes")?;
    }
    for (other, reads) in shared.reads.iter().enumerate() {
        if reads[granule] >> 7 >= warp.clock.known[other] {
            check_reader(block, warp, granule, lane, strong, other)?;
        }
    }
    Ok(())
}

#[inline(never)]
fn check_reader(block: &Block, warp: &Warp, granule: usize, lane: usize, strong: bool, other: usize) -> Step {
    let read = block.shared.reads[other][granule];
    if strong && read & READ_STRONG != 0 {
        return Ok(());
    }
    let reader = read & 31;
    if other == warp.index {
        if read & MANY == 0 && reader as usize == lane {
            return Ok(());
        }
        let clock = read >> 7;
        let lanes = warp.clock.lanes.as_ref();
        if lanes.is_some_and(|lanes| clock < lanes[lane][reader as usize]) && read & MANY == 0 {
            return Ok(());
        }
    }
    let thread = other as u32 * 32 + reader;
    race(block, lane, "writes", granule << block.shared.shift, thread, "read")
}

/// Counts passes over the banks: a bank serves one 4-byte word at a time, to any number of lanes. Accesses of 8 and 16
/// bytes go by halves and quarters of the warp.
pub(crate) fn count_banks(block: &mut Block, at: &[u64; LANES], m: u32, bytes: u32) {
    let words = (bytes / 4).max(1);
    let lanes = 32 / words.clamp(1, 4);
    block.counters.shared_requests += 1;
    let mut first = 0;
    while first < 32 {
        let part = m & (u32::MAX >> (32 - lanes)) << first;
        first += lanes;
        if part == 0 {
            continue;
        }
        block.counters.shared_wavefronts_ideal += 1;
        block.counters.shared_wavefronts += u64::from(wavefronts(at, part, words));
    }
}

fn wavefronts(at: &[u64; LANES], part: u32, words: u32) -> u32 {
    let line = at[part.trailing_zeros() as usize] / 128;
    let mut other = 0;
    for (lane, at) in at.iter().enumerate() {
        other |= if part >> lane & 1 == 1 { (at / 128) ^ line } else { 0 };
    }
    if other == 0 {
        return 1;
    }
    // Up to 32 different words, four of them in each access of 16 bytes.
    let mut seen = [0u32; 256];
    let mut ends = [0u8; 32];
    let mut most = 1;
    for lane in Bits(part) {
        for word in 0..u64::from(words.min(4)) {
            let word = (at[lane] / 4 + word) as u32;
            let (bank, row) = ((word % 32) as usize, word / 32);
            let end = ends[bank] as usize;
            if end < 8 && !(0..end).any(|i| seen[bank * 8 + i] == row) {
                seen[bank * 8 + end] = row;
                ends[bank] += 1;
                most = most.max(u32::from(ends[bank]));
            } else if end == 8 {
                return crowded(at, part, words);
            }
        }
    }
    most
}

/// As [`wavefronts`], where a bank has more than eight words.
#[cold]
fn crowded(at: &[u64; LANES], part: u32, words: u32) -> u32 {
    let each = |lane: usize| (0..u64::from(words.min(4))).map(move |w| at[lane] / 4 + w);
    let mut all: Vec<u64> = Bits(part).flat_map(each).collect();
    all.sort_unstable();
    all.dedup();
    let mut banks = [0u32; 32];
    all.iter().for_each(|w| banks[(w % 32) as usize] += 1);
    banks.into_iter().max().unwrap_or(1)
}

pub(crate) fn load(block: &mut Block, warp: &Warp, at: &[u64; LANES], m: u32, shape: Shape, units: &mut Units) -> Step {
    count_banks(block, at, m, shape.bytes());
    let shift = block.shared.shift;
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let strong = if shape.strong { READ_STRONG } else { 0 };
    let record = warp.clock.now << 7 | strong;
    if shift == 2 && shape.unit == 4 && load_run(block, warp, at, m, shape, record, units).is_some() {
        return Ok(());
    }
    // A lane before with the same address, where all was ordered before the whole warp.
    let mut like: Option<usize> = None;
    for lane in Bits(m) {
        if let Some(before) = like
            && at[before] == at[lane]
        {
            units[..shape.count as usize].iter_mut().for_each(|unit| unit[lane] = unit[before]);
            continue;
        }
        let offset = block.shared.offset(at[lane], shape.bytes(), lane)?;
        let first = offset >> shift;
        let mut settled = true;
        for granule in first..first + granules {
            let before = written_before(block, warp, granule);
            settled &= before;
            if !before {
                check_read(block, warp, granule, lane, shape.strong)?;
            }
        }
        like = settled.then_some(lane);
        let shared = &mut block.shared;
        let next = m & (u32::MAX << lane) & !(1 << lane);
        let shared_address = settled && next != 0 && at[next.trailing_zeros() as usize] == at[lane];
        let many = if shared_address { MANY } else { 0 };
        let reads = &mut shared.reads[warp.index][first..first + granules];
        for read in reads {
            note_read(read, record | many | lane as u32);
        }
        if shape.unit == 4 {
            for (i, unit) in units[..shape.count as usize].iter_mut().enumerate() {
                unit[lane] = shared.words[offset / 4 + i];
            }
        } else {
            let mask = (1 << (8 * shape.unit)) - 1;
            for (i, unit) in units[..shape.count as usize].iter_mut().enumerate() {
                let byte = offset + i * shape.unit as usize;
                unit[lane] = shared.words[byte / 4] >> (8 * (byte % 4)) & mask;
            }
        }
    }
    Ok(())
}

/// The common case of [`load`]: words one after the other, all written and ordered before.
#[inline(always)]
fn load_run(
    block: &mut Block,
    warp: &Warp,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    record: u32,
    units: &mut Units,
) -> Option<()> {
    let total = u64::from(shape.bytes()) * 32;
    let offset = at[0].wrapping_sub(SHARED_BASE as u64);
    let inside = offset < block.shared.bytes && block.shared.bytes - offset >= total;
    if m != FULL || !inside || !super::global::consecutive(at, shape.bytes()) {
        return None;
    }
    let words = offset as usize / 4..(offset + total) as usize / 4;
    let (start, span) = (block.start, warp.clock.least - block.start);
    let shared = &mut block.shared;
    let mut late = false;
    for write in &shared.writes[words.clone()] {
        late |= (write >> 11).wrapping_sub(start) >= span;
    }
    if late {
        return None;
    }
    let count = shape.count as usize;
    let reads = shared.reads[warp.index][words.clone()].chunks_exact_mut(count);
    for (lane, (reads, words)) in reads.zip(shared.words[words].chunks_exact(count)).enumerate() {
        for (read, (unit, word)) in reads.iter_mut().zip(units.iter_mut().zip(words)) {
            note_read(read, record | lane as u32);
            unit[lane] = *word;
        }
    }
    Some(())
}

pub(crate) fn store(block: &mut Block, warp: &Warp, at: &[u64; LANES], m: u32, shape: Shape, units: &Units) -> Step {
    count_banks(block, at, m, shape.bytes());
    let shift = block.shared.shift;
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let ascending = Bits(m).zip(Bits(m & m.wrapping_sub(1))).all(|(a, b)| at[a] < at[b]);
    for lane in Bits(m) {
        let offset = block.shared.offset(at[lane], shape.bytes(), lane)?;
        let same = if ascending { 0 } else { super::global::same_values(at, m, shape, units, lane) };
        let record = write_record(warp, lane, shape.strong);
        for granule in offset >> shift..(offset >> shift) + granules {
            check_write(block, warp, granule, lane, shape.strong, same)?;
            block.shared.writes[granule] = record;
        }
        put(&mut block.shared.words, offset, shape, lane, units);
    }
    Ok(())
}

fn put(words: &mut [u32], offset: usize, shape: Shape, lane: usize, units: &Units) {
    if shape.unit == 4 {
        for (i, unit) in units[..shape.count as usize].iter().enumerate() {
            words[offset / 4 + i] = unit[lane];
        }
        return;
    }
    let mask = (1u32 << (8 * shape.unit)) - 1;
    for (i, unit) in units[..shape.count as usize].iter().enumerate() {
        let byte = offset + i * shape.unit as usize;
        let bits = 8 * (byte % 4);
        let word = &mut words[byte / 4];
        *word = *word & !(mask << bits) | (unit[lane] & mask) << bits;
    }
}

/// Marks a granule as read and written by an atomic.
pub(crate) fn note_atomic(block: &mut Block, warp: &Warp, granule: usize, lane: usize) {
    block.shared.writes[granule] = write_record(warp, lane, true);
    let record = warp.clock.now << 7 | READ_STRONG | lane as u32;
    note_read(&mut block.shared.reads[warp.index][granule], record);
}

/// Marks a granule as written by a thread now: an asynchronous copy has landed.
pub(crate) fn note_landed(block: &mut Block, warp: &Warp, granule: usize, lane: usize) {
    block.shared.writes[granule] = write_record(warp, lane, false);
}

/// Marks a granule as read for other lanes too (`ldmatrix`).
pub(crate) fn note_matrix_read(block: &mut Block, warp: &Warp, granule: usize, lane: usize) {
    let record = warp.clock.now << 7 | lane as u32;
    note_read(&mut block.shared.reads[warp.index][granule], record);
}
