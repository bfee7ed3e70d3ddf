//! Reading what `torch.save` writes, through `pytorch-reader`: a pickle is parsed, never executed.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
    fmt::Display,
    io,
    path::Path,
};

use pytorch_reader::{DType, FileFormat, PickleError, PickleValue, PytorchError, PytorchReader};

use super::{CheckpointFile, FileDtype, FileTensor, Format, StoredTensor, calls, guard, pickle, pickle::Global};
use crate::{Error, Result};

/// Keys under which training scripts keep the weights beside everything else, the likeliest first.
const WRAPPERS: [&str; 10] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "model_ema",
    "state_dict_ema",
];

/// What `pytorch-reader` calls a tensor among values.
const TENSOR: &str = "torch.Tensor";

/// Reads the pickle, which imports what the [`guard`] found; the file stays open for the values (those of a tar archive
/// are held in memory).
pub(super) fn open(path: &Path, imports: &BTreeSet<Global>) -> Result<CheckpointFile> {
    let failed = |error| describe(path, error);
    calls::check(path, imports)?;

    // Parsed twice, one after the other: the tensors do not say how they are nested.
    let values = PytorchReader::read_pickle_data(path, None).map_err(failed)?;
    Names::default().check(&values, &mut Vec::new(), 0).map_err(|message| Error::checkpoint(path, message))?;
    let prefix = wrapper_prefix(&values);
    drop(values);
    let reader = PytorchReader::new(path).map_err(failed)?;
    let mut checkpoint = CheckpointFile {
        path: path.to_owned(),
        format: match reader.metadata().format_type {
            FileFormat::Zip => Format::PytorchZip,
            FileFormat::Tar => Format::PytorchTar,
            FileFormat::Legacy | FileFormat::Pickle => Format::PytorchLegacy,
        },
        tensors: Default::default(),
        metadata: Default::default(),
        left_out: Vec::new(),
    };
    let (weights, others): (Vec<_>, Vec<_>) =
        reader.into_tensors().into_iter().partition(|(name, _)| name.starts_with(&prefix));
    if weights.is_empty() {
        return Err(Error::checkpoint(path, no_tensors(imports)));
    }
    guard::check_total(path, &guard::PYTORCH, weights.iter().map(|(_, tensor)| tensor.byte_len() as u64))?;

    for (full, tensor) in weights {
        let (dtype, shape) = (dtype(tensor.dtype()), tensor.shape().to_vec());
        let name = full[prefix.len()..].to_owned();
        let (file, extents) = (path.to_owned(), shape.clone());
        let read = move || {
            let bytes = tensor.read().map_err(|error| describe(&file, error.into()))?;
            FileTensor::new(dtype, extents.clone(), bytes)
                .map_err(|error| Error::checkpoint(&file, format!("tensor {full}: {error}")))
        };
        checkpoint.tensors.insert(name, StoredTensor::new(dtype, shape, read));
    }
    checkpoint.left_out = others.into_iter().map(|(name, _)| (name, "stored beside the weights")).collect();
    checkpoint.left_out.sort();
    Ok(checkpoint)
}

/// The dotted path of the dictionary that holds the weights, with a dot at its end; empty for the root.
fn wrapper_prefix(mut values: &PickleValue) -> String {
    let mut prefix = String::new();
    while let PickleValue::Dict(entries) = values {
        let wrapped = WRAPPERS.iter().find_map(|&key| {
            let inner = entries.get(key)?;
            (matches!(inner, PickleValue::Dict(_)) && holds_tensor(inner)).then_some((key, inner))
        });
        let Some((key, inner)) = wrapped else { break };
        prefix += key;
        prefix += ".";
        values = inner;
    }
    prefix
}

fn holds_tensor(value: &PickleValue) -> bool {
    match value {
        PickleValue::Unsupported(name) => name == TENSOR,
        PickleValue::Dict(entries) => entries.values().any(holds_tensor),
        PickleValue::List(items) => items.iter().any(holds_tensor),
        _ => false,
    }
}

