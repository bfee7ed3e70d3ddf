//! Conversion of a checkpoint: what becomes of each tensor is planned from names, types and shapes alone, then tensors
//! are read and written one at a time.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    CheckpointFile, FileDtype, FileTensor, Format, OnnxOptions, StoredTensor, TensorSource,
    architecture::{self, Shapes},
    catalog::Entry,
    names::{LISTED, Names, nearest, short_name},
    onnx::{Input, write_counted},
    stats::flaw,
    write_pth, write_safetensors,
};
use crate::{Error, Result, data::Transforms, learner::CancelToken, nn::Arch};

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
    /// Type of the floating-point tensors; as they are by default. ONNX: f16 is [`OnnxOptions::half`], the default f32.
    pub dtype: Option<FileDtype>,
    /// The architecture that the checkpoint must be of, its classifier included. By default it is told from the names
    /// and shapes, and a checkpoint of an unknown one is converted all the same.
    pub arch: Option<Arch>,
    /// Names of the classes of a [`Target::Model`], by position; their numbers by default.
    pub classes: Option<Vec<String>>,
    /// Side of the square that a [`Target::Model`] sees, in pixels. Default: that of an ONNX file's input, or as the
    /// weights were published if the catalogue knows them, else 224, or 32 for CIFAR networks.
    pub size: Option<usize>,
    /// Short side of its images before the crop, in pixels. Default: in proportion to the size as the weights were
    /// published, else 256 for 224, as torchvision evaluates, and the size itself for fastai's heads and CIFAR
    /// networks.
    pub resize: Option<usize>,
    /// Mean per channel (red, green, blue) of its images in units of 1. Default: what an ONNX file normalises by, the
    /// file's metadata, as the weights were published, or ImageNet's. To be given, as `std`, where an ONNX file does
    /// something to images that is not understood.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation per channel. Default: as for the mean.
    pub std: Option<[f32; 3]>,
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
    /// What a source of no known architecture is like, in words.
    pub likeness: Option<String>,
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
    /// Tensors that the architecture does not know, by their new names, and for the first few the nearest name that it
    /// knows. They are written as they are.
    pub unknown: Vec<(String, Option<String>)>,
    /// What else of the source is left out, in words.
    pub notes: Vec<String>,
    /// The published weights that the source is, where a model is to be written and the catalogue has them.
    pub published: Option<&'static Entry>,
    /// What images of a model go through.
    pub transforms: Option<Transforms>,
    /// What the source does to images before its network.
    pub(super) input: Input,
    pub(super) source: PathBuf,
    /// The files of a source in several.
    parts: Vec<PathBuf>,
    /// Whether the source has more than is written.
    partial: bool,
    pub(super) target: Target,
}

