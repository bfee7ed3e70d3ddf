//! Checkpoint files: what PyTorch wrote reads exactly, what is written reads back exactly, and loading is all or
//! nothing. Damaged and hostile files: `checkpoints/hostile.rs`.

#[path = "checkpoints/archives.rs"]
mod archives;
mod common;
#[path = "checkpoints/containers.rs"]
mod containers;
#[path = "checkpoints/conversion.rs"]
mod conversion;
#[path = "checkpoints/flaws.rs"]
mod flaws;
#[path = "checkpoints/fuzzed.rs"]
mod fuzzed;
#[path = "checkpoints/hostile.rs"]
mod hostile;
#[path = "checkpoints/loading.rs"]
mod loading;
#[path = "checkpoints/memory.rs"]
mod memory;
#[path = "checkpoints/misfits.rs"]
mod misfits;
#[path = "checkpoints/models.rs"]
mod models;
#[path = "checkpoints/onnx.rs"]
mod onnx;
#[path = "checkpoints/onnx_graphs.rs"]
mod onnx_graphs;
#[path = "checkpoints/onnx_input.rs"]
mod onnx_input;
#[path = "checkpoints/onnx_runtime.rs"]
mod onnx_runtime;
#[path = "checkpoints/originals.rs"]
mod originals;
#[path = "checkpoints/pickles.rs"]
mod pickles;
#[path = "checkpoints/round_trips.rs"]
mod round_trips;
#[path = "checkpoints/sets.rs"]
mod sets;
#[path = "checkpoints/training.rs"]
mod training;
#[path = "checkpoints/unread.rs"]
mod unread;

use std::{collections::BTreeMap, path::Path};

use common::shared;
use proptest::prelude::*;
use unfreeze::checkpoint::{Checkpoint, FileDtype, FileTensor, Format, write_safetensors};

type Tensors = BTreeMap<String, FileTensor>;

fn read(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::read(&path).unwrap_or_else(|error| panic!("{error}"))
}

/// The error of reading `path`, which must name the file.
fn refusal(path: impl AsRef<Path>) -> String {
    let message = Checkpoint::read(&path).expect_err("read as a checkpoint").to_string();
    let name = path.as_ref().file_name().and_then(|name| name.to_str()).expect("a file name");
    assert!(message.contains(name), "does not name {name}: {message}");
    message
}

/// The tensors with every floating-point one cast to `dtype`.
fn cast(tensors: &Tensors, dtype: FileDtype) -> Tensors {
    let cast = |tensor: &FileTensor| {
        if tensor.dtype.is_float() { tensor.to_dtype(dtype).expect("in range") } else { tensor.clone() }
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), cast(tensor))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    write_safetensors(path, tensors, &BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"));
}

/// The files that PyTorch wrote, and the tensors they must hold.
fn golden() -> Option<(impl Fn(&str) -> Checkpoint, Tensors)> {
    let folder = shared("golden/checkpoints")?;
    let expected = read(folder.join("expected.safetensors")).tensors;
    Some((move |name: &str| read(folder.join(name)), expected))
}

#[test]
fn every_layout_of_pytorch_reads_exactly() {
    let Some((read, expected)) = golden() else { return };
    let (zip, legacy) = (read("zip.pth"), read("legacy.pth"));
    assert_eq!((zip.format, legacy.format), (Format::PytorchZip, Format::PytorchLegacy));
    assert_eq!(zip.tensors, expected);
    assert_eq!(legacy.tensors, expected);
    assert_eq!(expected["bn1.num_batches_tracked"].dtype, FileDtype::I64);
}

#[test]
fn wrappers_and_prefixes_are_taken_away() {
    let Some((read, expected)) = golden() else { return };
    let wrapped = read("dataparallel_wrapped.pth");
    assert!(wrapped.tensors.keys().all(|name| name.starts_with("module.")), "the file's names are kept");
    assert_eq!(wrapped.normalised().expect("no collisions").tensors, expected);
}

#[test]
fn half_precision_reads_exactly() {
    let Some((read, expected)) = golden() else { return };
    assert_eq!(read("bf16.pth").tensors, cast(&expected, FileDtype::BF16));
    let mut floats = cast(&expected, FileDtype::F16);
    floats.retain(|_, tensor| tensor.dtype.is_float());
    assert_eq!(read("half_prefixed.pth").normalised().expect("no collisions").tensors, floats);
}

#[test]
fn strided_views_and_parameters_read_exactly() {
    let Some((read, _)) = golden() else { return };
    assert_eq!(read("strided_views.pth").tensors, read("strided_views.expected.safetensors").tensors);
}

#[test]
fn cifar_checkpoints_get_the_usual_names() {
    for (file, blocks) in [("resnet20-12fca82f.th", 3), ("resnet56-4bfd9763.th", 9)] {
        let Some(path) = shared(&format!("data/weights/cifar10/{file}")) else { return };
        let checkpoint = read(path);
        assert_eq!(checkpoint.format, Format::PytorchLegacy);
        let tensors = checkpoint.normalised().expect("no collisions").tensors;
        assert_eq!(tensors["conv1.weight"].shape, [16, 3, 3, 3]);
        assert_eq!(tensors["fc.weight"].shape, [10, 64]);
        assert_eq!(tensors["fc.bias"].shape, [10]);
        assert!(tensors.contains_key(&format!("layer3.{}.bn2.running_var", blocks - 1)));
        assert!(tensors.values().all(FileTensor::is_finite));
    }
}