/// The names of a file's tensors, which the reader makes of the keys on the way to each.
#[derive(Default)]
struct Names {
    seen: HashSet<String>,
    bytes: usize,
}

impl Names {
    /// Refuses a name that two tensors have (`a` holds `b`, and beside it is `a.b`), of which the reader would keep
    /// either, and long keys above many tensors, of which it would make names without end. `length` is that of `keys`.
    fn check<'a>(&mut self, value: &'a PickleValue, keys: &mut Vec<Cow<'a, str>>, length: usize) -> Result<(), String> {
        let mut below = |key: Cow<'a, str>, value| {
            let length = length + key.len() + 1;
            keys.push(key);
            self.check(value, keys, length)?;
            keys.pop();
            Ok(())
        };
        match value {
            PickleValue::Dict(entries) => entries.iter().try_for_each(|(key, value)| below(key.into(), value)),
            PickleValue::List(items) => {
                items.iter().enumerate().try_for_each(|(index, value)| below(index.to_string().into(), value))
            }
            PickleValue::Unsupported(name) if name == TENSOR => {
                self.bytes += length;
                if self.bytes > pickle::MAX_BYTES {
                    return Err(format!("names its tensors in more than {} bytes: refused", pickle::MAX_BYTES));
                }
                let name = keys.join(".");
                if self.seen.contains(&name) {
                    return Err(format!("holds two tensors {}: refused", short(&name)));
                }
                self.seen.insert(name);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn no_tensors(imports: &BTreeSet<Global>) -> String {
    let foreign: Vec<String> =
        imports.iter().map(Global::to_string).filter(|name| name != "collections.OrderedDict").collect();
    if foreign.is_empty() {
        return "holds no tensors".into();
    }
    short(&format!("holds no tensors, only Python objects that are not interpreted: {}", foreign.join(", ")))
}

/// A message that may say as much as the file does.
fn short(message: &dyn Display) -> String {
    const LONGEST: usize = 400;
    let text = message.to_string();
    let mut shown: String = text.chars().take(LONGEST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn dtype(dtype: DType) -> FileDtype {
    match dtype {
        DType::F64 => FileDtype::F64,
        DType::F32 => FileDtype::F32,
        DType::F16 => FileDtype::F16,
        DType::BF16 => FileDtype::BF16,
        DType::I64 => FileDtype::I64,
        DType::I32 => FileDtype::I32,
        DType::I16 => FileDtype::I16,
        DType::I8 => FileDtype::I8,
        DType::U64 => FileDtype::U64,
        DType::U32 => FileDtype::U32,
        DType::U16 => FileDtype::U16,
        DType::U8 => FileDtype::U8,
        DType::Bool => FileDtype::Bool,
    }
}

/// Tells a file that cannot be read from one that is damaged, and says what to do.
fn describe(path: &Path, error: PytorchError) -> Error {
    let interrupted = |cause: &dyn Display| {
        Error::checkpoint(path, format!("is truncated or damaged ({}): was the download interrupted?", short(cause)))
    };
    match error {
        PytorchError::Io(source) if source.raw_os_error().is_some() => Error::io(path, source),
        PytorchError::Io(source) => interrupted(&source),
        PytorchError::Pickle(PickleError::Io(source)) if source.kind() == io::ErrorKind::UnexpectedEof => {
            interrupted(&"its pickle ends early")
        }
        PytorchError::Pickle(PickleError::UnsupportedType(name)) => Error::checkpoint(
            path,
            format!("gives tensors to {}, which is not interpreted; nothing was run", short(&name)),
        ),
        PytorchError::Zip(source) => interrupted(&source),
        PytorchError::Tar(source) => interrupted(&source),
        other => Error::checkpoint(path, format!("cannot be read as a PyTorch checkpoint: {}", short(&other))),
    }
}
