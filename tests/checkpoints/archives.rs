//! Zip archives, of PyTorch and NumPy: their directories may lie and contradict themselves; honest ones may shrink a
//! thousandfold.

use unfreeze::checkpoint::{CheckpointFile, TensorSource};

use crate::{
    containers::{deflated, npy, pickle, stored, tensor, text, zip},
    hostile::refused,
};

/// The file of these bytes, open.
fn open(name: &str, bytes: &[u8]) -> CheckpointFile {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("writes");
    CheckpointFile::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// `bytes` with the last `find` in them replaced by as many others.
fn patched(mut bytes: Vec<u8>, find: &[u8], offset: usize, new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(find.len()).rposition(|window| window == find).expect("is there") + offset;
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn array(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"), data)
}

#[test]
fn directories_that_contradict_themselves_are_refused() {
    let honest = pickle([2, 3], [3, 1], b"");
    let twice = zip(&[("a/data.pkl", &honest), ("a/data/0", b"0"), ("a/data/0", b"1")], 0, |length| length as u32);
    assert!(refused("twice.pth", &twice).contains("two entries a/data/0"));
    let w = array("'<f4'", "(1,)", &[0; 4]);
    let twice = zip(&[("w.npy", &w), ("w.npy", &w)], 0, |length| length as u32);
    assert!(refused("twice.npz", &twice).contains("two entries w.npy"));

    // Entries that lie on each other: the second header of the directory leads to the first entry.
    let whole = deflated(&[("a.npy", &w), ("b.npy", &w)]);
    let second = patched(whole, b"PK\x01\x02", 42, &[0; 4]);
    assert!(refused("overlap.npz", &second).contains("overlap"));

    // Names that the reader would look for in vain, each among all.
    let names: Vec<String> = (0..5000).map(|index| format!("a/data/zzz{index}")).collect();
    let mut entries: Vec<(&str, &[u8])> = vec![("a/data.pkl", &honest), ("a/data/0", b"0")];
    entries.extend(names.iter().map(|name| (name.as_str(), &b""[..])));
    let mut foreign = zip(&entries, 0, |length| length as u32);
    let places: Vec<usize> = (0..foreign.len() - 3).filter(|at| foreign[*at..].starts_with(b"zzz")).collect();
    places.into_iter().for_each(|at| foreign[at] = 0xff);
    assert!(refused("foreign.pth", &foreign).contains("not UTF-8"));

    // A file before the archive.
    let before = [&b"PK\x03\x04 something else"[..], &stored(&honest)].concat();
    assert!(refused("before.pth", &before).contains("before the zip archive"));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let packed = |method| zip(&[("a/data.pkl", &[0; 100])], method, |_| 90 << 20);
    for method in [0, 8] {
        assert!(refused("packed.pth", &packed(method)).contains("a/data.pkl claims 94371840 bytes in 100"));
    }
    // The end record says that the directory takes no bytes, or has a place in a record of 64 bits which is not there.
    let hidden = patched(packed(8), b"PK\x05\x06", 12, &[0; 4]);
    assert!(refused("hidden.pth", &hidden).contains("claims"));
    let unsure = patched(packed(8), b"PK\x05\x06", 12, &[0xff; 4]);
    assert!(refused("unsure.pth", &unsure).contains("claims"));
    // A comment that holds an end record of its own.
    let inner = zip(&[("readme", b"hello")], 0, |length| length as u32);
    let mut commented = packed(8);
    let length = commented.len();
    commented[length - 2..].copy_from_slice(&(inner.len() as u16).to_le_bytes());
    commented.extend(inner);
    refused("commented.pth", &commented);
}

#[test]
fn compressed_storages_are_bounded_together() {
    // Each could pass for weights that shrink well. A tensor of two elements may need one whole.
    let megabyte = vec![0; 1 << 20];
    let names: Vec<String> = (0..32).map(|index| format!("a/data/{index}")).collect();
    let honest = pickle([2, 3], [3, 1], b"");
    let mut entries: Vec<(&str, &[u8])> = vec![("a/data.pkl", &honest)];
    entries.extend(names.iter().map(|name| (name.as_str(), megabyte.as_slice())));
    assert!(refused("many.pth", &deflated(&entries)).contains("unpacks to far more"));
    let few = open("few.pth", &deflated(&entries[..2]));
    assert_eq!(few.tensors["w"].read().expect("reads").to_f32(), [0.0; 6]);
}

#[test]
fn arrays_of_zeros_shrink_a_thousandfold_and_are_read() {
    let zeros = array("'<f4'", "(1024, 1024)", &vec![0; 4 << 20]);
    let file = deflated(&[("w.npy", &zeros)]);
    assert!(file.len() < 8192, "{} bytes", file.len());
    let open = open("zeros.npz", &file);
    assert_eq!(open.tensors["w"].shape(), [1024, 1024]);
    assert!(open.tensors["w"].read().expect("reads").to_f32().iter().all(|value| *value == 0.0));
}

#[test]
fn arrays_of_zeros_are_bounded_together() {
    let zeros = array("'<f4'", "(20, 1024, 1024)", &vec![0; 80 << 20]);
    let file = deflated(&[("w.npy", &zeros)]);
    assert!(refused("bomb.npz", &file).contains("declares 83886080 bytes of tensors in"));
}

#[test]
fn arrays_that_are_no_numbers_are_left_out() {
    let w = array("'<f4'", "(1,)", &1f32.to_le_bytes());
    let names = array("'<U2'", "(1,)", &[b'a', 0, 0, 0, b'b', 0, 0, 0]);
    let objects = array("'|O'", "(1,)", b"cposix\nsystem\n(S'ls'\ntR.");
    let stored = |entries: &[(&str, &[u8])]| zip(entries, 0, |length| length as u32);
    let file = open(
        "mixed.npz",
        &stored(&[("classes.npy", &names), ("w.npy", &w), ("log.npy", &objects), ("readme.txt", b"hello")]),
    );
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["w"]);
    let left: Vec<(&str, &str)> = file.left_out.iter().map(|(name, why)| (name.as_str(), *why)).collect();
    let objects_say = "Python objects (a pickle), which are not read";
    assert_eq!(left, [("classes", "text"), ("log", objects_say), ("readme.txt", "no array")]);
    let error = refused("text.npz", &stored(&[("classes.npy", &names)]));
    assert!(error.contains("no arrays of numbers, only classes: text"), "{error}");
    let deep = array("'<f4'", &format!("({})", "1, ".repeat(65)), &[0; 4]);
    assert!(refused("deep.npz", &stored(&[("w.npy", &deep)])).contains("65 extents"));
    assert_eq!(open_rank(64), 64);
}

fn open_rank(rank: usize) -> usize {
    let w = array("'<f4'", &format!("({})", "1, ".repeat(rank)), &[0; 4]);
    open("rank.npz", &deflated(&[("w.npy", &w)])).tensors["w"].read().expect("reads").shape.len()
}

#[test]
fn tensors_beside_a_wrapper_are_left_out_and_said() {
    let nested = [&text("model")[..], b"}", &text("w"), &tensor([2, 3], [3, 1]), b"ss"].concat();
    let beside = [&text("head.weight")[..], &tensor([2, 3], [3, 1]), b"s"].concat();
    let file = open("wrapped.pth", &stored(&[b"\x80\x02}", &nested[..], &beside, b"."].concat()));
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["w"]);
    assert_eq!(file.left_out, [("head.weight".to_owned(), "stored beside the weights")]);
}
