//! Damaged, hostile and mistaken files: errors that name file and cause, never a panic, a call or much memory.

use std::path::Path;

use proptest::prelude::*;
use unfreeze::{
    Error,
    checkpoint::{
        Checkpoint, CheckpointFile, Conversion, ConvertOptions, FileDtype, FileTensor, Target, TensorSource, compare,
    },
};

use crate::{
    Tensors,
    containers::{legacy, npy, npz, pickle, stored, tar, zip},
    originals::fixture,
    refusal, shared, write,
};

/// The error of reading a file `name` with these bytes.
pub fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    refusal(path)
}

#[test]
fn golden_hostile_and_broken_files_are_refused() {
    let Some(folder) = shared("golden/checkpoints") else { return };
    for file in ["hostile_zip.pth", "hostile_plain.pkl"] {
        let error = refusal(folder.join(file));
        assert!(error.contains("posix.system"), "{error}");
    }
    for folder in [Path::new("."), &folder] {
        assert!(!folder.join("unfreeze-was-here").exists(), "the pickle was executed");
    }
    assert!(refusal(folder.join("truncated.pth")).contains("truncated"));
    let error = refusal(folder.join("not_a_checkpoint.pth"));
    assert!(error.contains("web page") && error.contains("<html>404"), "{error}");
}

