//! Global memory accesses of a warp: bounds, initialised bytes, sectors; races are in `race`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::access::{Shape, Units};
use super::cluster::Cluster;
use super::order::Order;
use super::race::{MANY_BLOCKS, MANY_THREADS, Me, STRONG, check_constant, launch_of, note_read, note_write, stamp};
use super::regs::{Bits, FULL, LANES};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::{PAGE, Page, Races, Range};

/// Finds each lane's page, keeping those of the lane before: accesses of a warp mostly stay in one page.
struct Finder<'a> {
    cluster: &'a Cluster<'a>,
    range: Option<&'a Range>,
    hint: u32,
}

impl<'a> Finder<'a> {
    fn new(cluster: &'a Cluster<'a>, pc: usize) -> Finder<'a> {
        let hint = cluster.hints[pc];
        Finder { cluster, range: cluster.context.table.ranges.get(hint as usize), hint }
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
        let table = self.cluster.context.table;
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
    cluster: &mut Cluster,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
) -> Step {
    cluster.counters.global_load_requests += 1;
    cluster.counters.global_load_sectors += sectors(at, m, shape.bytes());
    if read_run(cluster, warp, at, m, shape, units).is_some() {
        return Ok(());
    }
    let hint = read(cluster, warp, sync, at, m, shape, units)?;
    cluster.hints[warp.pc] = hint;
    Ok(())
}

/// Where lanes access words one after the other in one page: the buffer, the page, the offset in it.
#[inline(always)]
fn run_of_words<'a>(
    cluster: &Cluster<'a>,
    pc: usize,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
) -> Option<(&'a Range, usize, usize)> {
    let total = u64::from(shape.bytes()) * 32;
    if m != FULL || shape.unit != 4 || !at[0].is_multiple_of(32) || !consecutive(at, shape.bytes()) {
        return None;
    }
    let table = cluster.context.table;
    let range = table.ranges.get(cluster.hints[pc] as usize)?;
    if range.start > at[0] || at[0].checked_add(total)? > range.end {
        return None;
    }
    let offset = (at[0] - range.allocation.base) as usize;
    let within = offset % PAGE;
    (within + total as usize <= PAGE).then_some((range, offset, within))
}

/// The common case of [`read`] on whole runs of words; nothing is done if anything needs a closer look.
#[inline(always)]
fn read_run(cluster: &Cluster, warp: &Warp, at: &[u64; LANES], m: u32, shape: Shape, units: &mut Units) -> Option<()> {
    let (range, offset, within) = run_of_words(cluster, warp.pc, at, m, shape)?;
    let page = range.allocation.page(offset)?;
    let bytes = shape.bytes() as usize;
    let written = &page.written[within / 32..within / 32 + bytes];
    if written.iter().any(|w| w.load(Relaxed) != u32::MAX) {
        return None;
    }
    if !range.allocation.constant {
        let context = cluster.context;
        let shift = context.entry.traits.global_granule.trailing_zeros();
        let races = page.races(shift);
        let granules = within >> shift..(within + 32 * bytes) >> shift;
        if races.writes[granules.clone()].iter().any(|w| launch_of(w.load(Relaxed)) == context.number) {
            return None;
        }
        let base = stamp(cluster, warp, shape.strong);
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
    cluster: &Cluster,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
) -> Step<u32> {
    let shift = cluster.context.entry.traits.global_granule.trailing_zeros();
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let base = stamp(cluster, warp, shape.strong);
    let mut finder = Finder::new(cluster, warp.pc);
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
            let mut me = Me { record, lane, cluster, warp, granule: address };
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

pub(crate) fn store(
    cluster: &mut Cluster,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &Units,
) -> Step {
    cluster.counters.global_store_requests += 1;
    cluster.counters.global_store_sectors += sectors(at, m, shape.bytes());
    if write_run(cluster, warp, at, m, shape, units).is_some() {
        return Ok(());
    }
    let hint = write(cluster, warp, sync, at, m, shape, units)?;
    cluster.hints[warp.pc] = hint;
    Ok(())
}

/// The common case of [`write`] on whole runs of words that no one else has touched.
#[inline(always)]
fn write_run(cluster: &Cluster, warp: &Warp, at: &[u64; LANES], m: u32, shape: Shape, units: &Units) -> Option<()> {
    let context = cluster.context;
    let (range, offset, within) = run_of_words(cluster, warp.pc, at, m, shape)?;
    if range.allocation.constant || !context.alone {
        return None;
    }
    let page = range.allocation.make_page(offset);
    let bytes = shape.bytes() as usize;
    let shift = context.entry.traits.global_granule.trailing_zeros();
    let races = page.races(shift);
    let granules = within >> shift..(within + 32 * bytes) >> shift;
    let base = stamp(cluster, warp, shape.strong);
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

/// The checks and the data of a store; returns where the buffer was found.
pub(crate) fn write(
    cluster: &Cluster,
    warp: &Warp,
    sync: &mut Order,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &Units,
) -> Step<u32> {
    let shift = cluster.context.entry.traits.global_granule.trailing_zeros();
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let base = stamp(cluster, warp, shape.strong);
    let mut finder = Finder::new(cluster, warp.pc);
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
        let mut me = Me { record: base | (lane as u64) << 22, lane, cluster, warp, granule: address };
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
