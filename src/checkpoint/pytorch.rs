//! Reading what `torch.save` writes, through `pytorch-reader`: a pickle is parsed, never executed.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
    fmt::Display,
    io,
    path::Path,
};

use pytorch_reader::{DType, FileFormat, PickleError, PickleValue, PytorchError, PytorchReader};

use super::{
    CheckpointFile, FileDtype, FileTensor, Format, StoredTensor, calls,
    guard::{self, Archive},
    pickle::{self, Global, Named},
    stored::{BESIDE, check_key},
};
use crate::{Error, Result};

/// Keys under which training scripts keep the weights beside everything else, the likeliest first.
const WRAPPERS: [&str; 12] = [
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
    // DINO's: what it evaluates, then what it trains.
    "teacher",
    "student",
];

/// What `pytorch-reader` calls a tensor among values.
const TENSOR: &str = "torch.Tensor";

/// What to do in Python with a file that holds more than tensors.
const SAVE: &str = "in Python, `torch.save(model.state_dict(), \"weights.pth\")`";

/// Refuses programs: TorchScript, an archive of code, and of constants that a state dict has not, and torch.export's.
pub(super) fn refuse_script(path: &Path, archive: &Archive) -> Result<()> {
    let is_sign = |name: Cow<str>| name.ends_with("/constants.pkl") || name.contains("/code/__torch__");
    if archive.file_names().flatten().any(is_sign) {
        let message = format!(
            "is a TorchScript program (torch.jit.save), not a checkpoint of weights: load it by torch.jit.load and save \
             its weights, {SAVE}"
        );
        return Err(Error::checkpoint(path, message));
    }
    if archive.file_names().flatten().any(|name| name.ends_with("/archive_format")) {
        return Err(exported(path));
    }
    Ok(())
}

/// That a file is what `torch.export.save` writes; not every one of its archives opens here.
pub(super) fn exported(path: &Path) -> Error {
    let message = "is a program of torch.export, not a checkpoint of weights: load it by torch.export.load and save its \
                   weights, in Python, `torch.save(program.state_dict, \"weights.pth\")`";
    Error::checkpoint(path, message)
}

/// Reads the pickle, which names what the [`guard`] found; the file stays open for the values (those of a tar archive
/// are held in memory). The weights are those under `key`, or where training scripts keep them.
pub(super) fn open(path: &Path, named: &Named, key: Option<&str>) -> Result<CheckpointFile> {
    let failed = |error| describe(path, error);
    let imports = &named.imports;
    calls::check(path, imports)?;
    if named.modules {
        let message = format!(
            "holds a whole module (torch.save(model)) in the layout of before PyTorch 1.6, which is not read: load it \
             where its classes are and save its weights, {SAVE}"
        );
        return Err(Error::checkpoint(path, message));
    }

    // Parsed twice, one after the other: the tensors do not say how they are nested.
    let values = PytorchReader::read_pickle_data(path, None).map_err(failed)?;
    Names::default().check(&values, &mut Vec::new(), 0).map_err(|message| Error::checkpoint(path, message))?;
    let prefix = prefix(&values, key);
    let partial = !prefix.is_empty() || holds_else(&values);
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
        notes: Vec::new(),
        input: Default::default(),
        partial,
    };
    let tensors = reader.into_tensors();
    if let Some(key) = key {
        check_key(path, key, tensors.keys())?;
    }
    let (weights, others): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| name.starts_with(&prefix));
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
    checkpoint.left_out = others.into_iter().map(|(name, _)| (name, BESIDE)).collect();
    checkpoint.left_out.sort();
    if key.is_none() {
        checkpoint.note_other_sets(&prefix);
    }
    Ok(checkpoint)
}

/// The dotted path of the dictionary that holds the weights, at `key` or below, with a dot at its end; empty for the
/// root.
fn prefix(values: &PickleValue, key: Option<&str>) -> String {
    let mut prefix = key.map_or(String::new(), |key| format!("{key}."));
    let Some(mut values) = key.map_or(Some(values), |key| below(values, key)) else { return prefix };
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

/// What is at a dotted path.
fn below<'a>(values: &'a PickleValue, path: &str) -> Option<&'a PickleValue> {
    let PickleValue::Dict(entries) = values else { return None };
    entries.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        below(entries.get(first)?, rest)
    })
}

/// Whether there is anything but tensors, and the versions of modules that a state dict carries.
fn holds_else(value: &PickleValue) -> bool {
    match value {
        PickleValue::Unsupported(name) => name != TENSOR,
        PickleValue::Dict(entries) => entries.iter().any(|(key, value)| key != "_metadata" && holds_else(value)),
        PickleValue::List(items) => items.iter().any(holds_else),
        _ => true,
    }
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
