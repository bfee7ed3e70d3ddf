//! Conversion of a checkpoint: what becomes of each tensor is planned from names, types and shapes alone, then tensors
//! are read and written one at a time.

use std::{collections::BTreeMap, path::Path};

use super::{
    CheckpointFile, FileDtype, FileTensor, OnnxOptions, StoredTensor, TensorSource,
    architecture::{self, COUNTER, Shapes},
    names::{Names, nearest},
    weights::IMAGENET,
    write_onnx, write_pth, write_safetensors,
};
use crate::{
    Error, Result,
    data::{Task, Transforms},
    learner::model_metadata,
    nn::{Arch, HeadSpec},
};

/// How many names an error lists of each kind.
const LISTED: usize = 8;

/// What to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// safetensors, with the metadata of the source.
    #[default]
    Safetensors,
    /// PyTorch's zip archive, of tensors alone.
    Pth,
    /// This engine's self-contained model file: safetensors with classes, image size and normalisation in its metadata.
    Model,
    /// ONNX, with the metadata of a model file.
    Onnx(OnnxOptions),
}

/// What decides a conversion.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// What to write.
    pub target: Target,
    /// Type of the floating-point tensors; as they are by default.
    pub dtype: Option<FileDtype>,
    /// The architecture that the checkpoint must be of, its classifier included. By default it is told from the names
    /// and shapes, and a checkpoint of an unknown one is converted all the same.
    pub arch: Option<Arch>,
    /// Names of the classes of a [`Target::Model`], by position; their numbers by default.
    pub classes: Option<Vec<String>>,
    /// Image size of a [`Target::Model`] in pixels, short side and crop; by default what published checkpoints of the
    /// architecture were trained on.
    pub size: Option<usize>,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertedTensor {
    /// The name in the source; `None` for one that is added.
    pub from: Option<String>,
    /// The type in the source.
    pub dtype: FileDtype,
}

/// A planned conversion.
#[derive(Debug)]
pub struct Conversion {
    /// The architecture; `None` if it is unknown.
    pub arch: Option<Arch>,
    /// Whose names the source has, where they are not torchvision's: `fastai 0.7`, …
    pub convention: Option<&'static str>,
    /// Prefixes that are taken away, such as `module.`.
    pub prefixes: Vec<&'static str>,
    /// Where each tensor comes from, by its new name.
    pub origins: BTreeMap<String, ConvertedTensor>,
    /// The tensors by their new names, of their new types, not read yet.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// What is written beside them.
    pub metadata: BTreeMap<String, String>,
    /// Tensors of the source that are not written, and why.
    pub dropped: Vec<(String, &'static str)>,
    /// Tensors that the architecture does not know, by their new names, and the nearest name that it knows. They are
    /// written as they are.
    pub unknown: Vec<(String, Option<String>)>,
    target: Target,
}

impl Conversion {
    /// Plans the conversion of a file to torchvision's names; see [`CheckpointFile::normalised`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if two tensors would get the same name, if the file is not of the architecture asked for,
    /// or not of any where a model is to be written; [`Error::Setting`] if the type is no floating-point type or the
    /// classes do not fit.
    pub fn plan(source: CheckpointFile, options: &ConvertOptions) -> Result<Self> {
        if let Some(dtype) = options.dtype.filter(|dtype| !dtype.is_float()) {
            return Err(Error::setting("dtype", format!("{dtype} is no float; use f32, f16, bf16 or f64")));
        }
        let names = Names::of(&source.path, source.tensors.keys())?;
        let mut plan = Self {
            arch: None,
            convention: names.convention,
            prefixes: names.prefixes,
            origins: BTreeMap::new(),
            tensors: BTreeMap::new(),
            metadata: source.metadata,
            dropped: Vec::new(),
            unknown: Vec::new(),
            target: options.target,
        };
        for (from, tensor) in source.tensors {
            let Some(name) = names.new.get(&from) else { continue };
            plan.origins.insert(name.clone(), ConvertedTensor { from: Some(from), dtype: tensor.dtype() });
            plan.tensors.insert(name.clone(), tensor);
        }
        plan.dropped = source.left_out;

        let fail = |message: String| Error::checkpoint(&source.path, message);
        plan.recognise(options.arch).map_err(fail)?;
        if matches!(options.target, Target::Model | Target::Onnx(_)) {
            plan.make_model(options, &source.path)?;
        }
        if options.target == Target::Pth {
            plan.metadata.clear();
        }
        if let Some(dtype) = options.dtype {
            plan.cast(&source.path, dtype);
        }
        Ok(plan)
    }

