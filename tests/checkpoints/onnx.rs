//! ONNX: graphs that PyTorch exported, files of our own writing, and damaged ones. `onnx.py` says how the fixtures were
//! made; `onnx_runtime.rs` runs our files.

use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;
use serde_json::Value;
use unfreeze::{
    Device, Tensor,
    autograd::{Parameters, Role},
    checkpoint::{
        BatchNormForm, Checkpoint, FileDtype, FileTensor, Format, LoadOptions, OnnxOptions, collect, load_into,
        write_onnx, write_safetensors,
    },
    nn::{Arch, HeadSpec, Model},
    random::Random,
};

use crate::{
    Tensors, cast,
    common::{formula, program::unfreeze},
    read, refusal,
};

pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints");

pub fn device() -> Device {
    Device::cpu(2).expect("a processor")
}

/// A network of which no two values are alike.
pub fn network(arch: Arch, head: HeadSpec, classes: usize) -> Model {
    let mut model = Model::new(arch, head, classes, 0, &device()).expect("a network");
    formula::fill(&mut model, &device());
    model
}

/// The values of a model that is written to `path` and read back.
pub fn written(model: &Model, metadata: &BTreeMap<String, String>, options: &OnnxOptions, path: &Path) -> Checkpoint {
    write_onnx(path, &collect(model).expect("tensors"), metadata, options).unwrap_or_else(|error| panic!("{error}"));
    read(path)
}

pub fn logits(model: &Model, images: &Tensor) -> Vec<f32> {
    model.logits(images).and_then(|logits| logits.to_vec()).expect("logits")
}

/// The largest difference over the norm.
pub fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let norm = theirs.iter().map(|value| value * value).sum::<f32>().sqrt();
    let largest = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
    assert!(largest.is_finite());
    largest / norm
}

