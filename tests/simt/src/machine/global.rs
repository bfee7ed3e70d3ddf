//! Global memory accesses of a warp: bounds, initialised bytes, races, sectors.
//!
//! A record of an access packs into 64 bits: launch (10), block (22), thread (10), flags (3), clock (19). Records of
//! other launches are void: a launch is ordered before the next.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::access::{Shape, Units};
use super::block::Block;
use super::order::Order;
use super::regs::{Bits, FULL, LANES};
use super::trouble::{Step, coordinates, triple, trouble};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::{PAGE, Page, Races, Range};

/// By an atomic, a volatile or an ordered access.
const STRONG: u64 = 1 << 19;
/// Readers: several threads of the block.
const MANY_THREADS: u64 = 1 << 20;
/// Readers: several blocks.
const MANY_BLOCKS: u64 = 1 << 21;
const CLOCK: u64 = (1 << 19) - 1;

fn launch_of(record: u64) -> u64 {
    record >> 54
}

fn block_of(record: u64) -> u64 {
    record >> 32 & 0x3F_FFFF
}

fn thread_of(record: u64) -> u32 {
    (record >> 22) as u32 & 0x3FF
}

/// Who accesses memory: the thread's record, and what it knows.
pub(crate) struct Me<'a, 'b> {
    pub record: u64,
    pub lane: usize,
    pub block: &'a Block<'b>,
    pub warp: &'a Warp,
    /// The granule's address, as the key for what does not fit a record.
    pub granule: u64,
}

/// A thread's record without its lane.
pub(crate) fn stamp(block: &Block, warp: &Warp, strong: bool) -> u64 {
    let clock = u64::from(warp.clock.now - block.start).min(CLOCK);
    let flags = if strong { STRONG } else { 0 };
    block.context.number << 54 | block.index << 32 | (warp.index as u64 * 32) << 22 | flags | clock
}

impl Me<'_, '_> {
    fn same_thread(&self, record: u64) -> bool {
        record >> 22 == self.record >> 22
    }

    fn same_block(&self, record: u64) -> bool {
        record >> 32 == self.record >> 32
    }

    /// Whether an access of this launch by one other thread is ordered before this one.
    fn ordered(&self, record: u64) -> bool {
        let clock = (record & CLOCK) as u32;
        let warp = thread_of(record) as usize / 32;
        if self.same_block(record) {
            ordered_in_block(self.block, self.warp, self.lane, thread_of(record), clock + self.block.start)
        } else {
            let key = (block_of(record) as u32, warp as u32);
            self.warp.clock.others.get(&key).is_some_and(|&known| clock < known)
        }
    }
}

/// Whether an access of a thread of the same block, at an absolute clock, is ordered before one of this lane now.
pub(crate) fn ordered_in_block(block: &Block, warp: &Warp, lane: usize, thread: u32, clock: u32) -> bool {
    let other = thread as usize / 32;
    if clock < warp.clock.known.get(other).copied().unwrap_or(block.start) {
        return true;
    }
    if other != warp.index {
        return false;
    }
    let (me, them) = (lane, thread as usize % 32);
    me == them || warp.clock.lanes.as_ref().is_some_and(|lanes| clock < lanes[me][them])
}

/// Notes a read and checks it against the last write.
#[inline(always)]
pub(crate) fn note_read(races: &Races, index: usize, me: &Me, sync: &mut Order) -> Step {
    let context = me.block.context;
    let write = races.writes[index].load(Relaxed);
    if launch_of(write) == context.number && !me.same_thread(write) {
        check_write(write, me, "reads", 0)?;
    }
    let record = &races.reads[index];
    let old = record.load(Relaxed);
    if old == me.record {
        return Ok(());
    }
    if launch_of(old) != context.number {
        if context.alone {
            record.store(me.record, Relaxed);
            return Ok(());
        }
        // Losing against another block's first read means that there are several now.
        if record.compare_exchange(old, me.record, Relaxed, Relaxed).is_ok() {
            return Ok(());
        }
    }
    // Nothing new: one of several readers, of which the record tells no more than it does.
    let settled = old & MANY_BLOCKS != 0 && !context.ordered
        || old & (MANY_BLOCKS | MANY_THREADS) != 0 && me.same_block(old) && (old ^ me.record) & CLOCK == 0;
    if settled && old & STRONG & !me.record == 0 && launch_of(old) == context.number {
        return Ok(());
    }
    join_readers(record, me, sync);
    Ok(())
}

