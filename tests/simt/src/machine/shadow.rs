//! Who wrote and read each granule of shared memory when, and whether that is ordered before an access now.
//!
//! Records are stamped with the cluster's clock, which goes on from cluster to cluster: what is older than the
//! cluster's start was written by an earlier one, and counts as unwritten.

use super::cluster::Cluster;
use super::race::ordered_in_cluster;
use super::trouble::{Step, coordinates, triple, trouble};
use super::warp::Warp;
use crate::fault::FaultKind;

/// A write: clock (32 bits), strong, thread of the cluster (20). Of a bulk copy: also the highest bit, and the number of
/// the mbarrier that it completed on instead of the thread.
const WRITE_STRONG: u64 = 1 << 31;
const WRITER: u64 = (1 << 20) - 1;
const BY_BULK_COPY: u64 = 1 << 63;
/// An asynchronous copy is to fill the granule.
pub(crate) const IN_FLIGHT: u64 = u64::MAX;
/// An mbarrier lives there.
pub(crate) const MBARRIER: u64 = u64::MAX - 1;
/// A read: clock (25 bits), strong, several lanes, lane (5).
pub(crate) const READ_STRONG: u32 = 1 << 6;
pub(crate) const MANY: u32 = 1 << 5;
/// An asynchronous read that has not ended: later than every clock.
pub(crate) const READ_IN_FLIGHT: u32 = u32::MAX;

/// A granule of the shared memory of one of the cluster's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// The block's rank.
    pub block: usize,
    pub granule: usize,
}

impl Spot {
    fn write(self, cluster: &Cluster) -> u64 {
        cluster.shared[self.block].writes[self.granule]
    }

    /// "byte 4 of shared memory", and whose if it is another block's.
    fn name(self, cluster: &Cluster, warp: &Warp) -> String {
        let byte = self.granule << cluster.shared[self.block].shift;
        match self.block == warp.rank {
            true => format!("byte {byte} of shared memory"),
            false => format!("byte {byte} of the shared memory of block {}", cluster.block_name(self.block)),
        }
    }
}

pub(crate) fn write_record(warp: &Warp, lane: usize, strong: bool) -> u64 {
    let strong = if strong { WRITE_STRONG } else { 0 };
    u64::from(warp.clock.now) << 32 | strong | u64::from(warp.thread(lane))
}

/// Whether a granule was written by this cluster, and that is ordered before every lane of the warp.
#[inline(always)]
pub(crate) fn written_before(cluster: &Cluster, warp: &Warp, spot: Spot) -> bool {
    ((spot.write(cluster) >> 32) as u32).wrapping_sub(cluster.start) < warp.clock.least - cluster.start
}

/// Checks a read of a granule against the last write to it.
#[inline(always)]
pub(crate) fn check_read(cluster: &Cluster, warp: &Warp, spot: Spot, lane: usize, strong: bool) -> Step {
    if written_before(cluster, warp, spot) {
        return Ok(());
    }
    check_last_write(cluster, warp, spot, lane, strong, 0, "reads")
}

#[inline(never)]
fn check_last_write(
    cluster: &Cluster,
    warp: &Warp,
    spot: Spot,
    lane: usize,
    strong: bool,
    same: u32,
    does: &str,
) -> Step {
    let write = spot.write(cluster);
    let byte = || spot.name(cluster, warp);
    if write == IN_FLIGHT {
        let text = format!("{does} {}, which an asynchronous copy (cp.async) is still to fill", byte());
        return trouble(FaultKind::InFlight, lane, text);
    }
    if write == MBARRIER {
        let text = format!("{does} {}, where an mbarrier lives", byte());
        return trouble(FaultKind::Mbarrier, lane, text);
    }
    let (clock, thread) = (((write & !BY_BULK_COPY) >> 32) as u32, (write & WRITER) as u32);
    if clock < cluster.start {
        if does == "writes" {
            return Ok(());
        }
        let text = format!(
            "reads {}, which no thread of the block has written: never, or not yet because a barrier is missing",
            byte()
        );
        return trouble(FaultKind::UninitialisedMemory, lane, text);
    }
    if write & BY_BULK_COPY != 0 {
        let known = warp.clock.known.get(cluster.warps.len() + thread as usize);
        if known.is_some_and(|&known| clock < known) {
            return Ok(());
        }
        let text = format!("{does} {}, which a bulk copy fills, without having waited for its mbarrier", byte());
        return trouble(FaultKind::InFlight, lane, text);
    }
    let in_warp = thread as usize / 32 == warp.id;
    if thread == warp.thread(lane)
        || strong && write & WRITE_STRONG != 0
        || in_warp && same >> (thread % 32) & 1 == 1
        || ordered_in_cluster(cluster, warp, lane, thread, clock)
    {
        return Ok(());
    }
    race(cluster, warp, lane, does, spot, thread, "wrote")
}

#[cold]
fn race(cluster: &Cluster, warp: &Warp, lane: usize, does: &str, spot: Spot, thread: u32, did: &str) -> Step {
    let who = cluster.thread_name(thread, warp.rank);
    let text = format!("{does} {}, which {who} {did} with no barrier in between", spot.name(cluster, warp));
    trouble(FaultKind::Race, lane, text)
}

/// Notes a read; who writes later is checked against it.
#[inline(always)]
pub(crate) fn note_read(read: &mut u32, record: u32) {
    let old = *read;
    if old >> 7 == record >> 7 && old != record {
        let many = if (old ^ record) & 31 != 0 { MANY } else { (old | record) & MANY };
        *read = record & !READ_STRONG | (record & old & READ_STRONG) | many;
    } else {
        // What is in flight stays so.
        *read = old.max(record);
    }
}

