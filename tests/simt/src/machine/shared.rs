//! Shared memory of the blocks of a cluster: data, loads and stores. Who accessed what is kept in `shadow`.

use std::collections::BTreeMap;

use super::Context;
use super::access::{Shape, Units};
use super::banks::count_banks;
use super::cluster::Cluster;
use super::mbarrier::Mbarrier;
use super::regs::{Bits, FULL, LANES};
use super::shadow::{MANY, READ_STRONG, Spot, check_read, check_write, note_read, write_record, written_before};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ptx::module::SHARED_BASE;

pub(crate) struct Shared {
    pub words: Vec<u32>,
    pub bytes: u64,
    /// log2 of a granule's bytes.
    pub shift: u32,
    pub writes: Vec<u64>,
    /// For each warp of the cluster; of other blocks' warps from their first read on.
    pub reads: Vec<Vec<u32>>,
    /// When each warp of other blocks last accessed it; see [`Cluster::check_end`].
    pub visits: Vec<u32>,
    /// The mbarriers that live in it, by byte offset.
    pub mbarriers: BTreeMap<usize, Mbarrier>,
}

impl Shared {
    pub fn new(context: &Context, rank: usize) -> Shared {
        let bytes = context.entry.dynamic_base as u64 - SHARED_BASE as u64 + u64::from(context.launch.dynamic_shared);
        let shift = context.entry.traits.shared_granule.trailing_zeros();
        let granules = ((bytes as usize).div_ceil(4) * 4) >> shift;
        let (each, size) = (context.warps(), context.cluster_size());
        let own = rank * each..(rank + 1) * each;
        Shared {
            words: vec![u32::MAX; (bytes as usize).div_ceil(4)],
            bytes,
            shift,
            writes: vec![0; granules],
            reads: (0..size * each).map(|warp| vec![0; if own.contains(&warp) { granules } else { 0 }]).collect(),
            visits: vec![0; size * each],
            mbarriers: BTreeMap::new(),
        }
    }

    /// Forgets who accessed what.
    pub fn forget(&mut self) {
        self.writes.fill(0);
        self.reads.iter_mut().for_each(|r| r.fill(0));
    }

    /// When a warp last read each granule.
    #[inline(always)]
    pub fn reads_of(&mut self, warp: usize) -> &mut [u32] {
        let reads = &mut self.reads[warp];
        if reads.len() < self.writes.len() {
            reads.resize(self.writes.len(), 0);
        }
        reads
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

/// Before an access to shared memory of another block of the cluster, which must still be there.
pub(crate) fn visit(cluster: &mut Cluster, warp: &Warp, block: usize, lane: usize) -> Step {
    if cluster.exited[block] == cluster.context.threads() {
        let text = format!("accesses the shared memory of block {}, which has ended", cluster.block_name(block));
        return trouble(FaultKind::Race, lane, text);
    }
    cluster.shared[block].reads_of(warp.id);
    cluster.shared[block].visits[warp.id] = warp.clock.now;
    Ok(())
}

pub(crate) fn load(
    cluster: &mut Cluster,
    warp: &Warp,
    block: usize,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
) -> Step {
    if block != warp.rank {
        visit(cluster, warp, block, m.trailing_zeros() as usize)?;
    }
    count_banks(cluster, at, m, shape.bytes());
    let shift = cluster.shared[block].shift;
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let record = read_record(warp, shape);
    if shift == 2 && shape.unit == 4 && load_run(cluster, warp, block, at, m, shape, units).is_some() {
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
        let offset = cluster.shared[block].offset(at[lane], shape.bytes(), lane)?;
        let first = offset >> shift;
        let mut settled = true;
        for granule in first..first + granules {
            let before = written_before(cluster, warp, Spot { block, granule });
            settled &= before;
            if !before {
                check_read(cluster, warp, Spot { block, granule }, lane, shape.strong)?;
            }
        }
        like = settled.then_some(lane);
        let shared = &mut cluster.shared[block];
        let next = m & (u32::MAX << lane) & !(1 << lane);
        let shared_address = settled && next != 0 && at[next.trailing_zeros() as usize] == at[lane];
        let many = if shared_address { MANY } else { 0 };
        let reads = &mut shared.reads[warp.id][first..first + granules];
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

/// A read now, without its lane.
#[inline(always)]
fn read_record(warp: &Warp, shape: Shape) -> u32 {
    warp.clock.now << 7 | if shape.strong { READ_STRONG } else { 0 }
}

/// The common case of [`load`]: words one after the other, all written and ordered before.
#[inline(always)]
fn load_run(
    cluster: &mut Cluster,
    warp: &Warp,
    block: usize,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
) -> Option<()> {
    let record = read_record(warp, shape);
    let total = u64::from(shape.bytes()) * 32;
    let offset = at[0].wrapping_sub(SHARED_BASE as u64);
    let inside = offset < cluster.shared[block].bytes && cluster.shared[block].bytes - offset >= total;
    if m != FULL || !inside || !super::global::consecutive(at, shape.bytes()) {
        return None;
    }
    let words = offset as usize / 4..(offset + total) as usize / 4;
    let (start, span) = (cluster.start, warp.clock.least - cluster.start);
    let shared = &mut cluster.shared[block];
    let mut late = false;
    for write in &shared.writes[words.clone()] {
        late |= ((write >> 32) as u32).wrapping_sub(start) >= span;
    }
    if late {
        return None;
    }
    let count = shape.count as usize;
    let reads = shared.reads[warp.id][words.clone()].chunks_exact_mut(count);
    for (lane, (reads, words)) in reads.zip(shared.words[words].chunks_exact(count)).enumerate() {
        for (read, (unit, word)) in reads.iter_mut().zip(units.iter_mut().zip(words)) {
            note_read(read, record | lane as u32);
            unit[lane] = *word;
        }
    }
    Some(())
}

pub(crate) fn store(
    cluster: &mut Cluster,
    warp: &Warp,
    block: usize,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &Units,
) -> Step {
    if block != warp.rank {
        visit(cluster, warp, block, m.trailing_zeros() as usize)?;
    }
    count_banks(cluster, at, m, shape.bytes());
    let shift = cluster.shared[block].shift;
    let granules = (shape.bytes() >> shift).max(1) as usize;
    let ascending = Bits(m).zip(Bits(m & m.wrapping_sub(1))).all(|(a, b)| at[a] < at[b]);
    for lane in Bits(m) {
        let offset = cluster.shared[block].offset(at[lane], shape.bytes(), lane)?;
        let same = if ascending { 0 } else { super::global::same_values(at, m, shape, units, lane) };
        let record = write_record(warp, lane, shape.strong);
        for granule in offset >> shift..(offset >> shift) + granules {
            check_write(cluster, warp, Spot { block, granule }, lane, shape.strong, same)?;
            cluster.shared[block].writes[granule] = record;
        }
        put(&mut cluster.shared[block].words, offset, shape, lane, units);
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
