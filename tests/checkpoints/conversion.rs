//! Conversions: exact round trips between formats, plans, comparisons, model files.

use std::{collections::BTreeMap, path::Path};

use proptest::prelude::*;
use unfreeze::{
    Device,
    checkpoint::{
        CheckpointFile, Comparison, Conversion, ConvertOptions, Difference, FileDtype, FileTensor, Target,
        TensorSource, TensorStats, collect, compare, write_pth,
    },
    nn::{Arch, HeadSpec, Model},
    random::Random,
};

use crate::{Tensors, cast, common::program::unfreeze, containers::npz, originals::fixture, read, write};

pub fn convert(source: &Path, output: &Path, options: ConvertOptions) -> Result<Conversion, String> {
    let file = CheckpointFile::open(source).map_err(|error| error.to_string())?;
    let conversion = Conversion::plan(file, &options).map_err(|error| error.to_string())?;
    conversion.write(output).map_err(|error| error.to_string())?;
    Ok(conversion)
}

pub fn to(target: Target) -> ConvertOptions {
    ConvertOptions { target, ..Default::default() }
}

const TYPES: [FileDtype; 10] = [
    FileDtype::F32,
    FileDtype::F16,
    FileDtype::BF16,
    FileDtype::F64,
    FileDtype::I64,
    FileDtype::I32,
    FileDtype::I16,
    FileDtype::I8,
    FileDtype::U8,
    FileDtype::Bool,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn round_trips_are_exact(
        tensors in prop::collection::btree_map(
            "[a-z][a-z0-9_.ü]{0,11}",
            (prop::collection::vec(0usize..4, 0..5), prop::sample::select(TYPES.to_vec())),
            1..7),
        seed in any::<u64>(),
    ) {
        let mut random = Random::stream(seed, "bytes", &[]);
        let mut tensor = |shape: Vec<usize>, dtype: FileDtype| {
            let limit = if dtype == FileDtype::Bool { 2.0 } else { 256.0 };
            let bytes = (0..shape.iter().product::<usize>() * dtype.size()).map(|_| random.uniform(0.0, limit) as u8);
            FileTensor::new(dtype, shape, bytes.collect()).expect("fits")
        };
        let mut tensors: Tensors =
            tensors.into_iter().map(|(name, (shape, dtype))| (name, tensor(shape, dtype))).collect();
        tensors.insert("bn.num_batches_tracked".into(), tensor(vec![], FileDtype::I64));
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        write(&at("a.safetensors"), &tensors);
        write_pth(at("a.pth"), &tensors).expect("writes");
        // NumPy has no bfloat16.
        let numpy: Tensors = tensors.clone().into_iter().filter(|(_, t)| t.dtype != FileDtype::BF16).collect();
        std::fs::write(at("a.npz"), npz(&numpy)).expect("writes");
        for (source, tensors) in [("a.safetensors", &tensors), ("a.pth", &tensors), ("a.npz", &numpy)] {
            let found = read(at(source)).tensors;
            prop_assert_eq!(&found, tensors, "{}", source);
            for (output, target) in [("b.safetensors", Target::Safetensors), ("b.pth", Target::Pth)] {
                convert(&at(source), &at(output), to(target)).expect("converts");
                let found = read(at(output)).tensors;
                prop_assert_eq!(&found, tensors, "{} to {}", source, output);
            }
        }
    }
}

#[test]
fn pth_files_are_as_torch_save_lays_them_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, again) = (folder.path().join("a.pth"), folder.path().join("b.pth"));
    let tensors = read(fixture("torchvision.pth")).tensors;
    write_pth(&path, &tensors).expect("writes");
    write_pth(&again, &tensors).expect("writes");
    let bytes = std::fs::read(&path).expect("reads");
    assert_eq!(bytes, std::fs::read(&again).expect("reads"), "not reproducible");
    // A directory entry says where a local header is; the storage lies behind its name and extra field.
    let mut storages = 0;
    for at in 0..bytes.len() - 46 {
        if !bytes[at..].starts_with(b"PK\x01\x02") {
            continue;
        }
        let number = |at: usize, size: usize| (0..size).rev().fold(0, |n, i| n << 8 | usize::from(bytes[at + i]));
        assert_eq!(number(at + 10, 2), 0, "compressed");
        let name = &bytes[at + 46..][..number(at + 28, 2)];
        if name.starts_with(b"archive/data/") {
            let header = number(at + 42, 4);
            let data = header + 30 + number(header + 26, 2) + number(header + 28, 2);
            assert_eq!(data % 64, 0, "{}", String::from_utf8_lossy(name));
            storages += 1;
        }
    }
    assert_eq!(storages, tensors.len());
    let wide = FileTensor::new(FileDtype::U32, vec![1], vec![0; 4]).expect("fits");
    let error = write_pth(&path, &Tensors::from([("wide".into(), wide)])).expect_err("torch has none").to_string();
    assert!(error.contains("wide") && error.contains("u32"), "{error}");
}

