//! The rows of entries, in memory and on disk.

use super::*;
use crate::{DType, ops::testing::cpu};

fn key(name: &str) -> Key {
    KeyBuilder::new("cpu").text(name).finish()
}

fn sought(entry: &str, row: &str, index: u32) -> Sought {
    Sought { entry: key(entry), row: Some(key(row)), label: 10 * index, index }
}

/// An entry with rows of four values, each its own number, from one batch.
fn add(cache: &mut ActivationCache, entry: &str, rows: &[(&str, f32)]) -> Result<()> {
    let values = rows.iter().flat_map(|(_, value)| [*value; 4]).collect();
    let batch = Tensor::new(values, [rows.len(), 4], &cpu(1))?;
    let keys: Vec<(usize, Key)> = rows.iter().map(|(name, _)| key(name)).enumerate().collect();
    cache.add(key(entry), &batch, &keys, Home::Memory)
}

#[test]
fn rows_are_found_by_sample_and_failures_are_remembered() -> Result<()> {
    let mut cache = ActivationCache::default();
    add(&mut cache, "clean", &[("a", 1.0), ("b", 2.0)])?;
    add(&mut cache, "clean", &[("c", 3.0)])?;
    add(&mut cache, "views", &[("b", 4.0)])?;
    cache.add_failed(key("clean"), key("broken"));
    let gone = Sought { row: None, ..sought("clean", "a", 5) };
    let samples = [
        sought("clean", "c", 0),
        sought("clean", "broken", 1),
        sought("views", "b", 2),
        sought("clean", "new", 3),
        sought("clean", "a", 4),
        gone,
    ];
    assert_eq!(samples.map(|sample| cache.knows(&sample)), [true, true, true, false, true, false]);
    assert_eq!(samples.map(|sample| cache.holds(&sample)), [true, false, true, false, true, false]);
    let selected = cache.select(&samples, &cpu(1))?;
    assert_eq!((selected.labels(), selected.indices()), (&[0, 20, 40][..], &[0, 2, 4][..]));
    let (values, _) = selected.gather(&[0, 1, 2], &cpu(1))?;
    assert_eq!(values.to_vec::<f32>()?, [[3.0; 4], [4.0; 4], [1.0; 4]].concat());
    Ok(())
}

#[test]
fn what_was_used_least_recently_goes_where_there_is_no_room() -> Result<()> {
    let mut cache = ActivationCache::default();
    // Entries of 32 bytes.
    for name in ["one", "two", "three"] {
        add(&mut cache, name, &[("a", 1.0), ("b", 2.0)])?;
    }
    cache.set_limit(100);
    assert_eq!((cache.bytes(), cache.limit()), (96, 100));
    cache.select(&[sought("one", "a", 0)], &cpu(1))?;
    assert!(cache.make_room(30, &[]));
    let left = |cache: &ActivationCache| ["one", "two", "three"].map(|name| cache.knows(&sought(name, "a", 0)));
    assert_eq!(left(&cache), [true, false, true]);
    assert!(cache.make_room(68, &[key("three")]) && left(&cache) == [false, false, true]);
    assert!(!cache.make_room(69, &[key("three")]) && left(&cache) == [false, false, true]);
    cache.remove(&key("three"));
    assert_eq!(cache.bytes(), 0);
    Ok(())
}

#[test]
fn rows_come_back_from_disk_and_a_disk_that_fails_is_said_once() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let about = |stored| store::About { dims: vec![2, 2], stored, ..store::About::default() };
    let samples = ["a", "b", "c"].map(|row| sought("clean", row, 0));
    let opened = |place: PathBuf| {
        let mut cache = ActivationCache::default();
        cache.set_folder(Some(place));
        cache
    };
    let kinds = [(store::Stored::F32, DType::F32), (store::Stored::Bf16, DType::BF16)];
    for ((stored, dtype), home) in
        kinds.into_iter().flat_map(|kind| [Home::Memory, Home::Disk].map(|home| (kind, home)))
    {
        let folder = folder.path().join(format!("{home:?}"));
        let batch = Tensor::new((1..=8).map(|n| 0.5 * n as f32).collect(), [2, 2, 2], &cpu(1))?.cast(dtype)?;
        let mut cache = opened(folder.clone());
        cache.load(&samples, &about(stored), home);
        cache.add(key("clean"), &batch, &[(1, key("a")), (0, key("b"))], home)?;
        cache.flush();
        drop(cache);
        let mut cache = opened(folder.clone());
        cache.load(&samples, &about(stored), home);
        // Not even if its files go away.
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(cache.bytes() == 0, home == Home::Disk);
        assert_eq!(samples.map(|sample| cache.knows(&sample)), [true, true, false], "{stored:?}");
        let (values, _) = cache.select(&samples, &cpu(1))?.gather(&[0, 1], &cpu(1))?;
        assert_eq!((values.dims(), values.dtype()), (&[2, 2, 2][..], dtype));
        assert_eq!(values.cast(DType::F32)?.to_vec::<f32>()?, [2.5, 3.0, 3.5, 4.0, 0.5, 1.0, 1.5, 2.0]);
        assert!(cache.take_notes().is_empty());
    }
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let mut cache = opened(file);
    for _ in 0..2 {
        cache.load(&samples, &about(store::Stored::F32), Home::Memory);
        add(&mut cache, "clean", &[("a", 1.0)])?;
    }
    let notes = cache.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("in memory alone"), "{notes:?}");
    assert!(cache.knows(&samples[0]));
    Ok(())
}
