//! A block: its warps, its shared memory, whose turn it is.

use super::Context;
use super::access::Units;
use super::barrier::Barrier;
use super::order::{Clock, Order};
use super::regs::{Bits, FULL, Regs};
use super::schedule::Schedule;
use super::shared::Shared;
use super::trouble::position;
use super::warp::{Group, State, Warp};
use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};

/// A block that runs.
pub(crate) struct Block<'a> {
    pub context: &'a Context<'a>,
    pub index: u64,
    pub warps: Vec<Warp>,
    pub shared: Shared,
    pub barriers: Vec<Barrier>,
    pub counters: Counters,
    /// The block's time; never goes back, so that records of earlier blocks are recognised as old.
    pub now: u32,
    /// The time at which this block began.
    pub start: u32,
    /// Where each memory instruction last found its buffer.
    pub hints: Vec<u32>,
    /// Room for the values of a load or store.
    pub units: Option<Box<Units>>,
    schedule: Schedule,
    /// Threads that have returned.
    pub exited: u32,
}

/// What happened in a round over all warps that can run.
#[derive(Default)]
pub(crate) struct Rounds {
    progress: u64,
    /// Instructions per warp since anything was stored.
    idle: u64,
    longest: u64,
    ran: bool,
    spinning: bool,
    spins: u32,
    seen: u64,
}

impl Rounds {
    /// After a round: a fault if the launch can never end.
    pub fn stuck(&mut self, context: &Context, blocks: &[Block]) -> Option<Fault> {
        let (ran, spinning, longest) = (self.ran, self.spinning, self.longest);
        let moved = self.progress != self.seen;
        self.seen = self.progress;
        (self.ran, self.spinning, self.longest) = (false, true, 0);
        let running = blocks.iter().any(|b| !b.done());
        if !running {
            return None;
        }
        if !ran {
            return Some(deadlock(context, blocks, "every warp waits for a barrier that cannot complete"));
        }
        if moved {
            (self.idle, self.spins) = (0, 0);
            return None;
        }
        self.idle += longest;
        self.spins = if spinning { self.spins + 1 } else { 0 };
        if self.spins > 20 {
            let mut text = "all warps that can run spin on memory that no one changes".to_string();
            if !context.launch.cooperative && context.blocks() > 1 {
                text += " (blocks of an ordinary launch must not wait for each other: not all need be resident)";
            }
            return Some(deadlock(context, blocks, &text));
        }
        if self.idle > context.config.patience {
            let text = format!("{} instructions per warp without a store: an endless loop?", self.idle);
            return Some(deadlock(context, blocks, &text));
        }
        None
    }
}

fn deadlock(context: &Context, blocks: &[Block], what: &str) -> Fault {
    let mut waits = Vec::new();
    for block in blocks {
        for warp in &block.warps {
            for group in warp.groups.iter().filter(|g| g.mask != 0) {
                let state = match group.state {
                    State::Ready => "runs at".to_string(),
                    State::Converge => "waits for the rest of its warp at".to_string(),
                    State::Barrier(id) => format!("waits at barrier {id},"),
                };
                let lanes = if group.mask == FULL { String::new() } else { format!(" lanes {:#x}", group.mask) };
                let at = position(context, group.pc as usize);
                waits.push(format!("block {} warp {}{lanes} {state} {at}", block.index, warp.index));
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

impl<'a> Block<'a> {
    pub fn new(context: &'a Context<'a>) -> Block<'a> {
        let entry = context.entry;
        let warps = (0..context.warps()).map(|index| {
            let mut regs = Regs::new(entry.registers);
            for &(class, reg, value) in context.constants {
                let reg = reg as usize;
                match class {
                    crate::code::Class::Pred => regs.pred[reg] = if value == 0 { 0 } else { FULL },
                    crate::code::Class::Word => regs.word[reg] = [value as u32; 32],
                    crate::code::Class::Long => regs.long[reg] = [value; 32],
                }
            }
            Warp::new(index, context.launch.block, regs, entry.local_bytes)
        });
        Block {
            warps: warps.collect(),
            shared: Shared::new(context),
            barriers: (0..16).map(|_| Barrier::default()).collect(),
            counters: Counters::default(),
            now: 0,
            start: 0,
            hints: vec![0; entry.code.len()],
            units: None,
            schedule: Schedule::new(0, 0),
            exited: 0,
            context,
            index: 0,
        }
    }

    /// Begins block number `index`.
    pub fn start(&mut self, index: u64) {
        self.index = index;
        self.now += 1;
        if self.now > 1 << 20 {
            self.shared.forget();
            self.now = 1;
        }
        self.start = self.now;
        self.exited = 0;
        self.schedule = Schedule::new(self.context.config.seed, index);
        self.barriers.iter_mut().for_each(|b| *b = Barrier::default());
        let (threads, warps) = (self.context.threads(), self.warps.len());
        for warp in &mut self.warps {
            let left = threads - 32 * warp.index as u32;
            let mask = if left >= 32 { FULL } else { (1 << left) - 1 };
            warp.live = mask;
            warp.groups = vec![Group { pc: 0, mask, state: State::Ready }];
            warp.clock = Clock { now: self.now, known: vec![self.now; warps], least: self.now, ..Clock::default() };
            warp.copies.clear();
            warp.committed = [0; 32];
            warp.local_written.iter_mut().for_each(|w| *w = false);
            warp.regs.written.iter_mut().flatten().for_each(|w| *w = 0);
        }
    }

    pub fn done(&self) -> bool {
        self.warps.iter().all(|w| w.live == 0)
    }

    /// Gives every warp that can run one turn; returns whether the block is done.
    pub fn round(&mut self, sync: &mut Order, rounds: &mut Rounds) -> Result<bool, Fault> {
        let mut turns: Vec<usize> = (0..self.warps.len()).filter(|&w| self.warps[w].can_run()).collect();
        self.schedule.arrange(&mut turns);
        for index in turns {
            let slice = self.schedule.slice();
            let mut warp = std::mem::take(&mut self.warps[index]);
            let before = self.counters.instructions;
            warp.strong_reads = 0;
            let result = super::warp::run(self, &mut warp, sync, slice);
            rounds.ran = true;
            rounds.longest = rounds.longest.max(self.counters.instructions - before);
            rounds.spinning &= warp.strong_reads > 0;
            let pc = warp.pc;
            self.warps[index] = warp;
            if let Err(trouble) = result {
                return Err(trouble.locate(self.context, self.index, index, pc));
            }
        }
        rounds.progress = sync.progress;
        Ok(self.done())
    }

    /// The thread's number in the block.
    pub fn thread(warp: &Warp, lane: usize) -> u32 {
        (warp.index * 32 + lane) as u32
    }

    /// Words of one warp's lanes, for messages.
    pub fn lanes(mask: u32) -> String {
        let lanes: Vec<_> = Bits(mask).map(|l| l.to_string()).collect();
        if lanes.len() > 6 { format!("{:#010x}", mask) } else { lanes.join(", ") }
    }
}
