//! Activations that are kept from one run to the next.

use std::{fs, path::Path};

use unfreeze::{
    data::Split,
    learner::{EpochRecord, Fit, Tta},
};

use crate::{
    Bits, Computed, Log, VIEWS,
    common::learning::{bits, cats_and_dogs, timeless},
    files, with_views,
};

/// What a learner sees that finds its activations in `cache`, and what it computed for that.
fn kept(folder: &Path, cache: &Path, first: isize) -> (Bits, Vec<EpochRecord>, Log) {
    let (learner, computed) = Computed::by(with_views(folder, first).cache_folder(cache));
    let mut learner = learner;
    learner.fit(Fit::epochs(VIEWS).lr(1e-2)).unwrap();
    (bits(learner.model()), timeless(learner.history()), Log { computed: computed.take(), notes: computed.notes() })
}

#[test]
fn activations_are_kept_from_one_run_to_the_next() {
    let (folder, cache) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    for first in [1, 2] {
        let begun = kept(folder.path(), cache.path(), first);
        assert_eq!(begun.2.computed.iter().map(|(_, count)| count).sum::<usize>(), 10 * VIEWS + 6);
        let again = kept(folder.path(), cache.path(), first);
        assert!(again.0 == begun.0 && again.1 == begun.1);
        assert!(again.2.computed.is_empty() && again.2.notes.is_empty(), "{:?}", again.2);
        // A data set that was moved, its files unchanged, is the same.
        let moved = tempfile::tempdir().unwrap();
        copy(folder.path(), moved.path());
        let moved = kept(moved.path(), cache.path(), first);
        assert!(moved.0 == begun.0 && moved.2.computed.is_empty(), "{:?}", moved.2);
        // Files that are damaged or gone are made up for.
        let chunks: Vec<_> =
            files(cache.path()).into_iter().filter(|path| fs::metadata(path).unwrap().len() > 500).collect();
        for (number, path) in chunks.iter().enumerate() {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() - 200;
            bytes[middle] ^= 1;
            match number % 2 {
                0 => fs::write(path, bytes).unwrap(),
                _ => fs::remove_file(path).unwrap(),
            }
        }
        let repaired = kept(folder.path(), cache.path(), first);
        assert!(repaired.0 == begun.0 && repaired.1 == begun.1);
        assert!(
            !repaired.2.computed.is_empty() && repaired.2.notes.iter().any(|note| note.contains("damaged")),
            "{:?}",
            repaired.2
        );
        assert!(kept(folder.path(), cache.path(), first).2.computed.is_empty());
    }
    // A cache that cannot be had is said once, and costs nothing else.
    let file = cache.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let without = kept(folder.path(), &file, 2);
    assert_eq!(without.2.notes.iter().filter(|note| note.contains("memory alone")).count(), 1, "{:?}", without.2);
    assert!(without.0 == kept(folder.path(), cache.path(), 2).0);
}

/// What does not fit into memory is served from disk, to the bit, and written there while it is computed.
#[test]
fn activations_larger_than_memory_are_read_from_disk() {
    let (folder, cache) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let file = cache.path().join("file");
    fs::write(&file, "no folder").unwrap();
    for first in [1, 2] {
        let trained = |place: Option<&Path>, budget: u64, memory: Option<u64>| {
            let (mut learner, computed) = Computed::by(with_views(&folder, first).cache_budget(budget));
            if let Some(place) = place {
                learner = learner.cache_folder(place);
            }
            memory.into_iter().for_each(|bytes| learner.precompute_memory(bytes));
            learner.fit(Fit::epochs(VIEWS + 1).lr(1e-2)).unwrap();
            let tta = learner.tta(Tta::views(1), Split::Valid).unwrap().averaged.probabilities;
            let cached: Vec<bool> = learner.history().iter().map(|record| record.cached).collect();
            let computed_now = computed.take();
            (bits(learner.model()), timeless(learner.history()), tta, cached, computed_now, computed.notes())
        };
        let place = cache.path().join(first.to_string());
        let memory = trained(None, 1 << 30, None);
        let disk = trained(Some(&place), 1 << 30, Some(0));
        assert!(disk.5.iter().any(|note| note.contains("read from disk")) && disk.5.len() == 1, "{:?}", disk.5);
        assert!(disk.3.iter().all(|cached| *cached) && disk.4 == memory.4, "{:?}", disk.4);
        let again = trained(Some(&place), 1 << 30, Some(0));
        assert!(again.3.iter().all(|cached| *cached) && again.4.is_empty(), "{:?}", again.4);
        // Some in memory, the others not.
        let found = trained(Some(&place), 1 << 30, None);
        assert!(found.4.is_empty(), "{:?}", found.4);
        // Neither has room for them; or the disk fails, which is said, and nothing is left out.
        let neither = trained(Some(&place), 1000, Some(0));
        let failed = trained(Some(&file), 1 << 30, Some(0));
        for other in [&neither, &failed] {
            assert!(!other.3.contains(&true) && other.5.iter().any(|note| note.contains("anew")), "{:?}", other.5);
        }
        for other in [&disk, &again, &found, &neither, &failed] {
            assert!(other.0 == memory.0 && other.1 == memory.1 && other.2 == memory.2, "from {first}: {:?}", other.5);
        }
    }
}

/// A copy with the times of the original.
fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&target).unwrap().set_modified(time).unwrap();
    }
}
