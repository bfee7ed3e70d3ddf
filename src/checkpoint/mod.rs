//! Checkpoint files: reading safetensors, every layout that `torch.save` has written, sharded checkpoints, NumPy's
//! `.npz` and ONNX; matching their tensors with a model's parameters; converting them; writing safetensors, PyTorch's
//! zip and ONNX.
//!
//! PyTorch's order of extents (`[K, C, R, S]` for a convolution) exists only in this module: [`load_into`] and
//! [`collect`] convert from and to this engine's `[K, R, S, C]`. A checkpoint is data here: nothing that a pickle
//! asks to call is ever called.
//!
//! ```no_run
//! # use unfreeze::checkpoint::{self, Checkpoint, LoadOptions};
//! # fn example(model: &mut dyn unfreeze::autograd::Parameters) -> unfreeze::Result<()> {
//! let checkpoint = Checkpoint::read("resnet34.pth")?.normalised()?;
//! checkpoint::load_into(model, &checkpoint, &LoadOptions::default())?;
//! checkpoint::write_safetensors("model.safetensors", &checkpoint::collect(model)?, &checkpoint.metadata)?;
//! # Ok(()) }
//! ```

mod architecture;
mod calls;
pub mod catalog;
mod compare;
mod convert;
#[cfg(feature = "fetch")]
mod fetch;
mod guard;
mod json;
mod layout;
mod load;
mod model;
mod names;
mod npz;
mod onnx;
mod pickle;
mod pth;
mod published;
mod pytorch;
mod reading;
mod safetensors;
mod save;
mod sharded;
mod stats;
mod stored;
mod strides;
mod tensor;
mod weights;

pub use compare::{Comparison, Difference, Folded, compare, compare_networks};
pub use convert::{Conversion, ConvertOptions, ConvertedTensor, Target, Written};
pub use load::{LoadOptions, LoadReport, load_into};
pub use names::short_name;
pub use onnx::{BatchNormForm, OnnxOptions, write_onnx};
pub use pth::write_pth;
pub use save::{collect, write_safetensors};
pub use stats::TensorStats;
pub use stored::{CheckpointFile, StoredTensor, TensorSource};
pub use tensor::{FileDtype, FileTensor};
pub use weights::Weights;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use crate::Result;

#[cfg(target_endian = "big")]
compile_error!("checkpoint files are little-endian, and this module copies their bytes as they are");

/// The layout of a checkpoint file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// The zip archive of PyTorch 1.6 and later.
    PytorchZip,
    /// The pickle stream of PyTorch 0.1.10 to 1.5.
    PytorchLegacy,
    /// The tar archive before PyTorch 0.1.10.
    PytorchTar,
    /// An index and the files that it names.
    Sharded,
    /// NumPy's archive of arrays.
    Npz,
    /// ONNX.
    Onnx,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::PytorchZip => "PyTorch zip",
            Format::PytorchLegacy => "PyTorch legacy",
            Format::PytorchTar => "PyTorch tar",
            Format::Sharded => "sharded",
            Format::Npz => "NumPy npz",
            Format::Onnx => "ONNX",
        })
    }
}

/// What a checkpoint file holds: tensors by name, in PyTorch's order of extents.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// Its layout.
    pub format: Format,
    /// The tensors, under the file's names; [`Checkpoint::normalised`] gives them this engine's.
    pub tensors: BTreeMap<String, FileTensor>,
    /// The strings stored beside the tensors of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// What the file holds beside these tensors, and why it is left out; see [`CheckpointFile::left_out`].
    pub left_out: Vec<(String, &'static str)>,
}

impl Checkpoint {
    /// Reads a whole checkpoint; [`CheckpointFile::open`] says what can be read, and reads one tensor at a time.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be read, [`Error::Checkpoint`](crate::Error::Checkpoint) if
    /// it is damaged, hostile or no checkpoint.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        CheckpointFile::open(path)?.load()
    }
}
