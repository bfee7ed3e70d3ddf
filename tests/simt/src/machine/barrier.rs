//! Barriers of a block: `bar` and `barrier`.

use super::cluster::Cluster;
use super::order::{Joined, Order};
use super::regs::{Bits, FULL};
use super::trouble::{Step, position, trouble};
use super::warp::{Flow, Group, State, Warp, together};
use crate::code::{Bar, BarKind, Place};
use crate::fault::FaultKind;

/// One of the sixteen barriers.
#[derive(Default)]
pub(crate) struct Barrier {
    /// Threads to wait for: as many as the instruction says, or all of the block.
    expected: Option<u32>,
    arrived: u32,
    /// Lanes of each warp that arrived.
    present: Vec<u32>,
    /// Warps that arrived, with what they wait for.
    waiting: Vec<Waiting>,
    /// The instruction of the first arrival.
    pc: usize,
    /// What the arrived warps know.
    joined: Joined,
    count: u32,
    all: bool,
    any: bool,
}

struct Waiting {
    warp: usize,
    mask: u32,
    kind: BarKind,
    d: Option<Place>,
}

pub(crate) fn run(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    bar: &Bar,
    mask: u32,
    m: u32,
) -> Step<Flow> {
    if bar.aligned
        && let Some(wait) = together(warp, m, warp.live)
    {
        return wait;
    }
    let lane = m.trailing_zeros() as usize;
    let ids = |place: Place, warp: &Warp| -> Step<u32> {
        let value = warp.regs.get(place, lane) as u32;
        match Bits(m).find(|&l| warp.regs.get(place, l) as u32 != value) {
            None => Ok(value),
            Some(other) => trouble(FaultKind::Divergence, other, "lanes of one warp name different barriers or counts"),
        }
    };
    let id = ids(bar.id, warp)?;
    let count = bar.count.map(|c| ids(c, warp)).transpose()?;
    if id >= 16 {
        return trouble(FaultKind::Unsupported, lane, format!("barrier {id}: there are 16"));
    }
    let total = cluster.context.threads();
    if let Some(count) = count
        && (count == 0 || count % 32 != 0 || count > total.next_multiple_of(32))
    {
        let text = format!("barrier {id} for {count} threads, in a block of {total}: must be a multiple of 32 within");
        return trouble(FaultKind::Divergence, lane, text);
    }
    let strict = !cluster.context.config.exited_threads_pass_barriers;
    if strict && count.is_none() && cluster.exited[warp.rank] > 0 {
        let text = format!(
            "waits at barrier {id} for the whole block, and {} threads have returned",
            cluster.exited[warp.rank]
        );
        return trouble(FaultKind::Divergence, lane, text);
    }
    cluster.counters.barriers += 1;
    sync.progress += 1;
    let here = warp.pc;
    let barrier = &mut cluster.barriers[warp.rank][id as usize];
    if barrier.arrived == 0 {
        *barrier = Barrier { expected: count, pc: here, all: true, ..Barrier::default() };
        barrier.present = vec![0; cluster.context.warps()];
    } else if barrier.expected != count {
        let first = position(cluster.context, barrier.pc);
        let text = format!("barrier {id} for {count:?} threads, where {first} waits at it for {:?}", barrier.expected);
        return trouble(FaultKind::Divergence, lane, text);
    } else if bar.aligned && count.is_none() && barrier.pc != here {
        let text = format!(
            "waits at barrier {id} here, while other warps of the block wait at {}: not the same __syncthreads",
            position(cluster.context, barrier.pc)
        );
        return trouble(FaultKind::Divergence, lane, text);
    }
    if barrier.present[warp.index] & m != 0 {
        let text = format!(
            "arrives at barrier {id} again before it has completed: {} of {} threads were there",
            barrier.arrived,
            barrier.expected.unwrap_or(total)
        );
        return trouble(FaultKind::Divergence, lane, text);
    }
    barrier.present[warp.index] |= m;
    // A counted barrier counts warps as 32 threads, like the device.
    barrier.arrived += if count.is_some() && bar.aligned { 32 } else { m.count_ones() };
    if let Some((p, flip)) = bar.p {
        let p = (warp.regs.pred[p as usize] ^ if flip { FULL } else { 0 }) & m;
        barrier.count += p.count_ones();
        barrier.all &= p == m;
        barrier.any |= p != 0;
    }
    // What this warp did until now will be known to those that wait.
    cluster.now += 1;
    barrier.joined.add(warp.id, &warp.clock, cluster.now, true);
    warp.clock.now = cluster.now;
    if bar.kind != BarKind::Arrive {
        barrier.waiting.push(Waiting { warp: warp.id, mask: m, kind: bar.kind, d: bar.d });
        let rest = mask & !m;
        if rest != 0 {
            warp.groups.push(Group { pc: here as u32 + 1, mask: rest, state: State::Ready });
        }
        warp.groups.push(Group { pc: here as u32, mask: m, state: State::Barrier(id) });
    }
    complete(cluster, warp, id)?;
    Ok(if bar.kind == BarKind::Arrive { Flow::Next } else { Flow::Regrouped })
}

