//! Bulk copies: of consecutive bytes and of boxes of tensors (TMA), between global and shared memory.
//!
//! A load fills its place, unreadable from its start on, at some time before threads that wait for its mbarrier go on:
//! when nothing else can run (`AsyncCopies::Late`), or at once (`Early`). A store reads shared memory until its group
//! has been waited for, and writes global memory at the end of that wait, or at once.

use std::rc::Rc;

use super::access::addresses;
use super::bytes;
use super::cluster::Cluster;
use super::flight::{Reader, begin_read, end_reads};
use super::mbarrier;
use super::order::Order;
use super::regs::Bits;
use super::shadow::{IN_FLIGHT, Spot, check_proxy, check_read, check_write, note_bulk_write};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::code::Address;
use crate::code::asynchronous::{BulkCopy, BulkDirection, BulkWhat};
use crate::fault::{Fault, FaultKind};
use crate::gpu::AsyncCopies;
use crate::ptx::body::PARAM_WINDOW;
use crate::tensor::{Row, Swizzle, TensorMap, TensorMode};

/// A load in flight to one block.
pub(crate) struct Copy {
    block: usize,
    /// Byte offset in shared memory, and what comes there.
    to: usize,
    words: Rc<[u32]>,
    /// The mbarrier that it completes on, and its number.
    mbarrier: (usize, usize),
    number: u32,
    /// Who issued it.
    pub pc: usize,
    warp: usize,
    lane: usize,
}

impl Copy {
    /// Whether it is to fill shared memory of a block.
    pub fn fills(&self, block: usize) -> bool {
        self.block == block
    }
}

/// What a store is to write to global memory.
pub(crate) struct Store {
    lane: usize,
    group: Option<u32>,
    parts: Vec<(u64, Vec<u8>)>,
}

/// The shape of a copy: what is where in global memory, bytes of shared memory, their order, alignment there.
struct Plan {
    rows: Vec<Row>,
    bytes: usize,
    swizzle: Swizzle,
    align: u64,
    /// Rounds f32 to TF32.
    rounds: bool,
}

pub(crate) fn issue(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, copy: &BulkCopy, m: u32) -> Step {
    for lane in Bits(m) {
        let plan = plan(cluster, warp, sync, copy, lane)?;
        let at = addresses(warp, &copy.shared)[lane];
        if !at.is_multiple_of(plan.align) {
            let text = format!("a bulk copy at address {at:#x} of shared memory, no multiple of {}", plan.align);
            return trouble(FaultKind::Misaligned, lane, text);
        }
        match &copy.direction {
            BulkDirection::Load { mbarrier, multicast } => {
                let mbarrier = addresses(warp, mbarrier)[lane];
                let mask = multicast.map(|mask| warp.regs.get(mask, lane) as u16);
                load(cluster, warp, sync, &plan, (at, mbarrier, mask), lane)?;
            }
            BulkDirection::Store => store(cluster, warp, sync, plan, at, lane)?,
        }
        sync.progress += 1;
    }
    Ok(())
}

/// A copy must fit shared memory, before anything of its size is made.
fn check_size(cluster: &Cluster, warp: &Warp, bytes: usize, lane: usize) -> Step {
    let most = cluster.shared[warp.rank].bytes;
    if bytes as u64 <= most {
        return Ok(());
    }
    let text = format!("a bulk copy of {bytes} bytes of shared memory, and the block has {most}");
    trouble(FaultKind::OutOfBounds, lane, text)
}

