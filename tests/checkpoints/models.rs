//! Model files made of checkpoints: what they predict, their classes, and what images go through.

use std::{collections::BTreeMap, path::Path};

use unfreeze::{
    Device,
    checkpoint::{CheckpointFile, Conversion, ConvertOptions, Target, collect},
    learner::ModelFile,
    nn::{Arch, HeadSpec},
};

use crate::{
    common::program::unfreeze,
    conversion::{convert, small, to},
    write,
};

#[test]
fn a_model_file_predicts_as_its_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let device = Device::cpu(1).expect("a processor");
    let mut tensors = small(HeadSpec::fastai(vec![4]));
    let options = ConvertOptions {
        classes: Some(["ant", "bee", "cat"].map(String::from).into()),
        size: Some(40),
        ..to(Target::Model)
    };
    // As fastai 2 leaves it: no biases of linear layers.
    tensors.retain(|name, _| !matches!(name.as_str(), "head.3.bias" | "head.7.bias"));
    write(&at("in.safetensors"), &tensors);
    let plan = convert(&at("in.safetensors"), &at("model.safetensors"), options.clone()).expect("converts");
    assert_eq!(plan.arch, Some(Arch::ResNet8));
    assert_eq!(plan.origins["head.7.bias"].from, None);
    let file = ModelFile::load(at("model.safetensors"), &device).expect("loads");
    assert_eq!((file.classes.join(" "), file.transforms.size), ("ant bee cat".into(), 40));
    let loaded = collect(&file.model).expect("collects");
    assert_eq!(loaded["head.3.bias"].to_f32(), [0.0; 4]);
    tensors.iter().for_each(|(name, tensor)| assert_eq!(&loaded[name], tensor, "{name}"));
    // What is a model stays one, by way of any format.
    convert(&at("model.safetensors"), &at("again.safetensors"), to(Target::Model)).expect("converts");
    assert_eq!(
        std::fs::read(at("model.safetensors")).expect("reads"),
        std::fs::read(at("again.safetensors")).expect("reads")
    );

    let wrong = ConvertOptions { classes: Some(vec!["ant".into()]), ..options };
    let error = convert(&at("in.safetensors"), &at("x.safetensors"), wrong).expect_err("three classes");
    assert!(error.contains("1 names are given, but the network tells 3 classes"), "{error}");
    tensors.retain(|name, _| !name.starts_with("head."));
    write(&at("in.safetensors"), &tensors);
    let error = convert(&at("in.safetensors"), &at("x.safetensors"), to(Target::Model)).expect_err("a backbone");
    assert!(error.contains("no classifier") && !at("x.safetensors").exists(), "{error}");
}

