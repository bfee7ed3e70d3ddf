//! Files of the programs they come from, written by `fixtures.py`: what is read is what PyTorch has in them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use image::{Rgb, RgbImage};
use unfreeze::{
    Device, Tensor,
    autograd::Parameters,
    checkpoint::{
        CheckpointFile, Conversion, ConvertOptions, FileTensor, Format, Target, TensorSource, Weights, collect,
        write_pth,
    },
    data::{Transforms, View},
    nn::{Arch, HeadSpec, Model},
};

use crate::{
    common::{formula, program::unfreeze},
    models::{hollow, shapes_of},
    read, refusal,
};

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
    assert_eq!(fastai.dropped, [("opt.state.0.mom".to_owned(), "stored beside the weights")]);
    assert_eq!(plan("imagenet_example.pth.tar").dropped, [("best_acc1".to_owned(), "stored beside the weights")]);
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
fn a_plan_says_what_becomes_of_each_tensor() {
    let plan =
        |name: &str, flags: &str| unfreeze(&format!("convert {{}} --dry-run {flags}"), &[&fixture(name)]).succeeded();
    let fastai = plan("fastai_2.pth", "--dtype f32");
    for line in [
        "0.0.weight -> conv1.weight  f16 -> f32 [2, 3, 7, 7]",
        "0.1.num_batches_tracked -> bn1.num_batches_tracked  i64 []",
        "opt.state.0.mom  left out: stored beside the weights",
        "84 tensors would go to safetensors, 1 be left out",
    ] {
        assert!(fastai.out.lines().any(|found| found == line), "lacks '{line}': {}", fastai.out);
    }
    assert!(fastai.err.contains("PyTorch zip, of no known architecture, names of fastai 2"), "{}", fastai.err);
    assert!(fastai.err.contains("converted all the same, but make no model\n"), "{}", fastai.err);
    assert!(plan("torchvision.pth", "--format pth").out.starts_with("bn1.bias  f32 [2]\n"), "a name that stays");
    let deep = plan("resnet50d.pth", "");
    assert!(deep.err.contains("make no model; tensors with 'conv1.0.weight' in their names are of"), "{}", deep.err);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("resnet20.safetensors");
    hollow(&path, &shapes_of(Arch::ResNet20, 10));
    for (flags, last) in [
        ("--format onnx --dtype f16", "an ONNX file of f16, batchnorm folded into the layers beside it"),
        ("--format onnx --batchnorm keep", "an ONNX file of f32"),
        ("--format model", "a model file"),
    ] {
        let ran = unfreeze(&format!("convert {{}} --dry-run {flags}"), &[&path]).succeeded();
        assert!(ran.out.ends_with(&format!("97 tensors would go to {last}, 0 be left out\n")), "{}", ran.out);
        assert_eq!(ran.out.contains("conv1.weight  f32 -> f16 [16, 3, 3, 3]"), flags.contains("f16"), "{}", ran.out);
    }
}

/// fastai's names of a network's tensors: torchvision's stages by position in `body`, and the head of the fixture
/// `name`, whose layers are those that begin with `head`, on as many features as the network has.
fn fastai(name: &str, arch: Arch, body: &str, head: [&str; 4], features: usize) -> BTreeMap<String, Vec<usize>> {
    let stages = ["conv1", "bn1", "relu", "pool", "layer1", "layer2", "layer3", "layer4"];
    let mut shapes = BTreeMap::new();
    for (name, shape) in shapes_of(arch, 3) {
        let (stage, rest) = name.split_once('.').expect("a stage");
        let Some(position) = stages.iter().position(|known| *known == stage) else { continue };
        shapes.insert(format!("{body}{position}.{rest}"), shape);
    }
    // The fixture's are 16, and twice as many after both pools.
    let widened = |extent: &usize| if *extent == 32 { 2 * features } else { *extent };
    for (name, tensor) in CheckpointFile::open(fixture(name)).expect("opens").tensors {
        if head.iter().any(|layer| name.starts_with(layer)) && !name.ends_with("num_batches_tracked") {
            shapes.insert(name, tensor.shape().iter().map(widened).collect());
        }
    }
    shapes
}