/// What `weights.data` has at byte `offset`: values that follow no pattern.
fn stored_value(offset: u64) -> f32 {
    let mixed = (offset / 4 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

#[test]
fn networks_that_pytorch_exported_are_recognised() {
    let folder = tempfile::tempdir().expect("a folder");
    let expected = fs::read_to_string(format!("{FOLDER}/onnx/expected.json")).expect("fixtures");
    let expected: BTreeMap<String, Value> = serde_json::from_str(&expected).expect("JSON");
    for (file, expected) in &expected {
        let path = folder.path().join(file);
        fs::copy(format!("{FOLDER}/onnx/{file}"), &path).expect("copies");
        let error = refusal(&path);
        assert!(error.contains("weights.data") || error.contains("interrupted"), "{error}");
        let length = expected["length"].as_u64().expect("a length");
        let data: Vec<f32> = (0..length.div_ceil(4)).map(|at| stored_value(4 * at)).collect();
        fs::write(folder.path().join("weights.data"), &raw(&data)[..length as usize]).expect("writes");

        let checkpoint = read(&path);
        assert_eq!(checkpoint.format, Format::Onnx);
        let offsets = expected["offsets"].as_object().expect("offsets");
        let transposed = expected["transposed"].as_array().expect("names").iter();
        let transposed: Vec<&str> = transposed.map(|name| name.as_str().expect("a name")).collect();
        for (name, tensor) in &checkpoint.tensors {
            let mut values = tensor.to_f32();
            if transposed.contains(&name.as_str()) {
                let columns = tensor.shape[1];
                values = (0..columns).flat_map(|at| values[at..].iter().step_by(columns)).copied().collect();
            }
            let Some(offset) = offsets.get(name).and_then(Value::as_u64) else {
                // Of a batchnorm that was folded, or of a linear layer without biases.
                let is_bias = name.ends_with("bias");
                let neutral = if is_bias || name.ends_with("running_mean") { 0.0 } else { 1.0 };
                assert!(!is_bias || name.starts_with("head."), "{file}: {name} should be in the file");
                assert!(values.iter().all(|value| (value - neutral).abs() < 1.1e-5), "{file}: {name}");
                continue;
            };
            let first = offset as usize / 4;
            assert!(values == data[first..first + values.len()], "{file}: {name} is another tensor");
        }
        assert!(offsets.keys().all(|name| checkpoint.tensors.contains_key(name)), "{file}");
        fs::remove_file(folder.path().join("weights.data")).expect("removes");

        // Nothing is missing, and nothing else is there.
        let arch: Arch = file.split('-').next().expect("a name").parse().expect("an architecture");
        let shapes: BTreeMap<_, _> = checkpoint.tensors.iter().map(|(name, tensor)| (name, &tensor.shape)).collect();
        assert!(arch.convolutions().iter().all(|(name, shape)| shapes.get(name) == Some(&shape)));
        let head = if file.contains("fastai2") { 12 } else { 2 };
        assert_eq!(shapes.len(), 5 * arch.convolutions().len() + head, "{file}");
    }
    assert_eq!(expected.len(), 7);
}

pub fn raw(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(
        arch in prop::sample::select(vec![Arch::ResNet8, Arch::ResNet20]),
        hidden in prop::option::of(prop::collection::vec(1usize..9, 0..3)),
        classes in 1usize..12,
        normalise in any::<bool>(),
        probabilities in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let head = hidden.map_or(HeadSpec::Linear, HeadSpec::fastai);
        let mut model = Model::new(arch, head.clone(), classes, seed, &device()).expect("a network");
        let mut random = Random::stream(seed, "statistics", &[]);
        model.visit_mut(&mut |parameter| {
            let low = if parameter.role() == Role::RunningVariance { 0.1 } else { -1.0 };
            if parameter.role() != Role::ConvWeight {
                let values = (0..parameter.value.shape().elements()).map(|_| random.uniform(low, 2.0)).collect();
                parameter.value = Tensor::new(values, parameter.value.shape(), &device()).expect("the same shape");
            }
        });
        let metadata = BTreeMap::from([("classes".to_owned(), "[\"ä\",\"b\"]".to_owned()), ("size".into(), "40".into())]);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.onnx");

        let options = OnnxOptions { batchnorm: BatchNormForm::Keep, normalise, probabilities, half: false };
        let kept = written(&model, &metadata, &options, &path);
        prop_assert_eq!(kept.tensors, collect(&model).expect("tensors"));
        prop_assert_eq!(&kept.metadata["classes"], &metadata["classes"]);
        prop_assert_eq!(&kept.metadata["size"], "40");
        prop_assert_eq!(&kept.metadata["arch"], arch.name());
        let first = fs::read(&path).expect("reads");
        written(&model, &metadata, &options, &path);
        prop_assert!(first == fs::read(&path).expect("reads"), "another file of the same content");

        let half = OnnxOptions { half: true, ..options };
        let rounded = written(&model, &metadata, &half, &path).tensors;
        prop_assert_eq!(rounded, cast(&collect(&model).expect("tensors"), FileDtype::F16));

        let options = OnnxOptions { batchnorm: BatchNormForm::Fold, ..options };
        let folded = written(&model, &metadata, &options, &path);
        let mut again = Model::new(arch, head, classes, 0, &device()).expect("a network");
        load_into(&mut again, &folded, &LoadOptions::default()).expect("fits");
        let images = formula::images(2, 32, &device()).expect("images");
        let found = difference(&logits(&again, &images), &logits(&model, &images));
        prop_assert!(found < 1e-5, "logits differ by {found} of their norm");
    }
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    let fails = |tensors: &Tensors, metadata: &[(&str, &str)], options: &OnnxOptions| {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let error = write_onnx(&path, tensors, &metadata, options).expect_err("writes").to_string();
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0, "a file is left");
        error
    };
    let whole = collect(&network(Arch::ResNet8, HeadSpec::Linear, 3)).expect("tensors");
    let options = OnnxOptions::default();
    let without = |name: &str| -> Tensors {
        whole.iter().filter(|(key, _)| *key != name).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    assert!(fails(&without("layer1.0.conv1.weight"), &[], &options).contains("no known architecture"));
    assert!(fails(&without("fc.weight"), &[], &options).contains("only a backbone"));
    assert!(fails(&without("layer2.0.bn1.running_var"), &[], &options).contains("no tensor layer2.0.bn1.running_var"));
    let mut bad = whole.clone();
    bad.insert("fc.bias".into(), FileTensor::from_f32(vec![3], vec![0.0, f32::NAN, 0.0]).expect("fits"));
    assert!(fails(&bad, &[], &options).contains("fc.bias would have values that are not finite"));
    bad.insert("fc.bias".into(), FileTensor::from_f32(vec![2], vec![0.0; 2]).expect("fits"));
    assert!(fails(&bad, &[], &options).contains("fc.bias is [2], not [3]"));
    bad.insert("fc.bias".into(), FileTensor::from_f32(vec![3], vec![0.0, 65520.0, 0.0]).expect("fits"));
    let half = OnnxOptions { half: true, ..options };
    let error = fails(&bad, &[], &half);
    assert!(error.contains("fc.bias") && error.contains("range of f16"), "{error}");
    let options = OnnxOptions { probabilities: true, ..options };
    assert!(fails(&whole, &[("task", "regression")], &options).contains("no probabilities"));
}

#[test]
fn the_program_converts_to_onnx_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (model, onnx, back) = (at("in.safetensors"), at("out.onnx"), at("back.safetensors"));
    let tensors = collect(&network(Arch::ResNet8, HeadSpec::fastai(vec![5]), 4)).expect("tensors");
    let metadata = BTreeMap::from([("arch".to_owned(), "resnet8".to_owned())]);
    write_safetensors(&model, &tensors, &metadata).expect("writes");
    unfreeze("convert {} {} --batchnorm keep --normalise inside --softmax", &[&model, &onnx]).succeeded();
    let ran = unfreeze("convert {} {}", &[&onnx, &back]).succeeded();
    assert_eq!(read(&back).tensors, tensors);
    let left =
        "computes Sub [0.485, 0.456, 0.406], Div [0.229, 0.224, 0.225] before its first convolution, which is left";
    assert!(ran.err.contains(left) && ran.err.contains("the file ends in Softmax, which is left out"), "{}", ran.err);
    let told = unfreeze("inspect {} --json", &[&onnx]).succeeded().objects();
    assert_eq!(told.last().and_then(|file| file["notes"].as_array()).map(Vec::len), Some(2));
    let listed = unfreeze("inspect {}", &[&onnx]).succeeded();
    assert!(
        listed.out.contains("layer3.0.bn2.running_var") && listed.out.contains("ONNX, resnet8: "),
        "{}",
        listed.out
    );
    for (flags, cause) in [("--softmax", ".onnx"), ("--batchnorm keep", ".onnx"), ("--normalise inside", ".onnx")] {
        let ran = unfreeze(&format!("convert {{}} {{}} {flags}"), &[&model, &back]);
        assert!(ran.code == 2 && ran.err.contains(cause), "{}", ran.err);
    }
    unfreeze("convert {} {} --dtype f16 --batchnorm keep", &[&model, &onnx]).succeeded();
    assert_eq!(read(&onnx).tensors, cast(&tensors, FileDtype::F16));
    for dtype in ["bf16", "f64"] {
        let ran = unfreeze(&format!("convert {{}} {{}} --dtype {dtype}"), &[&model, &onnx]);
        assert!(ran.code == 2 && ran.err.contains("f32 or f16, not"), "{}", ran.err);
    }
}

// Files made by hand, byte by byte.

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number /= 128;
    }
    bytes.push(number as u8);
    bytes
}

