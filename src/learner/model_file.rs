//! The self-contained model file: tensors under torchvision's names, and in its metadata all that predicting needs.

use std::{collections::BTreeMap, path::Path};

use super::{
    Learner,
    metrics::{THRESHOLD, check_threshold},
};
use crate::{
    Device, Error, Result,
    checkpoint::{Checkpoint, LoadOptions, collect, load_into, write_safetensors},
    data::{Crop, Task, Transforms},
    nn::{Arch, HeadSpec, Model},
};

/// The layout of the metadata; readers refuse a later one.
const FORMAT_VERSION: u32 = 1;

/// What the metadata of every model file have. Other programs' files may have one of them by chance.
const MARKS: [&str; 4] = ["format_version", "engine_version", "arch", "head"];

/// The layout of a model file's metadata; `None` if they are no model file's. Else what is wrong: it is no number, or
/// later than this program's.
pub(crate) fn model_version(metadata: &BTreeMap<String, String>) -> Result<Option<u32>, String> {
    if !MARKS.iter().all(|mark| metadata.contains_key(*mark)) {
        return Ok(None);
    }
    match metadata["format_version"].parse() {
        Ok(version) if version > FORMAT_VERSION => {
            Err(format!("is of format {version}, later than this program's {FORMAT_VERSION}; update it"))
        }
        Ok(version) => Ok(Some(version)),
        Err(_) => Err("has a bad format_version".into()),
    }
}

/// A trained network with its classes and its input pipeline.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// The network.
    pub model: Model,
    /// What it tells of an image.
    pub task: Task,
    /// From which probability on a label is given.
    pub threshold: f32,
    /// Names of the classes, by position; of labels or numbers for other tasks than single labels.
    pub classes: Vec<String>,
    /// From image to network input.
    pub transforms: Transforms,
}

impl ModelFile {
    /// Writes a safetensors file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let Self { model, task, threshold, classes, transforms } = self;
        write(path.as_ref(), model, (*task, *threshold), classes, transforms)
    }

    /// Reads a file that [`ModelFile::save`] or [`Learner::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is something else, damaged, or of a later version.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::read(path)?;
        let fail = |message: String| Error::checkpoint(&checkpoint.path, message);
        let text = |key: &str| {
            checkpoint.metadata.get(key).ok_or_else(|| {
                fail(format!(
                    "has no '{key}' in its metadata: it is a checkpoint, not a model trained by unfreeze train; \
                     `unfreeze convert --format model` makes one of it"
                ))
            })
        };
        MARKS.iter().try_for_each(|mark| text(mark).map(drop))?;
        model_version(&checkpoint.metadata).map_err(fail)?;
        let bad = |key: &'static str| move |error: serde_json::Error| format!("has a bad '{key}': {error}");
        let arch: Arch = text("arch")?.parse().map_err(|error: Error| fail(error.to_string()))?;
        let head: HeadSpec = serde_json::from_str(text("head")?).map_err(|e| fail(bad("head")(e)))?;
        let classes: Vec<String> = serde_json::from_str(text("classes")?).map_err(|e| fail(bad("classes")(e)))?;
        // Not in files that were written when there was one task.
        let task: Task = match checkpoint.metadata.get("task") {
            Some(text) => text.parse().map_err(|error| fail(format!("has a bad 'task': {error}")))?,
            None => Task::default(),
        };
        // Not in files of other tasks, nor in those that were written when there was one threshold.
        let threshold = match checkpoint.metadata.get("threshold") {
            Some(text) => serde_json::from_str(text).map_err(|error| fail(bad("threshold")(error)))?,
            None => THRESHOLD,
        };
        if task == Task::MultiLabel {
            check_threshold(threshold, task).map_err(|error| fail(format!("has bad metadata: {error}")))?;
        }
        let size: usize = serde_json::from_str(text("size")?).map_err(|e| fail(bad("size")(e)))?;
        let resize: usize = serde_json::from_str(text("resize")?).map_err(|e| fail(bad("resize")(e)))?;
        let mean: [f32; 3] = serde_json::from_str(text("mean")?).map_err(|e| fail(bad("mean")(e)))?;
        let std: [f32; 3] = serde_json::from_str(text("std")?).map_err(|e| fail(bad("std")(e)))?;
        // Not in files that were written when there was one way to crop.
        let crop = match checkpoint.metadata.get("crop") {
            Some(text) => text.parse().map_err(|error| fail(format!("has a bad 'crop': {error}")))?,
            None => Crop::default(),
        };
        let transforms = Transforms::new(size).resize(resize).crop(crop).normalise(mean, std);
        transforms.validate().map_err(|error| fail(format!("has bad metadata: {error}")))?;
        if classes.is_empty() {
            return Err(fail("has no classes".into()));
        }
        // Before anything is allocated: the sizes are whatever the file says.
        head.validate().map_err(|error| fail(format!("has bad metadata: {error}")))?;
        let linear = head.plan(arch.features(), classes.len());
        let linear =
            linear.into_iter().map(|(name, inputs, outputs)| (format!("{name}.weight"), vec![outputs, inputs]));
        for (name, shape) in linear.chain(arch.convolutions()) {
            let found = checkpoint.tensors.get(&name).map(|tensor| &tensor.shape);
            if found != Some(&shape) {
                let found = found.map_or("there is none".into(), |shape| format!("it is {shape:?}"));
                let message = format!("they ask for a tensor {name} of {shape:?}, but {found}");
                return Err(fail(format!("has metadata that do not fit: {message}")));
            }
        }
        let mut model = Model::new(arch, head, classes.len(), 0, device)
            .map_err(|error| fail(format!("has bad metadata: {error}")))?;
        load_into(&mut model, &checkpoint, &LoadOptions::default())?;
        Ok(Self { model, task, threshold, classes, transforms })
    }
}

impl Learner {
    /// Writes the whole network as a self-contained model file, whatever is frozen or cached.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let task = (self.data.task(), self.threshold);
        write(path.as_ref(), &self.model, task, self.data.classes(), self.transforms())
    }
}

fn write(
    path: &Path,
    model: &Model,
    (task, threshold): (Task, f32),
    classes: &[String],
    transforms: &Transforms,
) -> Result<()> {
    let mut metadata = model_metadata(model.arch(), model.head.spec(), task, classes, transforms);
    if task == Task::MultiLabel {
        metadata.insert("threshold".into(), json(&threshold));
    }
    write_safetensors(path, &collect(model)?, &metadata)
}

/// Plain numbers, strings and lists: they always have a JSON form, and as f32 a short one.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What a model file says beside its tensors.
pub(crate) fn model_metadata(
    arch: Arch,
    head: &HeadSpec,
    task: Task,
    classes: &[String],
    transforms: &Transforms,
) -> BTreeMap<String, String> {
    [
        ("format_version", FORMAT_VERSION.to_string()),
        ("engine_version", env!("CARGO_PKG_VERSION").to_string()),
        ("arch", arch.name().to_string()),
        ("head", json(head)),
        ("task", task.to_string()),
        ("classes", json(&classes)),
        ("size", transforms.size.to_string()),
        ("resize", transforms.resize.to_string()),
        ("crop", transforms.evaluation().crop.to_string()),
        ("mean", json(&transforms.mean)),
        ("std", json(&transforms.std)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into()
}