fn plan(cluster: &mut Cluster, warp: &Warp, sync: &mut Order, copy: &BulkCopy, lane: usize) -> Step<Plan> {
    match &copy.what {
        BulkWhat::Bytes { global, size } => {
            let (address, bytes) = (addresses(warp, global)[lane], warp.regs.get(*size, lane) as usize);
            if !address.is_multiple_of(16) || !bytes.is_multiple_of(16) {
                let text = format!("a bulk copy of {bytes} bytes at address {address:#x}: no multiples of 16");
                return trouble(FaultKind::Misaligned, lane, text);
            }
            check_size(cluster, warp, bytes, lane)?;
            let rows = vec![Row { at: 0, address, bytes }];
            Ok(Plan { rows, bytes, swizzle: Swizzle::None, align: 16, rounds: false })
        }
        BulkWhat::Tensor { map, coordinates, offsets } => {
            let map = tensor_map(cluster, warp, sync, map, lane)?;
            let unfit = |text: String| trouble(FaultKind::Unsupported, lane, text);
            if map.extents.len() != coordinates.len() {
                return unfit(format!("{} coordinates for a tensor map of {}", coordinates.len(), map.extents.len()));
            }
            if matches!(map.mode, TensorMode::Im2col { .. }) != offsets.is_some() {
                return unfit("a tiled copy by an im2col tensor map, or the other way round".into());
            }
            if map.swizzle != Swizzle::None && map.row_bytes() != map.swizzle.bytes() {
                let (row, span) = (map.row_bytes(), map.swizzle.bytes());
                return unfit(format!("rows of {row} bytes in a swizzle of {span}: the layout is not modelled"));
            }
            check_size(cluster, warp, map.box_bytes(), lane)?;
            let at: Vec<i64> = coordinates.iter().map(|c| i64::from(warp.regs.get(*c, lane) as i32)).collect();
            let offsets =
                offsets.iter().flatten().map(|o| i64::from(warp.regs.get(*o, lane) as u16)).collect::<Vec<_>>();
            let (rows, bytes) = (map.rows(&at, &offsets), map.box_bytes());
            Ok(Plan { rows, bytes, swizzle: map.swizzle, align: 128, rounds: map.rounds() })
        }
    }
}

/// The tensor map at a generic address: a parameter, or in global memory.
pub(crate) fn tensor_map(
    cluster: &mut Cluster,
    warp: &Warp,
    sync: &mut Order,
    map: &Address,
    lane: usize,
) -> Step<TensorMap> {
    let address = addresses(warp, map)[lane];
    if !address.is_multiple_of(64) {
        let text = format!("a tensor map at address {address:#x}, which is no multiple of 64");
        return trouble(FaultKind::Misaligned, lane, text);
    }
    let mut bytes = [0; 128];
    if address >> 56 == PARAM_WINDOW as u64 >> 56 {
        let at = (address - PARAM_WINDOW as u64) as usize;
        match cluster.context.params.get(at..at + 128) {
            Some(param) => bytes.copy_from_slice(param),
            None => return trouble(FaultKind::OutOfBounds, lane, "a tensor map past the end of the parameters"),
        }
    } else {
        bytes::load(cluster, warp, sync, address, &mut bytes, lane)?;
    }
    match TensorMap::decode(&bytes) {
        Some(map) => Ok(map),
        None => trouble(FaultKind::Unsupported, lane, "a copy by something that is no tensor map"),
    }
}

/// For each word of a copy in order: its byte offset in shared memory.
fn places(start: usize, bytes: usize, swizzle: Swizzle) -> impl Iterator<Item = usize> {
    let base = crate::ptx::module::SHARED_BASE as usize;
    (0..bytes / 4).map(move |word| swizzle.apply((base + start + 4 * word) as u64) as usize - base)
}

