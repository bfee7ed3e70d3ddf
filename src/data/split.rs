//! Holding out a part of the training images for validation, copies of a file never on both sides.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::Item;
use crate::random::Random;
use crate::{Error, Result};

/// Which part of the training images to hold out for validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Holdout {
    /// Share of each class's images, between 0 and 1; 0.2 is usual.
    pub fraction: f32,
    /// Decides which.
    pub seed: u64,
}

impl Holdout {
    /// Checks the fraction.
    ///
    /// # Errors
    /// [`Error::Setting`] unless it lies between 0 and 1.
    pub fn validate(&self) -> Result<()> {
        if self.fraction > 0.0 && self.fraction < 1.0 {
            return Ok(());
        }
        Err(Error::setting("valid_fraction", format!("{} is not between 0 and 1; 0.2 is usual", self.fraction)))
    }
}

/// Two parts of a set of images, and what should be said about them.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub train: Vec<Item>,
    pub valid: Vec<Item>,
    pub notes: Vec<String>,
}

/// Splits `items` class by class, each part in the order of `items`. Files of equal content count as one.
pub(super) fn hold_out(items: Vec<Item>, classes: &[String], holdout: Holdout) -> Result<Parts> {
    holdout.validate()?;
    let groups = equal_files(&items)?;
    let mut parts = Parts::default();
    parts.notes.extend(describe_copies(&items, &groups, classes));

    let mut held_out = vec![false; items.len()];
    for (label, class) in (0u32..).zip(classes) {
        // Copies that are of several classes say nothing about either, and stay in training.
        let is_own = |group: &&Vec<usize>| group.iter().all(|&index| items[index].label == label);
        let mut own: Vec<&Vec<usize>> = groups.iter().filter(is_own).collect();
        own.shuffle(&mut Random::stream(holdout.seed, "hold out", &[u64::from(label)]));
        let count: usize = own.iter().map(|group| group.len()).sum();
        if own.len() < 2 {
            parts.notes.push(format!("class `{class}` has too few different images to hold one out"));
            continue;
        }
        let wanted = ((f64::from(holdout.fraction) * count as f64).round() as usize).clamp(1, count - 1);
        let mut taken = Vec::new();
        let mut left = wanted;
        for group in &own {
            if group.len() <= left && taken.len() + 1 < own.len() {
                taken.push(*group);
                left -= group.len();
            }
        }
        if taken.is_empty() {
            // Every group is larger than what is wanted; the smallest comes nearest.
            taken.extend(own.iter().copied().min_by_key(|group| group.len()));
        }
        taken.into_iter().flatten().for_each(|&index| held_out[index] = true);
    }
    for (item, held_out) in items.into_iter().zip(held_out) {
        if held_out { &mut parts.valid } else { &mut parts.train }.push(item);
    }
    Ok(parts)
}

/// A note for files of `valid` whose content is also in `train`: what is measured on them is memory, not skill.
pub(super) fn describe_leak(train: &[Item], valid: &[Item], name: &str) -> Result<Option<String>> {
    let all: Vec<Item> = train.iter().chain(valid).cloned().collect();
    let mut copies = Vec::new();
    for group in equal_files(&all)? {
        let original = group.iter().find(|&&index| index < train.len());
        let within = group.iter().filter(|&&index| index >= train.len());
        copies.extend(original.into_iter().flat_map(|original| within.clone().map(|copy| (*copy, *original))));
    }
    Ok(copies.first().map(|&(copy, original)| {
        let (copy, original) = (all[copy].path.display(), all[original].path.display());
        format!(
            "{} of the {} {name} images are training images byte for byte, and flatter the accuracy; the first: {copy} = {original}",
            copies.len(),
            valid.len()
        )
    }))
}

fn describe_copies(items: &[Item], groups: &[Vec<usize>], classes: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    let copied: Vec<&Vec<usize>> = groups.iter().filter(|group| group.len() > 1).collect();
    if let Some(first) = copied.first() {
        let count: usize = copied.iter().map(|group| group.len() - 1).sum();
        let (one, other) = (items[first[0]].path.display(), items[first[1]].path.display());
        let what = if count == 1 {
            "image is a byte for byte copy of another"
        } else {
            "images are byte for byte copies of others"
        };
        notes.push(format!("{count} {what}, kept on one side of the split; the first: {other} = {one}"));
    }
    for group in copied {
        let first = &items[group[0]];
        if let Some(other) = group.iter().map(|&index| &items[index]).find(|item| item.label != first.label) {
            let name = |item: &Item| classes[item.label as usize].clone();
            notes.push(format!(
                "{} is of class `{}`, but its copy {} of class `{}`",
                first.path.display(),
                name(first),
                other.path.display(),
                name(other)
            ));
        }
    }
    notes
}