#[inline(never)]
fn join_readers(record: &AtomicU64, me: &Me, sync: &mut Order) {
    let number = me.block.context.number;
    let mut old = record.load(Relaxed);
    loop {
        let clock = (old & CLOCK).max(me.record & CLOCK);
        let strong = old & me.record & STRONG;
        let new = if launch_of(old) != number {
            me.record
        } else if old & MANY_BLOCKS != 0 {
            me.record & !STRONG & !CLOCK | MANY_BLOCKS | strong | clock
        } else if me.same_block(old) {
            if old & MANY_THREADS == 0 && (me.same_thread(old) || me.ordered(old)) {
                let same_time = old & CLOCK == me.record & CLOCK;
                me.record & !STRONG | if same_time { strong } else { me.record & STRONG }
            } else {
                old & !STRONG & !CLOCK | MANY_THREADS | strong | clock
            }
        } else {
            me.record & !STRONG & !CLOCK | MANY_BLOCKS | strong | clock
        };
        if new == old {
            break;
        }
        match record.compare_exchange(old, new, Relaxed, Relaxed) {
            Ok(_) => {
                if new & MANY_BLOCKS != 0 && old & MANY_BLOCKS == 0 && me.block.context.ordered {
                    let first = (block_of(old) as u32, (old & CLOCK) as u32);
                    sync.readers.insert(me.granule, vec![first]);
                }
                break;
            }
            Err(now) => old = now,
        }
    }
    if me.block.context.ordered
        && let Some(readers) = sync.readers.get_mut(&me.granule)
    {
        let block = me.block.index as u32;
        let clock = (me.record & CLOCK) as u32;
        match readers.iter_mut().find(|r| r.0 == block) {
            Some(reader) => reader.1 = reader.1.max(clock),
            None => readers.push((block, clock)),
        }
    }
}

/// Notes a write and checks it against the last write and the reads. `same` are lanes of this instruction that write
/// the same value to the same place.
#[inline(always)]
pub(crate) fn note_write(races: &Races, index: usize, me: &Me, sync: &mut Order, same: u32) -> Step {
    let number = me.block.context.number;
    let old = races.writes[index].swap(me.record, Relaxed);
    if launch_of(old) == number && !me.same_thread(old) {
        check_write(old, me, "writes", same)?;
    }
    let read = races.reads[index].load(Relaxed);
    if launch_of(read) == number && !(me.same_thread(read) && read & (MANY_BLOCKS | MANY_THREADS) == 0) {
        check_readers(read, me, sync)?;
    }
    Ok(())
}

#[inline(never)]
fn check_write(write: u64, me: &Me, does: &str, same: u32) -> Step {
    if write & me.record & STRONG != 0 || me.ordered(write) {
        return Ok(());
    }
    let in_warp = me.same_block(write) && thread_of(write) as usize / 32 == me.warp.index;
    if in_warp && same >> (thread_of(write) % 32) & 1 == 1 {
        return Ok(());
    }
    race(me, does, write, "wrote")
}

#[inline(never)]
fn check_readers(read: u64, me: &Me, sync: &Order) -> Step {
    if read & me.record & STRONG != 0 {
        return Ok(());
    }
    if read & MANY_BLOCKS != 0 {
        let known = |&(block, clock): &(u32, u32)| {
            if u64::from(block) == me.block.index {
                return clock + me.block.start < me.warp.clock.least || me.same_thread(read);
            }
            let warps = me.block.warps.len() as u32;
            (0..warps).any(|w| me.warp.clock.others.get(&(block, w)).is_some_and(|&known| clock < known))
        };
        let readers = sync.readers.get(&me.granule);
        if readers.is_some_and(|readers| readers.iter().all(known)) {
            return Ok(());
        }
        return race(me, "writes", read, "read, as did other blocks,");
    }
    if !me.same_block(read) && read & MANY_THREADS != 0 {
        let clock = (read & CLOCK) as u32;
        let block = block_of(read) as u32;
        let warps = 0..me.block.warps.len() as u32;
        let known = |w| me.warp.clock.others.get(&(block, w)).is_some_and(|&known| clock < known);
        return if warps.into_iter().any(known) { Ok(()) } else { race(me, "writes", read, "read") };
    }
    if read & MANY_THREADS != 0 {
        let clock = (read & CLOCK) as u32 + me.block.start;
        return if clock < me.warp.clock.least { Ok(()) } else { race(me, "writes", read, "read, as did others,") };
    }
    if me.ordered(read) { Ok(()) } else { race(me, "writes", read, "read") }
}