/// Lets the warps go if all that are expected have arrived.
fn complete(cluster: &mut Cluster, current: &mut Warp, id: u32) -> Step {
    let total = cluster.context.threads() - cluster.exited[current.rank];
    let barrier = &mut cluster.barriers[current.rank][id as usize];
    let expected = barrier.expected.unwrap_or(total);
    if barrier.arrived > expected {
        let text = format!("barrier {id}: {} threads arrive where {expected} are expected", barrier.arrived);
        return trouble(FaultKind::Divergence, None, text);
    }
    if barrier.arrived < expected || barrier.arrived == 0 {
        return Ok(());
    }
    let barrier = std::mem::take(barrier);
    let warps = cluster.warps.len();
    cluster.now += 1;
    for waiting in &barrier.waiting {
        let warp = if waiting.warp == current.id { &mut *current } else { &mut cluster.warps[waiting.warp] };
        let value = match waiting.kind {
            BarKind::RedPopc => barrier.count.into(),
            BarKind::RedAnd => barrier.all.into(),
            _ => u64::from(barrier.any),
        };
        if let Some(d) = waiting.d {
            Bits(waiting.mask).for_each(|lane| warp.regs.put(d, lane, value));
        }
        warp.clock.now = cluster.now;
        let whole = waiting.mask == warp.live;
        barrier.joined.teach(warp.id, &mut warp.clock, warps, whole);
        for group in &mut warp.groups {
            if group.state == State::Barrier(id) && group.mask & waiting.mask != 0 {
                group.state = State::Ready;
                group.pc += 1;
            }
        }
    }
    Ok(())
}

/// Threads have returned: barriers for the whole block may be complete now, or never.
pub(crate) fn after_exit(cluster: &mut Cluster, warp: &mut Warp) -> Step {
    for id in 0..16 {
        let barrier = &cluster.barriers[warp.rank][id as usize];
        if barrier.arrived == 0 || barrier.expected.is_some() {
            continue;
        }
        if !cluster.context.config.exited_threads_pass_barriers {
            let text = format!(
                "returns while other threads of the block wait at barrier {id} ({}) for all of it",
                position(cluster.context, barrier.pc)
            );
            return trouble(FaultKind::Divergence, None, text);
        }
        complete(cluster, warp, id)?;
    }
    Ok(())
}

/// `bar.warp.sync`: orders the accesses of its lanes.
pub(crate) fn warp_sync(cluster: &mut Cluster, warp: &mut Warp, members: u32) {
    cluster.now += 1;
    let clock = &mut warp.clock;
    clock.now = cluster.now;
    if members & warp.live == warp.live {
        clock.known[warp.id] = cluster.now;
        clock.lanes = None;
        clock.settle(cluster.warps.len());
        return;
    }
    let known = clock.known[warp.id];
    let lanes = clock.lanes.get_or_insert_with(|| Box::new([[known; 32]; 32]));
    for lane in Bits(members) {
        Bits(members).for_each(|other| lanes[lane][other] = cluster.now);
    }
}
