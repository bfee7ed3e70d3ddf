//! Tensors of types that are not read: each is left out by name, and asked for only where a network needs it.

use std::{fs, path::Path};

use unfreeze::{
    Device,
    checkpoint::{CheckpointFile, Conversion, ConvertOptions, FileTensor, Format, Target, Weights},
    nn::{Arch, HeadSpec},
};

use crate::{
    Tensors,
    common::program::unfreeze,
    containers::{archive, deflated, npy},
    conversion::small,
    originals::fixture,
    write,
};

fn open(path: &Path) -> CheckpointFile {
    CheckpointFile::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// What is left out, and the first words of why.
fn left_out(file: &CheckpointFile) -> Vec<(&str, &str)> {
    let reason = |why: &'static str| why.split_once(',').map_or(why, |(reason, _)| reason);
    file.left_out.iter().map(|(name, why)| (name.as_str(), reason(why))).collect()
}

/// What PyTorch wrote (`fixtures.py`), in each of its layouts.
#[test]
fn one_tensor_that_is_not_read_leaves_the_others() {
    let all = [
        ("chalf", "complex32"),
        ("complex", "complex64"),
        ("complex128", "complex128"),
        ("csr", "sparse"),
        ("float8", "float8"),
        ("meta", "without values (of the device meta)"),
        ("quantised", "quantised"),
        ("sparse", "sparse"),
    ];
    let file = open(&fixture("unread.pth"));
    assert_eq!((file.format, left_out(&file)), (Format::PytorchZip, all.to_vec()));
    let legacy = open(&fixture("unread_legacy.pth"));
    let legacy_has: Vec<_> = all.into_iter().filter(|(name, _)| *name != "meta").collect();
    assert_eq!((legacy.format, left_out(&legacy)), (Format::PytorchLegacy, legacy_has));
    for file in [file, legacy] {
        let values = |name: &str| file.tensors[name].read().expect("reads").to_f32();
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["parameter", "strided", "uint16"]);
        assert_eq!(values("strided"), [1.0, 5.0, 9.0, 2.0, 6.0, 10.0]);
        assert_eq!((values("parameter"), values("uint16")), (vec![2.0; 2], vec![65535.0; 3]));
    }
    let told = unfreeze("inspect {}", &[&fixture("unread.pth")]).succeeded();
    assert!(told.out.contains("left out: complex (complex64, which is not read)\n"), "{}", told.out);

    // In a tar archive.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("old.pth.tar");
    let count = b"\x80\x02K\x02.";
    let storage = |key: u8, class: &str| {
        [b"\x80\x02K", &[key][..], b"X\x03\0\0\0cpuctorch\n", class.as_bytes(), b"\n\x87."].concat()
    };
    let numbers = |numbers: &[i64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let table = |key: u8, class: &str| {
        [b"\x80\x02K", &[key][..], b"K", &[key], b"ctorch\n", class.as_bytes(), b"\n\x87."].concat()
    };
    let storages = [
        &count[..],
        &storage(1, "ComplexFloatStorage"),
        &numbers(&[1]),
        &[0; 8],
        &storage(2, "FloatStorage"),
        &numbers(&[2]),
        &1f32.to_le_bytes(),
        &2f32.to_le_bytes(),
        b"\x80\x02].",
    ];
    let view = |elements| numbers(&[1, elements, 1, 0]);
    let tensors = [&count[..], &table(1, "ComplexFloatTensor"), &view(1), &table(2, "FloatTensor"), &view(2)];
    let root = b"\x80\x02}(X\x01\0\0\0cX\x01\0\0\x001QX\x01\0\0\0wX\x01\0\0\x002Qu.";
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    let (storages, tensors) = (storages.concat(), tensors.concat());
    let files = [("sys_info", &system[..]), ("storages", &storages), ("tensors", &tensors), ("pickle", &root[..])];
    fs::write(&path, archive(files)).expect("writes");
    let file = open(&path);
    assert_eq!(left_out(&file), [("c", "complex64")]);
    assert_eq!(file.tensors["w"].read().expect("reads").to_f32(), [1.0, 2.0]);
}

/// A safetensors file with these tensors, those of `others` as complex64.
fn with_complex(path: &Path, tensors: &Tensors, others: &[&str]) {
    write(path, tensors);
    let bytes = fs::read(path).expect("reads");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("parses");
    for name in others {
        let entry = &mut header[*name];
        entry["dtype"] = "C64".into();
        let even = |extent: &&mut serde_json::Value| extent.as_u64().is_some_and(|extent| extent % 2 == 0);
        let halved = entry["shape"].as_array_mut().expect("a list").iter_mut().find(even).expect("an even extent");
        *halved = (halved.as_u64().expect("a number") / 2).into();
    }
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(path, file).expect("writes");
}

#[test]
fn a_network_that_needs_it_says_which_and_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let network = small(HeadSpec::Linear);
    let device = Device::cpu(1).expect("a processor");
    let plan = |target| Conversion::plan(open(&path), &ConvertOptions { target, ..Default::default() });

    let mut more = network.clone();
    more.insert("fc.extra".into(), FileTensor::from_f32(vec![2], vec![0.0; 2]).expect("fits"));
    with_complex(&path, &more, &["fc.extra"]);
    for target in [Target::Safetensors, Target::Model] {
        let plan = plan(target).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((plan.arch, plan.tensors.len()), (Some(Arch::ResNet8), network.len()));
        assert_eq!(plan.dropped, [("fc.extra".to_owned(), "complex64, which is not read")]);
    }
    Weights::file(&path).and_then(|weights| weights.with_classifier(&device)).unwrap_or_else(|error| panic!("{error}"));

    // A classifier of its own is not needed for a new one. Under a prefix, as under none.
    for prefix in ["", "module."] {
        let named = |name: &str| format!("{prefix}{name}");
        let renamed: Tensors = network.iter().map(|(name, tensor)| (named(name), tensor.clone())).collect();
        with_complex(&path, &renamed, &[&named("fc.weight")]);
        let weights = Weights::file(&path).unwrap_or_else(|error| panic!("{error}"));
        weights.with_head(HeadSpec::Linear, 2, 0, &device).unwrap_or_else(|error| panic!("{error}"));
        let error = weights.with_classifier(&device).expect_err("has none").to_string();
        assert!(error.contains("fc.weight is complex64, which is not read") && !error.contains("missing"), "{error}");
        let error = plan(Target::Model).expect_err("has none").to_string();
        assert!(error.contains("fc.weight is complex64, which is not read") && !error.contains("missing"), "{error}");

        with_complex(&path, &renamed, &[&named("bn1.weight")]);
        let weights = Weights::file(&path).unwrap_or_else(|error| panic!("{error}"));
        let error = weights.with_head(HeadSpec::Linear, 2, 0, &device).expect_err("lacks it").to_string();
        assert!(error.contains("1 tensor left out: bn1.weight is complex64") && !error.contains("missing"), "{error}");

        with_complex(&path, &renamed, &[&named("layer1.0.conv1.weight")]);
        let error = Weights::file(&path).expect_err("is none of ours").to_string();
        assert!(error.contains("resnet8 needs: layer1.0.conv1.weight is complex64, which is not read"), "{error}");
        assert!(plan(Target::Model).is_err() && plan(Target::Safetensors).is_ok());
    }
}

