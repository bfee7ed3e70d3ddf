//! Mbarriers: phases, arrivals, bytes that copies are still to bring, warps that sleep until a phase is over.
//!
//! What a thread did before it arrived is ordered before what those do that saw the phase end; so is what copies wrote
//! that completed on the mbarrier in that phase.

use super::access::{addresses, by_space, check_aligned};
use super::cluster::Cluster;
use super::order::{Joined, Order};
use super::race::ordered_in_cluster;
use super::regs::{Bits, LANES};
use super::shadow::{MBARRIER, Spot, check_write};
use super::trouble::{Step, trouble};
use super::warp::{Flow, Group, State, Warp};
use crate::code::asynchronous::{self, Asynchronous, MbarrierOp, MbarrierWait};
use crate::code::{Op, Place, Space};
use crate::fault::FaultKind;

/// Most arrivals that a phase can expect, and most bytes.
const MOST: u32 = (1 << 20) - 1;
/// Bytes of an mbarrier.
const BYTES: u32 = 8;

/// An mbarrier. It lives in shared memory, whose bytes there no one may touch.
pub(crate) struct Mbarrier {
    /// Its entry in what warps know, behind those of the warps: copies that complete on it write under this number.
    pub number: u32,
    /// Arrivals of each phase, and those that the present one still lacks.
    expected: u32,
    pending: u32,
    /// Bytes expected less bytes that have come, in the present phase.
    bytes: i64,
    /// Phases that are over.
    phase: u64,
    arrived: Joined,
    /// What was known at the end of the last phase.
    over: Joined,
    /// Who initialised it, and when.
    thread: u32,
    clock: u32,
    /// A fence has made that visible to other blocks and to copies.
    pub fenced: bool,
}

impl Mbarrier {
    /// Whether a wait for a phase ends.
    fn passed(&self, wait: &MbarrierWait, phase: u64) -> bool {
        if wait.parity { self.phase & 1 != phase & 1 } else { self.phase > phase }
    }
}

pub(crate) fn run(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    op: &asynchronous::Mbarrier,
    mask: u32,
    m: u32,
) -> Step<Flow> {
    let mut at = addresses(warp, &op.address);
    check_aligned(&at, m, BYTES, "an mbarrier")?;
    let mut places = [(0, 0); LANES];
    by_space(warp.here, op.space, &mut at, m, |space, block, at, m| {
        for lane in Bits(m) {
            if space != Space::Shared {
                return trouble(FaultKind::Mbarrier, lane, "an mbarrier outside of shared memory");
            }
            places[lane] = (block, cluster.shared[block].offset(at[lane], BYTES, lane)?);
        }
        Ok(())
    })?;
    match &op.op {
        MbarrierOp::Init { count } => {
            for lane in Bits(m) {
                init(cluster, warp, places[lane], warp.regs.get(*count, lane) as u32, lane)?;
            }
        }
        MbarrierOp::Inval => {
            for lane in Bits(m) {
                inval(cluster, warp, places[lane], lane)?;
            }
        }
        MbarrierOp::ExpectTx { bytes } => {
            for lane in Bits(m) {
                expect(cluster, warp, places[lane], warp.regs.get(*bytes, lane), lane)?;
            }
        }
        MbarrierOp::CompleteTx { bytes } => {
            for lane in Bits(m) {
                find(cluster, warp, places[lane], lane, "completes bytes of")?;
                let bytes = warp.regs.get(*bytes, lane) as u32;
                complete_bytes(cluster, Some(&mut *warp), places[lane], bytes, None, lane)?;
            }
        }
        MbarrierOp::Arrive { count, expect, release, d } => {
            arrive(cluster, warp, &places, m, (*count, *expect), *release, *d)?;
        }
        MbarrierOp::Wait(wait) => return sleep(cluster, warp, &places, wait, mask, m),
    }
    sync.progress += 1;
    Ok(Flow::Next)
}