#[test]
fn casts_are_those_of_pytorch() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out.pth");
    for (dtype, original) in [(FileDtype::F16, "half.pth"), (FileDtype::BF16, "bfloat16.bin")] {
        let options = ConvertOptions { dtype: Some(dtype), ..to(Target::Pth) };
        convert(&fixture("compressed.npz"), &output, options).expect("converts");
        assert_eq!(read(&output).tensors, read(fixture(original)).tensors, "{original}");
    }
    let options = ConvertOptions { dtype: Some(FileDtype::I64), ..to(Target::Pth) };
    let error = convert(&fixture("half.pth"), &output, options).expect_err("no float");
    assert!(error.contains("i64 is no float"), "{error}");
}

#[test]
fn metadata_and_integers_stay_and_what_exceeds_a_type_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let counter = FileTensor::new(FileDtype::I64, vec![], 7i64.to_le_bytes().to_vec()).expect("fits");
    let weight = FileTensor::from_f32(vec![2], vec![1.0, 65520.0]).expect("fits");
    let tensors = Tensors::from([("counter".into(), counter.clone()), ("weight".into(), weight)]);
    let metadata = BTreeMap::from([("arch".to_owned(), "\"resnet18\"".to_owned()), ("b".into(), "ü\n".into())]);
    unfreeze::checkpoint::write_safetensors(&source, &tensors, &metadata).expect("writes");

    let as_type = |dtype| ConvertOptions { dtype: Some(dtype), ..Default::default() };
    convert(&source, &output, as_type(FileDtype::BF16)).expect("converts");
    let converted = read(&output);
    assert_eq!(converted.metadata, metadata);
    assert_eq!(converted.tensors["counter"], counter);
    assert_eq!(converted.tensors["weight"].dtype, FileDtype::BF16);
    assert_eq!(converted.tensors["weight"].to_f32(), [1.0, 65536.0]);

    convert(&source, &output, ConvertOptions::default()).expect("converts");
    assert_eq!(std::fs::read(&source).expect("reads"), std::fs::read(&output).expect("reads"), "not reproducible");
    let error = convert(&source, &output, as_type(FileDtype::F16)).expect_err("65520 exceeds f16");
    assert!(error.contains("in.safetensors: tensor weight") && error.contains("f16"), "{error}");
    assert_eq!(std::fs::read(&source).expect("reads"), std::fs::read(&output).expect("reads"), "the old file is gone");
    // A file may take its own place.
    convert(&source, &source, as_type(FileDtype::BF16)).expect("converts");
    assert_eq!(read(&source).tensors, converted.tensors);
}

/// A small network's tensors.
pub fn small(head: HeadSpec) -> Tensors {
    let model = Model::new(Arch::ResNet8, head, 3, 5, &Device::cpu(1).expect("a processor")).expect("a model");
    collect(&model).expect("collects")
}

#[test]
fn a_checkpoint_in_parts_is_not_written_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let tensors = small(HeadSpec::Linear);
    let half = tensors.len() / 2;
    for (name, part) in [("one.safetensors", 0..half), ("two.safetensors", half..tensors.len())] {
        write(&at(name), &tensors.clone().into_iter().skip(part.start).take(part.len()).collect());
    }
    let map: BTreeMap<_, _> =
        tensors.keys().enumerate().map(|(i, k)| (k, if i < half { "one" } else { "two" })).collect();
    let map: BTreeMap<_, _> = map.into_iter().map(|(name, file)| (name, format!("{file}.safetensors"))).collect();
    let index = at("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).expect("writes");
    let before = std::fs::read(at("two.safetensors")).expect("reads");
    std::fs::create_dir(at("beside")).expect("a folder");

    for output in [at("two.safetensors"), at("beside/../one.safetensors"), index.clone()] {
        let error = convert(&index, &output, ConvertOptions::default()).expect_err("a part of it");
        let what = if output == index { "is what is read too, and has parts in other files" } else { "is a part of" };
        assert!(error.contains(what) && error.contains("index.json"), "{error}");
    }
    let ran = unfreeze("convert {} {}", &[&index, &at("two.safetensors")]);
    assert!(ran.code == 1 && ran.err.contains("write to another file"), "{}", ran.err);
    // Nor a part of what the result is to be compared with.
    write(&at("in.safetensors"), &tensors);
    let ran = unfreeze("convert {} {} --check {}", &[&at("in.safetensors"), &at("two.safetensors"), &index]);
    assert!(ran.code == 2 && ran.err.contains("would be written over"), "{}", ran.err);
    assert_eq!(std::fs::read(at("two.safetensors")).expect("reads"), before);

    // A file of its own may take its place, lazily read or not, and so may another beside the shards.
    convert(&index, &at("whole.safetensors"), ConvertOptions::default()).expect("converts");
    assert_eq!(read(at("whole.safetensors")).tensors, tensors);
    for name in ["whole.safetensors", "whole.pth"] {
        write_pth(at("whole.pth"), &tensors).expect("writes");
        let before = read(at(name)).tensors;
        unfreeze("convert {} {} --dtype bf16", &[&at(name), &at(name)]).succeeded();
        assert_eq!(read(at(name)).tensors, cast(&before, FileDtype::BF16), "{name}");
    }
}