impl Conversion {
    /// Plans the conversion of a file to torchvision's names; see [`CheckpointFile::normalised`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if two tensors would get the same name, if the file is not of the architecture asked for,
    /// or where a model is to be written not of any, or of one that takes other images than a model can;
    /// [`Error::Setting`] if the type is no floating-point type or the classes do not fit.
    pub fn plan(source: CheckpointFile, options: &ConvertOptions) -> Result<Self> {
        if let Some(dtype) = options.dtype.filter(|dtype| !dtype.is_float()) {
            return Err(Error::setting("dtype", format!("{dtype} is no float; use f32, f16, bf16 or f64")));
        }
        let names = Names::of(&source.path, source.tensors.keys())?;
        let parts = source.files()?;
        let mut plan = Self {
            arch: None,
            likeness: None,
            convention: names.convention,
            prefixes: names.prefixes.clone(),
            origins: BTreeMap::new(),
            tensors: BTreeMap::new(),
            metadata: source.metadata,
            dropped: Vec::new(),
            unknown: Vec::new(),
            notes: source.notes,
            input: source.input,
            published: None,
            transforms: None,
            source: source.path,
            parts: if parts.len() > 1 { parts } else { Vec::new() },
            partial: source.partial || !names.left_out.is_empty(),
            target: options.target,
        };
        for (from, tensor) in source.tensors {
            let Some(name) = names.new.get(&from) else { continue };
            plan.origins.insert(name.clone(), ConvertedTensor { from: Some(from), dtype: tensor.dtype() });
            plan.tensors.insert(name.clone(), tensor);
        }
        // Without all of it a network is still a file of tensors.
        let is_network = options.arch.is_some() || matches!(options.target, Target::Model | Target::Onnx(_));
        let left_out: Vec<_> = source.left_out.iter().map(|(name, why)| (names.renamed(name), *why)).collect();
        if let Some(unread) = architecture::unread(&plan.shapes(), &left_out).filter(|_| is_network) {
            return Err(Error::checkpoint(&plan.source, unread));
        }
        plan.dropped = source.left_out;
        plan.dropped.extend(names.left_out);

        plan.recognise(options.arch).map_err(|message| Error::checkpoint(&plan.source, message))?;
        if matches!(options.target, Target::Model | Target::Onnx(_)) {
            plan.make_model(options)?;
        }
        if options.target == Target::Pth {
            plan.metadata.clear();
        }
        match (&mut plan.target, options.dtype) {
            // Rounded after batchnorm is folded, not before.
            (Target::Onnx(onnx), Some(FileDtype::F32 | FileDtype::F16)) => {
                onnx.half = options.dtype == Some(FileDtype::F16)
            }
            (Target::Onnx(_), Some(dtype)) => {
                let message = format!("an ONNX file from here is of f32 or f16, not {dtype}; give one of those");
                return Err(Error::setting("dtype", message));
            }
            (_, Some(dtype)) => plan.cast(dtype),
            (_, None) => {}
        }
        Ok(plan)
    }

    pub(super) fn shapes(&self) -> Shapes {
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
                let (head, classes) = architecture::head_or_published(&shapes, asked);
                let text = architecture::misfit(&shapes, asked, &head, classes);
                // What is missing of the nearest has been said.
                let is_nearest = architecture::nearest_arch(&shapes).is_some_and(|(arch, ..)| arch == asked);
                let else_like = match is_nearest {
                    true => architecture::unsupported(&shapes),
                    false => architecture::likeness(&shapes),
                };
                let else_like = else_like.map_or(String::new(), |likeness| format!("\n  {likeness}"));
                return Err(self.with_notes(format!("is not of {asked}{text}{else_like}")));
            }
            _ => self.arch = found,
        }
        let Some(arch) = self.arch else {
            self.likeness = architecture::likeness(&shapes);
            // Other networks have classifiers of the same names; fastai's head alone has no convolutions.
            let is_resnet = shapes.keys().any(|name| name.starts_with("layer1."));
            self.convention = self.convention.filter(|_| is_resnet || shapes.values().all(|shape| shape.len() != 4));
            return Ok(());
        };
        self.notes.extend(architecture::antialiased(&self.source));
        let (head, classes) = architecture::head_or_published(&shapes, arch);
        if asked.is_some() {
            let text = architecture::misfit(&shapes, arch, &head, classes);
            if !text.is_empty() {
                return Err(format!("is of {arch}, but does not fit it whole{text}"));
            }
        }
        self.notes.extend(architecture::incomplete(&shapes, arch));
        let expected = architecture::tensors_of(arch, &head, classes);
        let near = |name: &str| nearest(name, expected.keys().map(String::as_str)).map(str::to_owned);
        let strangers = shapes.into_keys().filter(|name| !expected.contains_key(name)).enumerate();
        // As many as are listed: a hostile file has any number, and comparing takes time.
        self.unknown =
            strangers.map(|(at, name)| (name.clone(), (at < LISTED).then(|| near(&name)).flatten())).collect();
        Ok(())
    }

    /// Casts floating-point tensors of another type when they are read.
    fn cast(&mut self, dtype: FileDtype) {
        let others = self.tensors.iter_mut().filter(|(_, tensor)| tensor.dtype().is_float() && tensor.dtype() != dtype);
        for (name, tensor) in others {
            let (original, name, path) = (tensor.clone(), name.clone(), self.source.clone());
            let read = move || {
                let cast = original.read()?.to_dtype(dtype);
                cast.map_err(|error| Error::checkpoint(&path, format!("tensor {}: {error}", short_name(&name))))
            };
            *tensor = StoredTensor::new(dtype, tensor.shape().to_vec(), read);
        }
    }

    /// Lets `token` end [`Conversion::write`] between two tensors, as an error that leaves nothing behind.
    pub fn cancelled_by(&mut self, token: &CancelToken) {
        for tensor in self.tensors.values_mut() {
            let (original, token) = (tensor.clone(), token.clone());
            let read = move || token.check().and_then(|()| original.read());
            *tensor = StoredTensor::new(tensor.dtype(), tensor.shape().to_vec(), read);
        }
    }

    /// Reads and writes the tensors, one at a time. The file appears whole or not at all, when all tensors have been
    /// read: it may take the place of the source, unless that is a checkpoint of several files, or has more in it than
    /// the weights.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor with a value beyond the range of the type asked for, or of a model or
    /// ONNX one with values that no network computes with, or where a part of the source or what it has beside the
    /// weights would be lost, and those of [`write_safetensors`], [`write_pth`] and
    /// [`write_onnx`](super::write_onnx()).
    pub fn write(&self, path: impl AsRef<Path>) -> Result<Written> {
        let path = path.as_ref();
        let lost = |what: &str| Err(Error::checkpoint(path, format!("{what} would be lost: write to another file")));
        match (is_same_file(&self.source, path), self.parts.iter().any(|part| is_same_file(part, path))) {
            (true, true) => return lost("is what is read too, and has parts in other files; it"),
            (false, true) => return lost(&format!("is a part of {}, which", self.source.display())),
            (true, false) if self.partial => {
                return lost(
                    "is what is read too, and what it has beside the weights (an optimizer's state, the epoch, …)",
                );
            }
            _ => {}
        }
        let (flawed, whole) = (RefCell::default(), matches!(self.target, Target::Model | Target::Onnx(_)));
        let watched = |(name, tensor)| {
            (String::clone(name), Watched { name, tensor, source: &self.source, whole, flawed: &flawed })
        };
        let tensors: BTreeMap<String, Watched> = self.tensors.iter().map(watched).collect();
        let count = match self.target {
            Target::Safetensors | Target::Model => {
                write_safetensors(path, &tensors, &self.metadata).map(|()| tensors.len())?
            }
            Target::Pth => write_pth(path, &tensors).map(|()| tensors.len())?,
            Target::Onnx(options) => write_counted(path, &tensors, &self.metadata, &options)?,
        };
        drop(tensors);
        Ok(Written { tensors: count, flawed: flawed.into_inner() })
    }
}

