//! A warp: groups of lanes with a program counter each, and the loop that executes instructions.
//!
//! Of the groups that can run, the one with the lowest program counter runs; groups that meet merge. An instruction
//! that needs lanes together waits for them as long as other groups of the warp can still run.

use super::block::Block;
use super::order::{Clock, Order};
use super::regs::{Bits, FULL, LANES, Regs};
use super::trouble::{Step, trouble};
use super::{alu, async_copy::Copy};
use crate::code::{Class, Inst, Op, Place, Special};
use crate::fault::FaultKind;
use crate::gpu::Launch;

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
    pub index: usize,
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
    pub strong_reads: u32,
    /// `threadIdx` of each lane.
    threads: [[u32; LANES]; 3],
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
    pub fn new(index: usize, shape: [u32; 3], regs: Regs, local_bytes: usize) -> Warp {
        let mut threads = [[0; LANES]; 3];
        for lane in 0..LANES {
            let thread = super::trouble::coordinates((index * LANES + lane) as u64, shape);
            (0..3).for_each(|axis| threads[axis][lane] = thread[axis]);
        }
        Warp {
            index,
            threads,
            regs,
            local: vec![0xFF; local_bytes * LANES],
            local_written: vec![false; local_bytes * LANES],
            local_bytes,
            ..Warp::default()
        }
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
pub(crate) fn run(block: &mut Block, warp: &mut Warp, sync: &mut Order, slice: u64) -> Step {
    pulp::Arch::new().dispatch(Turn { block, warp, sync, slice })
}

/// A call of [`execute`], compiled for AVX2 and FMA where the CPU has them. (A closure would not be inlined there.)
struct Turn<'a, 'b> {
    block: &'a mut Block<'b>,
    warp: &'a mut Warp,
    sync: &'a mut Order,
    slice: u64,
}

impl pulp::WithSimd for Turn<'_, '_> {
    type Output = Step;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Step {
        execute(self.block, self.warp, self.sync, self.slice)
    }
}

#[inline(always)]
fn execute(block: &mut Block, warp: &mut Warp, sync: &mut Order, slice: u64) -> Step {
    let code: &[Inst] = &block.context.entry.code;
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
            block.counters.instructions += 1;
            let guard = warp.regs.pred[inst.guard as usize];
            let m = mask & if inst.flip { !guard } else { guard };
            if inst.tracked {
                check_written(block, warp, inst, mask, m)?;
            }
            let flow = step(block, warp, sync, inst, mask, m)?;
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
                    block.counters.divergent_branches += 1;
                    warp.groups.push(Group { pc: target, mask: taken, state: State::Ready });
                    mask &= !taken;
                    pc += 1;
                }
                Flow::Exit(lanes) => {
                    warp.live &= !lanes;
                    mask &= !lanes;
                    block.exited += lanes.count_ones();
                    sync.progress += 1;
                    super::barrier::after_exit(block, warp)?;
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
    let mut text = format!("only lanes {} of the warp execute this", Block::lanes(group.mask));
    if !others.is_empty() {
        let elsewhere = others.iter().fold(0, |m, g| m | g.mask);
        text += &format!("; lanes {} wait elsewhere", Block::lanes(elsewhere));
    }
    if gone != 0 {
        text += &format!("; lanes {} have returned or do not exist", Block::lanes(gone));
    }
    trouble(FaultKind::Divergence, group.mask.trailing_zeros() as usize, text)
}

/// For instructions with registers that may be unwritten: checks what is read, marks what is written.
#[cold]
#[inline(never)]
fn check_written(block: &Block, warp: &mut Warp, inst: &Inst, mask: u32, m: u32) -> Step {
    let tracked = &block.context.entry.tracked;
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    inst.clone().operands(&mut |class, write, reg| {
        if tracked[class as usize][*reg as usize] {
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

#[inline(always)]
fn step(block: &mut Block, warp: &mut Warp, sync: &mut Order, inst: &Inst, mask: u32, m: u32) -> Step<Flow> {
    let r = &mut warp.regs;
    match &inst.op {
        Op::Nop => {}
        Op::Mov32 { d, a } => alu::mov32(r, m, *d, *a),
        Op::Mov64 { d, a } => alu::mov64(r, m, *d, *a),
        Op::Un32 { op, d, a } => alu::unary(r, m, *op, *d, *a),
        Op::Bin32 { op, d, a, b } => alu::binary(r, m, *op, *d, *a, *b),
        Op::Tri32 { op, d, a, b, c } => {
            if matches!(op, crate::code::Tri32::Fma | crate::code::Tri32::FmaFtz) {
                block.counters.fma += u64::from(m.count_ones());
            }
            alu::ternary(r, m, *op, *d, *a, *b, *c);
        }
        Op::Bin64 { op, d, a, b } => alu::binary64(r, m, *op, *d, *a, *b),
        Op::Tri64 { op, d, a, b, c } => {
            if *op == crate::code::Tri64::DFma {
                block.counters.fma += u64::from(m.count_ones());
            }
            alu::ternary64(r, m, *op, *d, *a, *b, *c);
        }
        Op::Shift64 { op, d, a, b } => alu::shift64(r, m, *op, *d, *a, *b),
        Op::MulWide { signed, d, a, b } => alu::mul_wide(r, m, *signed, *d, [*a, *b], None),
        Op::MadWide { signed, d, a, b, c } => alu::mul_wide(r, m, *signed, *d, [*a, *b], Some(*c)),
        Op::Widen { signed, d, a } => alu::widen(r, m, *signed, *d, *a),
        Op::Narrow { d, a } => alu::narrow(r, m, *d, *a, 0),
        Op::Pack { d, lo, hi } => alu::pack(r, m, *d, *lo, *hi),
        Op::Unpack { lo, hi, a } => {
            alu::narrow(r, m, *lo, *a, 0);
            alu::narrow(r, m, *hi, *a, 32);
        }
        Op::Setp(set) => alu::setp(r, m, set),
        Op::Selp32 { d, a, b, p } => alu::select32(r, m, *d, *a, *b, *p),
        Op::Selp64 { d, a, b, p } => alu::select64(r, m, *d, *a, *b, *p),
        Op::Pred { logic, d, a, b, flip } => alu::predicate(r, m, *logic, *d, *a, *b, *flip),
        Op::Scalar(scalar) => alu::scalar(r, m, scalar),
        Op::Load(access) => {
            if m != 0 {
                super::access::load(block, warp, sync, access, m)?;
            }
        }
        Op::Store(access) => {
            if m != 0 {
                super::access::store(block, warp, sync, access, m)?;
            }
        }
        Op::Bra { target } => {
            return Ok(if m == 0 {
                Flow::Next
            } else if m == mask {
                Flow::Jump(*target)
            } else {
                Flow::Split(*target, m)
            });
        }
        _ => return rare(block, warp, sync, inst, mask, m),
    }
    Ok(Flow::Next)
}

/// Instructions that are not worth a place in the inner loop.
#[inline(never)]
fn rare(block: &mut Block, warp: &mut Warp, sync: &mut Order, inst: &Inst, mask: u32, m: u32) -> Step<Flow> {
    if m == 0 {
        return Ok(Flow::Next);
    }
    match &inst.op {
        Op::Special { which, d } => special(block, warp, *which, *d, m),
        Op::Activemask { d } => Bits(m).for_each(|lane| warp.regs.word[*d as usize][lane] = m),
        Op::Atomic(atomic) => super::atomic::run(block, warp, sync, atomic, m)?,
        Op::Fence { acquire, release } => super::atomic::fence(block, warp, sync, *acquire, *release),
        Op::BraTable { index, targets } => return jump_table(warp, *index, targets, mask, m),
        Op::Exit => return Ok(Flow::Exit(m)),
        Op::Trap => {
            return trouble(FaultKind::Trap, m.trailing_zeros() as usize, "executes `trap` (an assertion?)");
        }
        Op::Bar(bar) => return super::barrier::run(block, warp, sync, bar, mask, m),
        Op::Collective { mask: members, op } => return super::collective::run(block, warp, *members, op, m),
        Op::Mma(mma) => {
            if let Some(wait) = together(warp, m, warp.live) {
                return wait;
            }
            super::matrix::mma(warp, mma);
            block.counters.mma += 1;
        }
        Op::Matrix(matrix) => {
            if let Some(wait) = together(warp, m, warp.live) {
                return wait;
            }
            super::matrix::access(block, warp, matrix)?;
        }
        Op::CpAsync(copy) => super::async_copy::issue(block, warp, sync, copy, m)?,
        Op::CpCommit => super::async_copy::commit(warp, m),
        Op::CpWait { pending } => super::async_copy::wait(block, warp, *pending, m),
        _ => {}
    }
    Ok(Flow::Next)
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

fn jump_table(warp: &mut Warp, index: u32, targets: &[u32], mask: u32, m: u32) -> Step<Flow> {
    let index = warp.regs.word[index as usize];
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for lane in Bits(m) {
        let Some(&target) = targets.get(index[lane] as usize) else {
            let text = format!("jumps to entry {} of a table of {}", index[lane], targets.len());
            return trouble(FaultKind::OutOfBounds, lane, text);
        };
        match parts.iter_mut().find(|p| p.0 == target) {
            Some(part) => part.1 |= 1 << lane,
            None => parts.push((target, 1 << lane)),
        }
    }
    if mask != m {
        parts.push((warp.pc as u32 + 1, mask & !m));
    }
    if let [(target, _)] = parts[..] {
        return Ok(Flow::Jump(target));
    }
    warp.groups.extend(parts.into_iter().map(|(pc, mask)| Group { pc, mask, state: State::Ready }));
    Ok(Flow::Regrouped)
}

fn special(block: &Block, warp: &mut Warp, which: Special, d: Place, m: u32) {
    let Launch { grid, block: shape, dynamic_shared, .. } = *block.context.launch;
    let index = super::trouble::coordinates(block.index, grid);
    for lane in Bits(m) {
        let bit = 1u32 << lane;
        let value: u64 = match which {
            Special::Tid(axis) => warp.threads[axis as usize][lane].into(),
            Special::Ntid(axis) => shape[axis as usize].into(),
            Special::Ctaid(axis) => index[axis as usize].into(),
            Special::Nctaid(axis) => grid[axis as usize].into(),
            Special::Laneid => lane as u64,
            Special::Warpid => warp.index as u64,
            Special::Nwarpid => block.context.warps() as u64,
            Special::Smid | Special::Gridid => 0,
            Special::Nsmid => 1,
            Special::Clock | Special::Clock64 => block.counters.instructions,
            Special::LanemaskEq => bit.into(),
            Special::LanemaskLe => (bit | (bit - 1)).into(),
            Special::LanemaskLt => (bit - 1).into(),
            Special::LanemaskGe => (!(bit - 1)).into(),
            Special::LanemaskGt => (!(bit | (bit - 1))).into(),
            Special::DynamicShared => dynamic_shared.into(),
            Special::TotalShared => {
                let fixed = block.context.entry.dynamic_base as i64 - crate::ptx::module::SHARED_BASE;
                fixed as u64 + u64::from(dynamic_shared)
            }
        };
        warp.regs.put(d, lane, value);
    }
}