#[cold]
fn race(me: &Me, does: &str, other: u64, did: &str) -> Step {
    let context = me.block.context;
    let table = context.table;
    let place = match table.find(me.granule, 1) {
        Some(i) => format!("byte {} of buffer `{}`", me.granule - table.ranges[i].start, table.ranges[i].name),
        None => format!("address {:#x}", me.granule),
    };
    let thread = triple(coordinates(thread_of(other).into(), context.launch.block));
    let who = if me.same_block(other) {
        format!("thread {thread} of the same block")
    } else {
        let block = triple(coordinates(block_of(other), context.launch.grid));
        format!("block {block} (thread {thread})")
    };
    trouble(FaultKind::Race, me.lane, format!("{does} {place}, which {who} {did} in the same launch"))
}

/// Finds each lane's page, keeping those of the lane before: accesses of a warp mostly stay in one page.
struct Finder<'a> {
    block: &'a Block<'a>,
    range: Option<&'a Range>,
    hint: u32,
}

impl<'a> Finder<'a> {
    fn new(block: &'a Block<'a>, pc: usize) -> Finder<'a> {
        let hint = block.hints[pc];
        Finder { block, range: block.context.table.ranges.get(hint as usize), hint }
    }

    /// The buffer of an access and the offset in its allocation.
    #[inline(always)]
    fn find(&mut self, address: u64, bytes: u64, lane: usize, what: &str) -> Step<(&'a Range, usize)> {
        if let Some(range) = self.range
            && range.start <= address
            && address.checked_add(bytes).is_some_and(|end| end <= range.end)
        {
            return Ok((range, (address - range.allocation.base) as usize));
        }
        self.look_up(address, bytes, lane, what)
    }

    #[inline(never)]
    fn look_up(&mut self, address: u64, bytes: u64, lane: usize, what: &str) -> Step<(&'a Range, usize)> {
        let table = self.block.context.table;
        match table.find(address, bytes) {
            Some(index) => {
                self.hint = index as u32;
                let range = &table.ranges[index];
                self.range = Some(range);
                Ok((range, (address - range.allocation.base) as usize))
            }
            None => {
                let (kind, text) = table.explain(address, bytes);
                trouble(kind, lane, format!("{what} {text}"))
            }
        }
    }
}

/// Whether lanes access memory one after the other, without gaps.
#[inline(always)]
pub(crate) fn consecutive(at: &[u64; LANES], bytes: u32) -> bool {
    let mut off = 0;
    for (lane, at_lane) in at.iter().enumerate() {
        off |= at_lane ^ at[0].wrapping_add(lane as u64 * u64::from(bytes));
    }
    off == 0
}

/// 32-byte sectors that the lanes touch.
fn sectors(at: &[u64; LANES], m: u32, bytes: u32) -> u64 {
    if m == FULL && consecutive(at, bytes) {
        return (at[0] % 32 + 32 * u64::from(bytes)).div_ceil(32);
    }
    let mut seen = [0u64; LANES];
    let (mut count, mut highest) = (0usize, None);
    for lane in Bits(m) {
        let sector = at[lane] / 32;
        if highest.is_none_or(|h| sector > h) {
            highest = Some(sector);
        } else if seen[..count].iter().rev().any(|&s| s == sector) {
            continue;
        }
        seen[count] = sector;
        count += 1;
    }
    count as u64 * u64::from(bytes.div_ceil(32))
}

pub(crate) fn load(
    block: &mut Block,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
) -> Step {
    block.counters.global_load_requests += 1;
    block.counters.global_load_sectors += sectors(at, m, shape.bytes());
    if read_run(block, warp, at, m, shape, units).is_some() {
        return Ok(());
    }
    let hint = read(block, warp, sync, at, m, shape, units)?;
    block.hints[warp.pc] = hint;
    Ok(())
}

/// Where lanes access words one after the other in one page: the buffer, the page, the offset in it.
#[inline(always)]
fn run_of_words<'a>(
    block: &Block<'a>,
    pc: usize,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
) -> Option<(&'a Range, usize, usize)> {
    let total = u64::from(shape.bytes()) * 32;
    if m != FULL || shape.unit != 4 || !at[0].is_multiple_of(32) || !consecutive(at, shape.bytes()) {
        return None;
    }
    let table = block.context.table;
    let range = table.ranges.get(block.hints[pc] as usize)?;
    if range.start > at[0] || at[0].checked_add(total)? > range.end {
        return None;
    }
    let offset = (at[0] - range.allocation.base) as usize;
    let within = offset % PAGE;
    (within + total as usize <= PAGE).then_some((range, offset, within))
}