/// The positions of `items` grouped by content, in the order of their first members. Only files of equal length are
/// read.
fn equal_files(items: &[Item]) -> Result<Vec<Vec<usize>>> {
    let mut by_length: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let length = fs::metadata(&item.path).map_err(|e| Error::io(&item.path, e))?.len();
        by_length.entry(length).or_default().push(index);
    }
    let mut groups = Vec::new();
    for same_length in by_length.into_values() {
        if same_length.len() == 1 {
            groups.push(same_length);
            continue;
        }
        let mut by_content: HashMap<blake3::Hash, Vec<usize>> = HashMap::new();
        for index in same_length {
            by_content.entry(content_hash(&items[index].path)?).or_default().push(index);
        }
        groups.extend(by_content.into_values());
    }
    groups.sort_by_key(|group| group[0]);
    Ok(groups)
}

fn content_hash(path: &PathBuf) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    hasher.update_reader(file).map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use proptest::prelude::*;

    fn files(folder: &Path, contents: &[(u32, u8)]) -> Vec<Item> {
        let write = |(number, (label, content)): (usize, &(u32, u8))| {
            let path = folder.join(format!("{number}"));
            fs::write(&path, vec![*content; 3 + usize::from(*content % 2)]).unwrap();
            Item { path, label: *label }
        };
        contents.iter().enumerate().map(write).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn copies_are_never_on_both_sides(contents in proptest::collection::vec((0u32..3, 0u8..40), 2..60),
                                          fraction in 0.05f32..0.95, seed: u64) {
            let folder = tempfile::tempdir().unwrap();
            let items = files(folder.path(), &contents);
            let classes = ["a", "b", "c"].map(String::from);
            let parts = hold_out(items.clone(), &classes, Holdout { fraction, seed }).unwrap();
            prop_assert_eq!(parts.train.len() + parts.valid.len(), items.len());
            let read = |items: &[Item]| items.iter().map(|item| fs::read(&item.path).unwrap()).collect::<Vec<_>>();
            let train = read(&parts.train);
            prop_assert!(read(&parts.valid).iter().all(|content| !train.contains(content)));
            prop_assert!(describe_leak(&parts.train, &parts.valid, "validation").unwrap().is_none());
            let again = hold_out(items, &classes, Holdout { fraction, seed }).unwrap();
            prop_assert_eq!(again.valid, parts.valid);
        }
    }

    #[test]
    fn the_share_is_of_each_class() {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<(u32, u8)> = (0..150).map(|i| (u32::from(i >= 100), i)).collect();
        let items = files(folder.path(), &contents);
        let classes = ["big", "small"].map(String::from);
        let split = |seed| hold_out(items.clone(), &classes, Holdout { fraction: 0.2, seed }).unwrap();
        let parts = split(1);
        assert_eq!(parts.valid.iter().filter(|item| item.label == 0).count(), 20);
        assert_eq!(parts.valid.iter().filter(|item| item.label == 1).count(), 10);
        assert!(parts.notes.is_empty());
        assert_ne!(split(2).valid, parts.valid);
    }

    #[test]
    fn many_copies_of_one_image_do_not_fill_the_held_out_part() {
        let folder = tempfile::tempdir().unwrap();
        // Sixteen copies and four others; and a class whose only file is a copy of one of another class.
        let contents: Vec<(u32, u8)> = (0..20)
            .map(|i| (0, if i < 16 { 2 } else { 2 * i }))
            .chain((0..8).map(|i| (1, 101 + 2 * i)))
            .chain([(2, 2)])
            .collect();
        let items = files(folder.path(), &contents);
        let classes = ["a", "b", "c"].map(String::from);
        for seed in 0..20 {
            let parts = hold_out(items.clone(), &classes, Holdout { fraction: 0.25, seed }).unwrap();
            let count = |items: &[Item], label| items.iter().filter(|item| item.label == label).count();
            assert_eq!((count(&parts.valid, 0), count(&parts.valid, 1), count(&parts.valid, 2)), (1, 2, 0), "{seed}");
            assert_eq!(count(&parts.train, 2), 1);
        }
    }

    #[test]
    fn leaks_and_copies_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let items = files(folder.path(), &[(0, 2), (1, 4), (0, 6), (1, 4), (1, 2)]);
        let leak = describe_leak(&items[..3], &items[3..], "test").unwrap().unwrap();
        assert!(leak.starts_with("2 of the 2 test images"), "{leak}");
        let classes = ["cat", "dog"].map(String::from);
        let notes = hold_out(items, &classes, Holdout { fraction: 0.5, seed: 0 }).unwrap().notes;
        assert!(notes[0].starts_with("2 images are byte for byte copies"), "{notes:?}");
        assert!(notes[1].contains("`cat`") && notes[1].contains("`dog`"), "{notes:?}");
        for fraction in [0.0, 1.0, -0.5, f32::NAN] {
            assert!(Holdout { fraction, seed: 0 }.validate().is_err());
        }
    }
}
