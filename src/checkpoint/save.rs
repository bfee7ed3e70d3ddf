//! Writing safetensors, whole or not at all, and what its writer shares with that of PyTorch's zip.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{FileTensor, TensorSource, layout, safetensors::MAX_HEADER};
use crate::{Error, Result, autograd::Parameters, files::write_atomically};

/// The parameters of `model` under their names, as a file has them: `f32`, in PyTorch's order.
///
/// # Errors
/// Those of fetching a parameter from its device.
pub fn collect(model: &dyn Parameters) -> Result<BTreeMap<String, FileTensor>> {
    let mut tensors = Ok(BTreeMap::new());
    model.visit(&mut |parameter| {
        let Ok(collected) = &mut tensors else { return };
        let values = parameter.value.to_vec::<f32>().map(|values| layout::to_file(parameter, values));
        match values.and_then(|values| FileTensor::from_f32(layout::file_shape(parameter), values)) {
            Ok(tensor) => drop(collected.insert(parameter.name().to_string(), tensor)),
            Err(error) => tensors = Err(error),
        }
    });
    tensors
}

/// Writes a safetensors file, reading tensors that are in a file one at a time. The same content gives the same bytes.
///
/// The file appears whole or not at all: it is written under another name in the same folder, synced and renamed.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Checkpoint`] if the format cannot hold the tensors, and those
/// of reading them.
pub fn write_safetensors<T: TensorSource>(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, T>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    // As the reference implementation: widest elements first, so that every tensor is aligned to its own.
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size()));
    let header = header(&ordered, metadata).map_err(|message| Error::checkpoint(path, message))?;
    write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        ordered.iter().try_for_each(|(name, tensor)| write_values(file, name, *tensor))
    })
}

/// As [`write_atomically`], for writers that read while they write: an error of reading comes back as it was.
pub(super) fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
    write_atomically(path, write).map_err(|error| match error {
        Error::Io { path, source } => source.downcast().unwrap_or_else(|source| Error::io(path, source)),
        other => other,
    })
}

/// Writes the elements of a tensor, which must be what it declares.
pub(super) fn write_values(file: &mut impl Write, name: &str, tensor: &impl TensorSource) -> io::Result<()> {
    let values = tensor.load().map_err(io::Error::other)?;
    if Some(values.bytes().len()) != byte_length(tensor) {
        let message = format!("cannot write the tensor {name}: {values:?} with {} bytes", values.bytes().len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    file.write_all(values.bytes())
}

/// Bytes of a tensor's elements; nothing if there is no such number.
pub(super) fn byte_length(tensor: &impl TensorSource) -> Option<usize> {
    tensor.shape().iter().try_fold(tensor.dtype().size(), |bytes, &extent| bytes.checked_mul(extent))
}

/// The JSON header, padded so that the data begins at a multiple of eight.
fn header<T: TensorSource>(tensors: &[(&String, &T)], metadata: &BTreeMap<String, String>) -> Result<String, String> {
    const METADATA: &str = "__metadata__";
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA.into(), json!(metadata));
    }
    let mut start = 0usize;
    for (name, tensor) in tensors {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        let end = byte_length(*tensor).and_then(|length| start.checked_add(length));
        if *name == METADATA {
            return Err(format!(
                "cannot hold the tensor {METADATA}, a name that its format keeps for itself: write a .pth"
            ));
        }
        let Some(end) = end else {
            return Err(format!("cannot hold the tensor {name}: {dtype} {shape:?}"));
        };
        let entry = json!({ "dtype": dtype.to_string().to_uppercase(), "shape": shape, "data_offsets": [start, end] });
        entries.insert((*name).clone(), entry);
        start = end;
    }
    let mut header = Value::Object(entries).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    if header.len() as u64 > MAX_HEADER {
        return Err("has too many tensors, or too long metadata, for safetensors".into());
    }
    Ok(header)
}
