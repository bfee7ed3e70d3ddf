//! Atomics, fences, and what strong accesses hand from thread to thread.

use std::sync::atomic::Ordering::Relaxed;

use super::access::{Shape, addresses, by_space, check_aligned};
use super::cluster::Cluster;
use super::order::{Knowledge, Order};
use super::race::{Me, note_read, note_write, stamp};
use super::regs::Bits;
use super::shadow::{Spot, check_read, check_write, note_atomic};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::code::{AtomOp, AtomType, Atomic, Space};
use crate::fault::FaultKind;
use crate::lower::{Sort, Ty, arith::half_add};
use crate::memory::{PAGE, Page};

fn bytes(ty: AtomType) -> u32 {
    match ty {
        AtomType::U64 | AtomType::S64 | AtomType::F64 => 8,
        AtomType::F16 | AtomType::Bf16 | AtomType::B16 => 2,
        _ => 4,
    }
}

pub(crate) fn run(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, atomic: &Atomic, m: u32) -> Step {
    cluster.counters.atomics += 1;
    let width = bytes(atomic.ty);
    let mut at = addresses(warp, &atomic.address);
    check_aligned(&at, m, width, "an atomic")?;
    let places = at;
    let place = |lane: usize| (atomic.space, places[lane]);
    // The knowledge at the address is taken up before our own is left there.
    strong_read(cluster, warp, sync, m, place, atomic.order.acquire);
    strong_write(cluster, warp, sync, m, place, atomic.order.release);
    by_space(warp.here, atomic.space, &mut at, m, |space, block, at, m| {
        for lane in Bits(m) {
            let old = match space {
                Space::Shared => in_shared(cluster, warp, sync, atomic, (block, at[lane]), lane, width)?,
                Space::Global => in_global(cluster, warp, sync, atomic, at[lane], lane, width)?,
                _ => return trouble(FaultKind::Unsupported, lane, "an atomic on local memory or parameters"),
            };
            if let Some(d) = atomic.d {
                warp.regs.put(d, lane, old);
            }
        }
        Ok(())
    })
}

/// The new value, from the old one and the lane's operands.
fn apply(atomic: &Atomic, warp: &Warp, lane: usize, old: u64) -> u64 {
    let b = warp.regs.get(atomic.b, lane);
    let c = atomic.c.map_or(0, |c| warp.regs.get(c, lane));
    let signed = matches!(atomic.ty, AtomType::S32 | AtomType::S64);
    let wide = bytes(atomic.ty) == 8;
    let order = |x: u64| {
        if !signed {
            x as i128
        } else if wide {
            (x as i64).into()
        } else {
            (x as i32).into()
        }
    };
    let new = match atomic.op {
        AtomOp::Add => add(atomic.ty, old, b),
        AtomOp::Min if order(b) < order(old) => b,
        AtomOp::Max if order(b) > order(old) => b,
        AtomOp::Min | AtomOp::Max => old,
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
    };
    if wide { new } else { new & (u64::MAX >> (64 - 8 * bytes(atomic.ty))) }
}

