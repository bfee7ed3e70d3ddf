//! Our ONNX files in onnxruntime, and PyTorch's here, where `UNFREEZE_PYTHON` names a Python that has both.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use unfreeze::{
    Tensor,
    checkpoint::{BatchNormForm, OnnxOptions, Weights},
    nn::{Arch, HeadSpec},
};

use crate::{
    common::{formula, shared},
    onnx::{FOLDER, device, difference, logits, network, raw, written},
};

/// Runs `onnx.py` if there is a Python for it; a visible skip if not.
fn python(arguments: &[&dyn AsRef<OsStr>]) -> Option<String> {
    let Some(python) = std::env::var_os("UNFREEZE_PYTHON") else {
        let text = "SKIPPED: UNFREEZE_PYTHON names no Python with torch, torchvision, onnx, onnxscript, onnxruntime";
        let _ = writeln!(std::io::stderr(), "{text}");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(format!("{FOLDER}/onnx.py")).args(arguments.iter().map(|argument| -> &OsStr { argument.as_ref() }));
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What onnxruntime makes of images `[N, size, size, 3]`.
fn by_onnxruntime(onnx: &Path, images: &Tensor) -> Option<(Vec<f32>, Value)> {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (folder.path().join("input"), folder.path().join("output"));
    let &[n, h, w, c] = images.dims() else { panic!("images") };
    let values = formula::channels_first(&images.to_vec::<f32>().expect("f32"), [n, h, w, c]);
    fs::write(&input, raw(&values)).expect("writes");
    let told = python(&[&"run", &onnx, &input, &output])?;
    let values = fs::read(output).expect("reads");
    let values = values.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
    Some((values.collect(), serde_json::from_str(told.lines().last().expect("a line")).expect("JSON")))
}

fn golden_logits() -> Option<Vec<f32>> {
    let text = fs::read_to_string(shared("golden/networks.json")?).expect("reads");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let rows = golden["resnet18_2x64"]["eval_logits_first16"].as_array().expect("rows");
    Some(rows.iter().flat_map(|row| row.as_array().expect("a row")).map(|v| v.as_f64().expect("f64") as f32).collect())
}

fn first16(logits: &[f32]) -> Vec<f32> {
    logits.chunks_exact(1000).flat_map(|row| &row[..16]).copied().collect()
}

#[test]
fn onnxruntime_computes_what_we_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    let (mean, std) = ([0.4, 0.5, 0.3], [0.2, 0.25, 0.3]);
    let metadata = |size: usize, task: &str| -> BTreeMap<String, String> {
        let entries = [
            ("size", size.to_string()),
            ("mean", format!("{mean:?}")),
            ("std", format!("{std:?}")),
            ("task", task.into()),
        ];
        entries.map(|(key, value)| (key.to_owned(), value)).into()
    };
    let softmax = |row: &[f32]| -> Vec<f32> {
        let sum: f32 = row.iter().map(|logit| logit.exp()).sum();
        row.iter().map(|logit| logit.exp() / sum).collect()
    };
    for (arch, head, classes, size) in [
        (Arch::ResNet18, HeadSpec::Linear, 1000, 64),
        (Arch::ResNet50, HeadSpec::fastai(vec![16]), 5, 64),
        (Arch::ResNext50_32x4d, HeadSpec::Linear, 7, 33),
        (Arch::ResNet20, HeadSpec::fastai(vec![8, 6]), 3, 32),
        (Arch::ResNet8, HeadSpec::Linear, 3, 31),
    ] {
        let model = network(arch, head, classes);
        let images = formula::images(2, size, &device()).expect("images");
        let expected = logits(&model, &images);
        for batchnorm in [BatchNormForm::Keep, BatchNormForm::Fold] {
            let options = OnnxOptions { batchnorm, ..OnnxOptions::default() };
            written(&model, &metadata(size, "single-label"), &options, &path);
            let Some((found, told)) = by_onnxruntime(&path, &images) else { return };
            assert_eq!(told["input"], serde_json::json!(["input", ["N", 3, size, size]]));
            assert_eq!(told["output"], serde_json::json!(["logits", ["N", classes]]));
            assert_eq!(serde_json::json!([told["ir"], told["opset"]]), serde_json::json!([8, 17]));
            let norm = told["operators"].as_array().expect("a list").contains(&"BatchNormalization".into());
            assert_eq!(norm, batchnorm == BatchNormForm::Keep);
            let apart = difference(&found, &expected);
            assert!(apart < 1e-4, "{arch} {batchnorm:?}: {apart}");
            if let (Arch::ResNet18, Some(golden)) = (arch, golden_logits()) {
                assert!(difference(&first16(&found), &golden) < 1e-4, "PyTorch's");
            }
            let half = OnnxOptions { half: true, ..options };
            let full = fs::metadata(&path).expect("is there").len();
            written(&model, &metadata(size, "single-label"), &half, &path);
            assert!(fs::metadata(&path).expect("is there").len() < full * 6 / 10);
            let Some((found, told)) = by_onnxruntime(&path, &images) else { return };
            assert_eq!(told["input"], serde_json::json!(["input", ["N", 3, size, size]]));
            let apart = difference(&found, &expected);
            eprintln!("{arch} {batchnorm:?} in f16: logits differ by {apart:.1e} of their norm");
            assert!(apart < 1e-2, "{arch} {batchnorm:?} in f16: {apart}");
        }
        if arch == Arch::ResNet8 {
            // Images of 0 to 1 that are normalised inside, and probabilities.
            let plain = images.to_vec::<f32>().expect("f32");
            let plain: Vec<f32> =
                plain.iter().enumerate().map(|(at, value)| value * std[at % 3] + mean[at % 3]).collect();
            let plain = Tensor::new(plain, images.shape(), &device()).expect("the same shape");
            for (task, softmaxed) in [("single-label", true), ("multi-label", false)] {
                let options = OnnxOptions { normalise: true, probabilities: true, ..OnnxOptions::default() };
                written(&model, &metadata(size, task), &options, &path);
                let Some((found, told)) = by_onnxruntime(&path, &plain) else { return };
                assert_eq!(told["output"][0], "probabilities");
                let sigmoid: Vec<f32> = expected.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
                let expected: Vec<f32> =
                    if softmaxed { expected.chunks(3).flat_map(softmax).collect() } else { sigmoid };
                assert!(difference(&found, &expected) < 1e-4, "{task}");
            }
        }
    }
}

#[test]
fn networks_that_pytorch_exports_compute_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(golden) = golden_logits() else { return };
    let kinds = ["torchscript-folded", "torchscript-kept", "dynamo", "dynamo-unoptimised"];
    for kind in kinds {
        let path: PathBuf = folder.path().join(format!("{kind}.onnx"));
        if python(&[&"export", &kind, &path]).is_none() {
            return;
        }
        let weights = Weights::file(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(weights.arch(), Arch::ResNet18);
        let model = weights.with_classifier(&device()).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let found = logits(&model, &formula::images(2, 64, &device()).expect("images"));
        let apart = difference(&first16(&found), &golden);
        assert!(apart < 1e-5, "{kind}: {apart}");
    }
}
