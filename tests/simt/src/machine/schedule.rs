//! Orders drawn from the seed: the same seed gives the same run.

/// SplitMix64.
pub(crate) struct Schedule {
    state: u64,
    seed: u64,
}

impl Schedule {
    pub fn new(seed: u64, stream: u64) -> Schedule {
        Schedule { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03), seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The order of a list: as it is for seed 0, reversed for 1, shuffled for others.
    pub fn arrange<T>(&mut self, list: &mut [T]) {
        match self.seed {
            0 => {}
            1 => list.reverse(),
            _ => {
                for i in (1..list.len()).rev() {
                    list.swap(i, (self.next() % (i as u64 + 1)) as usize);
                }
            }
        }
    }

    /// How many instructions a warp may run before the next one gets its turn.
    pub fn slice(&mut self) -> u64 {
        const LENGTHS: [u64; 4] = [50, 400, 3000, 20_000];
        if self.seed < 2 { 20_000 } else { LENGTHS[(self.next() % 4) as usize] }
    }

    /// One of `count`: the first for seed 0, the last for 1, any for others.
    pub fn pick(&mut self, count: usize) -> usize {
        match self.seed {
            0 => 0,
            1 => count - 1,
            _ => (self.next() % count as u64) as usize,
        }
    }

    pub fn clusters(seed: u64, count: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..count).collect();
        Schedule::new(seed, u64::MAX).arrange(&mut order);
        order
    }
}