    fn shapes(&self) -> Shapes {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect()
    }

    /// Finds the architecture and what does not belong to it; one that was asked for must fit.
    fn recognise(&mut self, asked: Option<Arch>) -> Result<(), String> {
        let shapes = self.shapes();
        let found = architecture::arch_of(&shapes);
        match (asked, found) {
            (Some(asked), Some(found)) if asked != found => {
                return Err(format!("is a checkpoint of {found}, not of {asked}; use --arch {found}"));
            }
            (Some(asked), None) => {
                let (head, classes) = head_of_or_published(&shapes, asked);
                let text = misfit(&shapes, &architecture::tensors_of(asked, &head, classes), &BTreeMap::new());
                return Err(format!("is not of {asked}{text}\n  {}", architecture::describe(&shapes)));
            }
            _ => self.arch = found,
        }
        let Some(arch) = self.arch else { return Ok(()) };
        let (head, classes) = head_of_or_published(&shapes, arch);
        let expected = architecture::tensors_of(arch, &head, classes);
        if asked.is_some() {
            let text = misfit(&shapes, &expected, &BTreeMap::new());
            if !text.is_empty() {
                return Err(format!("is of {arch}, but does not fit it whole{text}"));
            }
        }
        let strangers = shapes.keys().filter(|name| !expected.contains_key(*name));
        self.unknown = strangers
            .map(|name| (name.clone(), nearest(name, expected.keys().map(String::as_str)).map(str::to_owned)))
            .collect();
        Ok(())
    }

    /// Makes the tensors and the metadata those of a model file.
    fn make_model(&mut self, options: &ConvertOptions, path: &Path) -> Result<()> {
        let shapes = self.shapes();
        let fail = |message: String| Error::checkpoint(path, message);
        let arch = self.arch.ok_or_else(|| fail(architecture::describe(&shapes)))?;
        let (head, classes) = architecture::head_of(&shapes).ok_or_else(|| {
            fail("has no classifier (fc.weight, or fastai's head), which a model file needs: it is a backbone".into())
        })?;
        // fastai 2 has no biases in its head, since batchnorm comes before each layer.
        let biases: BTreeMap<String, usize> = match head {
            HeadSpec::Linear => BTreeMap::new(),
            _ => head.plan(arch.features(), classes).into_iter().map(|(name, _, n)| (name + ".bias", n)).collect(),
        };
        let text = misfit(&shapes, &architecture::tensors_of(arch, &head, classes), &biases);
        if !text.is_empty() {
            return Err(fail(format!("does not make a model of {arch}{text}")));
        }
        for (name, outputs) in biases.into_iter().filter(|(name, _)| !shapes.contains_key(name)) {
            self.origins.insert(name.clone(), ConvertedTensor { from: None, dtype: FileDtype::F32 });
            self.tensors.insert(name, zeros(outputs));
        }
        let counters: Vec<_> = self.tensors.keys().filter(|name| name.ends_with(COUNTER)).cloned().collect();
        for name in counters {
            self.tensors.remove(&name);
            let from = self.origins.remove(&name).and_then(|origin| origin.from);
            self.dropped.push((from.unwrap_or(name), "a counter that nothing depends on"));
        }
        self.metadata = self.model_metadata(arch, &head, classes, options)?;
        Ok(())
    }

