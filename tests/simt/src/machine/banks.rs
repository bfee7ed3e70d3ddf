//! Bank conflicts: passes over shared memory's 32 banks.

use super::cluster::Cluster;
use super::regs::{Bits, LANES};

/// Counts passes over the banks: a bank serves one 4-byte word at a time, to any number of lanes. Accesses of 8 and 16
/// bytes go by halves and quarters of the warp.
pub(crate) fn count_banks(cluster: &mut Cluster, at: &[u64; LANES], m: u32, bytes: u32) {
    let words = (bytes / 4).max(1);
    let lanes = 32 / words.clamp(1, 4);
    cluster.counters.shared_requests += 1;
    let mut first = 0;
    while first < 32 {
        let part = m & (u32::MAX >> (32 - lanes)) << first;
        first += lanes;
        if part == 0 {
            continue;
        }
        cluster.counters.shared_wavefronts_ideal += 1;
        cluster.counters.shared_wavefronts += u64::from(wavefronts(at, part, words));
    }
}

fn wavefronts(at: &[u64; LANES], part: u32, words: u32) -> u32 {
    let line = at[part.trailing_zeros() as usize] / 128;
    let mut other = 0;
    for (lane, at) in at.iter().enumerate() {
        other |= if part >> lane & 1 == 1 { (at / 128) ^ line } else { 0 };
    }
    if other == 0 {
        return 1;
    }
    // Up to 32 different words, four of them in each access of 16 bytes.
    let mut seen = [0u32; 256];
    let mut ends = [0u8; 32];
    let mut most = 1;
    for lane in Bits(part) {
        for word in 0..u64::from(words.min(4)) {
            let word = (at[lane] / 4 + word) as u32;
            let (bank, row) = ((word % 32) as usize, word / 32);
            let end = ends[bank] as usize;
            if end < 8 && !(0..end).any(|i| seen[bank * 8 + i] == row) {
                seen[bank * 8 + end] = row;
                ends[bank] += 1;
                most = most.max(u32::from(ends[bank]));
            } else if end == 8 {
                return crowded(at, part, words);
            }
        }
    }
    most
}

/// As [`wavefronts`], where a bank has more than eight words.
#[cold]
fn crowded(at: &[u64; LANES], part: u32, words: u32) -> u32 {
    let each = |lane: usize| (0..u64::from(words.min(4))).map(move |w| at[lane] / 4 + w);
    let mut all: Vec<u64> = Bits(part).flat_map(each).collect();
    all.sort_unstable();
    all.dedup();
    let mut banks = [0u32; 32];
    all.iter().for_each(|w| banks[(w % 32) as usize] += 1);
    banks.into_iter().max().unwrap_or(1)
}