pub fn number(field: u64, value: i64) -> Vec<u8> {
    [varint(field * 8), varint(value as u64)].concat()
}

pub fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&varint(field * 8 + 2), &varint(value.as_ref().len() as u64), value.as_ref()].concat()
}

fn onnx(graph: &[u8]) -> Vec<u8> {
    [number(1, 8), bytes(2, "test"), bytes(7, graph)].concat()
}

/// A graph of one tensor `t`, of such extents, type and further fields.
fn tensor(dims: &[i64], dtype: i64, rest: &[u8]) -> Vec<u8> {
    let dims = dims.iter().map(|extent| number(1, *extent)).collect::<Vec<_>>().concat();
    onnx(&bytes(5, [&dims, &number(2, dtype), &bytes(8, "t"), rest].concat()))
}

pub fn read_bytes(content: &[u8]) -> Checkpoint {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file.onnx");
    fs::write(&path, content).expect("writes");
    read(path)
}

fn refused(content: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file.onnx");
    fs::write(&path, content).expect("writes");
    refusal(path)
}

#[test]
fn every_way_to_store_values_is_read() {
    let floats = raw(&[1.5, -2.0]);
    let unpacked = [[&[4 << 3 | 5][..], &floats[..4]].concat(), [&[4 << 3 | 5][..], &floats[4..]].concat()].concat();
    let doubles: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let halves = [varint(0x3e00), varint(0xc000)].concat();
    let brain = [number(5, 0x3fc0), number(5, 0xc000)].concat();
    for (content, dtype) in [
        (tensor(&[2], 1, &bytes(9, &floats)), FileDtype::F32),
        (tensor(&[2], 1, &bytes(4, &floats)), FileDtype::F32),
        (tensor(&[2], 1, &unpacked), FileDtype::F32),
        (tensor(&[2], 11, &bytes(10, &doubles)), FileDtype::F64),
        (tensor(&[2], 10, &bytes(5, &halves)), FileDtype::F16),
        (tensor(&[2], 10, &bytes(9, [0x00u8, 0x3e, 0x00, 0xc0])), FileDtype::F16),
        (tensor(&[2], 16, &brain), FileDtype::BF16),
    ] {
        let tensor = &read_bytes(&content).tensors["t"];
        assert_eq!((tensor.dtype, tensor.to_f32()), (dtype, vec![1.5, -2.0]));
    }
    let packed = [varint(7), varint(-3i64 as u64)].concat();
    assert_eq!(read_bytes(&tensor(&[1, 2], 7, &bytes(7, &packed))).tensors["t"].to_f32(), [7.0, -3.0]);
    assert_eq!(read_bytes(&tensor(&[2], 3, &bytes(5, &packed))).tensors["t"].to_f32(), [7.0, -3.0]);
    assert_eq!(read_bytes(&tensor(&[], 1, &bytes(9, &floats[..4]))).tensors["t"].shape, [0usize; 0]);
    // A constant, and metadata.
    let constant = [number(1, 2), number(2, 1), bytes(9, &floats)].concat();
    let constant = [bytes(2, "c"), bytes(4, "Constant"), bytes(5, [bytes(1, "value"), bytes(5, constant)].concat())];
    let metadata = bytes(14, [bytes(1, "key"), bytes(2, "value")].concat());
    let checkpoint = read_bytes(&[onnx(&bytes(1, constant.concat())), metadata].concat());
    assert_eq!(checkpoint.tensors["c"].to_f32(), [1.5, -2.0]);
    assert_eq!(checkpoint.metadata["key"], "value");
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let outside = |location: &str| {
        let location = bytes(13, [bytes(1, "location"), bytes(2, location)].concat());
        tensor(&[2], 1, &[location, number(14, 1)].concat())
    };
    let huge = [&[5 << 3 | 2][..], &varint(1 << 40)].concat();
    let twice = [bytes(8, "t"), number(1, 1), number(2, 1), bytes(9, [0u8; 4])].concat();
    let nested = (0..1000).fold(Vec::new(), |graph, _| bytes(1, bytes(5, bytes(6, graph))));
    for (content, cause) in [
        (vec![8, 8, 0x12], "no whole number"),
        (number(1, 8), "known format|no graph"),
        ([number(1, 8), bytes(2, "test")].concat(), "no graph"),
        (onnx(&huge), "are left"),
        (onnx(&[0xff; 12]), "no whole number"),
        (onnx(&[5 << 3 | 3]), "wire type 3"),
        (onnx(&[5 << 3 | 6]), "wire type 6"),
        (onnx(&[]), "holds no tensors"),
        (onnx(&nested), "holds no tensors"),
        (onnx(&[bytes(5, &twice), bytes(5, &twice)].concat()), "two tensors t"),
        (onnx(&number(99, 1).repeat((1 << 20) + 1)), "parts"),
        (tensor(&[-1], 1, &bytes(9, "")), "negative"),
        (tensor(&[i64::MAX, 4], 1, &bytes(9, "")), "too large"),
        (tensor(&[i64::MAX, i64::MAX, i64::MAX], 99, &bytes(9, "")), "type 99"),
        (tensor(&[1 << 38], 1, &bytes(9, [0u8; 8])), "do not fill"),
        (tensor(&[1 << 38], 7, &bytes(7, [0u8; 8])), "do not fill"),
        (tensor(&[2], 1, &bytes(9, [0u8; 9])), "do not fill"),
        (tensor(&[2], 1, &bytes(7, [0u8; 2])), "not of its type"),
        (tensor(&[2], 1, &[bytes(4, [0u8; 4]), bytes(7, [0u8; 2])].concat()), "two types"),
        (tensor(&[2], 8, &bytes(6, "text")), "type 8"),
        (tensor(&[2], 7, &bytes(7, [1u8, 0x80])), "damaged"),
        (tensor(&[2], 7, &bytes(7, [1u8, 1, 1])), "damaged"),
        (tensor(&[2], 1, &bytes(3, "")), "segments"),
        (outside("/etc/passwd"), "outside the folder"),
        (outside("../file.onnx"), "outside the folder"),
        (outside(""), "outside the folder"),
        (outside("missing.data"), "missing.data"),
        (tensor(&[2], 1, &number(14, 1)), "not named"),
        ([number(1, 8), bytes(7, bytes(1, bytes(1, [0xffu8])))].concat(), "UTF-8"),
    ] {
        let error = refused(&content);
        assert!(cause.split('|').any(|cause| error.contains(cause)), "lacks '{cause}': {error}");
    }
}