#[test]
fn fastai_networks_of_full_width_are_recognised() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("whole.safetensors");
    for (name, convention, body, head, biases) in [
        ("fastai_07.h5", "fastai 0.7", "", ["10.", "12.", "14.", "16."], true),
        ("fastai_2.pth", "fastai 2", "0.", ["1.2.", "1.4.", "1.6.", "1.8."], false),
    ] {
        hollow(&path, &fastai(name, Arch::ResNet34, body, head, 512));
        for arch in [None, Some(Arch::ResNet34)] {
            for target in [Target::Safetensors, Target::Model] {
                let options = ConvertOptions { arch, target, ..Default::default() };
                let plan = Conversion::plan(CheckpointFile::open(&path).expect("opens"), &options);
                let plan = plan.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!((plan.arch, plan.convention), (Some(Arch::ResNet34), Some(convention)));
                assert!(plan.unknown.is_empty() && plan.dropped.is_empty(), "{name}: {:?}", plan.unknown);
                assert_eq!(plan.tensors["head.3.weight"].shape(), [16, 1024]);
                let has_bias = biases || target == Target::Model;
                assert_eq!(plan.tensors.contains_key("head.7.bias"), has_bias, "{name}");
                assert_eq!(plan.tensors.len(), 36 * 5 + 10 + 2 * usize::from(has_bias));
            }
        }
        let options = ConvertOptions { arch: Some(Arch::ResNet18), ..Default::default() };
        let error = Conversion::plan(CheckpointFile::open(&path).expect("opens"), &options).expect_err("is another");
        assert!(error.to_string().contains("of resnet34, not of resnet18"), "{error}");
    }
}

#[test]
fn a_fastai_checkpoint_becomes_a_model_that_predicts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let device = Device::cpu(1).expect("a processor");
    let mut model = Model::new(Arch::ResNet8, HeadSpec::fastai(vec![4]), 3, 1, &device).expect("a network");
    formula::fill(&mut model, &device);
    let biases = ["head.3.bias", "head.7.bias"];
    model.visit_mut(&mut |parameter| {
        if biases.contains(&&**parameter.name()) {
            parameter.value = Tensor::full(parameter.value.shape(), 0.0, &device).expect("zeros");
        }
    });
    let picture = RgbImage::from_fn(40, 32, |x, y| Rgb([(6 * x) as u8, (8 * y) as u8, (x * y) as u8]));
    picture.save(at("picture.png")).expect("writes");
    let sample = Transforms::new(32).apply(&picture, View::Clean).expect("a sample");
    let pixels: Vec<f32> = sample
        .pixels
        .iter()
        .enumerate()
        .map(|(at, value)| {
            let channel = at % 3;
            (f32::from(*value) / 255.0 - [0.485, 0.456, 0.406][channel]) / [0.229, 0.224, 0.225][channel]
        })
        .collect();
    let images = Tensor::new(pixels, [1, 32, 32, 3], &device).expect("an image");
    let logits: Vec<f32> = model.logits(&images).and_then(|logits| logits.to_vec()).expect("logits");
    let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();

    // By the positions of its layers, as fastai 0.7 and 2 leave it, the latter without biases in its head.
    let stages = ["conv1.", "bn1.", "", "", "layer1.", "layer2.", "layer3."];
    for (file, body, head) in [("old.h5", "", 9), ("new.pth", "0.", 1)] {
        let renamed = collect(&model).expect("collects").into_iter().map(|(name, tensor)| {
            let stage = stages.iter().position(|stage| !stage.is_empty() && name.starts_with(stage));
            let name = match (stage, name.strip_prefix("head.").and_then(|rest| rest.split_once('.'))) {
                (Some(position), _) => format!("{body}{position}.{}", &name[stages[position].len()..]),
                (None, Some((position, rest))) => {
                    let position = position.parse::<usize>().expect("a number") + head;
                    if head == 9 { format!("{position}.{rest}") } else { format!("1.{position}.{rest}") }
                }
                other => panic!("{other:?}"),
            };
            (name, tensor)
        });
        let mut tensors: BTreeMap<String, FileTensor> = renamed.collect();
        tensors.retain(|name, _| !matches!(name.as_str(), "1.4.bias" | "1.8.bias"));
        write_pth(at(file), &tensors).expect("writes");
        unfreeze("convert {} {} --format model --arch resnet8", &[&at(file), &at("model.safetensors")]).succeeded();
        let told =
            unfreeze("predict {} {} --top 3 --json", &[&at("model.safetensors"), &at("picture.png")]).succeeded();
        let found = &told.objects()[0];
        for place in found["top"].as_array().expect("a list") {
            let class: usize = place["class"].as_str().expect("a name").parse().expect("a number");
            let probability = place["probability"].as_f64().expect("a number");
            let expected = f64::from(logits[class].exp() / sum);
            assert!((probability - expected).abs() < 1e-5, "{file}: {class} has {probability}, not {expected}");
        }
    }
}

