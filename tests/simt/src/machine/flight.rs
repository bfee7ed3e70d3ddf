//! What a warp's asynchronous operations still work on: shared memory that they read, registers of `wgmma`.
//!
//! A matrix instruction computes its result at once, but until the wait for it no instruction may use the registers.
//! Only moves may, which compilers place freely: they hand the state of a register on.

use std::rc::Rc;

use super::cluster::Cluster;
use super::shadow::{Spot, note_async_read};
use super::trouble::{Step, trouble};
use super::warp::{Flow, State, Warp};
use crate::code::asynchronous::{Asynchronous, Factor, Wgmma};
use crate::code::{Class, Inst, Op};
use crate::fault::FaultKind;

/// The state of a register that `wgmma` works on; the warp's matrix instructions are numbered from 1.
#[derive(Clone, Copy, Default)]
struct Register {
    /// The matrix instruction that adds to it, and that one's columns.
    computing: u32,
    columns: u32,
    /// The matrix instruction that reads it.
    reading: u32,
    /// How many fences there had been when another instruction last touched it.
    touched: u32,
}

/// Whose wait ends a read of shared memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The matrix instruction of this number.
    Wgmma(u32),
    /// A bulk store of a lane, with its group once it is committed.
    Store { lane: usize, group: Option<u32> },
}

pub(crate) struct Read {
    pub by: Reader,
    pub spots: Rc<[Spot]>,
}

/// The asynchronous operations of a warp.
#[derive(Default)]
pub(crate) struct Flight {
    pub reads: Vec<Read>,
    registers: Vec<Register>,
    /// `wgmma.fence`s so far.
    fences: u32,
    /// Matrix instructions so far, and those whose end was waited for.
    issued: u32,
    ended: u32,
    groups: Vec<Group>,
}

/// Matrix instructions that were committed together: the last one, and the warp's time.
#[derive(Clone, Copy)]
struct Group {
    last: u32,
    clock: u32,
}

impl Flight {
    /// Begins a block, with so many registers of 32 bits to watch.
    pub fn start(&mut self, registers: usize) {
        *self = Flight { registers: vec![Register::default(); registers], ..Flight::default() };
    }

    pub fn fence(&mut self) {
        self.fences += 1;
    }

    /// Whether matrix instructions are under way.
    pub fn computes(&self) -> bool {
        self.ended < self.issued
    }

    /// Checks the registers of a matrix instruction and notes that it works on them; returns its number.
    pub fn begin(&mut self, wgmma: &Wgmma) -> Step<u32> {
        let number = self.issued + 1;
        let (ended, fences) = (self.ended, self.fences);
        let unfenced = |what: &str| {
            let text = format!("{what} with no wgmma.fence in between, or none before the first wgmma");
            trouble(FaultKind::Unfenced, None, text)
        };
        if let Factor::Registers(regs) = &wgmma.a {
            for &reg in regs {
                let register = &mut self.registers[reg as usize];
                if register.computing > ended {
                    return trouble(FaultKind::InFlight, None, "reads a factor that a wgmma is still computing");
                }
                if register.touched == fences {
                    return unfenced("reads a factor from a register that another instruction has touched");
                }
                register.reading = number;
            }
        }
        for &reg in &wgmma.d {
            let register = &mut self.registers[reg as usize];
            let computing = register.computing > ended;
            if computing && register.columns != wgmma.n {
                return unfenced("adds to a register that a wgmma of another shape is still computing");
            }
            if !computing && register.touched == fences {
                return unfenced("adds to a register that another instruction has touched");
            }
            (register.computing, register.columns) = (number, wgmma.n);
        }
        self.issued = number;
        Ok(number)
    }
}