    fn model_metadata(
        &self,
        arch: Arch,
        head: &HeadSpec,
        outputs: usize,
        options: &ConvertOptions,
    ) -> Result<BTreeMap<String, String>> {
        let numbers = || (0..outputs).map(|class| class.to_string()).collect();
        let stored: Option<Vec<String>> = self.metadata.get("classes").and_then(|text| serde_json::from_str(text).ok());
        let classes = options.classes.clone().or(stored).unwrap_or_else(numbers);
        if classes.len() != outputs {
            let message = format!("{} names are given, but the network tells {outputs} classes apart", classes.len());
            return Err(Error::setting("classes", message));
        }
        let stored = |key: &str| serde_json::from_str::<[f32; 3]>(self.metadata.get(key)?).ok();
        let (mean, std) = (stored("mean").unwrap_or(IMAGENET.0), stored("std").unwrap_or(IMAGENET.1));
        let transforms = Transforms::new(options.size.unwrap_or(arch.published_size())).normalise(mean, std);
        transforms.validate()?;
        let made = model_metadata(arch, head, Task::default(), &classes, &transforms);
        // A model file stays what it is, but for what is asked for.
        let replaced = |key: &str| match key {
            "classes" => options.classes.is_some(),
            "size" | "resize" => options.size.is_some(),
            _ => false,
        };
        let is_model = self.metadata.contains_key("format_version");
        let kept = self.metadata.iter().filter(|(key, _)| is_model && !replaced(key));
        Ok(made.into_iter().chain(kept.map(|(key, value)| (key.clone(), value.clone()))).collect())
    }

    /// Casts floating-point tensors when they are read.
    fn cast(&mut self, path: &Path, dtype: FileDtype) {
        for (name, tensor) in self.tensors.iter_mut().filter(|(_, tensor)| tensor.dtype().is_float()) {
            let (original, name, path) = (tensor.clone(), name.clone(), path.to_owned());
            let read = move || {
                let cast = original.read()?.to_dtype(dtype);
                cast.map_err(|error| Error::checkpoint(&path, format!("tensor {name}: {error}")))
            };
            *tensor = StoredTensor::new(dtype, tensor.shape().to_vec(), read);
        }
    }

    /// Reads and writes the tensors, one at a time. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor with a value beyond the range of the type asked for, and those of
    /// [`write_safetensors`] and [`write_pth`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        match self.target {
            Target::Safetensors | Target::Model => write_safetensors(path, &self.tensors, &self.metadata),
            Target::Pth => write_pth(path, &self.tensors),
            Target::Onnx(options) => write_onnx(path, &self.tensors, &self.metadata, &options),
        }
    }
}

fn zeros(length: usize) -> StoredTensor {
    StoredTensor::new(FileDtype::F32, vec![length], move || FileTensor::from_f32(vec![length], vec![0.0; length]))
}

/// The head that the shapes are of; the published classifier of `arch` if there is none.
fn head_of_or_published(shapes: &Shapes, arch: Arch) -> (HeadSpec, usize) {
    architecture::head_of(shapes).unwrap_or((HeadSpec::Linear, arch.published_classes()))
}

/// What is missing, unknown or of another shape, in lines; empty if all fits. Counters and what is `optional` may be
/// missing.
fn misfit(shapes: &Shapes, expected: &Shapes, optional: &BTreeMap<String, usize>) -> String {
    let may_miss = |name: &str| name.ends_with(COUNTER) || optional.contains_key(name);
    let missing = expected.keys().filter(|name| !shapes.contains_key(*name) && !may_miss(name)).cloned().collect();
    let (mut unknown, mut misshapen) = (Vec::new(), Vec::new());
    for (name, shape) in shapes {
        match expected.get(name) {
            None if unknown.len() < LISTED => {
                let near = nearest(name, expected.keys().map(String::as_str));
                unknown.push(format!("{name}{}", near.map_or(String::new(), |near| format!(" (nearest: {near})"))));
            }
            None => unknown.push(name.clone()),
            Some(right) if right != shape => misshapen.push(format!("{name} (found {shape:?}, expected {right:?})")),
            Some(_) => {}
        }
    }
    let mut text = String::new();
    for (what, names) in [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)] {
        let names: Vec<String> = names;
        if names.is_empty() {
            continue;
        }
        let more = names.len().saturating_sub(LISTED);
        let shown = names[..names.len() - more].join(", ");
        text += &format!("\n  {} {what}: {shown}", names.len());
        if more > 0 {
            text += &format!(" and {more} more");
        }
    }
    text
}