#[test]
fn files_beside_it_are_checked_and_shared_within_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, data) = (folder.path().join("file.onnx"), folder.path().join("values"));
    fs::write(&data, raw(&[1.0, 2.0, 3.0])).expect("writes");
    let entry = |key: &str, value: &str| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    let external = |offset: &str, length: &str, count: i64, name: &str| {
        let place = [entry("location", "values"), entry("offset", offset), entry("length", length)].concat();
        bytes(5, [number(1, count), number(2, 1), bytes(8, name), place, number(14, 1)].concat())
    };
    fs::write(&path, onnx(&external("4", "8", 2, "t"))).expect("writes");
    assert_eq!(read(&path).tensors["t"].to_f32(), [2.0, 3.0]);
    for (offset, length, count, cause) in [
        ("8", "8", 2, "12 bytes: was the download"),
        ("18446744073709551615", "8", 2, "12 bytes"),
        ("-4", "8", 2, "'-4'"),
        ("0", "12", 2, "needs 8"),
        ("0", "1099511627776", 1 << 38, "12 bytes"),
    ] {
        fs::write(&path, onnx(&external(offset, length, count, "t"))).expect("writes");
        let error = refusal(&path);
        assert!(error.contains(cause), "lacks '{cause}': {error}");
    }
    let many = (0..9).map(|tensor| external("0", "12", 3, &tensor.to_string())).collect::<Vec<_>>();
    fs::write(&path, onnx(&many[..8].concat())).expect("writes");
    assert_eq!(read(&path).tensors.len(), 8);
    fs::write(&path, onnx(&many.concat())).expect("writes");
    assert!(refusal(&path).contains("refused"));
}

