//! What ONNX graphs do to images before their network, as other programs could have written it: nodes put before the
//! first convolution of our own small file.

use unfreeze::{
    checkpoint::{CheckpointFile, Conversion, ConvertOptions, OnnxOptions, Target, Weights},
    data::Transforms,
};

use crate::{
    conversion::to,
    onnx::{bytes, number, small},
    onnx_graphs::{edited, fields, node},
};

const IMAGENET: [f32; 3] = [0.485, 0.456, 0.406];

/// A constant of such a shape.
fn constant(name: &str, shape: &[i64], values: &[f32]) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|extent| number(1, *extent)).collect();
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes(5, [dims, number(2, 1), bytes(8, name), bytes(9, raw)].concat())
}

fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes(5, [number(1, values.len() as i64), number(2, 7), bytes(8, name), bytes(9, raw)].concat())
}

fn attribute(name: &str, numbers: &[i64]) -> Vec<u8> {
    let each: Vec<u8> = numbers.iter().flat_map(|value| number(8, *value)).collect();
    [bytes(1, name), each].concat()
}

/// Our small file with `steps` that compute `ready` of `input`, and an input of such extents.
fn with(steps: &[Vec<u8>], extents: &[i64]) -> Vec<u8> {
    let dims: Vec<u8> = extents.iter().flat_map(|extent| bytes(1, number(1, *extent))).collect();
    let shape = bytes(2, bytes(1, [number(1, 1), bytes(2, dims)].concat()));
    edited(&small(), |field, value| match field {
        11 => Some(bytes(11, [bytes(1, "input"), shape.clone()].concat())),
        1 => {
            let parts = fields(value);
            let takes_images = parts.iter().any(|(number, _, text)| (*number, *text) == (1, b"input"));
            let ready = |(number, whole, text): &(u64, &[u8], &[u8])| match (*number, *text) {
                (1, b"input") => bytes(1, "ready"),
                _ => whole.to_vec(),
            };
            let conv = bytes(1, parts.iter().map(ready).collect::<Vec<_>>().concat());
            takes_images.then(|| [steps.concat(), conv].concat())
        }
        _ => None,
    })
}

fn planned(file: &[u8], options: &ConvertOptions) -> Result<(Transforms, Vec<String>), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("in.onnx");
    std::fs::write(&path, file).expect("writes");
    let plan = CheckpointFile::open(&path).and_then(|file| Conversion::plan(file, options));
    plan.map(|plan| (plan.transforms.expect("a model's"), plan.notes)).map_err(|error| error.to_string())
}

#[test]
fn what_a_graph_normalises_by_becomes_the_models() {
    let constants = [
        constant("full", &[], &[255.0]),
        constant("mean", &[1, 3, 1, 1], &[0.5, 0.4, 0.3]),
        constant("less", &[3, 1, 1], &[-0.5, -0.4, -0.3]),
        constant("std", &[3, 1, 1], &[0.25, 0.2, 0.1]),
        constant("times", &[1, 3, 1, 1], &[4.0, 5.0, 10.0]),
        constant("mean255", &[3], &[127.5, 102.0, 76.5]),
        constant("std255", &[1, 1, 1, 3], &[63.75, 51.0, 25.5]),
        constant("one", &[1], &[1.0]),
        constant("half", &[1], &[127.5]),
    ]
    .concat();
    let op = |op: &str, inputs: &[&str], output: &str| node(op, inputs, output, &[]);
    let first = || node("Transpose", &["b"], "ready", &attribute("perm", &[0, 3, 1, 2]));
    let ours = ([0.5, 0.4, 0.3], [0.25, 0.2, 0.1]);
    for (steps, expected) in [
        (vec![op("Sub", &["input", "mean"], "a"), op("Div", &["a", "std"], "ready")], ours),
        (vec![op("Add", &["less", "input"], "a"), op("Mul", &["times", "a"], "ready")], ours),
        (
            vec![
                op("Cast", &["input"], "0"),
                op("Div", &["0", "full"], "a"),
                op("Sub", &["a", "mean"], "b"),
                op("Div", &["b", "std"], "ready"),
            ],
            ours,
        ),
        // Of values from 0 to 255, channels last.
        (vec![op("Sub", &["input", "mean255"], "a"), op("Div", &["a", "std255"], "b"), first()], ours),
        // From -1 to 1.
        (vec![op("Div", &["input", "half"], "a"), op("Sub", &["a", "one"], "ready")], ([0.5; 3], [0.5; 3])),
        (vec![op("Div", &["input", "full"], "ready")], ([0.0; 3], [1.0; 3])),
        (vec![op("Identity", &["input"], "b"), first()], (IMAGENET, [0.229, 0.224, 0.225])),
    ] {
        let is_last = steps.len() == 3 && expected == ours || expected.0 == IMAGENET;
        let extents = if is_last { [1, 40, 40, 3] } else { [1, 3, 40, 40] };
        let file = with(&[std::slice::from_ref(&constants), &steps[..]].concat(), &extents);
        for target in [Target::Model, Target::Onnx(OnnxOptions::default())] {
            let (transforms, notes) = planned(&file, &to(target)).expect("is understood");
            assert_eq!((transforms.mean, transforms.std, transforms.size), (expected.0, expected.1, 40));
            assert_eq!(notes[0].contains("which a model takes over"), expected.0 != IMAGENET, "{}", notes[0]);
        }
        let (mean, size) = (Some([0.1, 0.2, 0.3]), Some(64));
        let (transforms, _) = planned(&file, &ConvertOptions { mean, size, ..to(Target::Model) }).expect("is told");
        assert_eq!((transforms.mean, transforms.std, transforms.size), ([0.1, 0.2, 0.3], expected.1, 64));
    }
    // No size that is fixed, or no square.
    for extents in [[1, 3, 0, 0], [1, 3, 40, 60]] {
        let file = with(&[node("Identity", &["input"], "ready", &[])], &extents);
        assert_eq!(planned(&file, &to(Target::Model)).expect("converts").0.size, 32);
    }
}