/// What [`Conversion::write`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Number of the file's tensors; in ONNX batchnorm that is folded has none any more.
    pub tensors: usize,
    /// Tensors with values that no network computes with, and what these are.
    pub flawed: Vec<(String, &'static str)>,
}

/// A tensor whose values are looked at when they are read.
struct Watched<'a> {
    name: &'a str,
    tensor: &'a StoredTensor,
    source: &'a Path,
    /// Whether what is written is a network, of which no tensor may be flawed.
    whole: bool,
    flawed: &'a RefCell<Vec<(String, &'static str)>>,
}

impl TensorSource for Watched<'_> {
    fn dtype(&self) -> FileDtype {
        self.tensor.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn load(&self) -> Result<Cow<'_, FileTensor>> {
        let tensor = self.tensor.read()?;
        match flaw(self.name, &tensor) {
            Some(what) if self.whole => {
                let message = format!("cannot be used as a network: {} has {what}", short_name(self.name));
                return Err(Error::checkpoint(self.source, message));
            }
            Some(what) => self.flawed.borrow_mut().push((self.name.to_owned(), what)),
            None => {}
        }
        Ok(Cow::Owned(tensor))
    }
}

/// What would be written, as a file that is open.
impl From<Conversion> for CheckpointFile {
    fn from(plan: Conversion) -> Self {
        Self {
            path: plan.source,
            format: Format::Safetensors,
            tensors: plan.tensors,
            metadata: plan.metadata,
            left_out: Vec::new(),
            notes: Vec::new(),
            input: plan.input,
            partial: false,
        }
    }
}

/// Whether both are there, and the same file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).ok().zip(fs::canonicalize(other).ok()).is_some_and(|(one, other)| one == other)
}