/// Our own file, small enough to damage.
pub fn small() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("small.onnx");
    written(&network(Arch::ResNet8, HeadSpec::fastai(vec![2]), 2), &BTreeMap::new(), &OnnxOptions::default(), &path);
    fs::read(path).expect("reads")
}

#[test]
fn a_graph_that_computes_something_else_is_refused() {
    let whole = small();
    let replaced = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|window| window == from).expect("is there");
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    // Another operator, stride or number of groups, under the same names.
    for (from, to, cause) in [
        (&b"\x22\x04Relu"[..], &b"\x22\x04Tanh"[..], "conv1"),
        (b"strides@\x02@\x02", b"strides@\x01@\x01", "layer2.0.conv1"),
        (b"pads@\x01@\x01", b"pads@\x00@\x01", "conv1"),
        (b"\x22\x03Add", b"\x22\x03Mul", "layer1.0.conv2"),
    ] {
        let error = refused(&replaced(from, to));
        assert!(error.contains("something else") && error.contains(cause), "lacks '{cause}': {error}");
    }
    // What is no part of the backbone goes without being missed.
    let headless = read_bytes(&replaced(b"\x22\x04Gemm", b"\x22\x04Germ"));
    assert!(headless.tensors.keys().all(|name| !name.starts_with("head.")));
    assert!(headless.tensors.contains_key("layer3.0.bn2.bias"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = small();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cut.onnx");
    // The last fields say nothing of the network.
    let end = whole.windows(5).rposition(|window| window == b"\x42\x04\x0a\x00\x10").expect("the operator sets");
    for length in (0..end).step_by(1 + whole.len() / 400) {
        fs::write(&path, &whole[..length]).expect("writes");
        refusal(&path);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        thread_local!(static WHOLE: Vec<u8> = small());
        let mut content = WHOLE.with(Vec::clone);
        // Where the graph is, and the heads of the first tensors.
        for (position, value) in damage {
            content[position.index(6000)] = value;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("damaged.onnx");
        fs::write(&path, content).expect("writes");
        if let Ok(checkpoint) = Checkpoint::read(&path) {
            let _ = checkpoint.normalised();
        }
    }
}