fn load(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    plan: &Plan,
    (at, mbarrier, mask): (u64, u64, Option<u16>),
    lane: usize,
) -> Step {
    let (block, at) = warp.here.owner(at);
    let (mbarrier_block, mbarrier) = warp.here.owner(mbarrier);
    let blocks: Vec<usize> = match mask {
        None => vec![block],
        Some(mask) => (0..16).filter(|block| mask >> block & 1 == 1).collect(),
    };
    if mask.is_none() && block != mbarrier_block {
        return trouble(FaultKind::Mbarrier, lane, "a bulk copy to one block that completes on an mbarrier of another");
    }
    let all = blocks.iter().chain([&block, &mbarrier_block]);
    if let Some(missing) = all.copied().find(|&block| block >= cluster.blocks.len()) {
        let text = format!("a bulk copy to block {missing} of a cluster of {}", cluster.blocks.len());
        return trouble(FaultKind::OutOfBounds, lane, text);
    }
    cluster.counters.bulk_load_bytes += plan.bytes as u64;
    let mut bytes = vec![0; plan.bytes];
    for row in &plan.rows {
        bytes::load(cluster, warp, sync, row.address, &mut bytes[row.at..row.at + row.bytes], lane)?;
    }
    let to = cluster.shared[block].offset(at, plan.bytes as u32, lane)?;
    let mut words = vec![0; plan.bytes / 4];
    for (place, part) in places(to, plan.bytes, plan.swizzle).zip(bytes.chunks_exact(4)) {
        let word = u32::from_le_bytes([part[0], part[1], part[2], part[3]]);
        words[(place - to) / 4] = if plan.rounds { crate::tensor::to_tf32(word) } else { word };
    }
    let words: Rc<[u32]> = words.into();
    for block in blocks {
        cluster.counters.bulk_delivered_bytes += plan.bytes as u64;
        let (place, number) = mbarrier::of_copy(cluster, warp, block, mbarrier, lane)?;
        cluster.shared[block].offset(at, plan.bytes as u32, lane)?;
        let shift = cluster.shared[block].shift;
        for granule in to >> shift..(to + plan.bytes) >> shift {
            check_write(cluster, warp, Spot { block, granule }, lane, false, 0)?;
            cluster.shared[block].writes[granule] = IN_FLIGHT;
        }
        cluster.shared[block].words[to / 4..to / 4 + words.len()].fill(u32::MAX);
        let words = words.clone();
        let copy = Copy { block, to, words, mbarrier: place, number, pc: warp.pc, warp: warp.id, lane };
        match cluster.context.config.async_copies {
            AsyncCopies::Late => cluster.copies.push(copy),
            AsyncCopies::Early => land(cluster, Some(&mut *warp), sync, &copy)?,
        }
    }
    Ok(())
}

/// Lets a load fill its place and tell its mbarrier.
fn land(cluster: &mut Cluster, warp: Option<&mut Warp>, sync: &mut Order, copy: &Copy) -> Step {
    sync.progress += 1;
    cluster.now += 1;
    let (now, block) = (cluster.now, copy.block);
    let shared = &mut cluster.shared[block];
    shared.words[copy.to / 4..copy.to / 4 + copy.words.len()].copy_from_slice(&copy.words);
    let bytes = 4 * copy.words.len();
    let shift = shared.shift;
    for granule in copy.to >> shift..(copy.to + bytes) >> shift {
        note_bulk_write(cluster, Spot { block, granule }, copy.number, now);
    }
    mbarrier::complete_bytes(cluster, warp, copy.mbarrier, bytes as u32, Some(now), copy.lane)
}

/// Lets one of the loads in flight land, when nothing else can happen; returns whether there was one.
pub(crate) fn land_one(cluster: &mut Cluster, sync: &mut Order) -> Result<bool, Fault> {
    if cluster.copies.is_empty() {
        return Ok(false);
    }
    let index = cluster.schedule.pick(cluster.copies.len());
    let copy = cluster.copies.remove(index);
    match land(cluster, None, sync, &copy) {
        Ok(()) => Ok(true),
        Err(trouble) => {
            let each = cluster.context.warps();
            let block = cluster.blocks[copy.warp / each];
            Err(trouble.locate(cluster.context, block, copy.warp % each, copy.pc))
        }
    }
}

