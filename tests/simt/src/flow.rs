//! What follows from control flow: which registers are surely written before they are read, which can share a place.
//!
//! PTX names a new register for nearly every value; sharing places keeps a warp's registers in the CPU's cache.

mod places;

use std::collections::{HashMap, HashSet};

use crate::code::asynchronous::{Asynchronous, Factor};
use crate::code::{Class, Inst, Op, TRUE};
use crate::fault::ParseError;
use crate::module::{Entry, Limits, Line, SourceLine, Traits};
use crate::ptx::body::{Body, round_up};
use crate::ptx::module::{Param, SHARED_BASE};

/// More threads' memory than this is surely a mistake.
const MOST_LOCAL: i64 = 1 << 20;

pub(crate) fn finish(
    body: Body,
    name: &str,
    params: Vec<Param>,
    limits: Limits,
    files: &HashMap<u32, String>,
) -> Result<Entry, ParseError> {
    let constants = body.constants();
    let (counts, shared_end, dynamic_align) = (body.registers, body.shared_end, body.dynamic_align);
    let local_bytes = body.local_bytes;
    if local_bytes > MOST_LOCAL {
        return Err(ParseError::new(body.line, format!("`{name}`: {local_bytes} bytes of memory for each thread")));
    }
    let Body { mut code, lines: raw_lines, .. } = body;
    let mut numbers: Vec<_> = files.keys().copied().collect();
    numbers.sort_unstable();
    let names = numbers.iter().map(|n| files[n].clone()).collect();
    let place = |file: u32, line: u32| {
        let file = numbers.iter().position(|&n| n == file)?;
        Some(SourceLine { file: file as u32, line })
    };
    let lines = raw_lines.into_iter().map(|(line, loc)| Line {
        ptx: line,
        source: place(loc.file, loc.line),
        caller: loc.caller.and_then(|(file, line)| place(file, line)),
    });
    let lines = lines.collect();
    let mut flow = Flow::new(&mut code, counts);
    let fixed: Vec<(Class, u32)> = constants.iter().map(|&(class, reg, _)| (class, reg)).collect();
    flow.find_unwritten(&fixed);
    flow.find_asynchronous(&fixed);
    let places = flow.share(&fixed);
    let rename = |class: Class, reg: &mut u32| *reg = places.map[class as usize][*reg as usize];
    for inst in &mut code {
        inst.operands(&mut |class, _, reg| rename(class, reg));
    }
    let constants = constants.into_iter().map(|(class, mut reg, constant)| {
        rename(class, &mut reg);
        (class, reg, constant)
    });
    let constants = constants.collect();
    let param_bytes = params.iter().fold(0, |at, p| round_up(at, p.align as i64) + p.bytes as i64) as usize;
    Ok(Entry {
        traits: traits(&code),
        code,
        lines,
        files: names,
        param_bytes,
        registers: places.counts,
        tracked: places.tracked,
        constants,
        dynamic_base: round_up(shared_end, dynamic_align) as u32,
        static_shared: (shared_end - SHARED_BASE) as usize,
        local_bytes: local_bytes as usize,
        limits,
        asynchronous: places.asynchronous,
    })
}

fn traits(code: &[Inst]) -> Traits {
    use crate::code::{AtomOp, AtomType, Space};
    let mut traits = Traits { shared_granule: 4, global_granule: 4, ordered: false };
    for inst in code {
        let (space, width) = match &inst.op {
            Op::Load(a) | Op::Store(a) => {
                traits.ordered |= a.order.strong && !matches!(a.space, Space::Shared | Space::Cluster);
                (a.space, a.width)
            }
            Op::Atomic(a) => {
                let whole = matches!(a.ty, AtomType::U32 | AtomType::S32);
                let commutes = whole && !matches!(a.op, AtomOp::Exch | AtomOp::Cas | AtomOp::Inc | AtomOp::Dec);
                traits.ordered |= !matches!(a.space, Space::Shared | Space::Cluster) && (a.d.is_some() || !commutes);
                let half = matches!(a.ty, AtomType::F16 | AtomType::Bf16 | AtomType::B16);
                (a.space, if half { 2 } else { 4 })
            }
            _ => continue,
        };
        if matches!(space, Space::Shared | Space::Cluster | Space::Generic) {
            traits.shared_granule = traits.shared_granule.min(width);
        }
        if !matches!(space, Space::Shared | Space::Cluster | Space::Local | Space::Param) {
            traits.global_granule = traits.global_granule.min(width);
        }
    }
    traits
}

