//! Attacks on a store, each compared with what was put in.

mod damage;
mod model;
mod sharing;

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::*;
use crate::{cache::KeyBuilder, random::Random};

const BUDGET: u64 = 1 << 30;

fn key(number: u64) -> Key {
    KeyBuilder::new("test").text(&number.to_string()).finish()
}

fn about(dims: &[usize], stored: Stored) -> About {
    let text = |text: &str| text.to_owned();
    let (arch, boundary, computed, data) = (text("resnet18"), text("avgpool"), text("cpu f32"), text("photos"));
    About { dims: dims.to_vec(), stored, arch, boundary, size: 224, computed, data }
}

/// The row of a sample: different in every value.
fn row(sample: u64, elements: usize) -> Vec<f32> {
    (0..elements).map(|at| sample as f32 + at as f32 / 4096.0).collect()
}

fn append(entry: &mut Entry, samples: impl IntoIterator<Item = u64>) -> Result<()> {
    let elements = entry.elements();
    let samples: Vec<u64> = samples.into_iter().collect();
    let keys: Vec<Key> = samples.iter().map(|sample| key(*sample)).collect();
    let values: Vec<f32> = samples.iter().flat_map(|sample| row(*sample, elements)).collect();
    entry.append(&keys, &values)
}

fn get(entry: &Entry, sample: &Key) -> Option<Vec<f32>> {
    let row = entry.find(sample)?;
    let mut values = vec![f32::NAN; entry.elements()];
    let there = entry.read(row, &mut values).unwrap();
    assert_eq!(entry.find(sample).is_some(), there, "what is lost is not found");
    there.then_some(values)
}

/// Which of the samples are there, with their own values.
fn there(entry: &Entry, samples: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let is_there = |sample: &u64| match get(entry, &key(*sample)) {
        Some(values) => {
            assert!(values == row(*sample, entry.elements()), "sample {sample}: {values:?}");
            true
        }
        None => false,
    };
    samples.into_iter().filter(is_there).collect()
}

/// A store with one entry of two chunks: samples 0 to 2, and 3 and 4.
struct Filled {
    folder: TempDir,
    store: Store,
    about: About,
}

impl Filled {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), BUDGET).unwrap();
        let filled = Self { folder, store, about: about(&[2], Stored::F32) };
        let mut entry = filled.entry();
        append(&mut entry, 0..3).unwrap();
        entry.flush().unwrap();
        append(&mut entry, 3..5).unwrap();
        drop(entry);
        filled
    }

    fn entry(&self) -> Entry {
        self.store.entry(&key(0), &self.about).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.about.id(&key(0)))
    }

    /// The files of the chunks, the one of three rows first.
    fn chunks(&self) -> Vec<PathBuf> {
        let mut files = folder::chunk_files(&self.path()).unwrap();
        files.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        files.into_iter().map(|(path, _)| path).collect()
    }

    /// Opens the entry where one chunk is damaged: its rows are gone, the others are not, and one note says so.
    fn damaged(&self, chunk: &Path, lost: std::ops::Range<u64>, attack: &str) -> String {
        let entry = self.entry();
        let left: Vec<u64> = (0..5).filter(|sample| !lost.contains(sample)).collect();
        assert_eq!(there(&entry, 0..5), left, "{attack}");
        let notes = entry.notes();
        assert!(notes.len() == 1 && notes[0].contains(chunk.to_str().unwrap()), "{attack}: {notes:?}");
        assert_eq!(there(&entry, 0..5), left, "{attack}");
        assert!(entry.notes().is_empty() && !chunk.exists(), "{attack}");
        notes[0].clone()
    }
}

#[test]
fn values_come_back_to_the_bit() {
    let special = [f32::NAN, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 8.0, f32::MAX, -1.5];
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), BUDGET).unwrap();
    let about = about(&[1, 6], Stored::F32);
    let mut entry = store.entry(&key(0), &about).unwrap();
    entry.append(&[key(1)], &special).unwrap();
    let buffered = get(&entry, &key(1)).unwrap();
    entry.flush().unwrap();
    let written = get(&entry, &key(1)).unwrap();
    drop(entry);
    let reopened = get(&store.entry(&key(0), &about).unwrap(), &key(1)).unwrap();
    for values in [buffered, written, reopened] {
        assert_eq!(bits(&values), bits(&special));
    }
}