/// Checks a write to a granule against the last write and all reads.
#[inline(always)]
pub(crate) fn check_write(cluster: &Cluster, warp: &Warp, spot: Spot, lane: usize, strong: bool, same: u32) -> Step {
    if (spot.write(cluster) >> 32) as u32 >= warp.clock.least {
        check_last_write(cluster, warp, spot, lane, strong, same, "writes")?;
    }
    for (other, reads) in cluster.shared[spot.block].reads.iter().enumerate() {
        if reads.get(spot.granule).is_some_and(|read| read >> 7 >= warp.clock.known[other]) {
            check_reader(cluster, warp, spot, lane, strong, other)?;
        }
    }
    Ok(())
}

#[inline(never)]
fn check_reader(cluster: &Cluster, warp: &Warp, spot: Spot, lane: usize, strong: bool, other: usize) -> Step {
    let read = cluster.shared[spot.block].reads[other][spot.granule];
    if read == READ_IN_FLIGHT {
        let text = format!(
            "writes {}, which a matrix instruction or bulk store of {} is still reading",
            spot.name(cluster, warp),
            cluster.warp_name(other, warp.rank)
        );
        return trouble(FaultKind::InFlight, lane, text);
    }
    if strong && read & READ_STRONG != 0 {
        return Ok(());
    }
    let reader = read & 31;
    if other == warp.id {
        if read & MANY == 0 && reader as usize == lane {
            return Ok(());
        }
        let clock = read >> 7;
        let lanes = warp.clock.lanes.as_ref();
        if lanes.is_some_and(|lanes| clock < lanes[lane][reader as usize]) && read & MANY == 0 {
            return Ok(());
        }
    }
    race(cluster, warp, lane, "writes", spot, other as u32 * 32 + reader, "read")
}

/// Marks a granule as read and written by an atomic.
pub(crate) fn note_atomic(cluster: &mut Cluster, warp: &Warp, spot: Spot, lane: usize) {
    note_write(cluster, warp, spot, lane, true);
    let record = warp.clock.now << 7 | READ_STRONG | lane as u32;
    note_read(&mut cluster.shared[spot.block].reads_of(warp.id)[spot.granule], record);
}

/// Marks a granule as written by a thread now.
pub(crate) fn note_write(cluster: &mut Cluster, warp: &Warp, spot: Spot, lane: usize, strong: bool) {
    cluster.shared[spot.block].writes[spot.granule] = write_record(warp, lane, strong);
}

/// Marks a granule as written by a bulk copy that completes on an mbarrier, at a time of its own.
pub(crate) fn note_bulk_write(cluster: &mut Cluster, spot: Spot, number: u32, clock: u32) {
    cluster.shared[spot.block].writes[spot.granule] = BY_BULK_COPY | u64::from(clock) << 32 | u64::from(number);
}

/// Marks a granule as read by a lane, for other lanes too (`ldmatrix`).
pub(crate) fn note_matrix_read(cluster: &mut Cluster, warp: &Warp, spot: Spot, lane: usize) {
    let record = warp.clock.now << 7 | lane as u32;
    note_read(&mut cluster.shared[spot.block].reads_of(warp.id)[spot.granule], record);
}

/// Marks a granule as being read by the asynchronous operations of a warp, or as read until some time.
pub(crate) fn note_async_read(cluster: &mut Cluster, warp: &Warp, spot: Spot, ended: Option<u32>) {
    cluster.shared[spot.block].reads_of(warp.id)[spot.granule] =
        ended.map_or(READ_IN_FLIGHT, |clock| clock << 7 | MANY);
}

/// Checks that the asynchronous proxy sees a granule as it was last written: after an ordinary write, a
/// `fence.proxy.async` must follow.
pub(crate) fn check_proxy(cluster: &Cluster, warp: &Warp, spot: Spot, lane: usize) -> Step {
    let write = spot.write(cluster);
    let (clock, thread) = ((write >> 32) as u32, (write & WRITER) as u32);
    if write & BY_BULK_COPY != 0 || clock < cluster.proxied[thread as usize / 32] {
        return Ok(());
    }
    let text = format!(
        "a matrix instruction or bulk copy reads {}, which {} wrote with no fence.proxy.async behind it",
        spot.name(cluster, warp),
        cluster.thread_name(thread, warp.rank)
    );
    trouble(FaultKind::Unfenced, lane, text)
}

/// `fence.proxy.async`: what the warp knows of and has written itself is seen by the asynchronous proxy from now on.
pub(crate) fn fence_proxy(cluster: &mut Cluster, warp: &mut Warp) {
    cluster.now += 1;
    warp.clock.now = cluster.now;
    cluster.proxied.iter_mut().zip(&warp.clock.known).for_each(|(a, b)| *a = (*a).max(*b));
    cluster.proxied[warp.id] = cluster.now;
}

/// Names for messages.
impl Cluster<'_> {
    pub fn block_name(&self, rank: usize) -> String {
        triple(coordinates(self.blocks[rank], self.context.launch.grid))
    }

    /// A thread of the cluster, and its block unless it is that of `rank`.
    pub fn thread_name(&self, thread: u32, rank: usize) -> String {
        let each = 32 * self.context.warps() as u32;
        let name = triple(coordinates((thread % each).into(), self.context.launch.block));
        match (thread / each) as usize {
            other if other == rank => format!("thread {name}"),
            other => format!("thread {name} of block {}", self.block_name(other)),
        }
    }

    fn warp_name(&self, warp: usize, rank: usize) -> String {
        let each = self.context.warps();
        match warp / each {
            other if other == rank => format!("warp {}", warp % each),
            other => format!("warp {} of block {}", warp % each, self.block_name(other)),
        }
    }
}
