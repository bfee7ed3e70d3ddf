//! Giving a model the tensors of a checkpoint: all of them, or none and a list of what does not fit.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    sync::Arc,
};

use super::{
    Checkpoint, layout,
    names::{LISTED, listed, nearest, short_name},
    stats::is_negative_variance,
    stored::explained,
};
use crate::{Error, Result, Tensor, autograd::Parameters};

/// What may differ between a model and a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Prefixes of parameters that the checkpoint may lack, such as `head.`; they keep their values.
    pub allow_missing: Vec<String>,
    /// Prefixes of tensors that the model may not know, such as `fc.`.
    pub allow_unused: Vec<String>,
}

/// What [`load_into`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Number of parameters that got a value.
    pub loaded: usize,
    /// Parameters that the checkpoint lacks, as [`LoadOptions::allow_missing`] allowed.
    pub missing: Vec<String>,
    /// Tensors that the model does not know, as [`LoadOptions::allow_unused`] allowed.
    pub unused: Vec<String>,
}

/// Sets every parameter of `model` to the tensor of its name, converted to `f32` and to this engine's layout, on the
/// parameter's device. The counters `num_batches_tracked` of PyTorch's batchnorm are passed over.
///
/// # Errors
/// [`Error::Checkpoint`] if tensors are missing, unknown, of another shape, not finite or negative variances; it lists
/// them by name, and the model is left as it was.
pub fn load_into(model: &mut dyn Parameters, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadReport> {
    let mut values: HashMap<Arc<str>, Tensor> = HashMap::new();
    let mut known: HashSet<&str> = HashSet::new();
    let mut report = LoadReport::default();
    let [mut missing, mut left_out, mut misshapen, mut not_finite, mut negative]: [Vec<String>; 5] = Default::default();
    let mut failure = None;

    model.visit(&mut |parameter| {
        let name = &**parameter.name();
        known.insert(name);
        let Some(tensor) = checkpoint.tensors.get(name) else {
            if matches(&options.allow_missing, name) {
                return report.missing.push(name.to_owned());
            }
            return match checkpoint.left_out.iter().find(|(left, _)| left == name) {
                Some(reason) => left_out.push(explained(reason)),
                None => missing.push(name.to_owned()),
            };
        };
        let expected = layout::file_shape(parameter);
        if tensor.shape != expected {
            return misshapen.push(format!("{name} (found {:?}, expected {expected:?})", tensor.shape));
        }
        let value = tensor.to_f32();
        if !value.iter().all(|value| value.is_finite()) {
            return not_finite.push(name.to_owned());
        }
        if is_negative_variance(name, tensor) {
            return negative.push(name.to_owned());
        }
        let value = layout::from_file(parameter, value);
        match Tensor::new(value, parameter.value.shape(), parameter.value.device()) {
            Ok(value) => drop(values.insert(parameter.name().clone(), value)),
            Err(error) => failure = Some(error),
        }
    });

    let mut unknown = Vec::new();
    for name in checkpoint.tensors.keys().filter(|name| !known.contains(name.as_str())) {
        if matches(&options.allow_unused, name) {
            report.unused.push(name.clone());
        } else if !name.ends_with("num_batches_tracked") {
            unknown.push(name.clone());
        }
    }

    for name in unknown.iter_mut().take(LISTED) {
        let near = nearest(name, known.iter().copied()).map_or(String::new(), |near| format!(" (nearest: {near})"));
        *name = format!("{}{near}", short_name(name));
    }

    let problems = [
        ("left out", left_out),
        ("missing", missing),
        ("unknown to the model", unknown),
        ("of another shape", misshapen),
        ("with values that are not finite", not_finite),
        ("with negative variances", negative),
    ];
    if problems.iter().any(|(_, names)| !names.is_empty()) {
        return Err(Error::checkpoint(&checkpoint.path, describe(&problems)));
    }
    if let Some(error) = failure {
        return Err(error);
    }

    model.visit_mut(&mut |parameter| {
        if let Some(value) = values.get(parameter.name()) {
            parameter.set_value(value.clone());
            report.loaded += 1;
        }
    });
    Ok(report)
}

fn matches(prefixes: &[String], name: &str) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
}

fn describe(problems: &[(&str, Vec<String>)]) -> String {
    let mut text = String::from("does not fit the model");
    for (what, names) in problems.iter().filter(|(_, names)| !names.is_empty()) {
        let noun = if names.len() == 1 { "tensor" } else { "tensors" };
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {} {noun} {what}: {}", names.len(), listed(names));
    }
    text + "\n  is this a checkpoint of another architecture? `unfreeze inspect FILE` lists what it holds"
}
