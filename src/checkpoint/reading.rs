//! Which reader a file is for, told from its first bytes.

use std::{fs::File, io::Read, path::Path};

use super::{CheckpointFile, guard, npz, onnx, pytorch, safetensors, sharded};
use crate::{Error, Result};

/// Opens a file of any format, for what is under `key`.
pub(super) fn open(path: &Path, key: Option<&str>) -> Result<CheckpointFile> {
    let head = head(path)?;
    let file = match family(path, &head)? {
        Family::Safetensors => safetensors::open(path),
        Family::Index => sharded::open(path),
        Family::Zip if path.extension().is_some_and(|extension| extension == "pt2") => Err(pytorch::exported(path)),
        Family::Zip => {
            let archive = guard::open_zip(path)?;
            if npz::is_npz(&archive) {
                npz::open(path, archive)
            } else {
                pytorch::refuse_script(path, &archive)?;
                return pytorch::open_zip(path, archive, key);
            }
        }
        Family::Onnx => onnx::open(path),
        Family::Pytorch => return pytorch::open_pickles(path, &head, key),
    };
    match key {
        Some(key) => file?.at_key(key),
        None => file,
    }
}

/// The first bytes of a regular file.
fn head(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if !metadata.is_file() {
        let what =
            if metadata.is_dir() { format!("a folder{}", sharded::inside(path)) } else { "no regular file".into() };
        return Err(Error::checkpoint(path, format!("is {what}")));
    }
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(512).read_to_end(&mut head)).map_err(|error| Error::io(path, error))?;
    Ok(head)
}

enum Family {
    Safetensors,
    /// The JSON that says which tensor is in which shard.
    Index,
    /// PyTorch or NumPy.
    Zip,
    Pytorch,
    Onnx,
}

/// Tells the reader from the first bytes of a file, and names the usual impostors.
fn family(path: &Path, head: &[u8]) -> Result<Family> {
    let refuse = |message: String| Err(Error::checkpoint(path, message));
    let text = String::from_utf8_lossy(&head[..head.len().min(60)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();

    if head.is_empty() {
        return refuse("is empty: was the download interrupted?".into());
    }
    if opens_like_safetensors(head) {
        return Ok(Family::Safetensors);
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return refuse("is text in UTF-16: if it is the index of a sharded checkpoint, save it as UTF-8".into());
    }
    if text.starts_with('<') {
        let start = text.lines().next().unwrap_or_default();
        return refuse(format!("is a web page (it starts with {start}), not a checkpoint: was the download refused?"));
    }
    if text.starts_with("version https://git-lfs") {
        return refuse("is a Git LFS pointer, not the file it stands for: run `git lfs pull`".into());
    }
    if text.starts_with('{') && extension == "json" {
        return Ok(Family::Index);
    }
    if head.starts_with(b"\x89HDF\r\n\x1a\n") {
        let message = "is an HDF5 file, as Keras writes; the .h5 of fastai 0.7 is a PyTorch file in spite of its name";
        return refuse(message.into());
    }
    if head.starts_with(b"\x93NUMPY") {
        return refuse("is a single NumPy array (.npy); save all tensors by name with numpy.savez (.npz)".into());
    }
    if onnx::opens_like_onnx(head) {
        return Ok(Family::Onnx);
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Ok(Family::Zip);
    }
    if head.get(257..262) == Some(b"ustar") {
        return Ok(Family::Pytorch);
    }
    // Too damaged to tell by content: the extension decides which reader explains what is wrong.
    match extension {
        "safetensors" => return Ok(Family::Safetensors),
        "onnx" => return Ok(Family::Onnx),
        _ => {}
    }
    // The opcodes that a pickle can begin with.
    if matches!(head[0], 0x80 | b'(' | b'}' | b']' | b'c' | b'L' | b'I') {
        return Ok(Family::Pytorch);
    }
    refuse("is of no known format: neither safetensors, nor a PyTorch checkpoint, nor NumPy's .npz, nor ONNX".into())
}

/// Whether `head` is the length of a JSON header, then its brace.
fn opens_like_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    length.is_some_and(|length| length < 1 << 32) && head.get(8) == Some(&b'{')
}