fn name(cluster: &Cluster, warp: &Warp, (block, offset): (usize, usize)) -> String {
    match block == warp.rank {
        true => format!("the mbarrier at byte {offset} of shared memory"),
        false => format!("the mbarrier at byte {offset} of the shared memory of block {}", cluster.block_name(block)),
    }
}

fn init(cluster: &mut Cluster, warp: &Warp, (block, offset): (usize, usize), count: u32, lane: usize) -> Step {
    if count == 0 || count > MOST {
        let text = format!("an mbarrier for {count} arrivals: must be between 1 and {MOST}");
        return trouble(FaultKind::Mbarrier, lane, text);
    }
    if block != warp.rank {
        return trouble(FaultKind::Mbarrier, lane, "initialises an mbarrier of another block");
    }
    let shift = cluster.shared[block].shift;
    for granule in offset >> shift..(offset + BYTES as usize) >> shift {
        check_write(cluster, warp, Spot { block, granule }, lane, false, 0)?;
        cluster.shared[block].writes[granule] = MBARRIER;
    }
    let mbarrier = Mbarrier {
        number: cluster.mbarriers,
        expected: count,
        pending: count,
        bytes: 0,
        phase: 0,
        arrived: Joined::default(),
        over: Joined::default(),
        thread: warp.thread(lane),
        clock: warp.clock.now,
        fenced: false,
    };
    cluster.mbarriers += 1;
    cluster.shared[block].mbarriers.insert(offset, mbarrier);
    Ok(())
}

fn inval(cluster: &mut Cluster, warp: &Warp, place: (usize, usize), lane: usize) -> Step {
    find(cluster, warp, place, lane, "invalidates")?;
    let (block, offset) = place;
    cluster.shared[block].mbarriers.remove(&offset);
    let shift = cluster.shared[block].shift;
    for granule in offset >> shift..(offset + BYTES as usize) >> shift {
        cluster.shared[block].writes[granule] = 0;
    }
    Ok(())
}

/// The mbarrier at a place, if there is one and its initialisation is ordered before this use.
pub(crate) fn find<'c>(
    cluster: &'c mut Cluster,
    warp: &Warp,
    place: (usize, usize),
    lane: usize,
    does: &str,
) -> Step<&'c mut Mbarrier> {
    let (block, offset) = place;
    let Some(mbarrier) = cluster.shared[block].mbarriers.get(&offset) else {
        let text = format!(
            "{does} {}, and none has been initialised there: never, or not yet because a barrier is missing",
            name(cluster, warp, place)
        );
        return trouble(FaultKind::Mbarrier, lane, text);
    };
    if !ordered_in_cluster(cluster, warp, lane, mbarrier.thread, mbarrier.clock) {
        let text = format!(
            "{does} {}, which {} initialised with no barrier in between",
            name(cluster, warp, place),
            cluster.thread_name(mbarrier.thread, warp.rank)
        );
        return trouble(FaultKind::Race, lane, text);
    }
    if block != warp.rank {
        if !mbarrier.fenced {
            let text = format!("{does} {} with no fence behind its initialisation", name(cluster, warp, place));
            return trouble(FaultKind::Unfenced, lane, text);
        }
        super::shared::visit(cluster, warp, block, lane)?;
    }
    match cluster.shared[block].mbarriers.get_mut(&offset) {
        Some(mbarrier) => Ok(mbarrier),
        None => trouble(FaultKind::Mbarrier, lane, format!("{does} an mbarrier that is gone")),
    }
}

fn expect(cluster: &mut Cluster, warp: &Warp, place: (usize, usize), bytes: u64, lane: usize) -> Step {
    let mbarrier = find(cluster, warp, place, lane, "expects bytes at")?;
    mbarrier.bytes += i64::from(bytes as u32);
    if mbarrier.bytes > i64::from(MOST) {
        let text = format!("{} bytes expected at once by an mbarrier: at most {MOST}", mbarrier.bytes);
        return trouble(FaultKind::Mbarrier, lane, text);
    }
    Ok(())
}