/// The common case of [`read`] on whole runs of words; nothing is done if anything needs a closer look.
#[inline(always)]
fn read_run(block: &Block, warp: &Warp, at: &[u64; LANES], m: u32, shape: Shape, units: &mut Units) -> Option<()> {
    let (range, offset, within) = run_of_words(block, warp.pc, at, m, shape)?;
    let page = range.allocation.page(offset)?;
    let bytes = shape.bytes() as usize;
    let written = &page.written[within / 32..within / 32 + bytes];
    if written.iter().any(|w| w.load(Relaxed) != u32::MAX) {
        return None;
    }
    if !range.allocation.constant {
        let context = block.context;
        let shift = context.entry.traits.global_granule.trailing_zeros();
        let races = page.races(shift);
        let granules = within >> shift..(within + 32 * bytes) >> shift;
        if races.writes[granules.clone()].iter().any(|w| launch_of(w.load(Relaxed)) == context.number) {
            return None;
        }
        let base = stamp(block, warp, shape.strong);
        let each = bytes >> shift;
        let record = |i: usize| base | ((i / each) as u64) << 22;
        let reads = &races.reads[granules];
        let fresh = context.alone && reads.iter().all(|r| launch_of(r.load(Relaxed)) != context.number);
        if fresh {
            reads.iter().enumerate().for_each(|(i, r)| r.store(record(i), Relaxed));
        } else {
            let settled = |(i, r): (usize, &AtomicU64)| {
                let old = r.load(Relaxed);
                let several = launch_of(old) == context.number && old & MANY_BLOCKS != 0 && !context.ordered;
                old == record(i) || several && old & STRONG & !base == 0
            };
            if !reads.iter().enumerate().all(settled) {
                return None;
            }
        }
    }
    let count = shape.count as usize;
    for (lane, words) in page.words[within / 4..within / 4 + 8 * bytes].chunks_exact(count).enumerate() {
        for (unit, word) in units.iter_mut().zip(words) {
            unit[lane] = word.load(Relaxed);
        }
    }
    Some(())
}

/// The checks and the data of a load; returns where the buffer was found.
pub(crate) fn read(
    block: &Block,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
) -> Step<u32> {
    let shift = block.context.entry.traits.global_granule.trailing_zeros();
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let base = stamp(block, warp, shape.strong);
    let mut finder = Finder::new(block, warp.pc);
    let mut last: Option<(&Page, &Races, (u64, usize))> = None;
    for lane in Bits(m) {
        let address = at[lane];
        let (range, offset) = finder.find(address, shape.bytes().into(), lane, "reads")?;
        let key = (range.allocation.base, offset / PAGE);
        let (page, races) = match last {
            Some((page, races, k)) if k == key => (page, races),
            _ => match range.allocation.page(offset) {
                Some(page) => (page, page.races(shift)),
                None => return unwritten(range, address, lane),
            },
        };
        last = Some((page, races, key));
        let within = offset % PAGE;
        if !page.all_written(within, shape.bytes()) {
            let first = (0..shape.bytes() as usize).find(|&i| !page.all_written(within + i, 1)).unwrap_or(0);
            return unwritten(range, address + first as u64, lane);
        }
        if !range.allocation.constant {
            let record = base | (lane as u64) << 22;
            let mut me = Me { record, lane, block, warp, granule: address };
            let first = within >> shift;
            for i in 0..granules {
                me.granule = address + ((i as u64) << shift);
                if shape.constant {
                    check_constant(races, first + i, &me)?;
                }
                note_read(races, first + i, &me, sync)?;
            }
        }
        if shape.unit == 4 {
            for (i, unit) in units[..shape.count as usize].iter_mut().enumerate() {
                unit[lane] = page.words[within / 4 + i].load(Relaxed);
            }
        } else {
            let mask = (1 << (8 * shape.unit)) - 1;
            for (i, unit) in units[..shape.count as usize].iter_mut().enumerate() {
                let byte = within + i * shape.unit as usize;
                unit[lane] = page.words[byte / 4].load(Relaxed) >> (8 * (byte % 4)) & mask;
            }
        }
    }
    Ok(finder.hint)
}

#[cold]
fn unwritten<T>(range: &Range, address: u64, lane: usize) -> Step<T> {
    let text = format!(
        "reads byte {} of buffer `{}` ({} bytes), which nothing has written",
        address - range.start,
        range.name,
        range.end - range.start
    );
    trouble(FaultKind::UninitialisedMemory, lane, text)
}

/// The read-only path must not see memory that the same launch writes.
fn check_constant(races: &Races, index: usize, me: &Me) -> Step {
    let write = races.writes[index].load(Relaxed);
    if launch_of(write) == me.block.context.number {
        return race(me, "reads through the read-only path (ld.global.nc)", write, "wrote");
    }
    Ok(())
}

