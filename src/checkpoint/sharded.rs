//! Checkpoints in several files: `model.safetensors.index.json`, or `pytorch_model.bin.index.json`, says which tensor
//! is in which of them, as `huggingface_hub` writes it.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{CheckpointFile, Format, json::Object};
use crate::{Error, Result};

/// The longest index that is read; that of a network with ten thousand tensors takes a megabyte.
const MAX_INDEX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    /// File by tensor.
    weight_map: Object<String>,
}

/// The index at `path`.
fn read(path: &Path) -> Result<Index> {
    let fail = |message: String| Err(Error::checkpoint(path, message));
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_INDEX + 1).read_to_end(&mut text))
        .map_err(|error| Error::io(path, error))?;
    if text.len() as u64 > MAX_INDEX {
        return fail(format!("is an index of more than {MAX_INDEX} bytes: refused"));
    }
    // Some editors begin a file with a byte order mark, which is no JSON.
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
    serde_json::from_slice(text).or_else(|error| fail(format!("is no index of a sharded checkpoint: {error}")))
}

/// The files that the index at `path` names.
pub(super) fn shards(path: &Path) -> Result<BTreeSet<PathBuf>> {
    Ok(read(path)?.weight_map.0.into_values().map(|file| path.with_file_name(file)).collect())
}

/// Opens all files that the index at `path` names; they are in its folder.
pub(super) fn open(path: &Path) -> Result<CheckpointFile> {
    let Index { weight_map: Object(weight_map) } = read(path)?;
    let mut whole = CheckpointFile {
        path: path.to_owned(),
        format: Format::Sharded,
        tensors: BTreeMap::new(),
        metadata: BTreeMap::new(),
        left_out: Vec::new(),
        notes: Vec::new(),
        input: Default::default(),
        partial: false,
    };
    // Each with what it leaves out, by name.
    let mut shards: BTreeMap<String, (CheckpointFile, BTreeMap<String, &'static str>)> = BTreeMap::new();
    for (name, file) in weight_map {
        let (shard, left_out) = match shards.entry(file.clone()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => {
                let mut shard = open_shard(path, &file)?;
                let left_out = std::mem::take(&mut shard.left_out).into_iter().collect();
                place.insert((shard, left_out))
            }
        };
        if let Some(tensor) = shard.tensors.remove(&name) {
            whole.tensors.insert(name, tensor);
        } else if let Some(why) = left_out.remove(&name) {
            whole.left_out.push((name, why));
        } else {
            let message = format!("says that {file} holds the tensor {name}, but it does not");
            return Err(Error::checkpoint(path, message));
        }
    }
    for (file, (shard, left_out)) in shards {
        let unnamed = shard.tensors.into_keys().map(|name| (name, "not in the index"));
        whole.left_out.extend(unnamed.chain(left_out).map(|(name, why)| (format!("{file}: {name}"), why)));
        whole.metadata.extend(shard.metadata);
        whole.notes.extend(shard.notes);
        whole.partial |= shard.partial;
    }
    Ok(whole)
}

/// A shard beside the index. Its name is whatever the index says: it may lead nowhere else, nor to another index.
fn open_shard(index: &Path, file: &str) -> Result<CheckpointFile> {
    let mut parts = Path::new(file).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) || file.ends_with(".json") {
        return Err(Error::checkpoint(index, format!("names '{file}', which is no shard in its folder: refused")));
    }
    let shard = index.with_file_name(file);
    if !shard.exists() {
        let message = format!("names the shard {file}, which is not in its folder: fetch it too");
        return Err(Error::checkpoint(index, message));
    }
    CheckpointFile::open(shard)
}

/// How a message about a folder goes on: what in it can be given instead.
pub(super) fn inside(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    if let Some(index) = names.iter().find(|name| name.ends_with(".index.json")) {
        return format!(" of a sharded checkpoint; give its index, {}", folder.join(index).display());
    }
    // As `huggingface_hub` numbers them.
    if let Some(shard) = names.iter().find(|name| name.contains("-00001-of-")) {
        return format!(
            " with shards such as {shard}, but without their index (.index.json): fetch that too, and give it"
        );
    }
    let is_checkpoint =
        |name: &&String| [".safetensors", ".pth", ".pt", ".bin", ".npz", ".onnx"].iter().any(|end| name.ends_with(end));
    match names.iter().find(is_checkpoint) {
        Some(file) => format!(", not a checkpoint file; {file} in it may be one"),
        None => ", not a checkpoint file".into(),
    }
}