#[test]
fn what_no_model_can_do_to_images_is_refused() {
    let lists = ["0", "-1", "-9"].map(|text| integers(text, &[text.parse().expect("a number")])).concat();
    let lists = [lists, integers("1", &[1]), integers("bgr", &[2, 1, 0])].concat();
    let mean = constant("mean", &[3], &[0.5, 0.4, 0.3]);
    let scaled = constant("scale", &[], &[-2.0]);
    let gather = [bytes(1, "axis"), number(3, 1)].concat();
    let (given, none) = (Some([0.5; 3]), None);
    for (step, flips) in [
        (node("Slice", &["input", "-1", "-9", "1", "-1"], "ready", &[]), true),
        (node("Gather", &["input", "bgr"], "ready", &gather), true),
        // Along the width, or from the other end of it.
        (node("Sub", &["input", "mean"], "ready", &[]), false),
        (node("Slice", &["input", "-1", "-9", "0", "-1"], "ready", &[]), false),
        (node("Mul", &["input", "scale"], "ready", &[]), false),
        (node("Sub", &["mean", "input"], "ready", &[]), false),
        (node("Sigmoid", &["input"], "ready", &[]), false),
        (node("Add", &["input", "input"], "ready", &[]), false),
        (node("Transpose", &["input"], "ready", &attribute("perm", &[0, 1, 3, 2])), false),
    ] {
        let file = with(&[lists.clone(), mean.clone(), scaled.clone(), step], &[1, 3, 40, 40]);
        for target in [Target::Model, Target::Onnx(OnnxOptions::default())] {
            for (mean, std) in [(none, none), (given, none), (none, given), (given, given)] {
                let error = planned(&file, &ConvertOptions { mean, std, ..to(target) });
                match error {
                    Ok((transforms, _)) => assert!(!flips && (transforms.mean, transforms.std) == ([0.5; 3], [0.5; 3])),
                    Err(error) if flips => assert!(error.contains("with blue first"), "{error}"),
                    Err(error) => {
                        assert!(mean.is_none() || std.is_none(), "{error}");
                        assert!(error.contains("give --mean and --std"), "{error}");
                    }
                }
            }
        }
        // The weights alone can be had.
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("in.onnx"), &file).expect("writes");
        let file = CheckpointFile::open(folder.path().join("in.onnx")).expect("opens");
        assert!(Conversion::plan(file, &to(Target::Safetensors)).is_ok());
        // Training shows images as a model does.
        let weights = Weights::file(folder.path().join("in.onnx")).map_err(|error| error.to_string());
        match weights {
            Ok(weights) => assert!(!flips && weights.notes()[0].contains("--mean and --std"), "{:?}", weights.notes()),
            Err(error) => assert!(flips && error.contains("with blue first"), "{error}"),
        }
    }
}

#[test]
fn a_graph_in_a_circle_is_refused() {
    let file = with(&[node("Identity", &["logits"], "ready", &[])], &[1, 3, 40, 40]);
    let error = planned(&file, &to(Target::Model)).expect_err("is a circle");
    assert!(error.contains("the operator Identity uses logits before it is computed"), "{error}");
}

#[test]
fn the_node_that_no_network_has_is_named() {
    let replaced = |file: &[u8], from: &[u8], to: &[u8], most: usize| {
        let (mut file, mut count, mut at) = (file.to_vec(), 0, 0);
        while let Some(found) =
            file[at..].windows(from.len()).position(|window| window == from).filter(|_| count < most)
        {
            at += found;
            file[at..at + from.len()].copy_from_slice(to);
            count += 1;
        }
        file
    };
    // Under names of its own: those of a network would say what it is meant to be.
    let foreign = replaced(&small(), b"conv1.weight", b"other.weight", usize::MAX);
    assert!(planned(&foreign, &to(Target::Model)).is_ok());
    for (from, into, most, reason) in [
        (&b"\x22\x04Relu"[..], &b"\x22\x04Tanh"[..], 1, "resnet8, but Relu does not follow conv1, which is"),
        (b"strides@\x02@\x02", b"strides@\x01@\x01", 1, "layer2.0.conv1 would be, but its strides are [1, 1], not 2"),
        (b"pads@\x01@\x01", b"pads@\x00@\x01", 1, "conv1 would be, but its pads are [0, 1, 1, 1], not 1"),
        (b"\x22\x03Add", b"\x22\x03Mul", 1, "Add does not follow layer1.0.conv2"),
        (b"\x22\x04Conv", b"\x22\x04Tiny", 1, "it has 6 convolutions, resnet8, the nearest, 7, and"),
        (b"\x22\x04Conv", b"\x22\x04Tiny", usize::MAX, "it has no Conv, only"),
    ] {
        let error = planned(&replaced(&foreign, from, into, most), &to(Target::Model)).expect_err("is none");
        assert!(error.contains("its graph computes none of the known networks") && error.contains(reason), "{error}");
    }
}