#[test]
fn any_number_of_unknown_tensors_is_listed_shortly() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let mut tensors = small(HeadSpec::Linear);
    let empty = FileTensor::from_f32(vec![0], vec![]).expect("fits");
    tensors.extend((0..2000).map(|at| (format!("layer1.0.bn1.{at:04}"), empty.clone())));
    tensors.insert(format!("a\x1b[2J{}", "x".repeat(5000)), empty);
    write(&source, &tensors);
    let plan = Conversion::plan(CheckpointFile::open(&source).expect("opens"), &ConvertOptions::default());
    let unknown = plan.expect("plans").unknown;
    let compared = |range: std::ops::Range<usize>| unknown[range].iter().filter(|(_, near)| near.is_some()).count();
    assert_eq!((unknown.len(), compared(0..8), compared(8..2001)), (2001, 7, 0));
    for target in [Target::Model, Target::Safetensors] {
        let options = ConvertOptions { arch: Some(Arch::ResNet8), ..to(target) };
        let error = convert(&source, &output, options).expect_err("does not fit");
        assert!(error.contains("2001 unknown: ") && error.contains("and 1993 more"), "{error}");
        assert!(error.len() < 2000 && !error.contains('\x1b'), "{error}");
    }
    let ran = unfreeze("convert {} {} --dry-run", &[&source, &output]).succeeded();
    assert!(ran.err.len() < 2000 && ran.err.contains("1993 more"), "{}", ran.err);
}

#[test]
fn an_architecture_asked_for_must_fit_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let mut tensors = small(HeadSpec::Linear);
    let asked = |arch| ConvertOptions { arch: Some(arch), ..Default::default() };
    write(&source, &tensors);
    assert!(convert(&source, &output, asked(Arch::ResNet8)).expect("fits").unknown.is_empty());
    let error = convert(&source, &output, asked(Arch::ResNet20)).expect_err("another");
    assert!(error.contains("of resnet8, not of resnet20; use --arch resnet8"), "{error}");

    let bias = tensors.remove("layer1.0.bn1.bias").expect("is there");
    tensors.insert("layer1.0.nb1.bias".into(), bias);
    tensors.insert("bn1.weight".into(), FileTensor::from_f32(vec![2], vec![0.0; 2]).expect("fits"));
    write(&source, &tensors);
    let error = convert(&source, &output, asked(Arch::ResNet8)).expect_err("does not fit");
    for part in [
        "1 missing: layer1.0.bn1.bias",
        "1 unknown: layer1.0.nb1.bias (nearest: layer1.0.bn1.bias)",
        "bn1.weight (found [2], expected [8])",
    ] {
        assert!(error.contains(part), "lacks '{part}': {error}");
    }
    let plan = convert(&source, &output, ConvertOptions::default()).expect("is kept");
    assert_eq!(plan.unknown, [("layer1.0.nb1.bias".to_owned(), Some("layer1.0.bn1.bias".to_owned()))]);
    tensors.remove("layer2.0.conv1.weight");
    write(&source, &tensors);
    let error = convert(&source, &output, to(Target::Model)).expect_err("is none");
    assert!(error.contains("the nearest is resnet8: 6 of its 7 convolutions"), "{error}");
}

