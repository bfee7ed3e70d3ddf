//! Writing safetensors: whole or not at all.

use std::{collections::BTreeMap, io::Write, path::Path};

use serde_json::{Map, Value, json};

use super::{FileTensor, layout, safetensors::MAX_HEADER};
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

/// Writes a safetensors file. The same content gives the same bytes.
///
/// The file appears whole or not at all: it is written under another name in the same folder, synced and renamed.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Checkpoint`] if the format cannot hold the tensors.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, FileTensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    // As the reference implementation: widest elements first, so that every tensor is aligned to its own.
    let mut ordered: Vec<_> = tensors.iter().collect();
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.size()));
    let header = header(&ordered, metadata).map_err(|message| Error::checkpoint(path, message))?;
    write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        ordered.iter().try_for_each(|(_, tensor)| file.write_all(tensor.bytes()))
    })
}

/// The JSON header, padded so that the data begins at a multiple of eight.
fn header(tensors: &[(&String, &FileTensor)], metadata: &BTreeMap<String, String>) -> Result<String, String> {
    const METADATA: &str = "__metadata__";
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA.into(), json!(metadata));
    }
    let mut start = 0;
    for (name, tensor) in tensors {
        if *name == METADATA || !tensor.is_consistent() {
            return Err(format!("cannot hold the tensor {name}: {tensor:?} with {} bytes", tensor.bytes().len()));
        }
        let end = start + tensor.bytes().len();
        let dtype = tensor.dtype.to_string().to_uppercase();
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end] });
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
