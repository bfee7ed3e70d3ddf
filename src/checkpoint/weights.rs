//! Pretrained weights: an architecture, and where its values come from.

use std::path::Path;

use super::{
    Checkpoint, CheckpointFile, LoadOptions, architecture,
    catalog::{self, Entry, Folders},
    load_into,
    stored::explained,
};
use crate::{
    Device, Error, Result,
    nn::{Arch, HeadSpec, Model},
};

/// ImageNet's mean and standard deviation per channel, with which published checkpoints were trained.
pub(super) const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Where a network's values come from.
#[derive(Clone, Debug)]
pub struct Weights {
    arch: Arch,
    checkpoint: Option<Checkpoint>,
    published: Option<Entry>,
    notes: Vec<String>,
}

impl Weights {
    /// Random values.
    pub fn random(arch: Arch) -> Self {
        Self { arch, checkpoint: None, published: None, notes: Vec::new() }
    }

    /// A checkpoint file of any format that [`Checkpoint::read`] reads; its architecture is told from its tensors.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Checkpoint`] if it cannot be read, or is of no known architecture, or if an ONNX file
    /// takes images with blue first.
    pub fn file(path: impl AsRef<Path>) -> Result<Self> {
        Self::opened(CheckpointFile::open(path)?, None)
    }

    /// As [`Weights::file`], for a file that should be of `arch`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] also if it is of another architecture.
    pub fn file_of(arch: Arch, path: impl AsRef<Path>) -> Result<Self> {
        Self::opened(CheckpointFile::open(path)?, Some(arch))
    }

    /// As [`Weights::file`], or [`Weights::file_of`] where `arch` is given, of a file that is open: one of several sets
    /// of weights, for example ([`CheckpointFile::open_key`]).
    ///
    /// # Errors
    /// Those of [`Weights::file_of`].
    pub fn opened(mut file: CheckpointFile, arch: Option<Arch>) -> Result<Self> {
        if let Some(blue_first) = file.input.blue_first() {
            let message = format!(
                "{blue_first}: here it would see red first; export it without that, or convert its weights alone, to \
                 safetensors, and train those"
            );
            return Err(Error::checkpoint(&file.path, message));
        }
        let mut notes = std::mem::take(&mut file.notes);
        let checkpoint = file.load()?.normalised()?;
        let fail = |message: String| {
            let message = notes.iter().fold(message, |text, note| text + "\n  " + note);
            Err(Error::checkpoint(&checkpoint.path, message))
        };
        let shapes = checkpoint.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
        let arch = match (architecture::arch_of(&shapes), arch) {
            (Some(found), Some(asked)) if found != asked => {
                return fail(format!("is a checkpoint of {found}, not of {asked}; use --arch {found}"));
            }
            (Some(found), _) => found,
            (None, None) => {
                let unread = architecture::unread(&shapes, &checkpoint.left_out);
                return fail(unread.unwrap_or_else(|| architecture::describe(&shapes)));
            }
            // Where the tensors name no architecture, loading tells what is missing.
            (None, Some(asked)) => match architecture::unsupported(&shapes) {
                Some(what) => return fail(format!("is not of {asked}\n  {what}")),
                None => asked,
            },
        };
        notes.extend(architecture::antialiased(&checkpoint.path));
        Self::from_checkpoint(arch, checkpoint, notes)
    }

    fn from_checkpoint(arch: Arch, checkpoint: Checkpoint, notes: Vec<String>) -> Result<Self> {
        for (key, positive) in [("mean", false), ("std", true)] {
            let Some(text) = checkpoint.metadata.get(key) else { continue };
            let values = serde_json::from_str::<[f32; 3]>(text).unwrap_or([f32::NAN; 3]);
            if !values.iter().all(|value| value.is_finite() && (*value > 0.0 || !positive)) {
                let message = format!("has a bad '{key}' in its metadata: {text}");
                return Err(Error::checkpoint(&checkpoint.path, message));
            }
        }
        Ok(Self { arch, checkpoint: Some(checkpoint), published: None, notes })
    }

