//! Values that no network computes with, files in the way of others, and writing that fails.

use std::{fs, path::Path};

use unfreeze::{
    checkpoint::{CheckpointFile, FileTensor, Weights},
    nn::HeadSpec,
};

use crate::{
    cast,
    common::program::{names, unfreeze},
    conversion::small,
    originals::fixture,
    read, write,
};

#[test]
fn tensors_that_no_network_computes_with_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let source = at("in.safetensors");
    let device = unfreeze::Device::cpu(1).expect("a processor");
    for (name, value, what, loading) in [
        ("layer1.0.bn1.running_var", -0.5, "a negative variance", "negative variances"),
        ("layer2.0.conv1.weight", f32::NAN, "values that are not finite", "not finite"),
    ] {
        let mut tensors = small(HeadSpec::Linear);
        let mut values = tensors[name].to_f32();
        values[3] = value;
        tensors.insert(name.into(), FileTensor::from_f32(tensors[name].shape.clone(), values).expect("fits"));
        write(&source, &tensors);
        for output in ["out.safetensors", "out.pth"] {
            let ran = unfreeze("convert {} {}", &[&source, &at(output)]).succeeded();
            assert!(ran.err.contains(&format!("note: {name} has {what}: no network computes")), "{}", ran.err);
            assert_eq!(read(at(output)).tensors.len(), tensors.len());
        }
        for (output, flag) in
            [("model.safetensors", "--format model"), ("out.onnx", ""), ("out.onnx", "--batchnorm keep")]
        {
            let ran = unfreeze(&format!("convert {{}} {{}} {flag}"), &[&source, &at(output)]);
            assert!(ran.code == 1 && ran.err.contains(&format!("{name} has {what}")), "{}", ran.err);
            assert!(!at(output).exists());
        }
        let weights = Weights::file(&source).expect("opens");
        let error = weights.with_head(HeadSpec::Linear, 2, 0, &device).expect_err("is flawed").to_string();
        assert!(error.contains(&format!("{loading}: {name}")), "{error}");
    }
}

#[test]
fn a_state_dict_of_torch_save_may_take_its_own_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("torchvision.pth");
    fs::copy(fixture("torchvision.pth"), &path).expect("copies");
    let before = read(&path).tensors;
    unfreeze("convert {} {} --dtype f16", &[&path, &path]).succeeded();
    assert_eq!(read(&path).tensors, cast(&before, unfreeze::checkpoint::FileDtype::F16));
}

#[test]
fn what_else_could_be_meant_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write(&at("in.safetensors"), &small(HeadSpec::Linear));
    for output in ["out", "out.txt"] {
        let ran = unfreeze("convert {} {}", &[&at("in.safetensors"), &at(output)]);
        assert!(ran.code == 2 && ran.err.contains("in .safetensors, .pth, .pt, .bin or .onnx"), "{}", ran.err);
    }
    let ran = unfreeze("convert resnet18.v1 {}", &[&at("out.onnx")]);
    assert!(ran.code == 1 && ran.err.contains("`unfreeze weights path resnet18.v1` says where"), "{}", ran.err);
    for command in ["inspect res18.pth", "features {} --layer avgpool --weights res18.pth --out {}"] {
        let ran = unfreeze(command, &[&at("a.png"), &at("out.safetensors")]);
        assert!(
            ran.code == 1 && ran.err.contains("no such file; names of published weights are those of"),
            "{}",
            ran.err
        );
    }

    // Names in other networks' files that are also in those of ours say nothing.
    let foreign = ["head.fc.weight", "stages.0.blocks.0.conv_dw.weight"];
    let tensor = || FileTensor::from_f32(vec![1, 1, 1, 1], vec![0.0]).expect("fits");
    write(&at("foreign.safetensors"), &foreign.map(|name| (name.to_owned(), tensor())).into());
    let ran = unfreeze("convert {} --dry-run", &[&at("foreign.safetensors")]).succeeded();
    assert!(ran.err.contains("of no known architecture\n") && ran.err.contains("depthwise"), "{}", ran.err);
    // Of networks with anti-aliasing layers the file's name alone can tell.
    write(&at("resnetblur18-1234.safetensors"), &small(HeadSpec::Linear));
    let ran = unfreeze("convert {} --dry-run", &[&at("resnetblur18-1234.safetensors")]).succeeded();
    assert!(ran.err.contains("it is a resnetblur18, which has anti-aliasing layers"), "{}", ran.err);
}

#[test]
fn the_tensors_of_an_onnx_file_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, output) = (folder.path().join("in.safetensors"), folder.path().join("out.onnx"));
    write(&source, &small(HeadSpec::Linear));
    // Each of two shortcuts that pad has a Slice with starts, ends, axes and steps, and a Pad with its pads.
    let shortcuts = 2 * (4 + 1);
    // Weight and bias of seven convolutions and a classifier; or four tensors of batchnorm for each bias.
    for (flag, count) in [("", 2 * 7 + 2 + shortcuts), ("--batchnorm keep", 7 + 4 * 7 + 2 + shortcuts)] {
        let ran = unfreeze(&format!("convert {{}} {{}} {flag}"), &[&source, &output]).succeeded();
        assert!(ran.err.ends_with(&format!("out.onnx: {count} tensors\n")), "{}", ran.err);
        assert!(CheckpointFile::open(&output).expect("opens").notes.is_empty());
    }
}

/// A limit on the size of files stands for a full disk.
#[cfg(unix)]
#[test]
fn writing_that_fails_names_the_file_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write(&at("in.safetensors"), &small(HeadSpec::Linear));
    for output in ["out.safetensors", "out.pth", "out.onnx"] {
        // Ignored, the signal becomes an error.
        let script = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_unfreeze"), "convert"]);
        let ran = crate::common::program::ran(shell.args([at("in.safetensors"), at(output)]).output().expect("runs"));
        let lines: Vec<&str> = ran.err.lines().filter(|line| !line.starts_with("note: ")).collect();
        let [_, error] = lines[..] else { panic!("{}", ran.err) };
        let named = error.starts_with("error: ") && error.contains(output) && error.contains("File too large");
        assert!(ran.code == 1 && named, "{}", ran.err);
        assert_eq!(names(Path::new(folder.path())), ["in.safetensors"]);
    }
}
