//! In which order samples are seen, and how they are cut into batches.

use std::ops::Range;

use rand::seq::SliceRandom;

use crate::random::Random;

/// The positions of each batch in an order of `len` samples.
///
/// The last batch may be short. A last batch of a single sample, on which batch statistics would be meaningless, is
/// joined to the one before; the largest batch is therefore of `batch_size` + 1. A `batch_size` of 0 counts as 1.
pub fn batches(len: usize, batch_size: usize) -> Vec<Range<usize>> {
    let batch_size = batch_size.max(1);
    let mut ranges: Vec<_> =
        (0..len).step_by(batch_size).map(|start| start..len.min(start.saturating_add(batch_size))).collect();
    if batch_size > 1 && len > 1 && len % batch_size == 1 {
        ranges.pop();
        if let Some(last) = ranges.last_mut() {
            last.end = len;
        }
    }
    ranges
}

/// The numbers 0..`len` in a random order that depends on `seed` and `epoch` alone.
pub fn shuffled(len: u32, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len).collect();
    order.shuffle(&mut Random::stream(seed, "shuffle", &[epoch]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_sample_joins_the_batch_before() {
        assert_eq!(batches(8, 4), [0..4, 4..8]);
        assert_eq!(batches(10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(batches(9, 4), [0..4, 4..9]);
        assert_eq!(batches(3, 1), [0..1, 1..2, 2..3], "asked for singles");
        assert_eq!(batches(1, 4), vec![0..1], "nothing to join");
        assert_eq!(batches(0, 4), vec![]);
        assert_eq!(batches(5, usize::MAX), vec![0..5]);
    }

    #[test]
    fn shuffles_are_permutations_that_differ_by_epoch_and_seed() {
        let first = shuffled(100, 1, 0);
        assert_eq!(first, shuffled(100, 1, 0));
        assert_ne!(first, shuffled(100, 1, 1));
        assert_ne!(first, shuffled(100, 2, 0));
        let mut sorted = first;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
    }
}
