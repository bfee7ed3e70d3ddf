//! An entry against a map.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::ops::testing::cases;

/// What may happen to an entry.
#[derive(Clone, Debug)]
enum Action {
    Append(Vec<u64>),
    Flush,
    Reopen,
    /// A file, and what is done to it.
    Attack(usize, Attack),
}

#[derive(Clone, Debug)]
enum Attack {
    Flip(usize),
    Cut(usize),
    Remove,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let attack =
        prop_oneof![any::<usize>().prop_map(Attack::Flip), any::<usize>().prop_map(Attack::Cut), Just(Attack::Remove),];
    let action = prop_oneof![
        4 => prop::collection::vec(0..40u64, 0..6).prop_map(Action::Append),
        2 => Just(Action::Flush),
        2 => Just(Action::Reopen),
        3 => (any::<usize>(), attack).prop_map(|(file, attack)| Action::Attack(file, attack)),
    ];
    prop::collection::vec(action, 1..24)
}

proptest! {
    #![proptest_config(cases(48))]

    /// Against a map of what was appended: what is found is right, and nothing is missing but what was in a file that
    /// was attacked.
    #[test]
    fn an_entry_is_a_map_that_forgets_what_is_damaged(actions in actions()) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), BUDGET).unwrap();
        let about = about(&[3], Stored::F32);
        let path = folder.path().join(about.id(&key(0)));
        let mut entry = store.entry(&key(0), &about).unwrap();
        let mut appended: BTreeSet<u64> = BTreeSet::new();
        let mut buffered: Vec<u64> = Vec::new();
        // What was written together is one file.
        let mut files: BTreeMap<Vec<u64>, PathBuf> = BTreeMap::new();
        let mut attacked: BTreeSet<u64> = BTreeSet::new();
        // Found where they were added last, whatever has become of the earlier ones.
        let mut fresh: BTreeSet<u64> = BTreeSet::new();
        for action in actions {
            match action {
                Action::Append(samples) => {
                    append(&mut entry, samples.clone()).unwrap();
                    appended.extend(&samples);
                    fresh.extend(&samples);
                    buffered.extend(samples);
                }
                Action::Flush | Action::Reopen => {
                    entry.flush().unwrap();
                    let found = folder::chunk_files(&path).unwrap();
                    let new = found.into_iter().map(|(file, _)| file).find(|file| !files.values().any(|old| old == file));
                    if let Some(new) = new {
                        files.insert(buffered.clone(), new);
                    }
                    prop_assert!(buffered.is_empty() || files.contains_key(&buffered));
                    buffered.clear();
                    if matches!(action, Action::Reopen) {
                        entry = store.entry(&key(0), &about).unwrap();
                        fresh.clear();
                    }
                }
                Action::Attack(target, attack) if !files.is_empty() => {
                    let (samples, file) = files.iter().nth(target % files.len()).unwrap();
                    let Some(mut bytes) = fs::read(file).ok().filter(|bytes| !bytes.is_empty()) else { continue };
                    let length = bytes.len();
                    // In place of the file, not into it: the entry may have it mapped.
                    fs::remove_file(file).unwrap();
                    match attack {
                        Attack::Flip(at) => bytes[at % length] ^= 0x10,
                        Attack::Cut(at) => bytes.truncate(at % length),
                        Attack::Remove => {}
                    }
                    if !matches!(attack, Attack::Remove) {
                        fs::write(file, bytes).unwrap();
                    }
                    attacked.extend(samples);
                    fresh.retain(|sample| !samples.contains(sample));
                }
                Action::Attack(..) => {}
            }
            for sample in 0..40 {
                match get(&entry, &key(sample)) {
                    Some(values) => prop_assert!(appended.contains(&sample) && values == row(sample, 3)),
                    None => {
                        let excused = attacked.contains(&sample) && !fresh.contains(&sample);
                        prop_assert!(excused || !appended.contains(&sample), "{} is missing", sample);
                    }
                }
            }
        }
    }
}
