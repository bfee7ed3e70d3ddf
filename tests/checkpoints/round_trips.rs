//! A network through every format: from each that is read, written by hand where this program does not, to each that is
//! written, and back. Nothing but what was asked for changes a bit.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use unfreeze::{
    Device,
    checkpoint::{
        BatchNormForm, CheckpointFile, Conversion, ConvertOptions, FileDtype, FileTensor, OnnxOptions, Target, collect,
        write_onnx, write_pth,
    },
    nn::{Arch, HeadSpec, Model},
    random::Random,
};

use crate::{
    Tensors, cast,
    containers::{archive, npz},
    read, write,
};

const COUNTER: &str = "num_batches_tracked";

/// The tensors of a small network with its counters, all values random: variances positive, the range that of f16.
pub fn network(head: HeadSpec, seed: u64) -> Tensors {
    let device = Device::cpu(1).expect("a processor");
    let model = Model::new(Arch::ResNet8, head, 3, seed, &device).expect("a model");
    let mut random = Random::stream(seed, "values", &[]);
    let mut tensors = Tensors::new();
    for (name, tensor) in collect(&model).expect("collects") {
        let low = if name.ends_with("running_var") { 0.1 } else { -2.0 };
        let values = (0..tensor.elements()).map(|_| random.uniform(low, 2.0)).collect();
        if let Some(norm) = name.strip_suffix("running_var") {
            let count = FileTensor::new(FileDtype::I64, vec![], 1234567890123i64.to_le_bytes().to_vec());
            tensors.insert(format!("{norm}{COUNTER}"), count.expect("fits"));
        }
        tensors.insert(name, FileTensor::from_f32(tensor.shape, values).expect("fits"));
    }
    tensors
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The storage of a type, and its tensor.
fn classes(dtype: FileDtype) -> (&'static str, &'static str) {
    match dtype {
        FileDtype::F32 => ("FloatStorage", "FloatTensor"),
        FileDtype::F16 => ("HalfStorage", "HalfTensor"),
        FileDtype::BF16 => ("BFloat16Storage", "BFloat16Tensor"),
        FileDtype::I64 => ("LongStorage", "LongTensor"),
        other => panic!("not needed: {other}"),
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// The stream of pickles and storages that `torch.save` wrote from 0.1.10 to 1.5: magic number, protocol, system, the
/// dictionary, the storages' keys, their elements (torch/serialization.py, `_legacy_save`).
fn legacy(tensors: &Tensors) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(
        [b"\x80\x02}(", &text("protocol_version")[..], b"M\xe9\x03", &text("little_endian"), b"\x88u."].concat(),
    );
    file.extend(b"\x80\x02}(");
    let numbers = |values: &[usize]| {
        let each = values.iter().map(|value| [b"J", &(*value as i32).to_le_bytes()[..]].concat());
        [b"(".to_vec(), each.collect::<Vec<_>>().concat(), b"t".to_vec()].concat()
    };
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        file.extend(text(name));
        file.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        let class = format!("ctorch\n{}\n", classes(tensor.dtype).0);
        file.extend([&text("storage")[..], class.as_bytes(), &text(&key.to_string()), &text("cpu")].concat());
        // No view of another storage.
        file.extend([b"J", &(tensor.elements() as i32).to_le_bytes()[..], b"NtQK\0"].concat());
        file.extend([numbers(&tensor.shape), numbers(&strides(&tensor.shape))].concat());
        file.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    file.extend(b"u.\x80\x02](");
    (0..tensors.len()).for_each(|key| file.extend(text(&key.to_string())));
    file.extend(b"e.");
    for tensor in tensors.values() {
        file.extend((tensor.elements() as u64).to_le_bytes());
        file.extend(tensor.bytes());
    }
    file
}

/// The tar archive before PyTorch 0.1.10, of up to a hundred tensors.
fn tar(tensors: &Tensors) -> Vec<u8> {
    let count = [b"\x80\x02K", &[tensors.len() as u8][..], b"."].concat();
    let (mut storages, mut views, mut root) = (count.clone(), count, b"\x80\x02}(".to_vec());
    for (key, (name, tensor)) in (0u8..100).zip(tensors) {
        let (storage, class) = classes(tensor.dtype);
        storages.extend([b"\x80\x02K", &[key][..], &text("cpu"), format!("ctorch\n{storage}\n").as_bytes()].concat());
        storages.extend([b"\x87.", &(tensor.elements() as u64).to_le_bytes()[..], tensor.bytes()].concat());
        views.extend([b"\x80\x02K", &[100 + key, b'K', key][..], format!("ctorch\n{class}\n").as_bytes()].concat());
        views.extend(b"\x87.");
        let numbers = [vec![tensor.shape.len()], tensor.shape.clone(), strides(&tensor.shape), vec![0]].concat();
        numbers.iter().for_each(|number| views.extend((*number as u64).to_le_bytes()));
        root.extend([text(name), text(&(100 + key).to_string()), b"Q".to_vec()].concat());
    }
    storages.extend(b"\x80\x02].");
    root.extend(b"u.");
    let system = [b"\x80\x02}", &text("little_endian")[..], b"\x88s."].concat();
    archive([("sys_info", &system), ("storages", &storages), ("tensors", &views), ("pickle", &root)])
}

/// Two shards and their index, whose path is returned.
fn sharded(folder: &Path, tensors: &Tensors) -> PathBuf {
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = BTreeMap::new();
    for (at, (name, tensor)) in tensors.iter().enumerate() {
        shards[at % 2].insert(name.clone(), tensor.clone());
        map.insert(name, format!("shard-{}.safetensors", at % 2));
    }
    shards.iter().enumerate().for_each(|(at, shard)| write(&folder.join(format!("shard-{at}.safetensors")), shard));
    let index = folder.join("model.safetensors.index.json");
    fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).expect("writes");
    index
}

/// The tensors in every format that is read, of those that have the type.
fn sources(folder: &Path, tensors: &Tensors, dtype: FileDtype) -> Vec<(PathBuf, Tensors)> {
    let at = |name: &str| folder.join(name);
    write(&at("in.safetensors"), tensors);
    write_pth(at("in.pth"), tensors).expect("writes");
    fs::write(at("legacy.pth"), legacy(tensors)).expect("writes");
    let mut files = vec![at("in.safetensors"), at("in.pth"), at("legacy.pth"), sharded(folder, tensors)];
    if dtype != FileDtype::BF16 {
        fs::write(at("in.npz"), npz(tensors)).expect("writes");
        fs::write(at("in.tar"), tar(tensors)).expect("writes");
        files.extend([at("in.npz"), at("in.tar")]);
    }
    let mut files: Vec<_> = files.into_iter().map(|file| (file, tensors.clone())).collect();
    if dtype != FileDtype::BF16 {
        let half = dtype == FileDtype::F16;
        let options = OnnxOptions { batchnorm: BatchNormForm::Keep, half, ..OnnxOptions::default() };
        write_onnx(at("in.onnx"), tensors, &BTreeMap::new(), &options).expect("writes");
        files.push((at("in.onnx"), without_counters(tensors)));
    }
    files
}

fn without_counters(tensors: &Tensors) -> Tensors {
    tensors.iter().filter(|(name, _)| !name.ends_with(COUNTER)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// What a file with folded batchnorm gives: of a convolution w · γ/√(σ² + ε) and β − μ · γ/√(σ² + ε), and of a linear
/// layer behind a batchnorm W · diag(γ/√(σ² + ε)) and b + W · (β − μ · γ/√(σ² + ε)), computed in f64.
fn folded(tensors: &Tensors) -> Tensors {
    let values = |name: &str| tensors[name].values().collect::<Vec<_>>();
    let affine = |norm: &str| -> Vec<(f64, f64)> {
        let [scale, shift, mean, variance] =
            ["weight", "bias", "running_mean", "running_var"].map(|part| values(&format!("{norm}.{part}")));
        let factors =
            scale.iter().zip(&variance).map(|(scale, variance)| scale / (variance + f64::from(1e-5f32)).sqrt());
        factors.zip(shift.iter().zip(&mean)).map(|(factor, (shift, mean))| (factor, shift - mean * factor)).collect()
    };
    let tensor = |shape: &[usize], values: Vec<f64>| {
        FileTensor::from_f32(shape.to_vec(), values.into_iter().map(|value| value as f32).collect()).expect("fits")
    };
    let mut found = without_counters(tensors);
    for (name, original) in tensors {
        let Some(layer) = name.strip_suffix(".weight") else { continue };
        let norm = match original.shape.len() {
            4 => layer.replace("conv", "bn").replace("downsample.0", "downsample.1"),
            2 if layer != "fc" => format!("head.{}", layer[5..].parse::<usize>().expect("a number") - 2),
            _ => continue,
        };
        let (affine, weight) = (affine(&norm), values(name));
        let channels = affine.len();
        let constant = |value: f32| FileTensor::from_f32(vec![channels], vec![value; channels]).expect("fits");
        found.insert(format!("{norm}.weight"), constant(1.0));
        found.insert(format!("{norm}.running_mean"), constant(0.0));
        found.insert(format!("{norm}.running_var"), constant(1.0 - 1e-5));
        if original.shape.len() == 4 {
            let filter = weight.len() / channels;
            let scaled = weight.iter().enumerate().map(|(at, value)| value * affine[at / filter].0).collect();
            found.insert(name.clone(), tensor(&original.shape, scaled));
            let shift = affine.iter().map(|(_, shift)| *shift).collect();
            found.insert(format!("{norm}.bias"), tensor(&[channels], shift));
        } else {
            let scaled = weight.iter().enumerate().map(|(at, value)| value * affine[at % channels].0).collect();
            found.insert(name.clone(), tensor(&original.shape, scaled));
            let rows = weight.chunks(channels).zip(values(&format!("{layer}.bias")));
            let shifted =
                |(row, bias): (&[f64], f64)| bias + row.iter().zip(&affine).map(|(w, (_, s))| w * s).sum::<f64>();
            let bias = rows.map(shifted).collect();
            found.insert(format!("{layer}.bias"), tensor(&original.shape[..1], bias));
            found.insert(format!("{norm}.bias"), constant(0.0));
        }
    }
    found
}

/// The same but for the last bit: sums may be added in another order.
fn nearly(found: &Tensors, expected: &Tensors) -> Result<(), TestCaseError> {
    prop_assert!(found.keys().eq(expected.keys()));
    for (name, tensor) in found {
        let same = tensor.values().zip(expected[name].values()).all(|(a, b)| (a - b).abs() <= 2e-7 * (1.0 + b.abs()));
        prop_assert!(same && tensor.shape == expected[name].shape, "{} differs", name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_format_goes_into_every_other(
        dtype in prop::sample::select(vec![FileDtype::F32, FileDtype::F16, FileDtype::BF16]),
        asked in prop::sample::select(vec![None, Some(FileDtype::F32), Some(FileDtype::F16), Some(FileDtype::BF16)]),
        hidden in prop::option::of(prop::collection::vec(1usize..5, 0..2)),
        seed in any::<u64>(),
    ) {
        let tensors = cast(&network(hidden.map_or(HeadSpec::Linear, HeadSpec::fastai), seed), dtype);
        let folder = tempfile::tempdir().expect("a folder");
        let keep = OnnxOptions { batchnorm: BatchNormForm::Keep, ..OnnxOptions::default() };
        for (source, tensors) in sources(folder.path(), &tensors, dtype) {
            let written = |target: Target, dtype: Option<FileDtype>, output: &str| {
                let file = CheckpointFile::open(&source).expect("opens");
                let options = ConvertOptions { target, dtype, ..ConvertOptions::default() };
                let plan = Conversion::plan(file, &options).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!((plan.arch, plan.unknown.len()), (Some(Arch::ResNet8), 0));
                let output = folder.path().join(output);
                plan.write(&output).unwrap_or_else(|error| panic!("{error}"));
                read(output).tensors
            };
            let expected = cast(&tensors, asked.unwrap_or(dtype));
            prop_assert_eq!(&written(Target::Safetensors, asked, "out.safetensors"), &expected, "{:?}", source);
            prop_assert_eq!(&written(Target::Pth, asked, "out.pth"), &expected, "{:?}", source);
            prop_assert_eq!(&written(Target::Model, asked, "model.safetensors"), &without_counters(&expected));
            let onnx = if asked == Some(FileDtype::F16) { asked } else { None };
            let expected = cast(&without_counters(&tensors), onnx.unwrap_or(FileDtype::F32));
            prop_assert_eq!(&written(Target::Onnx(keep), onnx, "out.onnx"), &expected, "{:?}", source);
            nearly(&written(Target::Onnx(OnnxOptions::default()), None, "folded.onnx"), &folded(&tensors))?;
        }
    }
}
