//! Races in global memory: who last wrote and read each granule in this launch.
//!
//! A record of an access packs into 64 bits: launch (10), block (22), thread (10), flags (3), clock (19). Records of
//! other launches are void: a launch is ordered before the next.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cluster::Cluster;
use super::order::Order;
use super::trouble::{Step, coordinates, triple, trouble};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::memory::Races;

/// By an atomic, a volatile or an ordered access.
pub(crate) const STRONG: u64 = 1 << 19;
/// Readers: several threads of the block.
pub(crate) const MANY_THREADS: u64 = 1 << 20;
/// Readers: several blocks.
pub(crate) const MANY_BLOCKS: u64 = 1 << 21;
const CLOCK: u64 = (1 << 19) - 1;

pub(crate) fn launch_of(record: u64) -> u64 {
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
    pub cluster: &'a Cluster<'b>,
    pub warp: &'a Warp,
    /// The granule's address, as the key for what does not fit a record.
    pub granule: u64,
}

/// A thread's record without its lane.
pub(crate) fn stamp(cluster: &Cluster, warp: &Warp, strong: bool) -> u64 {
    let clock = u64::from(warp.clock.now - cluster.start).min(CLOCK);
    let flags = if strong { STRONG } else { 0 };
    cluster.context.number << 54 | cluster.blocks[warp.rank] << 32 | (warp.index as u64 * 32) << 22 | flags | clock
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
        if let Some(rank) = self.cluster.rank_of(block_of(record)) {
            let thread = 32 * (rank * self.cluster.context.warps()) as u32 + thread_of(record);
            ordered_in_cluster(self.cluster, self.warp, self.lane, thread, clock + self.cluster.start)
        } else {
            let key = (block_of(record) as u32, warp as u32);
            self.warp.clock.others.get(&key).is_some_and(|&known| clock < known)
        }
    }
}

/// Whether an access of a thread of the same cluster, at an absolute clock, is ordered before one of this lane now.
pub(crate) fn ordered_in_cluster(cluster: &Cluster, warp: &Warp, lane: usize, thread: u32, clock: u32) -> bool {
    let other = thread as usize / 32;
    if clock < warp.clock.known.get(other).copied().unwrap_or(cluster.start) {
        return true;
    }
    if other != warp.id {
        return false;
    }
    let (me, them) = (lane, thread as usize % 32);
    me == them || warp.clock.lanes.as_ref().is_some_and(|lanes| clock < lanes[me][them])
}

/// Notes a read and checks it against the last write.
#[inline(always)]
pub(crate) fn note_read(races: &Races, index: usize, me: &Me, sync: &mut Order) -> Step {
    let context = me.cluster.context;
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
    let number = me.cluster.context.number;
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
                if new & MANY_BLOCKS != 0 && old & MANY_BLOCKS == 0 && me.cluster.context.ordered {
                    let first = (block_of(old) as u32, (old & CLOCK) as u32);
                    sync.readers.insert(me.granule, vec![first]);
                }
                break;
            }
            Err(now) => old = now,
        }
    }
    if me.cluster.context.ordered
        && let Some(readers) = sync.readers.get_mut(&me.granule)
    {
        let block = me.cluster.blocks[me.warp.rank] as u32;
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
    let number = me.cluster.context.number;
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
            if me.cluster.rank_of(block.into()).is_some() {
                return clock + me.cluster.start < me.warp.clock.least || me.same_thread(read);
            }
            let warps = me.cluster.context.warps() as u32;
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
        let warps = 0..me.cluster.context.warps() as u32;
        let known = |w| me.warp.clock.others.get(&(block, w)).is_some_and(|&known| clock < known);
        let in_cluster = me.cluster.rank_of(block.into()).is_some();
        let before = in_cluster && clock + me.cluster.start < me.warp.clock.least;
        return if before || warps.into_iter().any(known) { Ok(()) } else { race(me, "writes", read, "read") };
    }
    if read & MANY_THREADS != 0 {
        let clock = (read & CLOCK) as u32 + me.cluster.start;
        return if clock < me.warp.clock.least { Ok(()) } else { race(me, "writes", read, "read, as did others,") };
    }
    if me.ordered(read) { Ok(()) } else { race(me, "writes", read, "read") }
}

#[cold]
fn race(me: &Me, does: &str, other: u64, did: &str) -> Step {
    let context = me.cluster.context;
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

/// The read-only path must not see memory that the same launch writes.
pub(crate) fn check_constant(races: &Races, index: usize, me: &Me) -> Step {
    let write = races.writes[index].load(Relaxed);
    if launch_of(write) == me.cluster.context.number {
        return race(me, "reads through the read-only path (ld.global.nc)", write, "wrote");
    }
    Ok(())
}
