//! A warp: groups of lanes with a program counter each, and the loop that executes instructions.
//!
//! Of the groups that can run, the one with the lowest program counter runs; groups that meet merge. An instruction
//! that needs lanes together waits for them as long as other groups of the warp can still run.

use super::access::Here;
use super::async_copy::Copy;
use super::bulk::Store;
use super::cluster::Cluster;
use super::flight::Flight;
use super::order::{Clock, Order};
use super::regs::{FULL, LANES, Regs};
use super::step::step;
use super::trouble::{Step, trouble};
use crate::code::{Class, Inst};
use crate::fault::FaultKind;

/// Turns of a group before another group of the same warp gets one: spin loops within a warp need that.
const GROUP_SLICE: u32 = 2000;
/// Strong reads after which a turn ends: a warp that spins lets others go on.
const SPIN_READS: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Waits at an instruction that needs more lanes of the warp.
    Converge,
    /// Waits at a barrier of the block.
    Barrier(u32),
    /// Waits for the mbarrier at this byte of its block's shared memory.
    Mbarrier(u32),
    /// Waits at the barrier of the cluster.
    ClusterBarrier,
    /// Waits for the rest of its warpgroup.
    Warpgroup,
    /// Waits for registers that other warps give back.
    Registers,
}

/// Lanes that are at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub state: State,
}

#[derive(Default)]
pub(crate) struct Warp {
    /// Its number in the cluster, and in its block.
    pub id: usize,
    pub index: usize,
    /// Its block's rank in the cluster.
    pub rank: usize,
    pub here: Here,
    pub regs: Regs,
    /// Lanes that have not returned.
    pub live: u32,
    pub groups: Vec<Group>,
    /// Where the instruction stands that is being executed.
    pub pc: usize,
    pub clock: Clock,
    /// Memory of the lanes, one after the other, and which of its bytes are written.
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    pub local_bytes: usize,
    pub copies: Vec<Copy>,
    /// Groups of asynchronous copies that each lane has committed.
    pub committed: [u32; LANES],
    /// What `wgmma` and bulk stores work on; bulk stores that have not written, and groups of them by lane.
    pub flight: Flight,
    pub stores: Vec<Store>,
    pub bulk_groups: [u32; LANES],
    /// Registers of each thread; 0 if that is not known.
    pub registers: u32,
    pub strong_reads: u32,
    /// `threadIdx` of each lane.
    pub threads: [[u32; LANES]; 3],
    /// Groups that spin: the next turn goes to another one.
    rotate: bool,
    turns: usize,
}

/// What an instruction leaves to the loop.
pub(crate) enum Flow {
    Next,
    Jump(u32),
    /// Lanes of the mask go to the target, the others to the next instruction.
    Split(u32, u32),
    Exit(u32),
    /// The group waits, at this instruction.
    Wait(State),
    /// The lanes go different ways, as the groups already say.
    Regrouped,
}

impl Warp {
    /// Warp `id` of a cluster of so many blocks of `each` warps.
    pub fn new(id: usize, each: usize, blocks: usize, shape: [u32; 3], regs: Regs, local_bytes: usize) -> Warp {
        let (rank, index) = (id / each, id % each);
        let mut threads = [[0; LANES]; 3];
        for lane in 0..LANES {
            let thread = super::trouble::coordinates((index * LANES + lane) as u64, shape);
            (0..3).for_each(|axis| threads[axis][lane] = thread[axis]);
        }
        Warp {
            id,
            index,
            rank,
            here: Here { rank, blocks },
            threads,
            regs,
            local: vec![0xFF; local_bytes * LANES],
            local_written: vec![false; local_bytes * LANES],
            local_bytes,
            ..Warp::default()
        }
    }

    /// A lane's number among the cluster's threads.
    #[inline(always)]
    pub fn thread(&self, lane: usize) -> u32 {
        (self.id * LANES + lane) as u32
    }

    /// Whether any lanes can go on, or have a fault to report.
    pub fn can_run(&self) -> bool {
        self.groups.iter().any(|g| g.state == State::Ready) || self.stranded()
    }

