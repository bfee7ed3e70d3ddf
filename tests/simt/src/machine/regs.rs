//! A warp's registers.

use crate::code::{Class, Place, TRUE};

pub(crate) const LANES: usize = 32;
pub(crate) const FULL: u32 = u32::MAX;

/// Register files; reading and writing goes lane by lane under masks.
#[derive(Default)]
pub(crate) struct Regs {
    pub word: Vec<[u32; LANES]>,
    pub long: Vec<[u64; LANES]>,
    pub pred: Vec<u32>,
    /// The lanes in which watched registers have been written.
    pub written: [Vec<u32>; 3],
}

impl Regs {
    pub fn new(counts: [usize; 3]) -> Regs {
        let mut pred = vec![0; counts[0]];
        pred[TRUE as usize] = FULL;
        Regs {
            word: vec![[0; LANES]; counts[1]],
            long: vec![[0; LANES]; counts[2]],
            pred,
            written: counts.map(|count| vec![0; count]),
        }
    }

    pub fn get(&self, place: Place, lane: usize) -> u64 {
        let reg = place.reg as usize;
        match place.class {
            Class::Pred => u64::from(self.pred[reg] >> lane & 1),
            Class::Word => u64::from(self.word[reg][lane]),
            Class::Long => self.long[reg][lane],
        }
    }

    pub fn put(&mut self, place: Place, lane: usize, value: u64) {
        let reg = place.reg as usize;
        match place.class {
            Class::Pred => self.pred[reg] = self.pred[reg] & !(1 << lane) | u32::from(value != 0) << lane,
            Class::Word => self.word[reg][lane] = value as u32,
            Class::Long => self.long[reg][lane] = value,
        }
    }
}

/// The set bits of a mask, lowest first.
#[derive(Clone, Copy)]
pub(crate) struct Bits(pub u32);

impl Iterator for Bits {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lane = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}
