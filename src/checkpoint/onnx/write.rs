//! Writing ONNX: the graph, then one tensor at a time, with all lengths known ahead.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use super::{
    EPS, OnnxOptions,
    build::{Graph, Initialiser, Values},
    tensor::number,
    wire::{put_bytes, put_length, put_number, put_varint},
};
use crate::{
    Error, Result,
    checkpoint::{FileDtype, FileTensor, TensorSource, architecture, model::stored, save::write_whole, weights},
    nn::{Arch, HeadSpec, Structure},
};

const IR_VERSION: i64 = 8;
const OPERATOR_SET: i64 = 17;

/// Writes the network of `tensors`, under torchvision's names and this engine's names of heads, as ONNX.
///
/// The input `input` is `[N, 3, size, size]`, `f32`, RGB, of any number `N` of images; the output `logits` or
/// `probabilities` is `[N, classes]`. The size is that of `metadata`, else the one that published checkpoints of the
/// architecture were trained on; likewise mean and standard deviation, else ImageNet's. All of `metadata` (a model
/// file's, or a checkpoint's) is written too, so that reading the file back gives it. Values are `f32`; with
/// [`OnnxOptions::half`] all between input and output is `f16`, rounded once, after batchnorm is folded.
///
/// Tensors that are in a file are read one at a time. The file appears whole or not at all. The same content gives the
/// same bytes.
///
/// ```no_run
/// use unfreeze::checkpoint::{CheckpointFile, OnnxOptions, write_onnx};
///
/// let model = CheckpointFile::open("model.safetensors")?;
/// let options = OnnxOptions { normalise: true, probabilities: true, ..OnnxOptions::default() };
/// write_onnx("model.onnx", &model.tensors, &model.metadata, &options)?;
/// # Ok::<(), unfreeze::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; [`Error::Checkpoint`] if the tensors are of no known architecture, have
/// no head, are not finite, or exceed the range of `f16` if that is asked for; [`Error::Setting`] if probabilities are
/// asked for where numbers are told.
pub fn write_onnx<T: TensorSource>(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, T>,
    metadata: &BTreeMap<String, String>,
    options: &OnnxOptions,
) -> Result<()> {
    write_counted(path.as_ref(), tensors, metadata, options).map(drop)
}

/// As [`write_onnx`]; returns the number of tensors in the file.
pub(in crate::checkpoint) fn write_counted<T: TensorSource>(
    path: &Path,
    tensors: &BTreeMap<String, T>,
    metadata: &BTreeMap<String, String>,
    options: &OnnxOptions,
) -> Result<usize> {
    let source = Source { path, tensors };
    let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let arch = architecture::arch_of(&shapes).ok_or_else(|| source.fail("the tensors are of no known architecture"))?;
    let (head, classes) = architecture::head_of(&shapes).ok_or_else(|| {
        source.fail("there is no classifier (fc.weight, or fastai's head), only a backbone; train a head for it first")
    })?;
    head.validate()?;
    let file = Onnx::new(arch, &head, classes, metadata, options)?;
    let before = file.header();
    let after = file.trailer();
    write_whole(source.path, |out| {
        out.write_all(&before)?;
        for tensor in &file.graph.initialisers {
            let values = source.bytes(tensor).map_err(io::Error::other)?;
            out.write_all(&tensor.header())?;
            out.write_all(&values)?;
        }
        out.write_all(&after)
    })?;
    Ok(file.graph.initialisers.len())
}

/// All of a file but its values.
struct Onnx {
    arch: Arch,
    classes: usize,
    size: usize,
    graph: Graph,
    /// Name of the output.
    output: &'static str,
    /// What the input is.
    input: &'static str,
    metadata: BTreeMap<String, String>,
}

