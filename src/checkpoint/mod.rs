//! Checkpoint files: reading safetensors and every layout that `torch.save` has written, matching their tensors
//! with a model's parameters, and writing safetensors.
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

pub mod catalog;
mod convert;
#[cfg(feature = "fetch")]
mod fetch;
mod guard;
mod layout;
mod load;
mod names;
mod pytorch;
mod safetensors;
mod save;
mod tensor;
mod weights;

pub use convert::to_safetensors;
pub use load::{LoadOptions, LoadReport, load_into};
pub use save::{collect, write_safetensors};
pub use tensor::{FileDtype, FileTensor};
pub use weights::Weights;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

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
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::PytorchZip => "PyTorch zip",
            Format::PytorchLegacy => "PyTorch legacy",
            Format::PytorchTar => "PyTorch tar",
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
}

impl Checkpoint {
    /// Reads a checkpoint, telling its format from its content. A training checkpoint's wrapper (`state_dict`,
    /// `model`, …) is unwrapped, and whatever is no tensor (epoch, optimizer, …) is left out.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] if it is damaged, hostile or no checkpoint.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a folder" } else { "no regular file" };
            return Err(Error::checkpoint(path, format!("is {what}, not a checkpoint file")));
        }
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(512).read_to_end(&mut head))
            .map_err(|error| Error::io(path, error))?;
        let checkpoint = match family(path, &head)? {
            Family::Safetensors => safetensors::read(path)?,
            Family::Pytorch => pytorch::read(path, &head)?,
        };
        if checkpoint.tensors.is_empty() {
            return Err(Error::checkpoint(path, "holds no tensors"));
        }
        Ok(checkpoint)
    }
}

/// Which reader a file is for.
enum Family {
    Safetensors,
    Pytorch,
}

/// Tells the reader from the first bytes of a file, and names the usual impostors.
fn family(path: &Path, head: &[u8]) -> Result<Family> {
    let refuse = |message: String| Err(Error::checkpoint(path, message));
    let text = String::from_utf8_lossy(&head[..head.len().min(60)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();

    if head.is_empty() {
        return refuse("is empty: was the download interrupted?".into());
    }
    if opens_like_safetensors(head) {
        return Ok(Family::Safetensors);
    }
    if text.starts_with('<') {
        let start = text.lines().next().unwrap_or_default();
        return refuse(format!("is a web page (it starts with {start}), not a checkpoint: was the download refused?"));
    }
    if text.starts_with("version https://git-lfs") {
        return refuse("is a Git LFS pointer, not the file it stands for: run `git lfs pull`".into());
    }
    if head.starts_with(b"PK") || head.get(257..262) == Some(b"ustar") {
        return Ok(Family::Pytorch);
    }
    // Too damaged to tell by content: the extension decides which reader explains what is wrong.
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Ok(Family::Safetensors);
    }
    // The opcodes that a pickle can begin with.
    if matches!(head[0], 0x80 | b'(' | b'}' | b']' | b'c' | b'L' | b'I') {
        return Ok(Family::Pytorch);
    }
    refuse("is of no known format: neither safetensors nor a PyTorch checkpoint".into())
}

/// Whether `head` is the length of a JSON header, then its brace.
fn opens_like_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    length.is_some_and(|length| length < 1 << 32) && head.get(8) == Some(&b'{')
}