fn store(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, plan: Plan, at: u64, lane: usize) -> Step {
    let (block, at) = warp.here.owner(at);
    if block != warp.rank {
        return trouble(FaultKind::OutOfBounds, lane, "a bulk store from the shared memory of another block");
    }
    cluster.counters.bulk_store_bytes += plan.bytes as u64;
    let from = cluster.shared[block].offset(at, plan.bytes as u32, lane)?;
    let shift = cluster.shared[block].shift;
    let spots: Rc<[Spot]> =
        (from >> shift..(from + plan.bytes) >> shift).map(|granule| Spot { block, granule }).collect();
    for &spot in spots.iter() {
        check_read(cluster, warp, spot, lane, false)?;
        check_proxy(cluster, warp, spot, lane)?;
    }
    let words = &cluster.shared[block].words;
    let bytes: Vec<u8> =
        places(from, plan.bytes, plan.swizzle).flat_map(|place| words[place / 4].to_le_bytes()).collect();
    begin_read(cluster, warp, Reader::Store { lane, group: None }, spots);
    let parts = plan.rows.iter().map(|row| (row.address, bytes[row.at..row.at + row.bytes].to_vec()));
    let store = Store { lane, group: None, parts: parts.collect() };
    match cluster.context.config.async_copies {
        AsyncCopies::Late => warp.stores.push(store),
        AsyncCopies::Early => write(cluster, warp, sync, &store)?,
    }
    Ok(())
}

fn write(cluster: &mut Cluster, warp: &Warp, sync: &mut Order, store: &Store) -> Step {
    sync.progress += 1;
    store.parts.iter().try_for_each(|(to, bytes)| bytes::store(cluster, warp, sync, *to, bytes, store.lane))
}

/// `cp.async.bulk.commit_group`.
pub(crate) fn commit(warp: &mut Warp, m: u32) {
    let groups = warp.bulk_groups;
    for store in warp.stores.iter_mut().filter(|store| store.group.is_none() && m >> store.lane & 1 == 1) {
        store.group = Some(groups[store.lane]);
    }
    for read in &mut warp.flight.reads {
        if let Reader::Store { lane, group: group @ None } = &mut read.by
            && m >> *lane & 1 == 1
        {
            *group = Some(groups[*lane]);
        }
    }
    Bits(m).for_each(|lane| warp.bulk_groups[lane] += 1);
}

/// `cp.async.bulk.wait_group`: for all groups but the last `pending`; with `read` only until they have read.
pub(crate) fn wait(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    (pending, read): (u32, bool),
    m: u32,
) -> Step {
    let groups = warp.bulk_groups;
    let over = |lane: usize, group: Option<u32>| {
        m >> lane & 1 == 1 && group.is_some_and(|group| group.saturating_add(pending) < groups[lane])
    };
    end_reads(cluster, warp, warp.clock.now, |by| matches!(by, Reader::Store { lane, group } if over(lane, group)));
    if !read {
        let stores = std::mem::take(&mut warp.stores);
        let (ended, left): (Vec<_>, Vec<_>) = stores.into_iter().partition(|store| over(store.lane, store.group));
        warp.stores = left;
        ended.iter().try_for_each(|store| write(cluster, warp, sync, store))?;
    }
    Ok(())
}

/// Threads have returned: their stores must have read shared memory, and write what is left.
pub(crate) fn after_exit(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, lanes: u32) -> Step {
    let mut reads = warp.flight.reads.iter().map(|read| read.by);
    let gone = |lane: usize| lanes >> lane & 1 == 1;
    if let Some(Reader::Store { lane, .. }) = reads.find(|by| matches!(by, Reader::Store { lane, .. } if gone(*lane))) {
        let text =
            "returns while its bulk store may still read shared memory (cp.async.bulk.wait_group.read is missing)";
        return trouble(FaultKind::InFlight, lane, text);
    }
    let (ended, left): (Vec<_>, Vec<_>) =
        std::mem::take(&mut warp.stores).into_iter().partition(|store| gone(store.lane));
    warp.stores = left;
    ended.iter().try_for_each(|store| write(cluster, warp, sync, store))
}