fn arrive(
    cluster: &mut Cluster,
    warp: &mut Warp,
    places: &[(usize, usize); LANES],
    m: u32,
    (count, bytes): (Option<Place>, Option<Place>),
    release: bool,
    d: Option<Place>,
) -> Step {
    let whole = m == warp.live;
    // What the warp did until now will be known to those that wait.
    cluster.now += 1;
    let now = cluster.now;
    for lane in Bits(m) {
        let count = count.map_or(1, |count| warp.regs.get(count, lane) as u32);
        if let Some(bytes) = bytes {
            expect(cluster, warp, places[lane], warp.regs.get(bytes, lane), lane)?;
        }
        let clock = &warp.clock;
        let mbarrier = find(cluster, warp, places[lane], lane, "arrives at")?;
        if count == 0 || count > mbarrier.pending {
            let text = format!(
                "arrives {count} times at an mbarrier whose phase expects {} more of {} arrivals: one too many, or \
                 its phase was not waited for",
                mbarrier.pending, mbarrier.expected
            );
            return trouble(FaultKind::Mbarrier, lane, text);
        }
        if release {
            mbarrier.arrived.add(warp.id, clock, now, whole);
        }
        mbarrier.pending -= count;
        let phase = mbarrier.phase;
        if let Some(d) = d {
            warp.regs.put(d, lane, phase);
        }
        settle(cluster, Some(&mut *warp), places[lane], lane)?;
    }
    warp.clock.now = now;
    Ok(())
}

/// Counts bytes as come; `written` is when a copy wrote them, if one did.
pub(crate) fn complete_bytes(
    cluster: &mut Cluster,
    warp: Option<&mut Warp>,
    place: (usize, usize),
    bytes: u32,
    written: Option<u32>,
    lane: usize,
) -> Step {
    let warps = cluster.warps.len();
    let Some(mbarrier) = cluster.shared[place.0].mbarriers.get_mut(&place.1) else {
        let text = format!("a copy completes on the mbarrier at byte {}, which is gone", place.1);
        return trouble(FaultKind::Mbarrier, lane, text);
    };
    mbarrier.bytes -= i64::from(bytes);
    if let Some(written) = written {
        mbarrier.arrived.add_at(warps + mbarrier.number as usize, written + 1);
    }
    settle(cluster, warp, place, lane)
}

/// Ends the phase if all that it expects has come.
fn settle(cluster: &mut Cluster, warp: Option<&mut Warp>, place: (usize, usize), lane: usize) -> Step {
    let (block, offset) = place;
    let Some(mbarrier) = cluster.shared[block].mbarriers.get_mut(&offset) else { return Ok(()) };
    if mbarrier.pending > 0 || mbarrier.bytes > 0 {
        return Ok(());
    }
    if mbarrier.bytes < 0 {
        let text = format!(
            "all threads have arrived at the mbarrier at byte {offset} of shared memory, and {} bytes more have come \
             than were expected: its phase may end before they do",
            -mbarrier.bytes
        );
        return trouble(FaultKind::Mbarrier, lane, text);
    }
    mbarrier.pending = mbarrier.expected;
    mbarrier.phase += 1;
    mbarrier.over = std::mem::take(&mut mbarrier.arrived);
    cluster.wake(warp, block, State::Mbarrier(offset as u32));
    Ok(())
}

