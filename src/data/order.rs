//! In which order samples are seen, and how they are cut into batches.

use std::{collections::HashMap, ops::Range};

use rand::{
    distr::{Distribution, weighted::WeightedIndex},
    seq::SliceRandom,
};

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

/// As many numbers of samples with `labels` as there are, drawn with replacement, each with a probability inverse to how
/// often its label occurs, so that classes are met equally often. They depend on `seed` and `epoch` alone.
pub fn weighted(labels: &[u32], seed: u64, epoch: u64) -> Vec<u32> {
    let mut counts = HashMap::new();
    labels.iter().for_each(|label| *counts.entry(label).or_insert(0u32) += 1);
    // There are no weights of no samples.
    let Ok(index) = WeightedIndex::new(labels.iter().map(|label| 1.0 / f64::from(counts[label]))) else {
        return Vec::new();
    };
    let random = Random::stream(seed, "sample", &[epoch]);
    index.sample_iter(random).take(labels.len()).map(|number| number as u32).collect()
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
    #[test]
    fn weighted_samples_are_of_every_class_alike() {
        let labels: Vec<u32> = (0..1000).map(|at| if at < 900 { 7 } else { 2 }).collect();
        let first = weighted(&labels, 1, 0);
        assert_eq!((first.len(), &first), (1000, &weighted(&labels, 1, 0)));
        assert!(first != weighted(&labels, 1, 1) && first != weighted(&labels, 2, 0));
        let rare: Vec<u32> = first.iter().copied().filter(|number| *number >= 900).collect();
        // A deviation of the binomial distribution is 16.
        assert!((420..580).contains(&rare.len()), "{} of 1000", rare.len());
        // Of the hundred, nearly all are met, and none much more often than five times on average.
        let mut counts = [0; 100];
        rare.iter().for_each(|number| counts[*number as usize - 900] += 1);
        assert!(counts.iter().filter(|count| **count == 0).count() < 8 && counts.iter().all(|count| *count < 18));
        assert!(weighted(&[], 1, 0).is_empty());
    }
}