type Bits = Vec<u64>;

fn has(bits: &Bits, i: usize) -> bool {
    bits[i / 64] >> (i % 64) & 1 == 1
}

fn set(bits: &mut Bits, i: usize) {
    bits[i / 64] |= 1 << (i % 64);
}

fn unset(bits: &mut Bits, i: usize) {
    bits[i / 64] &= !(1 << (i % 64));
}

/// Basic blocks and the operands of every instruction.
struct Flow<'c> {
    code: &'c mut [Inst],
    counts: [u32; 3],
    /// First and last instruction of each block, and the blocks that follow it.
    blocks: Vec<(usize, usize, Vec<usize>)>,
    /// Registers read and written, numbered over all classes.
    reads: Vec<Vec<usize>>,
    writes: Vec<Vec<usize>>,
    tracked: Bits,
    /// Registers that `wgmma` works on.
    asynchronous: Bits,
}

impl<'c> Flow<'c> {
    fn new(code: &'c mut [Inst], counts: [u32; 3]) -> Self {
        let first = [0, counts[0] as usize, (counts[0] + counts[1]) as usize];
        let total = first[2] + counts[2] as usize;
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for inst in code.iter_mut() {
            let (mut read, mut written) = (Vec::new(), Vec::new());
            inst.operands(&mut |class, write, reg| {
                let list = if write { &mut written } else { &mut read };
                list.push(first[class as usize] + *reg as usize);
            });
            reads.push(read);
            writes.push(written);
        }
        let mut leaders = vec![false; code.len() + 1];
        leaders[0] = true;
        for (pc, inst) in code.iter().enumerate() {
            match &inst.op {
                Op::Bra { target } => leaders[*target as usize] = true,
                Op::BraTable { targets, .. } => targets.iter().for_each(|&t| leaders[t as usize] = true),
                Op::Exit | Op::Trap => {}
                _ => continue,
            }
            leaders[pc + 1] = true;
        }
        let starts: Vec<usize> = (0..code.len()).filter(|&pc| leaders[pc]).collect();
        let block_of = |pc: usize| starts.partition_point(|&s| s <= pc) - 1;
        let blocks = starts.iter().enumerate().map(|(i, &start)| {
            let last = starts.get(i + 1).map_or(code.len(), |&next| next) - 1;
            let inst = &code[last];
            let falls = inst.guard != TRUE || inst.flip;
            let mut next: Vec<usize> = match &inst.op {
                Op::Bra { target } => vec![block_of(*target as usize)],
                Op::BraTable { targets, .. } => targets.iter().map(|&t| block_of(t as usize)).collect(),
                _ => Vec::new(),
            };
            let ends = matches!(inst.op, Op::Bra { .. } | Op::BraTable { .. } | Op::Exit | Op::Trap);
            if (falls || !ends) && last + 1 < code.len() {
                next.push(block_of(last + 1));
            }
            (start, last, next)
        });
        let blocks = blocks.collect();
        let none = vec![0; total.div_ceil(64)];
        Flow { blocks, code, counts, reads, writes, tracked: none.clone(), asynchronous: none }
    }

    fn index(&self, class: Class, reg: u32) -> usize {
        let counts = self.counts.map(|c| c as usize);
        reg as usize + [0, counts[0], counts[0] + counts[1]][class as usize]
    }

    /// Whether a write leaves the register's old value in some lanes.
    fn partial(&self, pc: usize) -> bool {
        self.code[pc].guard != TRUE || self.code[pc].flip
    }

    /// Moves hand an unwritten state on instead of being a use.
    fn moves(&self, pc: usize) -> bool {
        moves(&self.code[pc].op)
    }