#[test]
fn mistaken_files_are_named_for_what_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(refusal(folder.path()).contains("is a folder, not a checkpoint file"));
    let index = "sharded/model.safetensors.index.json";
    assert!(refusal(fixture("sharded")).contains("give its index") && refusal(fixture("sharded")).contains(index));
    let (shards, shard) = (tempfile::tempdir().expect("a folder"), "model-00001-of-00004.safetensors");
    std::fs::copy(fixture("sharded").join(shard), shards.path().join(shard)).expect("copies");
    let error = refusal(shards.path());
    assert!(error.contains(shard) && error.contains("without their index"), "{error}");
    let missing = folder.path().join("missing.pth");
    assert!(matches!(Checkpoint::read(&missing), Err(Error::Io { path, .. }) if path == missing));
    for (name, bytes, cause) in [
        ("empty.pth", &b""[..], "is empty"),
        ("page.safetensors", b"\n <!DOCTYPE html>\n<html>", "web page (it starts with <!DOCTYPE html>)"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("text.pth", b"hello", "no known format"),
        ("image.pth", b"\x89PNG\r\n\x1a\n", "no known format"),
        ("list.pkl", b"\x80\x02]K\x01a.", "holds a list, not a dictionary of tensors by name: save the weights alone"),
        ("object.pkl", b"\x80\x02cnet\nNet\n)\x81.", "holds an object of net.Net, not a dictionary"),
        ("numbers.pkl", b"\x80\x02}X\x01\0\0\0aK\x01s.", "holds no tensors"),
        ("cut.pkl", b"\x80\x02}X\x01\0\0\0a", "was the download interrupted?"),
        ("keras.h5", b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file, as Keras writes; the .h5 of fastai 0.7"),
        ("one.npy", b"\x93NUMPY\x01\0\x02\0{}", "a single NumPy array"),
        ("other.zip", &zip(&[("readme", b"hello")], 0, |length| length as u32), "data.pkl"),
    ] {
        let error = refused(name, bytes);
        assert!(error.contains(cause), "lacks '{cause}': {error}");
    }
}

#[test]
fn damaged_safetensors_say_what_is_wrong() {
    let file = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (bytes, cause) in [
        (vec![1, 2, 3], "3 bytes"),
        ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "declares a header"),
        ([&9_000_000u64.to_le_bytes()[..], b"{}"].concat(), "declares a header"),
        (file("{\"a\":", b""), "header"),
        (
            file(
                &tensor("F32", "[2]", "[0,8]").replace("}}", &format!("}},{}", &tensor("F32", "[2]", "[0,8]")[1..])),
                &[0; 8],
            ),
            "a is there twice",
        ),
        (file(r#"{"__metadata__":{"format":"pt","format":"np"}}"#, b""), "format is there twice"),
        (file(&format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000)), b""), "a: "),
        (file(&format!(r#"{{"a":{{"x":{}1{}}}}}"#, "[".repeat(1000), "]".repeat(1000)), b""), "a: missing field"),
        (file("{}", b""), "no tensors"),
        (file(&tensor("F32", "[2]", "[0,8]"), &[0; 4]), "interrupted"),
        (file(&tensor("F32", "[2]", "[0,8]"), &[0; 12]), "12 follow"),
        (file(&tensor("F32", "[3]", "[0,8]"), &[0; 8]), "tensor a: F32 of [3] take 12 bytes, but it is given 8"),
        (file(&tensor("F4", "[3]", "[0,1]"), &[0; 1]), "tensor a: F4 of [3] take 2 bytes, but it is given 1"),
        (file(&tensor("F32", "[2]", "[4,12]"), &[0; 12]), "tensor a begins at byte 4, but what is before it ends at 0"),
        (file(&tensor("F32", "[2]", "[8,0]"), &[0; 8]), "tensor a ends at byte 0, before it begins at 8"),
        (
            file(&tensor("F32", "[4611686018427387904,4]", "[0,0]"), b""),
            "tensor a of [4611686018427387904, 4] has more",
        ),
        (file(&tensor("F32", "[18446744073709551615]", "[0,18446744073709551615]"), b""), "tensor a of ["),
        (file(&tensor("F8_E4M3", "[2]", "[0,2]"), &[0; 2]), "no tensors that are read: a is float8, which is not read"),
        (file(&tensor("X9", "[2]", "[0,2]"), &[0; 2]), "header"),
    ] {
        let error = refused("damaged.safetensors", &bytes);
        assert!(error.contains(cause), "lacks '{cause}': {error}");
    }
}

#[test]
fn damaged_arrays_say_what_is_wrong() {
    let header = |descr: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
    let archive = |array: &[u8], unpacked: u32| zip(&[("w.npy", array)], 0, |length| length as u32 + unpacked);
    for (array, cause) in [
        (npy(&header("'<f4'", "(2,)"), &[0; 4]), "do not take"),
        (npy(&header("'<f4'", "(2,)"), &[0; 12]), "do not take"),
        (npy(&header("'<f4'", "(1099511627776,)"), &[0; 8]), "do not take"),
        (npy(&header("'<f4'", "(4611686018427387904, 4)"), &[]), "do not take"),
        (npy(&header("'<f4'", "(99999999999999999999,)"), &[]), "bad extent"),
        (npy(&header("'<f4'", "(-2,)"), &[]), "bad extent"),
        (npy(&header("'<f4'", "2"), &[0; 8]), "bad 'shape'"),
        (npy(&header("'|O'", "(1,)"), b"cposix\nsystem\n"), "Python objects"),
        (npy(&header("'|V2'", "(1,)"), &[0; 2]), "bfloat16?"),
        (npy(&header("[('a', '<f4')]", "(1,)"), &[0; 4]), "of several fields"),
        (npy(&header("'<c8'", "(1,)"), &[0; 8]), "w: complex64, which is not read"),
        (npy("{'fortran_order': False}", &[]), "no 'descr'"),
        (npy("{'descr': '<f4'}", &[]), "no 'fortran_order'"),
        (npy("{'descr': '<f4', 'fortran_order': 1}", &[]), "bad 'fortran_order'"),
        (npy(&" ".repeat(20_000), &[]), "declares a header"),
        (b"\x93NUMPY\x09\0\x02\0{}".to_vec(), "version 9"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff{}".to_vec(), "declares a header"),
        (b"\x93NUM".to_vec(), "array w"),
        (b"something else".to_vec(), "does not begin"),
    ] {
        let error = refused("damaged.npz", &archive(&array, 0));
        assert!(error.contains(cause), "lacks '{cause}': {error}");
    }
    // An entry that claims a gigabyte which is not there.
    let claims = npy(&header("'<f4'", "(268435456,)"), &[0; 8]);
    let error = refused("claims.npz", &archive(&claims, (1 << 30) - 8));
    assert!(error.contains("w.npy claims 10737"), "{error}");
    let mut flipped = npz(&Tensors::from([("w".into(), FileTensor::from_f32(vec![2], vec![1.0, 2.0]).expect("fits"))]));
    let at = flipped.windows(4).position(|bytes| bytes == 2f32.to_le_bytes()).expect("the value");
    flipped[at] ^= 1;
    assert!(refused("flipped.npz", &flipped).contains("array w"));
}

/// Whole files of each format to damage.
fn victims() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("whole.safetensors");
    let tensor = |length: usize| FileTensor::from_f32(vec![length], vec![1.0; length]).expect("fits");
    write(&path, &Tensors::from([("a".into(), tensor(3)), ("b.weight".into(), tensor(5))]));
    let mut victims = vec![std::fs::read(path).expect("reads"), stored(&pickle([2, 3], [3, 1], b"")), tar(None)];
    victims.push(legacy(&pickle([2, 3], [3, 1], b"")));
    let arrays = ["a", "b.weight"].map(|name| (name.to_owned(), tensor(4)));
    victims.push(npz(&arrays.into()));
    victims.push(std::fs::read(fixture("compressed.npz")).expect("reads"));
    for file in ["legacy.pth", "strided_views.pth"] {
        victims.extend(shared(&format!("golden/checkpoints/{file}")).and_then(|path| std::fs::read(path).ok()));
    }
    victims
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for whole in victims() {
        // Zeros at the end may be padding, which no reader misses.
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        // Everywhere in the small files, at spread positions in the large ones.
        for length in (0..=end).step_by(1 + whole.len() / 700) {
            refused("cut.pth", &whole[..length]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_opened_planned_compared_and_read_without_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
        which in any::<prop::sample::Index>(),
    ) {
        thread_local!(static VICTIMS: Vec<Vec<u8>> = victims());
        let mut bytes = VICTIMS.with(|victims| victims[which.index(victims.len())].clone());
        // Where the structure is: the first and the last kilobyte.
        let edge = bytes.len().min(1024);
        for (position, value, at_end) in damage {
            let position = position.index(edge);
            let position = if at_end { bytes.len() - 1 - position } else { position };
            bytes[position] = value;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("damaged.pth");
        let limit = 64 * bytes.len() + (64 << 20);
        std::fs::write(&path, bytes).expect("writes");
        if let Ok(file) = CheckpointFile::open(&path) {
            // Damage to a value or a name goes unnoticed; what was read must still be sound.
            let mut held = 0;
            for tensor in file.tensors.values() {
                let declared = tensor.elements().saturating_mul(tensor.dtype().size());
                held += declared;
                if let Ok(tensor) = tensor.read() {
                    prop_assert_eq!(tensor.bytes().len(), declared);
                }
            }
            prop_assert!(held <= limit, "{} bytes of tensors", held);
            let _ = compare(&file.tensors, &file.tensors);
            for target in [Target::Safetensors, Target::Pth, Target::Model] {
                let options = ConvertOptions { target, dtype: Some(FileDtype::F16), ..Default::default() };
                if let Ok(plan) = Conversion::plan(file.clone(), &options) {
                    let _ = plan.tensors.values().try_for_each(|tensor| tensor.read().map(drop));
                }
            }
            let _ = file.load().and_then(Checkpoint::normalised);
        }
    }
}
