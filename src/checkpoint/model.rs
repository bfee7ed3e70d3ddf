//! What makes a checkpoint a model file: a whole classifier, and metadata with its classes and what images go through.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::{
    Conversion, ConvertOptions, ConvertedTensor, FileDtype, FileTensor, StoredTensor, Target,
    architecture::{self, COUNTER, Shapes},
    names::{listed, short_name},
    onnx::Effect,
    published,
};
use crate::{
    Error, Result,
    data::{Task, Transforms},
    learner::{model_metadata, model_version},
    nn::{Arch, HeadSpec},
};

/// A value of metadata that is JSON; nothing if it is not there, or something else.
pub(super) fn stored<T: DeserializeOwned>(metadata: &BTreeMap<String, String>, key: &str) -> Option<T> {
    serde_json::from_str(metadata.get(key)?).ok()
}

/// The short side before the crop with which torchvision's recipes evaluate crops of 224.
const RESIZE_FOR_224: usize = 256;

impl Conversion {
    /// Makes the tensors and the metadata those of a model file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if they are of no known architecture, have no classifier, do not fit, or are a model file
    /// of a later version; [`Error::Setting`] if the classes or the transforms that were asked for do not fit.
    pub(super) fn make_model(&mut self, options: &ConvertOptions) -> Result<()> {
        let shapes = self.shapes();
        let path = self.source.clone();
        let fail = |message: String| Error::checkpoint(&path, message);
        let arch = self.arch.ok_or_else(|| fail(self.with_notes(architecture::describe(&shapes))))?;
        self.check_input(options).map_err(fail)?;
        let (head, classes) = architecture::head_of(&shapes).ok_or_else(|| fail(self.without_head(&shapes)))?;
        let is_model = model_version(&self.metadata).map_err(fail)?.is_some();
        let text = architecture::misfit(&shapes, arch, &head, classes);
        if !text.is_empty() {
            return Err(fail(format!("does not make a model of {arch}{text}")));
        }
        if head == HeadSpec::Linear && !shapes.contains_key("fc.bias") {
            self.notes.push("there is no fc.bias: zeros are written for it".into());
        }
        self.complete(&shapes, architecture::optional_biases(arch, &head, classes));

        let (names, is_published) = (self.classes(options, is_model, classes)?, classes == arch.published_classes());
        if !is_model && is_published && head == HeadSpec::Linear {
            self.published = published::of_file(&path, arch);
        }
        let transforms = self.transforms(arch, &head, is_model, options);
        transforms.validate()?;
        let made = model_metadata(arch, &head, Task::default(), &names, &transforms);
        // A model file stays what it is, but for what is asked for, and what does not fit its tensors.
        let fits = stored(&self.metadata, "head").is_some_and(|stored: HeadSpec| {
            stored.plan(arch.features(), classes) == head.plan(arch.features(), classes)
        });
        let replaced = |key: &str| match key {
            "arch" => true,
            "head" => !fits,
            "classes" => options.classes.is_some(),
            "size" | "resize" => options.size.is_some() || options.resize.is_some(),
            "mean" => options.mean.is_some(),
            "std" => options.std.is_some(),
            _ => false,
        };
        let kept = std::mem::take(&mut self.metadata).into_iter().filter(|(key, _)| is_model && !replaced(key));
        self.metadata = made.into_iter().chain(kept).collect();
        self.transforms = Some(transforms);
        Ok(())
    }

    /// What is said of a network without a head that is known.
    fn without_head(&self, shapes: &Shapes) -> String {
        let what = if self.target == Target::Model { "a model file" } else { "an ONNX file from here" };
        let is_head = |name: &str| ["fc.", "head.", "classifier."].iter().any(|start| name.starts_with(start));
        let others = shapes.iter().filter(|(name, _)| is_head(name));
        let others: Vec<String> = others.map(|(name, shape)| format!("{} {shape:?}", short_name(name))).collect();
        let text = match others.is_empty() {
            true => format!("has no classifier (fc.weight, or fastai's head), which {what} needs: it is a backbone"),
            false => format!(
                "has a classifier that is neither one linear layer, fc, nor fastai's head, of which {what} needs one: {}",
                listed(&others)
            ),
        };
        self.with_notes(text)
    }

    /// `text`, and what of the source is left out.
    pub(super) fn with_notes(&self, text: String) -> String {
        self.notes.iter().fold(text, |text, note| text + "\n  " + note)
    }

    /// Whether what the source does to images before its network can be said of a model, or is.
    fn check_input(&self, options: &ConvertOptions) -> Result<(), String> {
        if let Some(blue_first) = self.input.blue_first() {
            return Err(format!(
                "{blue_first}: a model and ONNX from here would take red first, and be wrong; export it without that, \
                 or convert the weights alone, to safetensors or .pth"
            ));
        }
        let steps = &self.input.steps;
        match self.input.effect {
            Effect::Unknown if options.mean.is_none() || options.std.is_none() => Err(format!(
                "computes {steps} before its network, which is not understood: give --mean and --std by which images \
                 are to be normalised instead, or convert the weights alone, to safetensors or .pth"
            )),
            _ => Ok(()),
        }
    }

    /// Adds the biases that may be missing, and takes the counters away.
    fn complete(&mut self, shapes: &Shapes, biases: BTreeMap<String, usize>) {
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
    }

    /// Names of the classes: those asked for, else the file's, else numbers.
    fn classes(&self, options: &ConvertOptions, is_model: bool, outputs: usize) -> Result<Vec<String>> {
        // What another program calls classes may be something else.
        let stored = stored(&self.metadata, "classes").filter(|names: &Vec<String>| is_model || names.len() == outputs);
        let given = options.classes.clone().or(stored);
        let names = given.unwrap_or_else(|| (0..outputs).map(|class| class.to_string()).collect());
        match names.len() == outputs {
            true => Ok(names),
            false => {
                let message = format!("{} names are given, but the network tells {outputs} classes apart", names.len());
                Err(Error::setting("classes", message))
            }
        }
    }

    /// What images go through: as asked for, else a model file's own, else as an ONNX file takes them, else as the
    /// weights were published, else as torchvision evaluates its networks, or fastai those with its head.
    fn transforms(&self, arch: Arch, head: &HeadSpec, is_model: bool, options: &ConvertOptions) -> Transforms {
        let size = arch.published_size();
        let usual = match (is_model, self.published) {
            (true, _) => {
                let size = stored(&self.metadata, "size").unwrap_or(size);
                Transforms::new(size).resize(stored(&self.metadata, "resize").unwrap_or(size))
            }
            (false, Some(entry)) => {
                let published = &entry.transforms;
                let transforms = Transforms::new(published.crop).resize(published.resize);
                transforms.normalise(published.mean, published.std)
            }
            (false, None) if size == 224 && *head == HeadSpec::Linear => Transforms::new(size).resize(RESIZE_FOR_224),
            (false, None) => Transforms::new(size),
        };
        let size = options.size.or(self.input.size.filter(|_| !is_model));
        let sized = size.map_or(usual.clone(), |size| usual.clone().at_size(size));
        let resized = options.resize.map_or(sized.clone(), |resize| sized.clone().resize(resize));
        let mean = options.mean.or(stored(&self.metadata, "mean")).unwrap_or(usual.mean);
        let std = options.std.or(stored(&self.metadata, "std")).unwrap_or(usual.std);
        resized.normalise(mean, std)
    }
}

pub(super) fn zeros(length: usize) -> StoredTensor {
    StoredTensor::new(FileDtype::F32, vec![length], move || FileTensor::from_f32(vec![length], vec![0.0; length]))
}
