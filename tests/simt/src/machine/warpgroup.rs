//! Four warps that execute the same `wgmma` and `setmaxnreg`, and the registers that a block's warps share out.

use std::collections::VecDeque;

use super::cluster::Cluster;
use super::regs::FULL;
use super::trouble::{Step, position, trouble};
use super::warp::{Flow, State, Warp, together};
use crate::fault::FaultKind;

/// What the four warps of a warpgroup did together.
#[derive(Default)]
pub(crate) struct Warpgroup {
    /// Instructions that not all four have executed yet, with what must be the same for all.
    log: VecDeque<(usize, [u64; 3])>,
    /// How many came before those in the log, and how many each warp has executed.
    before: u64,
    done: [u64; 4],
    /// Warps that have returned.
    gone: [bool; 4],
}

/// Notes that a warp executes an instruction of its warpgroup; returns whether it is the first of the four.
pub(crate) fn join(cluster: &mut Cluster, warp: &Warp, operands: [u64; 3]) -> Step<bool> {
    let context = cluster.context;
    if context.warps() < warp.index / 4 * 4 + 4 {
        let text = format!("warpgroups are four warps, and this one has {}", context.warps() % 4);
        return trouble(FaultKind::Divergence, None, text);
    }
    let group = warp.rank * context.warps().div_ceil(4) + warp.index / 4;
    let group = &mut cluster.warpgroups[group];
    let number = group.done[warp.index % 4];
    let place = (number - group.before) as usize;
    group.done[warp.index % 4] += 1;
    if let Some(other) = (0..4).find(|&other| group.gone[other] && group.done[other] <= number) {
        let text = format!("warp {other} of the warpgroup has returned without executing this");
        return trouble(FaultKind::Divergence, None, text);
    }
    let Some(&(pc, others)) = group.log.get(place) else {
        group.log.push_back((warp.pc, operands));
        return Ok(true);
    };
    if pc != warp.pc {
        let text = format!("another warp of the warpgroup executes the one at {} here", position(context, pc));
        return trouble(FaultKind::Divergence, None, text);
    }
    if operands != others {
        let text = "the warps of a warpgroup execute this with different descriptors or values";
        return trouble(FaultKind::Divergence, None, text);
    }
    while group.done.iter().all(|&done| done > group.before) {
        group.log.pop_front();
        group.before += 1;
    }
    Ok(false)
}

/// A warp has returned: nothing that it began may be left.
pub(crate) fn after_exit(cluster: &mut Cluster, warp: &Warp) -> Step {
    if warp.flight.computes() {
        let text = "returns while a matrix instruction is under way (wgmma.wait_group is missing)";
        return trouble(FaultKind::InFlight, None, text);
    }
    let context = cluster.context;
    let group = warp.rank * context.warps().div_ceil(4) + warp.index / 4;
    let group = &mut cluster.warpgroups[group];
    let done = group.done[warp.index % 4];
    group.gone[warp.index % 4] = true;
    match group.log.get((done - group.before) as usize) {
        None => Ok(()),
        Some(&(pc, _)) => {
            let text = format!(
                "returns without the instruction at {} that others of the warpgroup execute",
                position(context, pc)
            );
            trouble(FaultKind::Divergence, None, text)
        }
    }
}

/// The registers of a block that no warp has.
#[derive(Default)]
pub(crate) struct Pool {
    free: u32,
}

/// `setmaxnreg`.
pub(crate) fn set_registers(cluster: &mut Cluster, warp: &mut Warp, count: u32, more: bool, m: u32) -> Step<Flow> {
    if let Some(wait) = together(warp, m, FULL) {
        return wait;
    }
    let pool = &mut cluster.pools[warp.rank];
    match warp.registers {
        // How many registers the kernel starts with is not known.
        0 => {}
        now if more == (count < now) && count != now => {
            let (direction, comparison) = if more { ("inc", "more") } else { ("dec", "fewer") };
            let text =
                format!("setmaxnreg.{direction} to {count}, which are not {comparison} than the {now} that it has");
            return trouble(FaultKind::Divergence, None, text);
        }
        now if more => {
            let wanted = 32 * (count - now);
            if wanted > pool.free {
                cluster.counters.instructions -= 1;
                return Ok(Flow::Wait(State::Registers));
            }
            pool.free -= wanted;
        }
        now => {
            pool.free += 32 * (now - count);
            let rank = warp.rank;
            cluster.wake(None, rank, State::Registers);
        }
    }
    warp.registers = if warp.registers == 0 { 0 } else { count };
    join(cluster, warp, [count.into(), more.into(), 0])?;
    Ok(Flow::Next)
}