pub(crate) fn store(
    block: &mut Block,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &Units,
) -> Step {
    block.counters.global_store_requests += 1;
    block.counters.global_store_sectors += sectors(at, m, shape.bytes());
    if write_run(block, warp, at, m, shape, units).is_some() {
        return Ok(());
    }
    let hint = write(block, warp, sync, at, m, shape, units)?;
    block.hints[warp.pc] = hint;
    Ok(())
}

/// The common case of [`write`] on whole runs of words that no one else has touched.
#[inline(always)]
fn write_run(block: &Block, warp: &Warp, at: &[u64; LANES], m: u32, shape: Shape, units: &Units) -> Option<()> {
    let context = block.context;
    let (range, offset, within) = run_of_words(block, warp.pc, at, m, shape)?;
    if range.allocation.constant || !context.alone {
        return None;
    }
    let page = range.allocation.make_page(offset);
    let bytes = shape.bytes() as usize;
    let shift = context.entry.traits.global_granule.trailing_zeros();
    let races = page.races(shift);
    let granules = within >> shift..(within + 32 * bytes) >> shift;
    let base = stamp(block, warp, shape.strong);
    let each = bytes >> shift;
    let record = |i: usize| base | ((i / each) as u64) << 22;
    let untouched = |(i, r): (usize, &AtomicU64)| {
        let old = r.load(Relaxed);
        launch_of(old) != context.number || (old ^ record(i)) >> 22 == 0 && old & (MANY_BLOCKS | MANY_THREADS) == 0
    };
    let (writes, reads) = (&races.writes[granules.clone()], &races.reads[granules]);
    if !writes.iter().enumerate().all(untouched) || !reads.iter().enumerate().all(untouched) {
        return None;
    }
    writes.iter().enumerate().for_each(|(i, w)| w.store(record(i), Relaxed));
    page.written[within / 32..within / 32 + bytes].iter().for_each(|w| w.store(u32::MAX, Relaxed));
    let count = shape.count as usize;
    for (lane, words) in page.words[within / 4..within / 4 + 8 * bytes].chunks_exact(count).enumerate() {
        for (unit, word) in units.iter().zip(words) {
            word.store(unit[lane], Relaxed);
        }
    }
    Some(())
}

fn write(
    block: &Block,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &Units,
) -> Step<u32> {
    let shift = block.context.entry.traits.global_granule.trailing_zeros();
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let base = stamp(block, warp, shape.strong);
    let mut finder = Finder::new(block, warp.pc);
    let ascending = Bits(m).zip(Bits(m & m.wrapping_sub(1))).all(|(a, b)| at[a] < at[b]);
    for lane in Bits(m) {
        let address = at[lane];
        let (range, offset) = finder.find(address, shape.bytes().into(), lane, "writes")?;
        if range.allocation.constant {
            return trouble(FaultKind::ReadOnly, lane, format!("writes the constant `{}`", range.name));
        }
        let page = range.allocation.make_page(offset);
        let within = offset % PAGE;
        let races = page.races(shift);
        let same = if ascending { 0 } else { same_values(at, m, shape, units, lane) };
        let mut me = Me { record: base | (lane as u64) << 22, lane, block, warp, granule: address };
        for i in 0..granules {
            me.granule = address + ((i as u64) << shift);
            note_write(races, (within >> shift) + i, &me, sync, same)?;
        }
        page.mark_written(within, shape.bytes());
        if shape.unit == 4 {
            for (i, unit) in units[..shape.count as usize].iter().enumerate() {
                page.words[within / 4 + i].store(unit[lane], Relaxed);
            }
        } else {
            let mask = (1u32 << (8 * shape.unit)) - 1;
            for (i, unit) in units[..shape.count as usize].iter().enumerate() {
                let byte = within + i * shape.unit as usize;
                let bits = 8 * (byte % 4);
                let update = |word: u32| Some(word & !(mask << bits) | (unit[lane] & mask) << bits);
                // The update never declines.
                let _ = page.words[byte / 4].fetch_update(Relaxed, Relaxed, update);
            }
        }
    }
    Ok(finder.hint)
}

/// Lanes before this one that write the same value to the same address: harmless.
pub(crate) fn same_values(at: &[u64; LANES], m: u32, shape: Shape, units: &Units, lane: usize) -> u32 {
    let mask = if shape.unit == 4 { u32::MAX } else { (1 << (8 * shape.unit)) - 1 };
    let equal =
        |l: &usize| at[*l] == at[lane] && units[..shape.count as usize].iter().all(|u| (u[*l] ^ u[lane]) & mask == 0);
    Bits(m).take_while(|&l| l < lane).filter(equal).fold(0, |s, l| s | 1 << l)
}
