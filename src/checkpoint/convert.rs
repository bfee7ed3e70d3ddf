//! Conversion of any checkpoint to safetensors.

use std::path::Path;

use super::{Checkpoint, FileDtype, write_safetensors};
use crate::{Error, Result};

/// Writes `checkpoint` as safetensors, its floating-point tensors cast to `dtype` if there is one. Names, metadata
/// and the other tensors stay as they are; see [`Checkpoint::normalised`] for torchvision's names.
///
/// # Errors
/// [`Error::Checkpoint`] naming the tensor with a value beyond the range of `dtype`, and those of
/// [`write_safetensors`].
pub fn to_safetensors(checkpoint: &Checkpoint, output: &Path, dtype: Option<FileDtype>) -> Result<()> {
    let Some(dtype) = dtype else {
        return write_safetensors(output, &checkpoint.tensors, &checkpoint.metadata);
    };
    let mut tensors = checkpoint.tensors.clone();
    for (name, tensor) in tensors.iter_mut().filter(|(_, tensor)| tensor.dtype.is_float()) {
        *tensor = tensor
            .to_dtype(dtype)
            .map_err(|error| Error::checkpoint(&checkpoint.path, format!("tensor {name}: {error}")))?;
    }
    write_safetensors(output, &tensors, &checkpoint.metadata)
}
