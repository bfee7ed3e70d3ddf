//! A cluster: the blocks that run together, their warps and shared memory, whose turn it is. Most launches have
//! clusters of one block.

use super::Context;
use super::access::Units;
use super::barrier::Barrier;
use super::bulk::Copy;
use super::cluster_barrier::ClusterBarrier;
use super::order::{Clock, Order};
use super::regs::{Bits, FULL, Regs};
use super::rounds::Rounds;
use super::schedule::Schedule;
use super::shared::Shared;
use super::trouble::{Step, trouble};
use super::warp::{Group, State, Warp};
use super::warpgroup::{Pool, Warpgroup};
use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};

/// Barriers of a block.
pub(crate) const BARRIERS: usize = 16;

/// A cluster that runs.
pub(crate) struct Cluster<'a> {
    pub context: &'a Context<'a>,
    /// The number in the grid of each block, by its rank.
    pub blocks: Vec<u64>,
    /// The warps of all blocks, block by block.
    pub warps: Vec<Warp>,
    /// Shared memory of each block.
    pub shared: Vec<Shared>,
    /// The barriers of each block.
    pub barriers: Vec<[Barrier; BARRIERS]>,
    /// The barrier of all blocks.
    pub meeting: ClusterBarrier,
    /// Bulk copies that have not landed.
    pub copies: Vec<Copy>,
    /// For each four warps: what they did together.
    pub warpgroups: Vec<Warpgroup>,
    /// Registers that the warps of each block have given back.
    pub pools: Vec<Pool>,
    pub counters: Counters,
    /// The cluster's time; never goes back, so that records of earlier clusters are recognised as old.
    pub now: u32,
    /// The time at which this cluster began.
    pub start: u32,
    /// For each warp: its accesses to shared memory stamped earlier are seen by the asynchronous proxy.
    pub proxied: Vec<u32>,
    /// Mbarriers that were initialised.
    pub mbarriers: u32,
    /// Where each memory instruction last found its buffer.
    pub hints: Vec<u32>,
    /// Room for the values of a load or store.
    pub units: Option<Box<Units>>,
    pub schedule: Schedule,
    /// Threads of each block that have returned.
    pub exited: Vec<u32>,
    /// What the warps of each block knew that have returned.
    last: Vec<Vec<u32>>,
}

