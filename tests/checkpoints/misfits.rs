//! What is told of files that are almost a network.

use unfreeze::{
    checkpoint::{ConvertOptions, FileDtype, FileTensor, OnnxOptions, Target},
    nn::{Arch, HeadSpec},
};

use crate::{
    Tensors,
    containers::zip,
    conversion::{convert, small, to},
    hostile::refused,
    write,
};

fn zeros(shape: &[usize]) -> FileTensor {
    FileTensor::from_f32(shape.to_vec(), vec![0.0; shape.iter().product()]).expect("fits")
}

/// The error of making a model of `tensors`, or the architecture that was found.
fn modelled(tensors: &Tensors, options: ConvertOptions) -> Result<unfreeze::checkpoint::Conversion, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, output) = (folder.path().join("in.safetensors"), folder.path().join("out"));
    write(&source, tensors);
    convert(&source, &output, options)
}

#[test]
fn what_is_missing_misshapen_or_more_than_the_nearest_network_is_named() {
    let whole = small(HeadSpec::Linear);
    let error = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        modelled(&tensors, to(Target::Onnx(OnnxOptions::default()))).expect_err("does not fit")
    };
    let missing = error(&|tensors| drop(tensors.remove("layer2.0.conv1.weight")));
    assert!(missing.contains("\n  1 missing: layer2.0.conv1.weight"), "{missing}");
    let misshapen = error(&|tensors| drop(tensors.insert("layer2.0.conv1.weight".into(), zeros(&[16, 8, 1, 1]))));
    assert!(
        misshapen.contains("1 of another shape: layer2.0.conv1.weight (found [16, 8, 1, 1], expected"),
        "{misshapen}"
    );
    // All of it, and another block.
    let more = error(&|tensors| {
        tensors.extend((0..20).map(|block| (format!("layer3.{}.conv1.weight", block + 9), zeros(&[32, 32, 3, 3]))));
    });
    assert!(
        more.contains("the nearest is resnet8: 7 of its 7") && more.contains("20 unknown: layer3.10.conv1"),
        "{more}"
    );
    assert!(more.contains("and 12 more") && !more.contains("missing"), "{more}");
    // Said once where the architecture was asked for.
    let mut tensors = whole.clone();
    tensors.remove("layer2.0.conv1.weight");
    let options = ConvertOptions { arch: Some(Arch::ResNet8), ..Default::default() };
    let error = modelled(&tensors, options).expect_err("does not fit");
    assert_eq!(error.matches("1 missing: layer2.0.conv1.weight").count(), 1, "{error}");
}

#[test]
fn a_classifier_of_one_layer_is_found_in_a_sequence_and_without_a_bias() {
    let whole = small(HeadSpec::Linear);
    let renamed = |names: &dyn Fn(&str) -> String| -> Tensors {
        whole.iter().map(|(name, tensor)| (names(name), tensor.clone())).collect()
    };
    let onnx = || to(Target::Onnx(OnnxOptions::default()));
    for layer in ["fc.0.", "fc.1.", "fc.3."] {
        let sequence = renamed(&|name| name.replace("fc.", layer));
        let plan = modelled(&sequence, onnx()).expect("is found");
        assert_eq!((plan.convention, plan.arch), (Some("a torch.nn.Sequential for fc"), Some(Arch::ResNet8)));
        assert_eq!(plan.origins["fc.weight"].from.as_deref(), Some(&*format!("{layer}weight")));
    }
    let mut two = renamed(&|name| name.replace("fc.", "fc.2."));
    two.insert("fc.0.weight".into(), zeros(&[32, 32]));
    for (target, what) in [(Target::Model, "a model file"), (Target::Onnx(OnnxOptions::default()), "an ONNX file")] {
        let error = modelled(&two, to(target)).expect_err("has two");
        assert!(error.contains("fc.0.weight [32, 32], fc.2.bias [3], fc.2.weight [3, 32]"), "{error}");
        assert!(error.contains(what) && !error.contains("backbone"), "{error}");
    }
    let mut without = whole.clone();
    without.remove("fc.bias");
    let plan = modelled(&without, onnx()).expect("needs none");
    assert_eq!((plan.tensors["fc.bias"].read().expect("zeros"), plan.notes.len()), (zeros(&[3]), 1));
    without.remove("fc.weight");
    assert!(modelled(&without, onnx()).expect_err("is a backbone").contains("an ONNX file from here needs"));
}

#[test]
fn what_a_network_lacks_is_noted_where_no_network_is_asked_for() {
    let mut tensors = small(HeadSpec::Linear);
    let notes = |tensors: &Tensors| modelled(tensors, to(Target::Safetensors)).expect("tensors are tensors").notes;
    assert!(notes(&tensors).is_empty());
    tensors.retain(|name, _| !name.starts_with("fc."));
    assert!(notes(&tensors).is_empty(), "a backbone is whole");
    tensors.remove("layer2.0.bn1.weight");
    tensors.insert("layer3.0.bn2.bias".into(), zeros(&[5]));
    let notes = notes(&tensors);
    assert!(notes.len() == 1 && notes[0].contains("layer2.0.bn1.weight, layer3.0.bn2.bias (found [5]"), "{notes:?}");
}

#[test]
fn what_was_brought_instead_is_named() {
    let sign = [("a/archive_format", &b"pt2"[..]), ("a/data/weights/weight_0", &[0; 8])];
    for (name, file) in [("exported.pt", zip(&sign, 0, |n| n as u32)), ("exported.pt2", b"PK\x03\x04".to_vec())] {
        let error = refused(name, &file);
        assert!(error.contains("torch.export") && error.contains("program.state_dict"), "{error}");
    }
    let options = ConvertOptions { dtype: Some(FileDtype::F64), ..to(Target::Onnx(OnnxOptions::default())) };
    let error = modelled(&small(HeadSpec::Linear), options).expect_err("no such type");
    assert!(error.contains("f32 or f16, not f64") && !error.contains("bf16"), "{error}");
}