#[test]
fn comparisons_know_rounding_from_difference() {
    let floats = |values: &[f32]| FileTensor::from_f32(vec![values.len()], values.to_vec()).expect("fits");
    let of = |tensor: FileTensor| Tensors::from([("a".to_owned(), tensor)]);
    let compared = |a: FileTensor, b: FileTensor| compare(&of(a), &of(b)).expect("compares");
    let values = [1.0, -0.1, 3.0e-6, 60000.0, 0.0];
    for dtype in [FileDtype::F16, FileDtype::BF16] {
        let found = compared(floats(&values).to_dtype(dtype).expect("in range"), floats(&values));
        assert!(found.agrees() && found.equal == 0, "{dtype}: {found:?}");
        let mut moved = values;
        moved[1] *= 1.02;
        let found = compared(floats(&values).to_dtype(dtype).expect("in range"), floats(&moved));
        assert!(!found.agrees(), "{dtype}: {found:?}");
        // Of one type nothing is rounding.
        let [a, b] = [values, moved].map(|values| floats(&values).to_dtype(dtype).expect("in range"));
        assert!(compared(a.clone(), a.clone()).agrees() && !compared(a, b).agrees(), "{dtype}");
    }
    let found = compared(floats(&[2.0, 4.0]), floats(&[2.5, 4.0]));
    assert_eq!(found.differing["a"], Difference::Values { absolute: 0.5, relative: 0.2, rounding: false });
    assert!(!compared(floats(&[1.0]), floats(&[f32::NAN])).agrees());
    assert!(compared(floats(&[f32::NAN]), floats(&[f32::NAN])).agrees());
    assert!(!compared(floats(&[f32::INFINITY]), floats(&[f32::MAX])).agrees());
    let shaped = compared(floats(&[1.0]), floats(&[1.0, 1.0]));
    assert_eq!(shaped.differing["a"], Difference::Shape(vec![1], vec![2]));

    let mut more = of(floats(&[1.0]));
    more.insert("bn.num_batches_tracked".into(), floats(&[1.0]));
    let Comparison { equal, counters, .. } = compare(&more, &of(floats(&[1.0]))).expect("compares");
    assert_eq!((equal, counters), (1, 1));
    more.insert("b".into(), floats(&[1.0]));
    let found = compare(&of(floats(&[1.0])), &more).expect("compares");
    assert!(!found.agrees() && found.missing == ["b"], "{found:?}");
    assert_eq!(compare(&more, &of(floats(&[1.0]))).expect("compares").extra, ["b"]);
}

#[test]
fn statistics_leave_out_what_is_not_finite() {
    let tensor = FileTensor::from_f32(vec![6], vec![1.0, 2.0, 3.0, 6.0, f32::NAN, f32::INFINITY]).expect("fits");
    let stats = TensorStats::of(&tensor);
    assert_eq!((stats.min, stats.max, stats.mean, stats.non_finite), (Some(1.0), Some(6.0), Some(3.0), 2));
    assert_eq!(stats.std, Some(3.5f64.sqrt()));
    let empty = TensorStats::of(&FileTensor::from_f32(vec![0], vec![]).expect("fits"));
    assert_eq!((empty.min, empty.std, empty.non_finite), (None, None, 0));
}

#[test]
fn casting_in_the_file_is_casting_in_memory() {
    let file = CheckpointFile::open(fixture("legacy.pth")).expect("opens");
    let options = ConvertOptions { dtype: Some(FileDtype::BF16), ..Default::default() };
    let plan = Conversion::plan(file, &options).expect("plans");
    let expected = cast(&read(fixture("legacy.pth")).tensors, FileDtype::BF16);
    for (name, tensor) in &plan.tensors {
        assert_eq!(tensor.dtype(), expected[name].dtype, "{name}");
        assert_eq!(tensor.read().expect("reads"), expected[name], "{name}");
    }
}

#[test]
fn wrappers_around_a_network_are_taken_away_and_a_way_to_predict_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = Device::cpu(1).expect("a processor");
    let model = Model::new(Arch::ResNet8, HeadSpec::Linear, 3, 0, &device).expect("a network");
    let tensors = collect(&model).expect("its tensors");
    let path = folder.path().join("lightning.pth");
    let wrapped = |prefix: &str| -> Tensors {
        tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect()
    };
    write_pth(&path, &wrapped("net.")).expect("writes");
    let plan = Conversion::plan(CheckpointFile::open(&path).expect("opens"), &ConvertOptions::default());
    let plan = plan.expect("plans");
    assert_eq!((plan.arch, plan.prefixes), (Some(Arch::ResNet8), vec!["net."]));
    let ran = unfreeze("predict {} {}", &[&path, &path]);
    assert!(ran.code != 0 && ran.err.contains("`unfreeze convert --format model` makes one of it"), "{}", ran.err);
}
