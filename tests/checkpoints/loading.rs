//! Giving a model the tensors of a checkpoint, and taking them back.

use std::collections::BTreeMap;

use unfreeze::{
    Device, Tensor,
    autograd::{Parameter, Parameters, Role},
    checkpoint::{Checkpoint, FileDtype, FileTensor, LoadOptions, collect, load_into},
};

use crate::{Tensors, read, write};

struct Model(Vec<Parameter>);

impl Parameters for Model {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        self.0.iter().for_each(visit);
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        self.0.iter_mut().for_each(visit);
    }
}

impl Model {
    /// Every value is -1.
    fn new() -> Self {
        let device = Device::cpu(1).expect("a processor");
        let parameter = |name: &str, role, value| Parameter::new(name, role, value);
        Self(vec![
            parameter("conv.weight", Role::ConvWeight, Tensor::full([2, 1, 2, 3], -1.0, &device).unwrap()),
            parameter("bn.weight", Role::NormScale, Tensor::full([2], -1.0, &device).unwrap()),
            parameter("bn.running_mean", Role::RunningMean, Tensor::full([2], -1.0, &device).unwrap()),
            parameter("fc.weight", Role::LinearWeight, Tensor::full([3, 2], -1.0, &device).unwrap()),
        ])
    }

    fn values(&self, index: usize) -> Vec<f32> {
        self.0[index].value.to_vec().expect("f32")
    }

    fn is_untouched(&self) -> bool {
        (0..self.0.len()).all(|index| self.values(index).iter().all(|value| *value == -1.0))
    }
}

fn floats(shape: &[usize], values: impl IntoIterator<Item = f32>) -> FileTensor {
    FileTensor::from_f32(shape.to_vec(), values.into_iter().collect()).expect("fits")
}

/// What fits [`Model`], in PyTorch's order.
fn fitting() -> Tensors {
    let counter = FileTensor::new(FileDtype::I64, vec![], vec![0; 8]).expect("fits");
    [
        // [K, C, R, S] = [2, 3, 1, 2]
        ("conv.weight", floats(&[2, 3, 1, 2], (0..12u8).map(f32::from))),
        ("bn.weight", floats(&[2], [0.5, 1.5]).to_dtype(FileDtype::F16).expect("in range")),
        ("bn.running_mean", floats(&[2], [2.0, 3.0]).to_dtype(FileDtype::F64).expect("in range")),
        ("bn.num_batches_tracked", counter),
        ("fc.weight", floats(&[3, 2], (0..6u8).map(f32::from))),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into()
}

fn checkpoint(tensors: &Tensors) -> Checkpoint {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights.safetensors");
    write(&path, tensors);
    read(path)
}

fn load(model: &mut Model, tensors: &Tensors) -> String {
    let result = load_into(model, &checkpoint(tensors), &LoadOptions::default());
    result.expect_err("loads").to_string()
}

#[test]
fn layouts_and_types_are_converted() {
    let mut model = Model::new();
    let report = load_into(&mut model, &checkpoint(&fitting()), &LoadOptions::default()).expect("fits");
    assert_eq!((report.loaded, report.missing.len(), report.unused.len()), (4, 0, 0));
    // [K, R, S, C]: for each output channel and position the three input channels.
    assert_eq!(model.values(0), [0., 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.]);
    assert_eq!(model.values(1), [0.5, 1.5]);
    assert_eq!(model.values(2), [2.0, 3.0]);
    assert_eq!(model.values(3), [0., 1., 2., 3., 4., 5.]);

    let collected = collect(&model).expect("collects");
    let mut expected: Tensors = fitting();
    expected.remove("bn.num_batches_tracked");
    assert_eq!(collected.len(), expected.len());
    for (name, tensor) in &expected {
        assert_eq!(collected[name].shape, tensor.shape, "{name}");
        assert_eq!(collected[name].to_f32(), tensor.to_f32(), "{name}");
        assert_eq!(collected[name].dtype, FileDtype::F32, "{name}");
    }
}

#[test]
fn everything_that_does_not_fit_is_listed_and_nothing_changes() {
    let mut model = Model::new();
    let mut tensors = fitting();
    tensors.remove("bn.weight");
    tensors.insert("conv.weight".into(), floats(&[2, 3, 3, 3], [0.0; 54]));
    tensors.insert("fc.bias".into(), floats(&[3], [0.0; 3]));
    tensors.insert("bn.running_mean".into(), floats(&[2], [0.0, f32::NAN]));
    let error = load(&mut model, &tensors);
    for part in [
        "weights.safetensors",
        "1 tensor missing: bn.weight",
        "1 tensor unknown to the model: fc.bias",
        "conv.weight (found [2, 3, 3, 3], expected [2, 3, 1, 2])",
        "not finite: bn.running_mean",
        "unfreeze inspect",
    ] {
        assert!(error.contains(part), "lacks '{part}': {error}");
    }
    assert!(!error.contains("num_batches_tracked"), "{error}");
    assert!(model.is_untouched());
}

#[test]
fn values_beyond_f32_are_refused() {
    let mut tensors = fitting();
    let wide = FileTensor::new(FileDtype::F64, vec![2], bytemuck::cast_slice(&[1e300f64, 0.0]).to_vec());
    tensors.insert("bn.weight".into(), wide.expect("fits"));
    let mut model = Model::new();
    assert!(load(&mut model, &tensors).contains("not finite: bn.weight"));
    assert!(model.is_untouched());
}

#[test]
fn long_lists_are_cut() {
    let mut tensors = fitting();
    tensors.extend((0..20).map(|index| (format!("extra{index:02}"), floats(&[1], [0.0]))));
    let error = load(&mut Model::new(), &tensors);
    assert!(error.contains("20 tensors unknown") && error.contains("extra07 and 12 more"), "{error}");
    assert!(!error.contains("extra08"), "{error}");
}

#[test]
fn a_backbone_loads_without_its_head() {
    let mut tensors = fitting();
    tensors.remove("fc.weight");
    tensors.insert("classifier.bias".into(), floats(&[3], [0.0; 3]));
    let options = LoadOptions { allow_missing: vec!["fc.".into()], allow_unused: vec!["classifier.".into()] };
    let mut model = Model::new();
    let report = load_into(&mut model, &checkpoint(&tensors), &options).expect("allowed");
    assert_eq!(report.loaded, 3);
    assert_eq!(report.missing, ["fc.weight"]);
    assert_eq!(report.unused, ["classifier.bias"]);
    assert_eq!(model.values(3), [-1.0; 6], "the head keeps its values");
}

#[test]
fn a_saved_model_loads_again() {
    let mut model = Model::new();
    load_into(&mut model, &checkpoint(&fitting()), &LoadOptions::default()).expect("fits");
    let saved: BTreeMap<_, _> = collect(&model).expect("collects");
    let mut other = Model::new();
    load_into(&mut other, &checkpoint(&saved), &LoadOptions::default()).expect("fits");
    (0..4).for_each(|index| assert_eq!(model.values(index), other.values(index)));
}