impl<'a> Cluster<'a> {
    pub fn new(context: &'a Context<'a>) -> Cluster<'a> {
        let entry = context.entry;
        let (each, size) = (context.warps(), context.cluster_size());
        let warps = (0..each * size).map(|id| {
            let mut regs = Regs::new(entry.registers);
            for &(class, reg, value) in context.constants {
                let reg = reg as usize;
                match class {
                    crate::code::Class::Pred => regs.pred[reg] = if value == 0 { 0 } else { FULL },
                    crate::code::Class::Word => regs.word[reg] = [value as u32; 32],
                    crate::code::Class::Long => regs.long[reg] = [value; 32],
                }
            }
            Warp::new(id, each, size, context.launch.block, regs, entry.local_bytes)
        });
        Cluster {
            warps: warps.collect(),
            shared: (0..size).map(|rank| Shared::new(context, rank)).collect(),
            barriers: Vec::new(),
            meeting: ClusterBarrier::default(),
            copies: Vec::new(),
            warpgroups: Vec::new(),
            pools: Vec::new(),
            counters: Counters::default(),
            now: 0,
            start: 0,
            proxied: Vec::new(),
            mbarriers: 0,
            hints: vec![0; entry.code.len()],
            units: None,
            schedule: Schedule::new(0, 0),
            exited: Vec::new(),
            last: Vec::new(),
            context,
            blocks: Vec::new(),
        }
    }

    /// Begins cluster number `index`.
    pub fn start(&mut self, index: u64) {
        self.blocks = self.context.blocks_of(index);
        self.now += 1;
        if self.now > 1 << 20 {
            self.shared.iter_mut().for_each(Shared::forget);
            self.now = 1;
        }
        self.start = self.now;
        self.schedule = Schedule::new(self.context.config.seed, index);
        let (threads, warps, size) = (self.context.threads(), self.warps.len(), self.blocks.len());
        self.exited = vec![0; size];
        self.last = vec![vec![0; warps]; size];
        self.barriers = (0..size).map(|_| Default::default()).collect();
        self.meeting = ClusterBarrier::new(warps);
        self.warpgroups = (0..size * self.context.warps().div_ceil(4)).map(|_| Warpgroup::default()).collect();
        self.pools = (0..size).map(|_| Pool::default()).collect();
        self.proxied = vec![0; warps];
        self.mbarriers = 0;
        for shared in &mut self.shared {
            shared.visits.fill(0);
            for (at, _) in std::mem::take(&mut shared.mbarriers) {
                shared.writes[at >> shared.shift..(at + 8) >> shared.shift].fill(0);
            }
        }
        for warp in &mut self.warps {
            let left = threads - 32 * warp.index as u32;
            let mask = if left >= 32 { FULL } else { (1 << left) - 1 };
            warp.live = mask;
            warp.groups = vec![Group { pc: 0, mask, state: State::Ready }];
            warp.clock = Clock { now: self.now, known: vec![self.now; warps], least: self.now, ..Clock::default() };
            warp.copies.clear();
            warp.committed = [0; 32];
            warp.flight.start(self.context.entry.asynchronous.len());
            warp.stores.clear();
            warp.bulk_groups = [0; 32];
            warp.registers = self.context.entry.limits.registers_at_start().unwrap_or(0);
            warp.local_written.iter_mut().for_each(|w| *w = false);
            warp.regs.written.iter_mut().flatten().for_each(|w| *w = 0);
        }
    }

    pub fn done(&self) -> bool {
        self.warps.iter().all(|w| w.live == 0)
    }

    /// The rank of a block of the grid, if it is one of the cluster.
    #[inline(always)]
    pub fn rank_of(&self, block: u64) -> Option<usize> {
        self.blocks.iter().position(|&b| b == block)
    }

    /// Gives every warp that can run one turn.
    pub fn round(&mut self, sync: &mut Order, rounds: &mut Rounds) -> Result<(), Fault> {
        let mut turns: Vec<usize> = (0..self.warps.len()).filter(|&w| self.warps[w].can_run()).collect();
        self.schedule.arrange(&mut turns);
        for index in turns {
            let slice = self.schedule.slice();
            let mut warp = std::mem::take(&mut self.warps[index]);
            let before = self.counters.instructions;
            warp.strong_reads = 0;
            let result = super::warp::run(self, &mut warp, sync, slice);
            rounds.turn(self.counters.instructions - before, warp.strong_reads > 0);
            let (pc, rank, number) = (warp.pc, warp.rank, warp.index);
            self.warps[index] = warp;
            if let Err(trouble) = result {
                return Err(trouble.locate(self.context, self.blocks[rank], number, pc));
            }
        }
        rounds.progress = sync.progress;
        Ok(())
    }

    /// Lanes of a warp have returned: nothing may be left that still needs them or their block's shared memory.
    pub fn after_exit(&mut self, warp: &mut Warp, sync: &mut Order, lanes: u32) -> Step {
        self.exited[warp.rank] += lanes.count_ones();
        sync.progress += 1;
        super::bulk::after_exit(self, warp, sync, lanes)?;
        super::barrier::after_exit(self, warp)?;
        super::cluster_barrier::after_exit(self, warp);
        if warp.live == 0 {
            super::warpgroup::after_exit(self, warp)?;
            let last = &mut self.last[warp.rank];
            last.iter_mut().zip(&warp.clock.known).for_each(|(a, b)| *a = (*a).max(*b));
        }
        if self.exited[warp.rank] == self.context.threads() { self.check_end(warp) } else { Ok(()) }
    }

    /// A block ends, and its shared memory with it: no copy may be on its way there, and the accesses of other blocks
    /// must be ordered before the end.
    fn check_end(&self, warp: &Warp) -> Step {
        let rank = warp.rank;
        if let Some(copy) = self.copies.iter().find(|copy| copy.fills(rank)) {
            let text = format!(
                "returns, the last of its block, while a bulk copy is still to fill its shared memory (issued at {})",
                super::trouble::position(self.context, copy.pc)
            );
            return trouble(FaultKind::InFlight, None, text);
        }
        let each = self.context.warps();
        let visits = self.shared[rank].visits.iter().zip(&self.last[rank]);
        let late =
            visits.enumerate().find(|(id, (visit, known))| id / each != rank && **visit >= **known && **visit > 0);
        match late {
            None => Ok(()),
            Some((id, _)) => {
                let text = format!(
                    "returns, the last of its block, and nothing orders that after accesses of block {} to its shared \
                     memory",
                    self.block_name(id / each)
                );
                trouble(FaultKind::Race, None, text)
            }
        }
    }

    /// Lets the warps of a block go that wait in a state; `current` is the warp that runs.
    pub fn wake(&mut self, current: Option<&mut Warp>, block: usize, state: State) {
        for warp in self.warps.iter_mut().chain(current).filter(|warp| warp.rank == block) {
            for group in warp.groups.iter_mut().filter(|group| group.state == state) {
                group.state = State::Ready;
            }
        }
    }

    /// Words of one warp's lanes, for messages.
    pub fn lanes(mask: u32) -> String {
        let lanes: Vec<_> = Bits(mask).map(|l| l.to_string()).collect();
        if lanes.len() > 6 { format!("{:#010x}", mask) } else { lanes.join(", ") }
    }
}