impl Onnx {
    fn new(
        arch: Arch,
        head: &HeadSpec,
        classes: usize,
        metadata: &BTreeMap<String, String>,
        options: &OnnxOptions,
    ) -> Result<Self> {
        let size = stored(metadata, "size").unwrap_or(arch.published_size());
        let mean = stored(metadata, "mean").unwrap_or(weights::IMAGENET.0);
        let std = stored(metadata, "std").unwrap_or(weights::IMAGENET.1);

        let mut graph = Graph::new(options);
        let images = if options.normalise { graph.normalise("input", mean, std) } else { "input".into() };
        let activation = graph.backbone(&Structure::new(arch), &images);
        let layers = head.plan(arch.features(), classes);
        graph.head(&activation, head, layers);
        graph.finish();
        if options.probabilities {
            graph.probabilities(match metadata.get("task").map(String::as_str) {
                Some("regression") => {
                    let message = "a network that tells numbers has no probabilities; write its outputs as they are";
                    return Err(Error::setting("softmax", message));
                }
                Some("multi-label") => "Sigmoid",
                _ => "Softmax",
            });
        }

        let known = [
            ("arch", arch.name().to_owned()),
            ("size", size.to_string()),
            ("resize", size.to_string()),
            ("mean", format!("{mean:?}")),
            ("std", format!("{std:?}")),
        ];
        let mut metadata = metadata.clone();
        for (key, value) in known {
            metadata.entry(key.to_owned()).or_insert(value);
        }
        Ok(Self {
            arch,
            classes,
            size,
            graph,
            output: if options.probabilities { "probabilities" } else { "logits" },
            input: if options.normalise { "RGB images of 0 to 1" } else { "RGB images, normalised" },
            metadata,
        })
    }

    /// All before the tensors: the beginning of the model and of its graph.
    fn header(&self) -> Vec<u8> {
        let mut start = self.graph.nodes.clone();
        put_bytes(&mut start, 2, self.arch.name());
        let tensors: u64 = self.graph.initialisers.iter().map(Initialiser::length).sum();
        let length = start.len() as u64 + tensors + self.ends().len() as u64;

        let mut bytes = Vec::new();
        put_number(&mut bytes, 1, IR_VERSION);
        put_bytes(&mut bytes, 2, env!("CARGO_PKG_NAME"));
        put_bytes(&mut bytes, 3, env!("CARGO_PKG_VERSION"));
        put_length(&mut bytes, 7, length);
        bytes.extend(start);
        bytes
    }

    /// All after the tensors: the end of the graph and of the model.
    fn trailer(&self) -> Vec<u8> {
        let mut bytes = self.ends();
        let mut operators = Vec::new();
        put_bytes(&mut operators, 1, "");
        put_number(&mut operators, 2, OPERATOR_SET);
        put_bytes(&mut bytes, 8, operators);
        for (key, value) in &self.metadata {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key);
            put_bytes(&mut entry, 2, value);
            put_bytes(&mut bytes, 14, entry);
        }
        bytes
    }

    /// The graph's input and output.
    fn ends(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let input = value_info("input", &[3, self.size, self.size], self.input);
        put_bytes(&mut bytes, 11, input);
        put_bytes(&mut bytes, 12, value_info(self.output, &[self.classes], ""));
        bytes
    }
}

/// A `ValueInfoProto` of `[N, extents…]`.
fn value_info(name: &str, extents: &[usize], text: &str) -> Vec<u8> {
    let mut shape = Vec::new();
    let mut dimension = Vec::new();
    put_bytes(&mut dimension, 2, "N");
    put_bytes(&mut shape, 1, dimension);
    for extent in extents {
        let mut dimension = Vec::new();
        put_number(&mut dimension, 1, *extent as i64);
        put_bytes(&mut shape, 1, dimension);
    }
    let (mut tensor, mut kind, mut value) = (Vec::new(), Vec::new(), Vec::new());
    put_number(&mut tensor, 1, number(FileDtype::F32));
    put_bytes(&mut tensor, 2, shape);
    put_bytes(&mut kind, 1, tensor);
    put_bytes(&mut value, 1, name);
    put_bytes(&mut value, 2, kind);
    if !text.is_empty() {
        put_bytes(&mut value, 3, text);
    }
    value
}

impl Initialiser {
    /// Bytes of its values.
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }

    /// All of the tensor before its values, which are its end.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.shape.iter().for_each(|extent| put_number(&mut body, 1, *extent as i64));
        put_number(&mut body, 2, number(self.dtype));
        put_bytes(&mut body, 8, &self.name);
        put_length(&mut body, 9, self.bytes());
        body
    }

    /// All that is written before its values.
    fn header(&self) -> Vec<u8> {
        let body = self.body();
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 5 << 3 | 2);
        put_varint(&mut bytes, body.len() as u64 + self.bytes());
        bytes.extend(body);
        bytes
    }

    /// Bytes that it takes in the file.
    fn length(&self) -> u64 {
        self.header().len() as u64 + self.bytes()
    }
}