#[test]
fn bfloat16_rounds_to_nearest_even_in_memory_and_on_disk() {
    let mut random = Random::stream(5, "values", &[]);
    let mut values: Vec<f32> = (0..1000).map(|_| random.uniform(-100.0, 100.0)).collect();
    // Half way between two: up, down, up.
    values.extend([0x3F81_8000, 0x3F80_8000, 0xBF83_8000].map(f32::from_bits));
    let nearest_even = |value: &f32| {
        let bits = value.to_bits();
        f32::from_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
    };
    let expected: Vec<f32> = values.iter().map(nearest_even).collect();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), BUDGET).unwrap();
    let about = about(&[values.len()], Stored::Bf16);
    let mut entry = store.entry(&key(0), &about).unwrap();
    entry.append(&[key(1)], &values).unwrap();
    assert_eq!(get(&entry, &key(1)).unwrap(), expected);
    drop(entry);
    assert_eq!(get(&store.entry(&key(0), &about).unwrap(), &key(1)).unwrap(), expected);
    // Half the bytes, and another entry than with f32.
    let files = store.list().unwrap();
    assert!(files.len() == 1 && files[0].bytes < 2 * values.len() as u64 + 600, "{files:?}");
    assert_eq!(store.entry(&key(0), &About { stored: Stored::F32, ..about }).unwrap().find(&key(1)), None);
}

#[test]
fn many_rows_make_chunks_of_some_mebibytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), BUDGET).unwrap();
    let about = about(&[1 << 10, 3 << 8], Stored::F32); // 3 MiB
    let mut entry = store.entry(&key(0), &about).unwrap();
    append(&mut entry, 0..3).unwrap();
    append(&mut entry, 3..5).unwrap();
    assert_eq!(store.list().unwrap()[0].chunks, 2);
    assert_eq!(there(&entry, 0..6), [0, 1, 2, 3, 4]);
    drop(entry);
    let listed = store.list().unwrap();
    assert_eq!((listed[0].chunks, listed[0].rows), (3, 5));
    assert_eq!(there(&store.entry(&key(0), &about).unwrap(), 0..6), [0, 1, 2, 3, 4]);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), BUDGET).unwrap();
    for dims in [vec![0], vec![usize::MAX, 2], vec![3, 0, 5], vec![usize::MAX]] {
        assert!(matches!(store.entry(&key(0), &about(&dims, Stored::F32)), Err(Error::Shape { .. })), "{dims:?}");
    }
    let mut entry = store.entry(&key(0), &about(&[2], Stored::F32)).unwrap();
    assert!(entry.append(&[key(1)], &[1.0]).is_err() && entry.append(&[], &[1.0]).is_err());
    append(&mut entry, 0..2).unwrap();
    assert!(entry.read(2, &mut [0.0; 2]).is_err() && entry.read(u32::MAX, &mut [0.0; 2]).is_err());
    assert!(entry.read(1, &mut [0.0; 1]).is_err() && entry.read(1, &mut [0.0; 3]).is_err());
    assert_eq!(there(&entry, 0..3), [0, 1]);
}

#[test]
fn what_vanishes_is_missing() {
    let filled = Filled::new();
    let mut entry = filled.entry();
    fs::remove_file(&filled.chunks()[0]).unwrap();
    assert_eq!(there(&entry, 0..5), [3, 4]);
    // What is mapped stays; what is appended makes the folder again.
    fs::remove_dir_all(filled.folder.path()).unwrap();
    assert_eq!(there(&entry, 0..5), [3, 4]);
    append(&mut entry, 0..3).unwrap();
    entry.flush().unwrap();
    assert_eq!((there(&entry, 0..5).len(), entry.notes().len()), (5, 0));
    drop(entry);
    assert_eq!(there(&filled.entry(), 0..5), [0, 1, 2]);
    // Moved while it is open, and opened at its new place.
    let entry = filled.entry();
    let moved = tempfile::tempdir().unwrap();
    let place = moved.path().join("moved");
    fs::rename(filled.folder.path(), &place).unwrap();
    assert!(there(&entry, 0..5).is_empty() && entry.notes().is_empty());
    let store = Store::open(&place, BUDGET).unwrap();
    assert_eq!(there(&store.entry(&key(0), &filled.about).unwrap(), 0..5), [0, 1, 2]);
}

#[test]
fn a_place_that_is_no_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    for (place, cause) in [(&file, "file: is not a folder"), (&file.join("inside"), "inside: Not a directory")] {
        let message = Store::open(place, BUDGET).unwrap_err().to_string();
        assert!(message.contains(cause), "{message}");
    }
    // In place of an entry's folder, before the entry is opened and after.
    let store = Store::open(folder.path(), BUDGET).unwrap();
    let about = about(&[2], Stored::F32);
    let mut entry = store.entry(&key(0), &about).unwrap();
    let place = folder.path().join(about.id(&key(0)));
    fs::write(&place, "mine").unwrap();
    append(&mut entry, 0..2).unwrap();
    let error = entry.flush().unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path == &place), "{error}");
    assert_eq!(there(&entry, 0..3), [0, 1]);
    assert!(matches!(store.entry(&key(0), &about), Err(Error::Io { path, .. }) if path == place));
    assert_eq!(fs::read(&place).unwrap(), b"mine");
}