    /// Lanes wait for others of their warp, none of which will come.
    fn stranded(&self) -> bool {
        self.groups.iter().any(|g| g.state == State::Converge) && self.groups.iter().all(|g| g.state == State::Converge)
    }

    /// Merges groups at the same instruction and takes the one to run: the lowest, or each in turn.
    fn pick(&mut self) -> Option<Group> {
        let groups = &mut self.groups;
        let mut i = 0;
        while i < groups.len() {
            let mut j = i + 1;
            while j < groups.len() {
                let same = groups[i].pc == groups[j].pc
                    && !matches!(groups[i].state, State::Barrier(_))
                    && !matches!(groups[j].state, State::Barrier(_));
                if same {
                    groups[i].mask |= groups[j].mask;
                    groups[i].state = State::Ready;
                    groups.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
        groups.sort_unstable_by_key(|g| g.pc);
        let ready: Vec<usize> = (0..groups.len()).filter(|&i| groups[i].state == State::Ready).collect();
        let index = if std::mem::take(&mut self.rotate) {
            self.turns += 1;
            ready.get(self.turns % ready.len().max(1))
        } else {
            ready.first()
        };
        Some(groups.swap_remove(*index?))
    }

    /// The lowest instruction at which the running group may meet another.
    fn next_meeting(&self, pc: u32) -> u32 {
        let others = self.groups.iter().filter(|g| !matches!(g.state, State::Barrier(_)));
        others.map(|g| g.pc).filter(|&p| p > pc).min().unwrap_or(u32::MAX)
    }

    fn lower_ready(&self, pc: u32) -> bool {
        self.groups.iter().any(|g| g.state == State::Ready && g.pc <= pc)
    }
}

/// Lets a warp run until it waits, ends, or has executed `slice` instructions.
pub(crate) fn run(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, slice: u64) -> Step {
    pulp::Arch::new().dispatch(Turn { cluster, warp, sync, slice })
}

/// A call of [`execute`], compiled for AVX2 and FMA where the CPU has them. (A closure would not be inlined there.)
struct Turn<'a, 'b> {
    cluster: &'a mut Cluster<'b>,
    warp: &'a mut Warp,
    sync: &'a mut Order,
    slice: u64,
}

impl pulp::WithSimd for Turn<'_, '_> {
    type Output = Step;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Step {
        execute(self.cluster, self.warp, self.sync, self.slice)
    }
}

#[inline(always)]
fn execute(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, slice: u64) -> Step {
    let code: &[Inst] = &cluster.context.entry.code;
    let mut left = slice;
    loop {
        let Some(group) = warp.pick() else {
            return match warp.groups.iter().find(|g| g.state == State::Converge) {
                Some(group) if warp.stranded() => {
                    warp.pc = group.pc as usize;
                    stranded(warp, *group)
                }
                _ => Ok(()),
            };
        };
        let (mut pc, mut mask) = (group.pc, group.mask);
        let mut meeting = warp.next_meeting(pc);
        let mut turn = 0;
        loop {
            if left == 0 || warp.strong_reads > SPIN_READS {
                warp.rotate = warp.strong_reads > SPIN_READS;
                warp.groups.push(Group { pc, mask, state: State::Ready });
                return Ok(());
            }
            left -= 1;
            let inst = &code[pc as usize];
            warp.pc = pc as usize;
            cluster.counters.instructions += 1;
            let guard = warp.regs.pred[inst.guard as usize];
            let m = mask & if inst.flip { !guard } else { guard };
            if inst.tracked {
                check_written(cluster, warp, inst, mask, m)?;
            }
            let flow = step(cluster, warp, sync, inst, mask, m)?;
            match flow {
                Flow::Next => {
                    pc += 1;
                    if pc < meeting {
                        continue;
                    }
                }
                Flow::Jump(target) => {
                    let back = target <= pc;
                    pc = target;
                    if warp.groups.is_empty() {
                        continue;
                    }
                    turn += u32::from(back);
                    warp.rotate = turn > GROUP_SLICE;
                    if !warp.rotate && pc < meeting && !(back && warp.lower_ready(pc)) {
                        meeting = warp.next_meeting(pc);
                        if pc < meeting {
                            continue;
                        }
                    }
                }
                Flow::Split(target, taken) => {
                    cluster.counters.divergent_branches += 1;
                    warp.groups.push(Group { pc: target, mask: taken, state: State::Ready });
                    mask &= !taken;
                    pc += 1;
                }
                Flow::Exit(lanes) => {
                    warp.live &= !lanes;
                    mask &= !lanes;
                    cluster.after_exit(warp, sync, lanes)?;
                    if mask == 0 {
                        break;
                    }
                    pc += 1;
                }
                Flow::Wait(state) => {
                    warp.groups.push(Group { pc, mask, state });
                    break;
                }
                Flow::Regrouped => break,
            }
            warp.groups.push(Group { pc, mask, state: State::Ready });
            break;
        }
    }
}

/// Lanes that no one will join: the fault.
fn stranded(warp: &Warp, group: Group) -> Step {
    let others: Vec<_> = warp.groups.iter().filter(|g| g.pc != group.pc).collect();
    let gone = !(warp.live | group.mask);
    let mut text = format!("only lanes {} of the warp execute this", Cluster::lanes(group.mask));
    if !others.is_empty() {
        let elsewhere = others.iter().fold(0, |m, g| m | g.mask);
        text += &format!("; lanes {} wait elsewhere", Cluster::lanes(elsewhere));
    }
    if gone != 0 {
        text += &format!("; lanes {} have returned or do not exist", Cluster::lanes(gone));
    }
    trouble(FaultKind::Divergence, group.mask.trailing_zeros() as usize, text)
}

/// For instructions with registers that may be unwritten or that `wgmma` works on: checks what is read, marks what is
/// written.
#[cold]
#[inline(never)]
fn check_written(cluster: &Cluster, warp: &mut Warp, inst: &Inst, mask: u32, m: u32) -> Step {
    if m != 0 && !cluster.context.entry.asynchronous.is_empty() {
        super::flight::check_registers(cluster, warp, inst, m.trailing_zeros() as usize)?;
    }
    let tracked = &cluster.context.entry.tracked;
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let replaced = super::wgmma::replaced(warp, inst);
    inst.clone().operands(&mut |class, write, reg| {
        if tracked[class as usize][*reg as usize] && (write || class != Class::Word || !replaced.contains(reg)) {
            if write { &mut writes } else { &mut reads }.push((class, *reg));
        }
    });
    let written = |warp: &Warp, (class, reg): (Class, u32)| warp.regs.written[class as usize][reg as usize];
    let moves = crate::flow::moves(&inst.op);
    let mut have = FULL;
    for read in reads {
        let is_guard = read == (Class::Pred, inst.guard);
        let needed = if is_guard { mask } else { m };
        if moves && !is_guard {
            have &= written(warp, read);
        } else if needed & !written(warp, read) != 0 {
            let lane = (needed & !written(warp, read)).trailing_zeros() as usize;
            let kind = FaultKind::UninitialisedRegister;
            return trouble(kind, lane, "reads a register that nothing has written");
        }
    }
    for (class, reg) in writes {
        let old = &mut warp.regs.written[class as usize][reg as usize];
        *old = *old & !m | have & m;
    }
    Ok(())
}

/// An instruction that `needed` lanes must execute together, and `m` do: waits for the others if they can still come.
pub(crate) fn together(warp: &Warp, m: u32, needed: u32) -> Option<Step<Flow>> {
    // Matrix instructions need whole warps, other ones those lanes that are alive.
    if m == needed {
        return None;
    }
    if warp.groups.iter().any(|g| g.mask & needed != 0) {
        return Some(Ok(Flow::Wait(State::Converge)));
    }
    let group = Group { pc: warp.pc as u32, mask: m, state: State::Converge };
    Some(stranded(warp, group).map(|()| Flow::Next))
}