fn add(ty: AtomType, a: u64, b: u64) -> u64 {
    let f16 = Ty { sort: Sort::Float, bits: 16 };
    let bf16 = Ty { sort: Sort::Bf16, bits: 16 };
    let pair = |ty| half_add(a & 0xFFFF, b & 0xFFFF, ty) | half_add(a >> 16, b >> 16, ty) << 16;
    match ty {
        AtomType::F32 => (f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits().into(),
        AtomType::F64 => (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        AtomType::F16 => half_add(a, b, f16),
        AtomType::Bf16 => half_add(a, b, bf16),
        AtomType::F16x2 => pair(f16),
        AtomType::Bf16x2 => pair(bf16),
        _ => a.wrapping_add(b),
    }
}

fn in_shared(
    cluster: &mut Cluster,
    warp: &Warp,
    sync: &mut Order,
    atomic: &Atomic,
    (block, address): (usize, u64),
    lane: usize,
    width: u32,
) -> Step<u64> {
    if block != warp.rank {
        super::shared::visit(cluster, warp, block, lane)?;
    }
    let offset = cluster.shared[block].offset(address, width, lane)?;
    let shift = cluster.shared[block].shift;
    let granules = offset >> shift..(offset >> shift) + (width >> shift).max(1) as usize;
    for granule in granules {
        let spot = Spot { block, granule };
        check_read(cluster, warp, spot, lane, true)?;
        check_write(cluster, warp, spot, lane, true, 0)?;
        note_atomic(cluster, warp, spot, lane);
    }
    let words = &mut cluster.shared[block].words;
    let old = match width {
        8 => u64::from(words[offset / 4]) | u64::from(words[offset / 4 + 1]) << 32,
        4 => words[offset / 4].into(),
        _ => u64::from(words[offset / 4] >> (8 * (offset % 4)) & 0xFFFF),
    };
    let new = apply(atomic, warp, lane, old);
    sync.progress += u64::from(new != old);
    match width {
        8 => {
            words[offset / 4] = new as u32;
            words[offset / 4 + 1] = (new >> 32) as u32;
        }
        4 => words[offset / 4] = new as u32,
        _ => {
            let bits = 8 * (offset % 4);
            let word = &mut words[offset / 4];
            *word = *word & !(0xFFFF << bits) | (new as u32) << bits;
        }
    }
    Ok(old)
}

fn in_global(
    cluster: &mut Cluster,
    warp: &Warp,
    sync: &mut Order,
    atomic: &Atomic,
    address: u64,
    lane: usize,
    width: u32,
) -> Step<u64> {
    let table = cluster.context.table;
    let Some(index) = table.find(address, width.into()) else {
        let (kind, text) = table.explain(address, width.into());
        return trouble(kind, lane, format!("an atomic on {text}"));
    };
    let range = &table.ranges[index];
    let offset = (address - range.allocation.base) as usize;
    if range.allocation.constant {
        return trouble(FaultKind::ReadOnly, lane, format!("writes the constant `{}`", range.name));
    }
    let page = range.allocation.make_page(offset);
    let within = offset % PAGE;
    if !page.all_written(within, width) {
        let text = format!(
            "an atomic reads byte {} of buffer `{}`, which nothing has written",
            address - range.start,
            range.name
        );
        return trouble(FaultKind::UninitialisedMemory, lane, text);
    }
    let shift = cluster.context.entry.traits.global_granule.trailing_zeros();
    let races = page.races(shift);
    for i in 0..(width >> shift).max(1) as usize {
        let record = stamp(cluster, warp, true) | (lane as u64) << 22;
        let me = Me { record, lane, cluster, warp, granule: address + ((i as u64) << shift) };
        note_read(races, (within >> shift) + i, &me, sync)?;
        note_write(races, (within >> shift) + i, &me, sync, 0)?;
    }
    let (old, new) = update(page, within, width, |old| apply(atomic, warp, lane, old));
    sync.progress += u64::from(old != new);
    Ok(old)
}

fn update(page: &Page, within: usize, width: u32, new: impl Fn(u64) -> u64) -> (u64, u64) {
    let word = &page.words[within / 4];
    if width == 8 {
        // Kernels with 64-bit atomics run on one thread.
        let high = &page.words[within / 4 + 1];
        let old = u64::from(word.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let value = new(old);
        word.store(value as u32, Relaxed);
        high.store((value >> 32) as u32, Relaxed);
        return (old, value);
    }
    let bits = 8 * (within % 4);
    let mask = if width == 4 { u32::MAX } else { 0xFFFF << bits };
    let part = |word: u32| u64::from((word & mask) >> bits);
    let change = |word: u32| word & !mask | (new(part(word)) as u32) << bits;
    let old = word.fetch_update(Relaxed, Relaxed, |word| Some(change(word))).unwrap_or_else(|word| word);
    (part(old), part(change(old)))
}

/// What a warp knows of its own cluster and others, in clocks that count from the cluster's start.
fn knowledge(cluster: &Cluster, warp: &Warp) -> Knowledge {
    let mut all = warp.clock.others.clone();
    let each = cluster.context.warps();
    let key = |id: usize| (cluster.blocks[id / each] as u32, (id % each) as u32);
    for (id, &known) in warp.clock.known.iter().take(cluster.warps.len()).enumerate() {
        all.insert(key(id), known - cluster.start);
    }
    all.insert(key(warp.id), warp.clock.now + 1 - cluster.start);
    all
}

fn learn(cluster: &Cluster, warp: &mut Warp, what: &Knowledge) {
    let each = cluster.context.warps();
    for (&(block, index), &clock) in what {
        match cluster.rank_of(block.into()).map(|rank| rank * each + index as usize) {
            Some(id) if id == warp.id => {}
            Some(id) => {
                let known = &mut warp.clock.known[id];
                *known = (*known).max(clock + cluster.start);
            }
            None => {
                let known = warp.clock.others.entry((block, index)).or_insert(0);
                *known = (*known).max(clock);
            }
        }
    }
    warp.clock.settle(cluster.warps.len());
}

/// A fence: what the warp knows now is what strong writes after it release, and what strong reads before it found is
/// known after it.
pub(crate) fn fence(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, acquire: bool, release: bool) {
    if acquire {
        for place in std::mem::take(&mut warp.clock.pending) {
            if let Some(found) = sync.at.get(&place) {
                learn(cluster, warp, found);
            }
        }
    }
    if release {
        warp.clock.released = Some(Box::new(knowledge(cluster, warp)));
        release_known(cluster, warp);
    }
}

/// Keeps what the warp knows now, for a relaxed arrival at a barrier to release.
pub(crate) fn release_known(cluster: &mut Cluster, warp: &mut Warp) {
    cluster.now += 1;
    warp.clock.now = cluster.now;
    warp.clock.fenced.clone_from(&warp.clock.known);
    warp.clock.fenced[warp.id] = cluster.now;
}

fn key(cluster: &Cluster, warp: &Warp, (space, address): (Space, u64)) -> (u32, u64) {
    let shared = crate::ptx::body::SHARED_WINDOW as u64;
    let inside = space == Space::Generic && address >> 56 == shared >> 56;
    if !inside && !matches!(space, Space::Shared | Space::Cluster) {
        return (u32::MAX, address);
    }
    let (rank, address) = warp.here.owner(address & u64::from(u32::MAX));
    (cluster.blocks.get(rank).map_or(u32::MAX, |&block| block as u32), address)
}

/// A strong read finds what strong writes left; an acquiring one knows it at once.
pub(crate) fn strong_read(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &Order,
    m: u32,
    place: impl Fn(usize) -> (Space, u64),
    acquire: bool,
) {
    warp.strong_reads += 1;
    if sync.at.is_empty() {
        return;
    }
    for lane in Bits(m) {
        let key = key(cluster, warp, place(lane));
        if !sync.at.contains_key(&key) {
            continue;
        }
        if acquire {
            learn(cluster, warp, &sync.at[&key]);
        } else if !warp.clock.pending.contains(&key) {
            warp.clock.pending.push(key);
        }
    }
}

/// A strong write leaves what the warp released at its last fence; a releasing one all that it knows.
pub(crate) fn strong_write(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    m: u32,
    place: impl Fn(usize) -> (Space, u64),
    release: bool,
) {
    if release {
        warp.clock.released = Some(Box::new(knowledge(cluster, warp)));
        cluster.now += 1;
        warp.clock.now = cluster.now;
    }
    let Some(released) = &warp.clock.released else { return };
    let mut keys: Vec<_> = Bits(m).map(|lane| key(cluster, warp, place(lane))).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let left = sync.at.entry(key).or_default();
        for (&who, &clock) in released.iter() {
            let known = left.entry(who).or_insert(0);
            *known = (*known).max(clock);
        }
    }
}

/// The shape of a plain access, for copies.
pub(crate) fn plain(bytes: u32) -> Shape {
    Shape { unit: 4, count: bytes / 4, strong: false, constant: false }
}