#[test]
fn names_collide_only_with_an_error() {
    let tensor = || FileTensor::from_f32(vec![1], vec![0.0]).expect("fits");
    let normalised = |names: &[&str]| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("names.safetensors");
        write(&path, &names.iter().map(|name| ((*name).to_owned(), tensor())).collect());
        let result = read(&path).normalised();
        result.map(|checkpoint| checkpoint.tensors.into_keys().collect::<Vec<_>>()).map_err(|error| error.to_string())
    };
    assert_eq!(
        normalised(&["module.model.conv1.weight", "module.model.linear.bias"]).expect("ok"),
        ["conv1.weight", "fc.bias"]
    );
    assert_eq!(normalised(&["backbone.a", "backbone.b", "head.c"]).expect("ok"), ["a", "b", "head.c"]);
    assert_eq!(normalised(&["encoder.a", "b", "c"]).expect("ok"), ["b", "c", "encoder.a"]);
    let error = normalised(&["backbone.a", "backbone.b", "a"]).expect_err("collides");
    assert!(error.contains("backbone.a and a") || error.contains("a and backbone.a"), "{error}");
    let error = normalised(&["fc.weight", "linear.weight"]).expect_err("collides");
    assert!(error.contains("linear.weight") && error.contains("fc.weight"), "{error}");
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let mut tensors = Tensors::from([("a".into(), FileTensor::from_f32(vec![1], vec![1.0]).expect("fits"))]);
    write(&path, &tensors);
    tensors.get_mut("a").expect("is there").shape = vec![2];
    let error = write_safetensors(&path, &tensors, &BTreeMap::new()).expect_err("inconsistent").to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    assert_eq!(read(&path).tensors["a"].to_f32(), [1.0]);

    let occupied = folder.path().join("folder.safetensors");
    std::fs::create_dir_all(occupied.join("inside")).expect("a folder");
    tensors.get_mut("a").expect("is there").shape = vec![1];
    let error = write_safetensors(&occupied, &tensors, &BTreeMap::new()).expect_err("is a folder").to_string();
    assert!(error.contains("folder.safetensors"), "{error}");
    let error = write_safetensors(folder.path().join("no/such.safetensors"), &tensors, &BTreeMap::new());
    assert!(error.expect_err("no such folder").to_string().contains("no/such.safetensors"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 2, "a temporary file is left");
}

#[test]
fn conversions_between_types_are_exact_where_they_can_be() {
    let bits = |dtype, bytes: &[u8]| FileTensor::new(dtype, vec![bytes.len() / dtype.size()], bytes.to_vec());
    let floats = |dtype, bytes: &[u8]| bits(dtype, bytes).expect("fits").to_f32();
    assert_eq!(floats(FileDtype::Bool, &[0, 1]), [0.0, 1.0]);
    assert_eq!(floats(FileDtype::I8, &[0xff, 2]), [-1.0, 2.0]);
    assert_eq!(floats(FileDtype::U8, &[0xff, 2]), [255.0, 2.0]);
    assert_eq!(floats(FileDtype::I16, &[0xff, 0xff]), [-1.0]);
    assert_eq!(floats(FileDtype::I32, &(-70000i32).to_le_bytes()), [-70000.0]);
    assert_eq!(floats(FileDtype::I64, &(1i64 << 40).to_le_bytes()), [(1i64 << 40) as f32]);
    assert_eq!(floats(FileDtype::F64, &0.1f64.to_le_bytes()), [0.1f32]);
    assert_eq!(floats(FileDtype::F16, &[0x00, 0x3c, 0x01, 0x00]), [1.0, 5.9604645e-8]);
    assert_eq!(floats(FileDtype::BF16, &[0x80, 0x3f, 0x80, 0xff])[1], f32::NEG_INFINITY);
    assert!(bits(FileDtype::F32, &[0; 3]).is_err(), "three bytes are no element");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_reads_back_bit_for_bit(
        tensors in prop::collection::btree_map(
            "[a-z\"\\\\ü.0-9]{1,12}",
            (prop::collection::vec(0usize..5, 0..5), prop::sample::select(vec![FileDtype::F32, FileDtype::F64,
                FileDtype::F16, FileDtype::BF16, FileDtype::I64, FileDtype::I16, FileDtype::U8, FileDtype::Bool])),
            1..8),
        metadata in prop::collection::btree_map(".{0,8}", ".{0,20}", 0..4),
        seed in any::<u64>(),
    ) {
        let mut random = unfreeze::random::Random::stream(seed, "bytes", &[]);
        let mut tensor = |shape: Vec<usize>, dtype: FileDtype| {
            let bytes = (0..shape.iter().product::<usize>() * dtype.size()).map(|_| random.uniform(0.0, 256.0) as u8);
            FileTensor::new(dtype, shape, bytes.collect()).expect("fits")
        };
        let tensors: Tensors =
            tensors.into_iter().map(|(name, (shape, dtype))| (name, tensor(shape, dtype))).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("random.safetensors");
        write_safetensors(&path, &tensors, &metadata).expect("writes");
        let back = read(&path);
        prop_assert_eq!(back.tensors, tensors);
        prop_assert_eq!(back.metadata, metadata);
    }
}
