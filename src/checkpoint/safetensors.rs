//! Reading safetensors: a header that says where each tensor lies, then their bytes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ::safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::de::MapAccess;

use super::{
    CheckpointFile, FileDtype, FileTensor, Format, StoredTensor,
    json::{Field, Object},
    names::short_name,
};
use crate::{Error, Result};

/// The longest header that the format allows.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Reads the header; the file stays open for the values. It is read rather than mapped: a mapping would end the
/// program where someone cuts the file off meanwhile, and count as memory taken.
pub(super) fn open(path: &Path) -> Result<CheckpointFile> {
    let bad = |message: String| Error::checkpoint(path, format!("damaged safetensors file: {message}"));
    let io = |error: io::Error| Error::io(path, error);

    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();

    let mut prefix = [0; 8];
    if length < 8 {
        return Err(bad(format!("its {length} bytes do not even hold the length of a header")));
    }
    file.read_exact(&mut prefix).map_err(io)?;
    let header_length = u64::from_le_bytes(prefix);
    // Checked before anything is allocated: the length is whatever the file says.
    if header_length > MAX_HEADER || header_length > length - 8 {
        return Err(bad(format!("it declares a header of {header_length} bytes, but has {} in all", length - 8)));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header = parse(&header).map_err(|error| bad(format!("its header: {error}")))?;

    // `Metadata` has checked that the tensors lie end to end and that each fills its shape.
    let (declared, present) = (header.data_len() as u64, length - 8 - header_length);
    if declared != present {
        let cause = if declared > present { ": was the download interrupted?" } else { "" };
        return Err(bad(format!("its header declares {declared} bytes of tensors, but {present} follow{cause}")));
    }

    let mut checkpoint = CheckpointFile {
        path: path.to_owned(),
        format: Format::Safetensors,
        tensors: Default::default(),
        metadata: header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        left_out: Vec::new(),
        notes: Vec::new(),
        input: Default::default(),
        partial: false,
    };
    let file = Arc::new(Mutex::new(file));
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let Ok(dtype) = info.dtype.to_string().parse() else {
            checkpoint.left_out.push((name, unread(info.dtype)));
            continue;
        };
        let place = Place {
            path: path.to_owned(),
            file: file.clone(),
            start: 8 + header_length + info.data_offsets.0 as u64,
            length: info.data_offsets.1 - info.data_offsets.0,
        };
        let shape = info.shape.clone();
        let tensor = StoredTensor::new(dtype, shape.clone(), move || place.read(dtype, shape.clone()));
        checkpoint.tensors.insert(name, tensor);
    }
    checkpoint.partial = !checkpoint.left_out.is_empty();
    Ok(checkpoint)
}

/// Why tensors of a type are not read.
fn unread(dtype: Dtype) -> &'static str {
    match dtype.bitsize() {
        64 => "complex64, which is not read",
        8 => "float8, which is not read: save it as float32",
        _ => "of floats below 8 bits, which are not read: save it as float32",
    }
}

/// A field of a header.
enum Entry {
    Metadata(Option<Object<String>>),
    Tensor(TensorInfo),
}

impl Field for Entry {
    fn read<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> std::result::Result<Self, A::Error> {
        match name {
            "__metadata__" => map.next_value().map(Entry::Metadata),
            _ => map.next_value().map(Entry::Tensor),
        }
    }
}

/// A header as the `safetensors` crate has it; parsed here, since there the last of two tensors of one name wins.
fn parse(header: &[u8]) -> std::result::Result<Metadata, String> {
    let Object(entries) = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let (mut metadata, mut tensors) = (None, Vec::with_capacity(entries.len()));
    for (name, entry) in entries {
        match entry {
            Entry::Metadata(strings) => metadata = strings.map(|Object(strings)| strings.into_iter().collect()),
            Entry::Tensor(info) => tensors.push((name, info)),
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    check(&tensors)?;
    Metadata::new(metadata, tensors).map_err(|error| error.to_string())
}

/// Refuses tensors that do not lie end to end or do not fill their shapes, naming the first: the crate's own check,
/// which comes after, names few.
fn check(tensors: &[(String, TensorInfo)]) -> std::result::Result<(), String> {
    let mut free = 0;
    for (name, TensorInfo { dtype, shape, data_offsets: (start, end) }) in tensors {
        let name = short_name(name);
        if end < start {
            return Err(format!("tensor {name} ends at byte {end}, before it begins at {start}"));
        }
        if *start != free {
            return Err(format!("tensor {name} begins at byte {start}, but what is before it ends at {free}"));
        }
        let elements = shape.iter().try_fold(1usize, |elements, extent| elements.checked_mul(*extent));
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
        let bits = bits.ok_or_else(|| format!("tensor {name} of {shape:?} has more values than can be counted"))?;
        if bits % 8 != 0 || bits / 8 != end - start {
            let (bytes, given) = (bits.div_ceil(8), end - start);
            return Err(format!("tensor {name}: {dtype} of {shape:?} take {bytes} bytes, but it is given {given}"));
        }
        free = *end;
    }
    Ok(())
}

/// Where in a file a tensor lies.
struct Place {
    path: PathBuf,
    file: Arc<Mutex<File>>,
    start: u64,
    length: usize,
}

impl Place {
    fn read(&self, dtype: FileDtype, shape: Vec<usize>) -> Result<FileTensor> {
        let mut bytes = vec![0; self.length];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| Error::io(&self.path, error))?;
        FileTensor::new(dtype, shape, bytes)
    }
}
