//! ONNX files: the tensors of a network that another program exported, and networks written for other programs.
//!
//! Reading: the graph is followed beside each architecture, so that it does not matter how an exporter names tensors,
//! nor whether it folded batchnorm into the convolutions (`torch.onnx.export` does, with either exporter). Of a folded
//! layer the bias becomes that of a batchnorm which changes nothing else: scale 1, mean 0, variance 1 − ε. It computes
//! the same to float precision; its statistics are gone, however, so for training the original checkpoint is better. A
//! graph that is none of this engine's networks gives its tensors under their own names. Values may be in a file beside
//! the ONNX file, and are read where they lie. What a graph does to images before its network is not a part of what is
//! read; a normalisation goes into the metadata, as `mean` and `std`.
//!
//! Writing: operator set 17, IR version 8, which every runtime since 2022 reads; see [`write_onnx`].
//!
//! The format is Protocol Buffers, of which this takes a dozen messages. They are read and written here by hand: a
//! generated reader wants the whole file in memory, where this one steps over the values, and a generated writer wants
//! all values there, where this one writes a tensor at a time.

mod build;
mod fold;
mod graph;
mod input;
mod network;
mod tensor;
mod view;
mod wire;
mod write;

pub(super) use fold::Foldable;
pub(super) use input::{Effect, Input};

pub use build::{BatchNormForm, OnnxOptions};
pub(super) use write::write_counted;
pub use write::write_onnx;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use self::network::Found;
use super::{CheckpointFile, Format};
use crate::Result;

/// What batchnorm adds to variances, here and in torchvision's networks.
const EPS: f32 = 1e-5;

/// Whether a file begins with an IR version, as every ONNX file does, and then with what may come second: names of its
/// producer, domain and version, the graph, or the operator sets.
pub(super) fn opens_like_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, 1..=64, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42, ..])
}

/// The files beside the ONNX file that have values of its tensors.
pub(super) fn value_files(path: &Path) -> Result<BTreeSet<PathBuf>> {
    let tensors = graph::Graph::read(path)?.tensors.into_values();
    Ok(tensors.filter(|tensor| tensor.is_external()).map(|tensor| tensor.file).collect())
}

/// Finds the tensors of a network, of which none is read yet.
pub(super) fn open(path: &Path) -> Result<CheckpointFile> {
    let graph = graph::Graph::read(path)?;
    let Found { tensors, notes, input } = network::tensors(&graph, path)?;
    let mut metadata = graph.metadata;
    if let Effect::Normalises { mean, std } = input.effect {
        // As a model file has them; `Debug` of numbers is JSON.
        metadata.extend([("mean".into(), format!("{mean:?}")), ("std".into(), format!("{std:?}"))]);
    }
    Ok(CheckpointFile {
        path: path.to_owned(),
        format: Format::Onnx,
        tensors: tensors.into_iter().map(|(name, origin)| Ok((name, origin.stored()?))).collect::<Result<_>>()?,
        metadata,
        left_out: Vec::new(),
        partial: !notes.is_empty(),
        notes,
        input,
    })
}