    /// Marks instructions that may read registers nothing has written; their registers are watched as the code runs.
    fn find_unwritten(&mut self, fixed: &[(Class, u32)]) {
        let words = self.tracked.len();
        let mut at_entry = vec![0u64; words];
        set(&mut at_entry, self.index(Class::Pred, TRUE));
        fixed.iter().for_each(|&(class, reg)| set(&mut at_entry, self.index(class, reg)));
        let mut inputs: Vec<Option<Bits>> = vec![None; self.blocks.len()];
        inputs[0] = Some(at_entry);
        let mut work = vec![0];
        while let Some(block) = work.pop() {
            let (start, last, next) = &self.blocks[block];
            let Some(mut state) = inputs[block].clone() else { continue };
            for pc in *start..=*last {
                self.assign(pc, &mut state);
            }
            for &next in next {
                match &mut inputs[next] {
                    Some(old) => {
                        let met: Bits = old.iter().zip(&state).map(|(a, b)| a & b).collect();
                        if met != *old {
                            *old = met;
                            work.push(next);
                        }
                    }
                    empty => {
                        *empty = Some(state.clone());
                        work.push(next);
                    }
                }
            }
        }
        let mut doubtful = vec![false; self.code.len()];
        for (block, (start, last, _)) in self.blocks.iter().enumerate() {
            let Some(mut state) = inputs[block].clone() else { continue };
            for pc in *start..=*last {
                for &read in &self.reads[pc] {
                    if !has(&state, read) {
                        set(&mut self.tracked, read);
                        doubtful[pc] = true;
                    }
                }
                self.assign(pc, &mut state);
            }
        }
        for (pc, doubtful) in doubtful.into_iter().enumerate() {
            let writes = self.writes[pc].iter().any(|&w| has(&self.tracked, w));
            self.code[pc].tracked = doubtful || writes;
        }
    }

    /// Marks instructions that touch the registers of `wgmma`, or what is moved to and from those; constants aside.
    fn find_asynchronous(&mut self, fixed: &[(Class, u32)]) {
        let first = self.index(Class::Word, 0);
        for inst in &*self.code {
            let Op::Asynchronous(op) = &inst.op else { continue };
            let Asynchronous::Wgmma(wgmma) = &**op else { continue };
            let factor = if let Factor::Registers(regs) = &wgmma.a { regs.as_slice() } else { &[] };
            wgmma.d.iter().chain(factor).for_each(|&reg| set(&mut self.asynchronous, first + reg as usize));
        }
        if self.asynchronous.iter().all(|&bits| bits == 0) {
            return;
        }
        let constant: HashSet<u32> = fixed.iter().filter(|f| f.0 == Class::Word).map(|f| f.1).collect();
        let moves = |inst: &Inst| match inst.op {
            Op::Mov32 { d, a } if !constant.contains(&a) => Some([first + d as usize, first + a as usize]),
            _ => None,
        };
        let moves: Vec<_> = self.code.iter().filter_map(moves).collect();
        let mut changed = true;
        while changed {
            changed = false;
            for pair in &moves {
                let marked = pair.map(|reg| has(&self.asynchronous, reg));
                if marked[0] != marked[1] {
                    pair.iter().for_each(|&reg| set(&mut self.asynchronous, reg));
                    changed = true;
                }
            }
        }
        for (pc, inst) in self.code.iter_mut().enumerate() {
            let mut all = self.reads[pc].iter().chain(&self.writes[pc]);
            inst.tracked |= all.any(|&reg| has(&self.asynchronous, reg));
        }
    }

    /// Registers whose state is kept as the code runs: they share their places with none.
    fn watched(&self, class: Class, reg: u32) -> bool {
        let index = self.index(class, reg);
        has(&self.tracked, index) || has(&self.asynchronous, index)
    }

    fn assign(&self, pc: usize, state: &mut Bits) {
        let written = !self.moves(pc) || self.reads[pc].iter().all(|&r| has(state, r));
        for &write in &self.writes[pc] {
            if written && !self.partial(pc) {
                set(state, write);
            } else if !written {
                unset(state, write);
            }
        }
    }
}

/// Operations that only move values: an unwritten register stays unwritten, and is no error yet.
pub(crate) fn moves(op: &Op) -> bool {
    matches!(op, Op::Mov32 { .. } | Op::Mov64 { .. } | Op::Pack { .. } | Op::Unpack { .. })
}