fn sleep(
    cluster: &mut Cluster,
    warp: &mut Warp,
    places: &[(usize, usize); LANES],
    wait: &MbarrierWait,
    mask: u32,
    m: u32,
) -> Step<Flow> {
    let (mut passed, mut asleep) = (0, None);
    for lane in Bits(m) {
        let phase = warp.regs.get(wait.phase, lane);
        if find(cluster, warp, places[lane], lane, "waits at")?.passed(wait, phase) {
            passed |= 1 << lane;
        } else if asleep.is_none() {
            asleep = Some(places[lane].1);
        }
    }
    let d = &mut warp.regs.pred[wait.d as usize];
    *d = *d & !m | passed;
    if wait.acquire {
        let warps = cluster.warps.len();
        let whole = passed == warp.live;
        // Lanes mostly wait for the same one.
        let mut last = None;
        for lane in Bits(passed).filter(|&lane| last.replace(places[lane]) != Some(places[lane])) {
            let (block, offset) = places[lane];
            if let Some(mbarrier) = cluster.shared[block].mbarriers.get(&offset) {
                mbarrier.over.teach(warp.id, &mut warp.clock, warps, whole);
            }
        }
    }
    match asleep {
        Some(offset) if wait.sleeps => {
            // The instruction runs anew when the phase is over: it counts once.
            cluster.counters.instructions -= 1;
            let (asleep, here) = (m & !passed, warp.pc as u32);
            warp.groups.push(Group { pc: here, mask: asleep, state: State::Mbarrier(offset as u32) });
            if mask != asleep {
                cluster.counters.instructions += 1;
                warp.groups.push(Group { pc: here + 1, mask: mask & !asleep, state: State::Ready });
            }
            Ok(Flow::Regrouped)
        }
        Some(_) => {
            warp.strong_reads += 1;
            Ok(Flow::Next)
        }
        None => Ok(Flow::Next),
    }
}

/// Ends waits that time alone may end, unsuccessfully; returns whether there were any.
pub(crate) fn expire(cluster: &mut Cluster) -> bool {
    let code = &cluster.context.entry.code;
    let mut any = false;
    for warp in &mut cluster.warps {
        for group in warp.groups.iter_mut().filter(|group| matches!(group.state, State::Mbarrier(_))) {
            if let Op::Asynchronous(op) = &code[group.pc as usize].op
                && let Asynchronous::Mbarrier(asynchronous::Mbarrier { op: MbarrierOp::Wait(wait), .. }) = &**op
            {
                warp.regs.pred[wait.d as usize] &= !group.mask;
                group.pc += 1;
                group.state = State::Ready;
                any = true;
            }
        }
    }
    any
}

/// For a deadlock: what a warp waits for.
pub(crate) fn describe(cluster: &Cluster, block: usize, offset: u32) -> String {
    let Some(mbarrier) = cluster.shared[block].mbarriers.get(&(offset as usize)) else {
        return format!("waits at an mbarrier at byte {offset} that is gone, at");
    };
    format!(
        "waits at the mbarrier at byte {offset} of shared memory (phase {}, lacking {} arrivals of {} and {} bytes) at",
        mbarrier.phase, mbarrier.pending, mbarrier.expected, mbarrier.bytes
    )
}

/// `fence.mbarrier_init` and `fence.proxy.async`: other blocks and copies see the mbarriers that the warp initialised.
pub(crate) fn fence(cluster: &mut Cluster, warp: &Warp) {
    for mbarrier in cluster.shared[warp.rank].mbarriers.values_mut() {
        mbarrier.fenced |= mbarrier.thread as usize / 32 == warp.id;
    }
}

/// The mbarrier that a copy to a block completes on.
pub(crate) fn of_copy(
    cluster: &mut Cluster,
    warp: &Warp,
    block: usize,
    address: u64,
    lane: usize,
) -> Step<((usize, usize), u32)> {
    if !address.is_multiple_of(u64::from(BYTES)) {
        let text = format!("an mbarrier at address {address:#x}, which is no multiple of {BYTES}");
        return trouble(FaultKind::Misaligned, lane, text);
    }
    let place = (block, cluster.shared[block].offset(address, BYTES, lane)?);
    let mbarrier = find(cluster, warp, place, lane, "starts a copy that completes on")?;
    if mbarrier.fenced {
        return Ok((place, mbarrier.number));
    }
    let text = "a copy completes on an mbarrier whose initialisation it may not see";
    trouble(FaultKind::Unfenced, lane, text)
}
