//! Registers that are never live at once share a place.

use super::{Bits, Flow, has, set, unset};
use crate::code::{Class, SINK};

/// New places of registers.
pub(super) struct Places {
    pub map: [Vec<u32>; 3],
    pub counts: [usize; 3],
    pub tracked: [Vec<bool>; 3],
    /// Of words: those that `wgmma` works on.
    pub asynchronous: Vec<bool>,
}

impl Flow<'_> {
    /// Gives registers places by the intervals in which they are live.
    pub(super) fn share(&self, fixed: &[(Class, u32)]) -> Places {
        let words = self.tracked.len();
        let mut live_in: Vec<Bits> = vec![vec![0; words]; self.blocks.len()];
        let mut changed = true;
        while changed {
            changed = false;
            for block in (0..self.blocks.len()).rev() {
                let (start, last, _) = &self.blocks[block];
                let mut live = self.live_out(block, &live_in);
                for pc in (*start..=*last).rev() {
                    if !self.partial(pc) {
                        self.writes[pc].iter().for_each(|&w| unset(&mut live, w));
                    }
                    self.reads[pc].iter().for_each(|&r| set(&mut live, r));
                }
                if live != live_in[block] {
                    live_in[block] = live;
                    changed = true;
                }
            }
        }
        let total: usize = self.counts.iter().map(|&c| c as usize).sum();
        let mut spans: Vec<Option<(usize, usize)>> = vec![None; total];
        let mut extend = |reg: usize, pc: usize| {
            let span = spans[reg].get_or_insert((pc, pc));
            *span = (span.0.min(pc), span.1.max(pc));
        };
        for (block, (start, last, _)) in self.blocks.iter().enumerate() {
            for (bits, pc) in [(&live_in[block], *start), (&self.live_out(block, &live_in), *last)] {
                for (word, &bits) in bits.iter().enumerate() {
                    let mut bits = bits;
                    while bits != 0 {
                        extend(word * 64 + bits.trailing_zeros() as usize, pc);
                        bits &= bits - 1;
                    }
                }
            }
            for pc in *start..=*last {
                self.reads[pc].iter().chain(&self.writes[pc]).for_each(|&reg| extend(reg, pc));
                // Results of one instruction need places of their own, even those that nobody reads.
                self.writes[pc].iter().for_each(|&reg| extend(reg, pc + 1));
            }
        }
        self.place(fixed, &spans)
    }

    fn live_out(&self, block: usize, live_in: &[Bits]) -> Bits {
        let mut live = vec![0; self.tracked.len()];
        for &next in &self.blocks[block].2 {
            live.iter_mut().zip(&live_in[next]).for_each(|(a, b)| *a |= b);
        }
        live
    }

    fn place(&self, fixed: &[(Class, u32)], spans: &[Option<(usize, usize)>]) -> Places {
        let mut places =
            Places { map: Default::default(), counts: [0; 3], tracked: Default::default(), asynchronous: Vec::new() };
        for class in [Class::Pred, Class::Word, Class::Long] {
            let count = self.counts[class as usize] as usize;
            let mut map = vec![u32::MAX; count];
            let reserved = if class == Class::Pred { SINK + 1 } else { 1 };
            (0..reserved).for_each(|reg| map[reg as usize] = reg);
            let mut next = reserved;
            let mut own = |map: &mut Vec<u32>, reg: u32| {
                map[reg as usize] = next;
                next += 1;
            };
            fixed.iter().filter(|f| f.0 == class).for_each(|&(_, reg)| own(&mut map, reg));
            for reg in 0..count as u32 {
                if map[reg as usize] == u32::MAX && self.watched(class, reg) {
                    own(&mut map, reg);
                }
            }
            let mut open: Vec<(usize, usize, u32)> = (0..count as u32)
                .filter(|&reg| map[reg as usize] == u32::MAX)
                .filter_map(|reg| spans[self.index(class, reg)].map(|(from, to)| (from, to, reg)))
                .collect();
            open.sort_unstable();
            let mut busy = std::collections::BinaryHeap::new();
            let mut free = Vec::new();
            for (from, to, reg) in open {
                // A place is free again at the instruction that reads its last value: operands are read first.
                while let Some(&(std::cmp::Reverse(end), place)) = busy.peek() {
                    if end > from {
                        break;
                    }
                    busy.pop();
                    free.push(place);
                }
                let place = free.pop().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                map[reg as usize] = place;
                busy.push((std::cmp::Reverse(to), place));
            }
            let marked = |bits: &Bits| {
                let mut marked = vec![false; next as usize];
                for (reg, &place) in map.iter().enumerate() {
                    if place != u32::MAX && has(bits, self.index(class, reg as u32)) {
                        marked[place as usize] = true;
                    }
                }
                marked
            };
            let tracked = marked(&self.tracked);
            if class == Class::Word && self.asynchronous.iter().any(|&bits| bits != 0) {
                places.asynchronous = marked(&self.asynchronous);
            }
            places.map[class as usize] = map;
            places.counts[class as usize] = next as usize;
            places.tracked[class as usize] = tracked;
        }
        places
    }
}
