//! `cp.async`: copies from global to shared memory that land later.

use super::access::{Units, addresses, by_space, check_aligned};
use super::atomic::plain;
use super::banks::count_banks;
use super::bytes;
use super::cluster::Cluster;
use super::order::Order;
use super::regs::{Bits, FULL, LANES};
use super::shadow::{IN_FLIGHT, Spot, check_write, note_write};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::code::{CpAsync, Space};
use crate::fault::FaultKind;
use crate::gpu::AsyncCopies;

/// A copy in flight.
pub(crate) struct Copy {
    lane: usize,
    /// The group that it was committed to.
    group: Option<u32>,
    /// Byte offset in shared memory.
    to: usize,
    words: [u32; 4],
    count: usize,
}

pub(crate) fn issue(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, copy: &CpAsync, m: u32) -> Step {
    cluster.counters.async_copy_bytes += u64::from(copy.bytes * m.count_ones());
    let to = addresses(warp, &copy.to);
    let mut from = addresses(warp, &copy.from);
    let ignored = copy.ignore.map_or(0, |(p, flip)| warp.regs.pred[p as usize] ^ if flip { FULL } else { 0 });
    let mut sizes = [copy.bytes; LANES];
    for lane in Bits(m) {
        if let Some(size) = copy.size {
            sizes[lane] = warp.regs.get(size, lane) as u32;
        }
        if ignored >> lane & 1 == 1 {
            sizes[lane] = 0;
        }
        if sizes[lane] > copy.bytes {
            let text = format!("an asynchronous copy of {} bytes out of {}", sizes[lane], copy.bytes);
            return trouble(FaultKind::OutOfBounds, lane, text);
        }
    }
    check_aligned(&to, m, copy.bytes, "an asynchronous copy to shared memory")?;
    check_aligned(&from, m, copy.bytes, "an asynchronous copy from global memory")?;
    count_banks(cluster, &to, m, copy.bytes);
    let mut units: Units = [[0; LANES]; 8];
    let full = Bits(m).filter(|&l| sizes[l] == copy.bytes).fold(0, |f, l| f | 1 << l);
    if full != 0 {
        by_space(warp.here, copy.from_space, &mut from, full, |space, _, at, m| match space {
            Space::Global => super::global::load(cluster, warp, sync, at, m, plain(copy.bytes), &mut units),
            _ => trouble(FaultKind::OutOfBounds, m.trailing_zeros() as usize, "copies from outside of global memory"),
        })?;
    }
    // Of partial copies the rest is zeros.
    for lane in Bits(m & !full).filter(|&l| sizes[l] > 0) {
        let mut bytes = [0; 16];
        bytes::load(cluster, warp, sync, from[lane], &mut bytes[..sizes[lane] as usize], lane)?;
        for (unit, part) in units.iter_mut().zip(bytes.chunks_exact(4)) {
            unit[lane] = u32::from_le_bytes([part[0], part[1], part[2], part[3]]);
        }
    }
    let block = warp.rank;
    let shift = cluster.shared[block].shift;
    for lane in Bits(m) {
        let offset = cluster.shared[block].offset(to[lane], copy.bytes, lane)?;
        for granule in offset >> shift..(offset + copy.bytes as usize) >> shift {
            check_write(cluster, warp, Spot { block, granule }, lane, false, 0)?;
            cluster.shared[block].writes[granule] = IN_FLIGHT;
        }
        let count = copy.bytes as usize / 4;
        let mut words = [0; 4];
        (0..count).for_each(|i| words[i] = units[i][lane]);
        let late = cluster.context.config.async_copies == AsyncCopies::Late;
        let seen = if late { [u32::MAX; 4] } else { words };
        cluster.shared[block].words[offset / 4..offset / 4 + count].copy_from_slice(&seen[..count]);
        warp.copies.push(Copy { lane, group: None, to: offset, words, count });
    }
    Ok(())
}

pub(crate) fn commit(warp: &mut Warp, m: u32) {
    for copy in &mut warp.copies {
        if copy.group.is_none() && m >> copy.lane & 1 == 1 {
            copy.group = Some(warp.committed[copy.lane]);
        }
    }
    Bits(m).for_each(|lane| warp.committed[lane] += 1);
}

/// Lands the copies that a wait demands: all groups but the last `pending`, or everything.
pub(crate) fn wait(cluster: &mut Cluster, warp: &mut Warp, pending: Option<u32>, m: u32) {
    let copies = std::mem::take(&mut warp.copies);
    let committed = warp.committed;
    let lands = |copy: &Copy| {
        m >> copy.lane & 1 == 1
            && match (pending, copy.group) {
                (None, _) => true,
                (Some(pending), Some(group)) => group + pending < committed[copy.lane],
                (Some(_), None) => false,
            }
    };
    let (landed, left): (Vec<_>, Vec<_>) = copies.into_iter().partition(lands);
    warp.copies = left;
    let block = warp.rank;
    let shift = cluster.shared[block].shift;
    for copy in landed {
        cluster.shared[block].words[copy.to / 4..copy.to / 4 + copy.count].copy_from_slice(&copy.words[..copy.count]);
        for granule in copy.to >> shift..(copy.to + 4 * copy.count) >> shift {
            note_write(cluster, warp, Spot { block, granule }, copy.lane, false);
        }
    }
}
