//! Files of the programs they come from, written by `fixtures.py`: what is read is what PyTorch has in them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use unfreeze::{
    checkpoint::{CheckpointFile, Conversion, ConvertOptions, FileTensor, Format, TensorSource, Weights},
    nn::Arch,
};

use crate::{read, refusal};

/// Type, shape, and CRC-32 of the elements.
type Expected = BTreeMap<String, (String, Vec<usize>, u32)>;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/fixtures").join(name)
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).expect("reads")).expect("parses")
}

fn summary(tensors: &BTreeMap<String, FileTensor>) -> Expected {
    let summary =
        |tensor: &FileTensor| (tensor.dtype.to_string(), tensor.shape.clone(), crc32fast::hash(tensor.bytes()));
    tensors.iter().map(|(name, tensor)| (name.clone(), summary(tensor))).collect()
}

#[test]
fn every_original_reads_as_pytorch_has_it() {
    let expected: BTreeMap<String, Expected> = json("expected.json");
    assert_eq!(expected.len(), 13);
    for (name, tensors) in &expected {
        let checkpoint = read(fixture(name)).normalised().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&summary(&checkpoint.tensors), tensors, "{name}");
        let format = match name.as_str() {
            "legacy.pth" | "fastai_07.h5" => Format::PytorchLegacy,
            "torchvision.safetensors" => Format::Safetensors,
            "sharded/model.safetensors.index.json" => Format::Sharded,
            "compressed.npz" | "fortran.npz" => Format::Npz,
            _ => Format::PytorchZip,
        };
        assert_eq!(checkpoint.format, format, "{name}");
    }
}

#[test]
fn whose_names_a_file_has_is_told_and_what_is_left_out() {
    let plan = |name: &str| {
        let file = CheckpointFile::open(fixture(name)).expect("opens");
        Conversion::plan(file, &ConvertOptions::default()).expect("plans")
    };
    for (name, convention, prefixes) in [
        ("torchvision.pth", None, ""),
        ("timm.pth", None, ""),
        ("imagenet_example.pth.tar", None, "module."),
        ("mmpretrain.pth", Some("MMPretrain"), "backbone."),
        ("fastai_07.h5", Some("fastai 0.7"), ""),
        ("fastai_2.pth", Some("fastai 2"), ""),
    ] {
        let plan = plan(name);
        assert_eq!((plan.convention, plan.prefixes.concat().as_str()), (convention, prefixes), "{name}");
        assert_eq!(plan.arch, None, "{name} is too narrow to be one of ours");
    }
    let fastai = plan("fastai_2.pth");
    assert_eq!(fastai.origins["layer4.0.bn2.bias"].from.as_deref(), Some("0.7.0.bn2.bias"));
    assert_eq!(fastai.origins["head.7.weight"].from.as_deref(), Some("1.8.weight"));
    assert!(!fastai.origins.contains_key("head.7.bias"), "fastai 2 has no biases there");
    assert_eq!(fastai.dropped, [("opt.state.0.mom".to_owned(), "beside the weights")]);
    assert_eq!(plan("imagenet_example.pth.tar").dropped, [("best_acc1".to_owned(), "beside the weights")]);
}

#[test]
fn timm_and_torchvision_have_the_networks_that_this_engine_has() {
    let originals: BTreeMap<String, BTreeMap<String, [u32; 2]>> = json("architectures.json");
    assert_eq!(originals.len(), 10);
    for (name, digests) in originals {
        let arch: Arch = name.parse().expect("is one of ours");
        let mut lines: Vec<String> =
            arch.convolutions().iter().map(|(name, shape)| format!("{name} {shape:?}\n")).collect();
        lines.sort();
        let digest = crc32fast::hash(lines.concat().as_bytes());
        assert_eq!((digests["torchvision"][0], digests["timm"][0]), (digest, digest), "{arch}");
        assert_eq!(digests["torchvision"][1], digests["timm"][1], "timm has other names or shapes for {arch}");
    }
}

#[test]
fn other_networks_are_called_what_they_are() {
    let error = Weights::file(fixture("resnet50d.pth")).expect_err("is no network of ours").to_string();
    assert!(error.contains("resnet50d.pth") && error.contains("ResNet-C or -D"), "{error}");
    let options = ConvertOptions { arch: Some(Arch::ResNet50), ..Default::default() };
    let error = Conversion::plan(CheckpointFile::open(fixture("resnet50d.pth")).expect("opens"), &options);
    let error = error.expect_err("is no ResNet-50").to_string();
    assert!(error.contains("conv1.0.weight (nearest: conv1.weight)") && error.contains("ResNet-C or -D"), "{error}");
}

#[test]
fn damaged_indices_say_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = folder.path().join("model.safetensors.index.json");
    let shard = "model-00002-of-00004.safetensors";
    std::fs::copy(fixture("sharded").join(shard), folder.path().join(shard)).expect("copies");
    let some = CheckpointFile::open(folder.path().join(shard)).expect("opens");
    let name = some.tensors.keys().next().expect("some").clone();
    for (text, cause) in [
        ("{\"weight_map\":".to_owned(), "no index of a sharded checkpoint"),
        ("{}".into(), "weight_map"),
        ("{\"weight_map\":{}}".into(), "holds no tensors"),
        (r#"{"weight_map":{"a":"../a.safetensors"}}"#.into(), "'../a.safetensors', which is no shard in its folder"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#.into(), "no shard in its folder"),
        (r#"{"weight_map":{"a":""}}"#.into(), "no shard in its folder"),
        (r#"{"weight_map":{"a":"model.safetensors.index.json"}}"#.into(), "no shard in its folder"),
        (r#"{"weight_map":{"a":"b.safetensors"}}"#.into(), "b.safetensors, which is not in its folder: fetch it too"),
        (format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#), "holds the tensor a, but it does not"),
        (r#"{"weight_map":{"a":1}}"#.into(), "a: invalid type: integer `1`, expected a string"),
        (r#"{"weight_map":{"a":["b.safetensors"]}}"#.into(), "a: invalid type: sequence"),
        (r#"{"weight_map":{"a":null}}"#.into(), "a: invalid type: null"),
        (r#"{"weight_map":["a"]}"#.into(), "expected an object"),
        (r#"{"weight_map":{"a":"b.safetensors","a":"c.safetensors"}}"#.into(), "a is there twice"),
        (format!(r#"{{"weight_map":{{"a":{}"#, "[".repeat(100_000)), "a: "),
    ] {
        std::fs::write(&index, text).expect("writes");
        let error = refusal(&index);
        assert!(error.contains(cause), "lacks '{cause}': {error}");
    }
    let text = format!("\u{feff}{{\"weight_map\":{{\"{name}\":\"{shard}\"}}}}");
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(&index, utf16).expect("writes");
    assert!(refusal(&index).contains("UTF-16"));
    std::fs::write(&index, text).expect("writes");
    let whole = CheckpointFile::open(&index).expect("opens");
    assert_eq!((whole.tensors.len(), whole.left_out.len()), (1, some.tensors.len() - 1));
    assert!(whole.left_out.iter().all(|(left, why)| left.starts_with(shard) && *why == "not in the index"));
    assert_eq!(whole.tensors[&name].shape(), some.tensors[&name].shape());
    assert_eq!(whole.load().expect("reads").tensors[&name], read(folder.path().join(shard)).tensors[&name]);
}