/// For instructions other than `wgmma` that touch its registers.
pub(crate) fn check_registers(cluster: &Cluster, warp: &mut Warp, inst: &Inst, lane: usize) -> Step {
    let watched = &cluster.context.entry.asynchronous;
    let flight = &mut warp.flight;
    match &inst.op {
        Op::Asynchronous(op) if matches!(**op, Asynchronous::Wgmma(_)) => return Ok(()),
        Op::Mov32 { d, a } => {
            if watched[*d as usize] {
                // What is not watched is a constant.
                let constant = Register::default();
                flight.registers[*d as usize] =
                    if watched[*a as usize] { flight.registers[*a as usize] } else { constant };
            }
            return Ok(());
        }
        _ => {}
    }
    let mut all = Vec::new();
    inst.clone().operands(&mut |class, write, reg| {
        if class == Class::Word && watched[*reg as usize] {
            all.push((write, *reg as usize));
        }
    });
    for (write, reg) in all {
        let register = &mut flight.registers[reg];
        let does = if write { "writes" } else { "reads" };
        if register.computing > flight.ended {
            let text = format!("{does} a register that a matrix instruction (wgmma) is still computing");
            return trouble(FaultKind::InFlight, lane, text);
        }
        if write && register.reading > flight.ended {
            let text = "writes a register that a matrix instruction (wgmma) is still reading";
            return trouble(FaultKind::InFlight, lane, text);
        }
        register.touched = flight.fences;
    }
    Ok(())
}

/// Notes that an asynchronous operation reads shared memory from now on.
pub(crate) fn begin_read(cluster: &mut Cluster, warp: &mut Warp, by: Reader, spots: Rc<[Spot]>) {
    spots.iter().for_each(|&spot| note_async_read(cluster, warp, spot, None));
    warp.flight.reads.push(Read { by, spots });
}

/// Ends the reads that a wait is for, at a time of the warp.
pub(crate) fn end_reads(cluster: &mut Cluster, warp: &mut Warp, clock: u32, ends: impl Fn(Reader) -> bool) {
    let (ended, left): (Vec<_>, Vec<_>) = std::mem::take(&mut warp.flight.reads).into_iter().partition(|r| ends(r.by));
    for read in &ended {
        read.spots.iter().for_each(|&spot| note_async_read(cluster, warp, spot, Some(clock)));
    }
    if !ended.is_empty() {
        // Others may still read the same places.
        for read in &left {
            read.spots.iter().for_each(|&spot| note_async_read(cluster, warp, spot, None));
        }
    }
    warp.flight.reads = left;
}

/// `wgmma.commit_group`.
pub(crate) fn commit(cluster: &mut Cluster, warp: &mut Warp) {
    warp.flight.groups.push(Group { last: warp.flight.issued, clock: warp.clock.now });
    cluster.now += 1;
    warp.clock.now = cluster.now;
    cluster.wake(None, warp.rank, State::Warpgroup);
}

/// `wgmma.wait_group`: ends the matrix instructions of all groups but the last `pending`.
///
/// The four warps compute each product together. So its end in one of them means that all have come as far, and that
/// shared memory has been read for all of them: one warp may tell others so.
pub(crate) fn wait(cluster: &mut Cluster, warp: &mut Warp, pending: u32) -> Flow {
    let Some(last) = warp.flight.groups.len().checked_sub(pending as usize + 1) else { return Flow::Next };
    let ended = warp.flight.groups[last].last;
    if ended <= warp.flight.ended {
        return Flow::Next;
    }
    let first = warp.id - warp.index % 4;
    let others = (first..first + 4).filter(|&id| id != warp.id);
    if others.clone().any(|id| cluster.warps[id].flight.groups.len() <= last) {
        cluster.counters.instructions -= 1;
        return Flow::Wait(State::Warpgroup);
    }
    let of_group = |by| matches!(by, Reader::Wgmma(number) if number <= ended);
    for id in others {
        let mut other = std::mem::take(&mut cluster.warps[id]);
        let clock = other.flight.groups[last].clock;
        end_reads(cluster, &mut other, clock, of_group);
        cluster.warps[id] = other;
        warp.clock.known[id] = warp.clock.known[id].max(clock + 1);
    }
    warp.clock.settle(cluster.warps.len());
    end_reads(cluster, warp, warp.flight.groups[last].clock, of_group);
    warp.flight.ended = ended;
    Flow::Next
}