#[test]
fn transformers_names_are_called_what_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    // Of microsoft/resnet-18: transformers' ResNetForImageClassification (modeling_resnet.py).
    let shapes = [
        ("resnet.embedder.embedder.convolution.weight", vec![64, 3, 7, 7]),
        ("resnet.embedder.embedder.normalization.weight", vec![64]),
        ("resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", vec![64, 64, 3, 3]),
        ("resnet.encoder.stages.0.layers.0.layer.0.normalization.weight", vec![64]),
        ("resnet.encoder.stages.0.layers.0.layer.1.convolution.weight", vec![64, 64, 3, 3]),
        ("resnet.encoder.stages.1.layers.0.shortcut.convolution.weight", vec![128, 64, 1, 1]),
        ("classifier.1.weight", vec![1000, 512]),
    ];
    hollow(&path, &shapes.map(|(name, shape)| (name.to_owned(), shape)).into());
    let error = Weights::file(&path).expect_err("is not supported").to_string();
    assert!(error.contains("model.safetensors") && error.contains("transformers' ResNets"), "{error}");
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
fn networks_that_resemble_ours_are_called_what_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let refused = |shapes: &BTreeMap<String, Vec<usize>>, what: &str| {
        hollow(&path, shapes);
        for weights in [Weights::file(&path), Weights::file_of(Arch::ResNet50, &path)] {
            let error = weights.expect_err("is not supported").to_string();
            assert!(error.contains(what) && error.contains("not supported"), "lacks {what}: {error}");
        }
        let options = ConvertOptions { arch: Some(Arch::ResNet50), ..Default::default() };
        let plan = Conversion::plan(CheckpointFile::open(&path).expect("opens"), &options);
        assert!(plan.expect_err("is no ResNet-50").to_string().contains(what), "lacks {what}");
    };
    // torchvision's with norm_layer=GroupNorm, and with InstanceNorm2d, which has no tensors.
    let mut shapes = shapes_of(Arch::ResNet50, 10);
    shapes.retain(|name, _| !name.contains("running_"));
    refused(&shapes, "the convolutions are those of resnet50, but no tensor is a batchnorm's");
    shapes.retain(|name, shape| shape.len() > 1 || name.starts_with("fc"));
    refused(&shapes, "GroupNorm");
    // Names of timm's resnest50d, skresnet18, res2net50_26w_4s, ecaresnet50, convnext_atto, resnetv2_50, regnety_002,
    // cspresnet50 and Detectron2's R-50, beside those of a whole ResNet-50.
    for (name, what) in [
        ("layer1.0.conv2.fc1.weight", "ResNeSt"),
        ("layer1.0.conv1.paths.0.conv.weight", "SKNet"),
        ("layer1.0.convs.0.weight", "Res2Net"),
        ("layer1.0.se.conv.weight", "channel attention"),
        ("stages.0.blocks.0.conv_dw.weight", "ConvNeXt"),
        ("stages.0.blocks.0.norm1.weight", "activations first"),
        ("s1.b1.conv1.conv.weight", "RegNet"),
        ("stages.0.blocks.0.conv1.conv.weight", "CSPResNet"),
        ("res2.0.conv1.weight", "Detectron2"),
    ] {
        let mut shapes = shapes_of(Arch::ResNet50, 10);
        shapes.insert(name.into(), vec![8, 8, 3]);
        refused(&shapes, what);
    }
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
