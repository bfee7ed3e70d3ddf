//! Rounds over all warps that can run, and what happens when none can: copies land, waits end, or the launch hangs.

use super::Context;
use super::cluster::Cluster;
use super::order::Order;
use super::regs::FULL;
use super::trouble::position;
use super::warp::State;
use crate::fault::{Fault, FaultKind};

/// What happened in a round.
#[derive(Default)]
pub(crate) struct Rounds {
    pub progress: u64,
    /// Instructions per warp since anything was stored.
    idle: u64,
    longest: u64,
    ran: bool,
    spinning: bool,
    spins: u32,
    seen: u64,
    /// The progress at which waits for mbarriers last ran out of time.
    expired: Option<u64>,
}

impl Rounds {
    /// Notes a turn of a warp.
    pub fn turn(&mut self, instructions: u64, spins: bool) {
        self.ran = true;
        self.longest = self.longest.max(instructions);
        self.spinning &= spins;
    }

    /// After a round: lets time go by if nothing else happens; a fault if the launch can never end.
    pub fn settle(&mut self, context: &Context, clusters: &mut [Cluster], sync: &mut Order) -> Result<(), Fault> {
        let (ran, spinning, longest) = (self.ran, self.spinning, self.longest);
        let moved = self.progress != self.seen;
        self.seen = self.progress;
        (self.ran, self.spinning, self.longest) = (false, true, 0);
        if clusters.iter().all(Cluster::done) {
            return Ok(());
        }
        if !ran || spinning && !moved {
            for cluster in clusters.iter_mut() {
                if super::bulk::land_one(cluster, sync)? {
                    return Ok(());
                }
            }
        }
        if !ran {
            // A wait for an mbarrier may end with nothing but time: once, until something else happens.
            if self.expired != Some(self.progress)
                && clusters.iter_mut().fold(false, |any, c| super::mbarrier::expire(c) | any)
            {
                self.expired = Some(self.progress);
                return Ok(());
            }
            return Err(deadlock(context, clusters, "every warp waits for a barrier that cannot complete"));
        }
        if moved {
            (self.idle, self.spins) = (0, 0);
            return Ok(());
        }
        self.idle += longest;
        self.spins = if spinning { self.spins + 1 } else { 0 };
        if self.spins > 20 {
            let mut text = "all warps that can run spin on memory that no one changes".to_string();
            if !context.launch.cooperative && context.blocks() > 1 {
                text += " (blocks of an ordinary launch must not wait for each other: not all need be resident)";
            }
            return Err(deadlock(context, clusters, &text));
        }
        if self.idle > context.config.patience {
            let text = format!("{} instructions per warp without a store: an endless loop?", self.idle);
            return Err(deadlock(context, clusters, &text));
        }
        Ok(())
    }
}

fn deadlock(context: &Context, clusters: &[Cluster], what: &str) -> Fault {
    let mut waits = Vec::new();
    for cluster in clusters {
        for warp in &cluster.warps {
            for group in warp.groups.iter().filter(|g| g.mask != 0) {
                let state = match group.state {
                    State::Ready => "runs at".to_string(),
                    State::Converge => "waits for the rest of its warp at".to_string(),
                    State::Barrier(id) => format!("waits at barrier {id},"),
                    State::Mbarrier(at) => super::mbarrier::describe(cluster, warp.rank, at),
                    State::ClusterBarrier => "waits for the other blocks of its cluster at".to_string(),
                    State::Warpgroup => "waits for the other warps of its warpgroup at".to_string(),
                    State::Registers => "waits for registers at".to_string(),
                };
                let lanes = if group.mask == FULL { String::new() } else { format!(" lanes {:#x}", group.mask) };
                let at = position(context, group.pc as usize);
                let block = cluster.blocks[warp.rank];
                waits.push(format!("block {block} warp {}{lanes} {state} {at}", warp.index));
            }
        }
    }
    let more = waits.len().saturating_sub(8);
    waits.truncate(8);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Fault::new(
        FaultKind::Deadlock,
        format!("kernel `{}`: {what} [no thread can ever go on]: {}{more}", context.name, waits.join("; ")),
    )
}