/// The network's values.
pub(super) struct Source<'a, T> {
    /// What errors name.
    pub path: &'a Path,
    pub tensors: &'a BTreeMap<String, T>,
}

impl<T: TensorSource> Source<'_, T> {
    /// The bytes of `tensor`.
    fn bytes(&self, tensor: &Initialiser) -> Result<Vec<u8>> {
        let Initialiser { name, dtype, shape, values } = tensor;
        if let Values::Integers(values) = values {
            return Ok(bytemuck::cast_slice(values).to_vec());
        }
        let floats = self.floats(tensor)?;
        if !floats.iter().all(|value| value.is_finite()) {
            return Err(self.fail(format!("{name} would have values that are not finite")));
        }
        let floats = FileTensor::from_f32(shape.clone(), floats)?.into_dtype(*dtype);
        floats.map(FileTensor::into_bytes).map_err(|error| self.fail(format!("{name}: {error}")))
    }

    /// The values of `tensor`, which are no integers, before they are rounded to its type.
    pub(super) fn floats(&self, tensor: &Initialiser) -> Result<Vec<f32>> {
        let shape = &tensor.shape;
        Ok(match &tensor.values {
            Values::Integers(_) => Vec::new(),
            Values::Floats(values) => values.clone(),
            Values::Network(name) => self.fetch(name, shape)?,
            Values::FoldedConv { conv, norm } => {
                let mut weight = self.fetch(&format!("{conv}.weight"), shape)?;
                let affine = self.affine(norm, shape[0])?;
                for (filter, (factor, _)) in weight.chunks_exact_mut(shape[1..].iter().product()).zip(affine) {
                    filter.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
                }
                weight
            }
            Values::FoldedShift { norm } => {
                self.affine(norm, shape[0])?.into_iter().map(|(_, offset)| offset as f32).collect()
            }
            Values::FoldedLinear { linear, norm } => {
                let mut weight = self.fetch(&format!("{linear}.weight"), shape)?;
                let affine = self.affine(norm, shape[1])?;
                for row in weight.chunks_exact_mut(shape[1]) {
                    let scaled = row.iter_mut().zip(&affine);
                    scaled.for_each(|(value, (factor, _))| *value = (f64::from(*value) * factor) as f32);
                }
                weight
            }
            Values::FoldedBias { linear, norm, inputs } => {
                let mut bias = self.fetch(&format!("{linear}.bias"), shape)?;
                let weight = self.fetch(&format!("{linear}.weight"), &[shape[0], *inputs])?;
                let affine = self.affine(norm, *inputs)?;
                for (value, row) in bias.iter_mut().zip(weight.chunks_exact(*inputs)) {
                    let shift = row.iter().zip(&affine).map(|(value, (_, offset))| f64::from(*value) * offset);
                    *value = (f64::from(*value) + shift.sum::<f64>()) as f32;
                }
                bias
            }
        })
    }

    /// Factor and offset of each channel of a batchnorm with running statistics.
    fn affine(&self, norm: &str, channels: usize) -> Result<Vec<(f64, f64)>> {
        let part = |part: &str| self.fetch(&format!("{norm}.{part}"), &[channels]);
        let [scale, shift, mean, variance] =
            [part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?];
        let channel = |channel: usize| {
            let [scale, shift, mean, variance] =
                [&scale, &shift, &mean, &variance].map(|values| f64::from(values[channel]));
            let factor = scale / (variance + f64::from(EPS)).sqrt();
            (factor, shift - mean * factor)
        };
        Ok((0..channels).map(channel).collect())
    }

    fn fetch(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.fail(format!("there is no tensor {name}")))?;
        match tensor.shape() == shape {
            true => Ok(tensor.load()?.to_f32()),
            false => Err(self.fail(format!("{name} is {:?}, not {shape:?}", tensor.shape()))),
        }
    }

    fn fail(&self, message: impl std::fmt::Display) -> Error {
        Error::checkpoint(self.path, format!("cannot be written: {message}"))
    }
}