#[test]
fn metadata_of_other_programs_make_no_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let tensors = small(HeadSpec::Linear);
    let write = |metadata: &[(&str, &str)]| {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        unfreeze::checkpoint::write_safetensors(at("in.safetensors"), &tensors, &metadata).expect("writes");
    };
    let converted =
        || convert(&at("in.safetensors"), &at("out.safetensors"), to(Target::Model)).map(|plan| plan.metadata);
    // Of another program, with a word or two in common.
    write(&[("format_version", "3.1-beta"), ("task", "segmentation"), ("size", "7"), ("classes", "[\"one\"]")]);
    let metadata = converted().expect("converts");
    assert_eq!((metadata["size"].as_str(), metadata["task"].as_str()), ("32", "single-label"));
    assert_eq!(metadata["classes"], r#"["0","1","2"]"#);
    let device = Device::cpu(1).expect("a processor");
    ModelFile::load(at("out.safetensors"), &device).expect("loads");
    let error = ModelFile::load(at("in.safetensors"), &device).expect_err("is no model").to_string();
    assert!(error.contains("has no 'engine_version'"), "{error}");

    // Ours stays what it is, but for what does not fit it.
    let ours =
        [("engine_version", "0.1.0"), ("arch", "resnet20"), ("size", "40"), ("resize", "50"), ("task", "multi-label")];
    let of_version = |version| [&ours[..], &[("format_version", version), ("head", r#"{"kind":"linear"}"#)]].concat();
    write(&of_version("1"));
    let metadata = converted().expect("converts");
    assert_eq!([&metadata["arch"], &metadata["resize"], &metadata["task"]], ["resnet8", "50", "multi-label"]);
    let resized = ConvertOptions { size: Some(20), ..to(Target::Model) };
    let plan = convert(&at("in.safetensors"), &at("out.safetensors"), resized).expect("converts");
    assert_eq!((plan.metadata["size"].as_str(), plan.metadata["resize"].as_str()), ("20", "25"));
    write(&of_version("2"));
    let error = converted().expect_err("is of a later version");
    assert!(error.contains("in.safetensors: is of format 2, later than this program's 1; update it"), "{error}");
    write(&of_version("x"));
    assert!(converted().expect_err("is of none").contains("has a bad format_version"));
}

#[test]
fn images_of_a_model_go_through_what_the_weights_were_published_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mean, std) = (Some([0.5, 0.4, 0.3]), Some([0.2, 0.25, 0.3]));
    // A network at full width, of which nothing but the header is read.
    let planned = |name: &str, arch: Arch, options: ConvertOptions| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("creates");
        hollow(&path, &shapes_of(arch, arch.published_classes()));
        Conversion::plan(CheckpointFile::open(&path).expect("opens"), &options).expect("plans")
    };
    let hub = "models--timm--resnet50.a1_in1k/snapshots/0123/model.safetensors";
    let model = || to(Target::Model);
    for (name, arch, options, published, size, resize) in [
        ("resnet50.v1.safetensors", Arch::ResNet50, model(), Some("resnet50.v1"), 224, 256),
        ("resnet50.v2.safetensors", Arch::ResNet50, model(), Some("resnet50.v2"), 224, 232),
        (hub, Arch::ResNet50, model(), Some("resnet50.a1_in1k"), 224, 235),
        // A name alone does not make a network what it is called after.
        ("resnet34.v1.safetensors", Arch::ResNet50, model(), None, 224, 256),
        ("mine.safetensors", Arch::ResNet50, model(), None, 224, 256),
        ("mine.safetensors", Arch::ResNet20, model(), None, 32, 32),
        (
            "resnet50.v2.safetensors",
            Arch::ResNet50,
            ConvertOptions { size: Some(112), ..model() },
            Some("resnet50.v2"),
            112,
            116,
        ),
        (
            "resnet50.v2.safetensors",
            Arch::ResNet50,
            ConvertOptions { resize: Some(300), ..model() },
            Some("resnet50.v2"),
            224,
            300,
        ),
        (
            "mine.safetensors",
            Arch::ResNet50,
            ConvertOptions { size: Some(64), resize: Some(64), mean, std, ..model() },
            None,
            64,
            64,
        ),
    ] {
        let means = options.mean.unwrap_or([0.485, 0.456, 0.406]);
        let plan = planned(name, arch, options);
        let transforms = plan.transforms.expect("a model's");
        assert_eq!(plan.published.map(|entry| entry.name.as_str()), published, "{name}");
        assert_eq!((transforms.size, transforms.resize, transforms.mean), (size, resize, means), "{name}");
        assert_eq!(plan.metadata["resize"], resize.to_string(), "{name}");
        assert_eq!(plan.metadata["mean"], serde_json::to_string(&means).expect("JSON"), "{name}");
    }
    let ran = unfreeze("convert {} --format model --dry-run", &[&folder.path().join("resnet50.v2.safetensors")]);
    assert!(ran.succeeded().err.contains("resized to 232 and cropped to 224, as resnet50.v2 was published"));
    let ran = unfreeze("convert {} out.pth --mean 1,2,3", &[&folder.path().join("mine.safetensors")]);
    assert!(ran.code == 2 && ran.err.contains("--mean"), "{}", ran.err);
    let ran = unfreeze("convert {} --format model --dry-run --std 1,2", &[&folder.path().join("mine.safetensors")]);
    assert!(ran.code == 2 && ran.err.contains("three numbers"), "{}", ran.err);
}

/// Name and shape of each tensor of a network with torchvision's classifier.
pub fn shapes_of(arch: Arch, classes: usize) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::from([("fc.bias".to_owned(), vec![classes])]);
    let convolutions = arch.convolutions();
    let features = convolutions.iter().filter(|(name, _)| name.starts_with("layer")).map(|(_, shape)| shape[0]).max();
    shapes.insert("fc.weight".into(), vec![classes, features.expect("some")]);
    for (name, shape) in convolutions {
        let norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1").replace(".weight", "");
        for part in ["weight", "bias", "running_mean", "running_var"] {
            shapes.insert(format!("{norm}.{part}"), shape[..1].to_vec());
        }
        shapes.insert(name, shape);
    }
    shapes
}

/// A safetensors file of zeros, which take no room on the disk.
pub fn hollow(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
    let mut end = 0;
    let entries = shapes.iter().map(|(name, shape)| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        (name.clone(), serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }))
    });
    let header = serde_json::Value::Object(entries.collect()).to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).expect("writes");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    file.set_len((8 + header.len() + end) as u64).expect("grows");
}
