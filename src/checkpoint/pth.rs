//! Writing PyTorch's zip archive: what `torch.load(..., weights_only=True)` reads as a dictionary of tensors.
//!
//! As `torch.save` writes it: a pickle of protocol 2 that names a storage per tensor, and the storages beside it,
//! stored as they are, each at a multiple of 64 bytes so that `mmap=True` can map them.

use std::{collections::BTreeMap, io, io::Write, mem::ManuallyDrop, path::Path};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{
    FileDtype, TensorSource,
    save::{byte_length, write_values, write_whole},
};
use crate::{Error, Result};

/// Where PyTorch's own files begin their storages.
const ALIGNMENT: u16 = 64;

/// Writes a `.pth` file of a dictionary of contiguous tensors, reading those that are in a file one at a time. The same
/// content gives the same bytes. The file appears whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Checkpoint`] if PyTorch has no storage for a tensor's type
/// (unsigned integers of more than 8 bits), and those of reading the tensors.
pub fn write_pth<T: TensorSource>(path: impl AsRef<Path>, tensors: &BTreeMap<String, T>) -> Result<()> {
    let path = path.as_ref();
    let pickle = pickle(tensors).map_err(|message| Error::checkpoint(path, message))?;
    write_whole(path, |file| {
        // Dropped after a failure, it would try to end the archive, fail again, and print that itself.
        let mut archive = ManuallyDrop::new(ZipWriter::new(file));
        let mut entry = |name: &str, length: usize, write: &mut dyn FnMut(&mut ZipWriter<_>) -> io::Result<()>| {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .with_alignment(ALIGNMENT)
                .large_file(length as u64 >= u64::from(u32::MAX));
            archive.start_file(format!("archive/{name}"), options)?;
            write(&mut archive)
        };
        entry("data.pkl", pickle.len(), &mut |file| file.write_all(&pickle))?;
        entry("byteorder", 6, &mut |file| file.write_all(b"little"))?;
        for (index, (name, tensor)) in tensors.iter().enumerate() {
            let length = byte_length(tensor).unwrap_or_default();
            entry(&format!("data/{index}"), length, &mut |file| write_values(file, name, tensor))?;
        }
        entry("version", 2, &mut |file| file.write_all(b"3\n"))?;
        ManuallyDrop::into_inner(archive).finish()?;
        Ok(())
    })
}

/// The pickle of `{name: tensor}`, each a call of `torch._utils._rebuild_tensor_v2` on a storage of its own.
fn cannot_hold(name: &str, dtype: FileDtype) -> String {
    format!("cannot hold the tensor {name}: only recent versions of PyTorch have {dtype}; write a .safetensors file")
}

fn pickle<T: TensorSource>(tensors: &BTreeMap<String, T>) -> Result<Vec<u8>, String> {
    // PROTO 2, EMPTY_DICT, MARK
    let mut out = b"\x80\x02}(".to_vec();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        let storage = storage(dtype).ok_or_else(|| cannot_hold(name, dtype))?;
        let elements = byte_length(tensor).ok_or_else(|| format!("cannot hold {name} of {shape:?}"))? / dtype.size();
        string(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        string(&mut out, "storage");
        out.extend(format!("ctorch\n{storage}\n").bytes());
        string(&mut out, &index.to_string());
        string(&mut out, "cpu");
        integer(&mut out, elements);
        // TUPLE and BINPERSID: the storage; then the offset of its first element.
        out.extend(b"tQ");
        integer(&mut out, 0);
        tuple(&mut out, shape);
        tuple(&mut out, &strides(shape));
        // requires_grad = False, no backward hooks; TUPLE, REDUCE
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    // SETITEMS, STOP
    out.extend(b"u.");
    Ok(out)
}

/// Steps of a contiguous tensor, in elements, as PyTorch counts them: an extent of 0 counts as 1.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// BINUNICODE.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

/// BININT where it fits, else LONG1 of eight bytes.
fn integer(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend(b"\x8a\x08");
            out.extend((value as u64).to_le_bytes());
        }
    }
}

/// MARK, values, TUPLE.
fn tuple(out: &mut Vec<u8>, values: &[usize]) {
    out.push(b'(');
    values.iter().for_each(|&value| integer(out, value));
    out.push(b't');
}

/// The class of a storage in `torch`.
fn storage(dtype: FileDtype) -> Option<&'static str> {
    Some(match dtype {
        FileDtype::F64 => "DoubleStorage",
        FileDtype::F32 => "FloatStorage",
        FileDtype::F16 => "HalfStorage",
        FileDtype::BF16 => "BFloat16Storage",
        FileDtype::I64 => "LongStorage",
        FileDtype::I32 => "IntStorage",
        FileDtype::I16 => "ShortStorage",
        FileDtype::I8 => "CharStorage",
        FileDtype::U8 => "ByteStorage",
        FileDtype::Bool => "BoolStorage",
        FileDtype::U64 | FileDtype::U32 | FileDtype::U16 => return None,
    })
}