    /// The published weights that stand for `arch` ([`catalog::standard`]), found on this machine or fetched. For other
    /// ones, or to hear of the progress, see [`catalog::entry`] and [`Entry::weights`].
    ///
    /// # Errors
    /// As [`Entry::weights`]; [`Error::Setting`] if nothing is published for `arch`.
    pub fn auto(arch: Arch) -> Result<Self> {
        catalog::standard(arch)?.weights(&Folders::of_user()?, &mut |_| {})
    }

    /// The same, known as those of `entry`.
    pub(super) fn published_as(self, entry: Entry) -> Self {
        Self { published: Some(entry), ..self }
    }

    /// The entry of the catalogue that they were asked for by.
    pub fn published(&self) -> Option<&Entry> {
        self.published.as_ref()
    }

    /// What a user should know of the file: which of several sets of weights was taken, or what an ONNX graph computes
    /// beside its network.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The architecture.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The checkpoint, unless the weights are random.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Mean and standard deviation per channel that images should be normalised by: the checkpoint's own if it says
    /// so, else those that it was published with, ImageNet's otherwise.
    pub fn normalisation(&self) -> ([f32; 3], [f32; 3]) {
        let stored = |key: &str| {
            let text = self.checkpoint.as_ref()?.metadata.get(key)?;
            serde_json::from_str::<[f32; 3]>(text).ok()
        };
        let (mean, std) = match &self.published {
            Some(entry) => (entry.transforms.mean, entry.transforms.std),
            None => IMAGENET,
        };
        (stored("mean").unwrap_or(mean), stored("std").unwrap_or(std))
    }

    /// The backbone with a new head for `classes`; the checkpoint's own head is left aside.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] listing tensors by name if the checkpoint does not fit.
    pub fn with_head(&self, head: HeadSpec, classes: usize, seed: u64, device: &Device) -> Result<Model> {
        let mut model = Model::new(self.arch, head, classes, seed, device)?;
        if let Some(checkpoint) = &self.checkpoint {
            // Into the backbone alone: a new linear head has the name of the checkpoint's own, and other classes.
            let options = LoadOptions { allow_unused: vec!["fc.".into(), "head.".into()], ..LoadOptions::default() };
            load_into(&mut model.backbone, checkpoint, &options)?;
        }
        Ok(model)
    }

    /// The network with the checkpoint's own linear classifier.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none, listing tensors by name if it does not fit.
    pub fn with_classifier(&self, device: &Device) -> Result<Model> {
        let Some(checkpoint) = &self.checkpoint else {
            return Model::new(self.arch, HeadSpec::Linear, self.arch.published_classes(), 0, device);
        };
        let Some(weight) = checkpoint.tensors.get("fc.weight") else {
            if let Some(reason) = checkpoint.left_out.iter().find(|(name, _)| name == "fc.weight") {
                return Err(Error::checkpoint(&checkpoint.path, explained(reason)));
            }
            let trained = checkpoint.tensors.keys().any(|name| name.starts_with("head."));
            let message = if trained {
                "is a model with a trained head; `unfreeze predict` uses it (logits are those of a classifier fc)"
            } else {
                "has no classifier of its own (fc.weight), only a backbone"
            };
            return Err(Error::checkpoint(&checkpoint.path, message));
        };
        // Before anything is allocated: of a matrix without columns a file may claim any number of rows.
        let (shape, features) = (&weight.shape, self.arch.features());
        let classes = match shape.as_slice() {
            &[classes, inputs] if inputs == features => classes,
            _ => {
                let message =
                    format!("has a classifier fc.weight of {shape:?}, but {} gives {features} features", self.arch);
                return Err(Error::checkpoint(&checkpoint.path, message));
            }
        };
        let mut model = Model::new(self.arch, HeadSpec::Linear, classes, 0, device)?;
        load_into(&mut model, checkpoint, &LoadOptions::default())?;
        Ok(model)
    }
}