#[test]
fn a_shard_may_leave_out_a_tensor_of_the_index() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = || FileTensor::from_f32(vec![2], vec![1.0; 2]).expect("fits");
    with_complex(
        &folder.path().join("a.safetensors"),
        &Tensors::from([("c".into(), one()), ("w".into(), one())]),
        &["c"],
    );
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map":{"c":"a.safetensors","w":"a.safetensors"}}"#).expect("writes");
    let file = open(&index);
    assert_eq!((file.tensors.len(), left_out(&file)), (1, vec![("c", "complex64")]));
}

#[test]
fn big_endian_arrays_are_read() {
    let array = |descr: &str, fortran: &str, shape: &str, data: Vec<u8>| {
        npy(&format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"), &data)
    };
    let floats = (0..6u8).flat_map(|value| f32::from(value).to_be_bytes()).collect::<Vec<_>>();
    let doubles = [1.5f64, -2.0].iter().flat_map(|value| value.to_be_bytes()).collect();
    let longs = [1i64 << 40, -7].iter().flat_map(|value| value.to_be_bytes()).collect();
    let entries = [
        ("f4.npy", array(">f4", "False", "(2, 3)", floats.clone())),
        ("turned.npy", array(">f4", "True", "(3, 2)", floats)),
        ("f8.npy", array(">f8", "False", "(2,)", doubles)),
        ("i8.npy", array(">i8", "False", "(2,)", longs)),
        ("u2.npy", array(">u2", "False", "(1,)", vec![1, 2])),
        ("complex.npy", array(">c8", "False", "(1,)", vec![0; 8])),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("big.npz");
    fs::write(&path, deflated(&entries.each_ref().map(|(name, bytes)| (*name, bytes.as_slice())))).expect("writes");
    let file = open(&path);
    let values = |name: &str| file.tensors[name].read().expect("reads").values().collect::<Vec<_>>();
    assert_eq!(values("f4"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(values("turned"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!((values("f8"), values("i8")), (vec![1.5, -2.0], vec![(1i64 << 40) as f64, -7.0]));
    assert_eq!((values("u2"), left_out(&file)), (vec![258.0], vec![("complex", "complex64")]));
}
