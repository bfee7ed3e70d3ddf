//! Files that are not what was written.

use super::*;

#[test]
fn every_byte_counts() {
    let filled = Filled::new();
    let chunk = &filled.chunks()[0];
    let whole = fs::read(chunk).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(chunk, bytes).unwrap();
        filled.damaged(chunk, 0..3, &format!("byte {at} of {}", whole.len()));
    }
    // Computed anew they are as before.
    let mut entry = filled.entry();
    append(&mut entry, 0..3).unwrap();
    entry.flush().unwrap();
    assert!(fs::read(chunk).unwrap() == whole, "equal rows are an equal file");
    assert_eq!(there(&entry, 0..5), [0, 1, 2, 3, 4]);
}

#[test]
fn every_byte_is_needed_and_none_more() {
    let filled = Filled::new();
    let chunk = &filled.chunks()[1];
    let whole = fs::read(chunk).unwrap();
    for length in (0..whole.len()).chain([whole.len() + 1, whole.len() + 8, 100_000]) {
        let mut bytes = whole.clone();
        bytes.resize(length, 7);
        fs::write(chunk, bytes).unwrap();
        filled.damaged(chunk, 3..5, &format!("{length} bytes of {}", whole.len()));
    }
}

/// A chunk as the documentation describes it.
fn forged(version: u32, description: &str, length: u32, keys: &[Key], values: &[f32]) -> Vec<u8> {
    let mut bytes = b"unfreeze activations\n".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(description.as_bytes());
    keys.iter().for_each(|key| bytes.extend(key.0));
    bytes.extend(blake3::hash(&bytes).as_bytes());
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

#[test]
fn numbers_of_strangers_are_not_believed() {
    let filled = Filled::new();
    let values = row(9, 2);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let hex = |bytes: [u8; 32]| blake3::Hash::from_bytes(bytes).to_string();
    let (entry, hash) = (hex(key(0).0), blake3::hash(&bytes).to_string());
    let describe = |key: &str, dims: &str, stored: &str, rows: u64| {
        format!(
            r#"{{"key":"{key}","about":{{"dims":{dims},"stored":"{stored}","arch":"","boundary":"","size":1,"computed":"",
            "data":""}},"rows":{rows},"values":"{hash}"}}"#
        )
    };
    let path = filled.path().join("forged.chunk");
    let attack = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let entry = filled.entry();
        (there(&entry, 0..10), entry.notes())
    };
    let good = describe(&entry, "[2]", "f32", 1);
    let length = good.len() as u32;
    let (found, notes) = attack(&forged(1, &good, length, &[key(9)], &values));
    assert_eq!((found, notes.len()), (vec![0, 1, 2, 3, 4, 9], 0), "the format is as documented");

    for (bytes, cause) in [
        (forged(2, &good, length, &[key(9)], &values), "version 2"),
        (forged(0, &good, length, &[key(9)], &values), "version 0"),
        (forged(1, &good, u32::MAX, &[key(9)], &values), "too long"),
        (forged(1, &good, 1 << 20, &[key(9)], &values), "cut off"),
        (forged(1, &good, length - 1, &[key(9)], &values), "does not read"),
        (forged(1, &good, 0, &[key(9)], &values), "does not read"),
        (forged(1, &"[".repeat(100_000), 100_000, &[key(9)], &values), "does not read"),
        (forged(1, &good, length, &[key(9), key(8)], &values), "length"),
        (forged(1, &good, length, &[], &values), "length"),
        (forged(1, &good, length, &[key(9)], &[9.0, 9.0]), "checksum of its values"),
    ] {
        let (found, notes) = attack(&bytes);
        assert_eq!(found, [0, 1, 2, 3, 4], "{cause}");
        assert!(notes.len() == 1 && notes[0].contains(cause), "{cause}: {notes:?}");
    }
    for (key_text, dims, stored, rows, cause) in [
        (hex(key(1).0).as_str(), "[2]", "f32", 1, "of another entry"),
        (&entry, "[1,2]", "f32", 1, "of another entry"),
        (&entry, "[4]", "bf16", 1, "of another entry"),
        (&entry, "[2]", "f64", 1, "does not read"),
        (&entry, "[2]", "f32", 0, "length"),
        (&entry, "[2]", "f32", u32::MAX.into(), "more than a chunk has"),
        (&entry, "[2]", "f32", 1 << 22, "length"),
        (&entry, "[2]", "f32", 1 << 32, "does not read"),
        (&entry, "[0]", "f32", 1, "length"),
        (&entry, "[]", "f32", 1, "length"),
        (&entry, "[18446744073709551615,18446744073709551615]", "f32", 1, "length"),
        (&entry, "[4611686018427387904]", "f32", 1 << 22, "length"),
        (&entry, "[-2]", "f32", 1, "does not read"),
        ("12", "[2]", "f32", 1, "no checksum"),
    ] {
        let text = describe(key_text, dims, stored, rows);
        let (found, notes) = attack(&forged(1, &text, text.len() as u32, &[key(9)], &values));
        assert_eq!(found, [0, 1, 2, 3, 4], "{text}");
        assert!(notes.len() == 1 && notes[0].contains(cause), "{text}: {notes:?}");
    }
}

#[test]
fn a_chunk_in_anothers_folder_is_found_out() {
    let filled = Filled::new();
    let mut other = filled.store.entry(&key(1), &filled.about).unwrap();
    append(&mut other, [3, 7]).unwrap();
    drop(other);
    let others = filled.folder.path().join(filled.about.id(&key(1)));
    let stranger = folder::chunk_files(&others).unwrap().remove(0).0;
    let place = filled.path().join(stranger.file_name().unwrap());
    fs::rename(&stranger, &place).unwrap();
    let note = filled.damaged(&place, 5..5, "renamed");
    assert!(note.contains("another entry"), "{note}");
    // Even if it comes after the opening, and under the right name.
    let entry = filled.entry();
    let [first, second] = [0, 1].map(|chunk| filled.chunks()[chunk].clone());
    fs::rename(second, first).unwrap();
    assert_eq!(there(&entry, 0..5), [0u64; 0]);
}

#[test]
fn what_is_no_file_of_the_store_is_left_alone() {
    let filled = Filled::new();
    let root = filled.folder.path();
    fs::create_dir(filled.path().join("folder.chunk")).unwrap();
    fs::write(filled.path().join("notes.txt"), "mine").unwrap();
    fs::write(root.join("a file"), "mine").unwrap();
    fs::create_dir(root.join("kernels")).unwrap();
    fs::write(root.join("0123456789abcdef0123456789abcdef"), "mine").unwrap();
    #[cfg(unix)]
    {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("x.chunk"), "mine").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("ffffffffffffffffffffffffffffffff")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x.chunk"), filled.path().join("link.chunk")).unwrap();
        let entry = filled.entry();
        assert_eq!((there(&entry, 0..5).len(), entry.notes().len()), (5, 0));
        assert!(outside.path().join("x.chunk").exists());
    }
    let listed = filled.store.list().unwrap();
    assert_eq!(listed.len(), 1);
    let message = filled.store.clear(&listed[0]).unwrap_err().to_string();
    assert!(message.contains(&listed[0].id) && filled.chunks().is_empty(), "{message}");
    assert!(filled.path().join("notes.txt").exists() && root.join("a file").exists() && root.join("kernels").exists());
}
