//! Reading what `torch.save` writes: a pickle is taken apart, never executed, and tells where the values are.

mod contents;
mod layouts;
mod stream;
mod tar;
mod values;
mod view;

use std::{borrow::Cow, collections::BTreeSet, fmt::Display, io, path::Path, sync::Arc};

use super::{
    CheckpointFile, FileTensor, StoredTensor, calls,
    guard::{self, Archive},
    pickle::{Global, Id},
    stored::{BESIDE, check_key},
};
use crate::{Error, Result};
use contents::Contents;
use layouts::Layout;
pub(super) use layouts::{open_pickles, open_zip};

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

/// The checkpoint of a layout: the weights under `key`, or where training scripts keep them.
///
/// `imports` are everything that the file's pickles name, also where they could not be read.
fn open(
    path: &Path,
    imports: &BTreeSet<Global>,
    layout: std::result::Result<Layout, String>,
    key: Option<&str>,
) -> Result<CheckpointFile> {
    let fail = |message: String| Error::checkpoint(path, message);
    calls::check(path, imports)?;
    let Layout { format, pickle, tensors, storages } = layout.map_err(fail)?;
    let contents = Contents::new(pickle, tensors);
    let found = contents.find().map_err(fail)?;
    let names = || found.tensors.iter().map(|(name, _)| name);
    if found.tensors.is_empty() {
        return Err(fail(no_tensors(imports)));
    }
    if let Some(key) = key {
        check_key(path, key, names())?;
    }
    let prefix = prefix(&contents, key, &|prefix| names().any(|name| name.starts_with(prefix)));
    let mut checkpoint = CheckpointFile {
        path: path.to_owned(),
        format,
        tensors: Default::default(),
        metadata: Default::default(),
        left_out: Vec::new(),
        notes: Vec::new(),
        input: Default::default(),
        partial: !prefix.is_empty() || found.other,
    };

    let storages = Arc::new(storages);
    let mut bytes = 0u64;
    for (full, read) in found.tensors {
        let (name, view) = match (full.strip_prefix(&prefix), read) {
            (None, _) => {
                checkpoint.left_out.push((full, BESIDE));
                continue;
            }
            (Some(name), Err(why)) => {
                checkpoint.left_out.push((name.to_owned(), why));
                continue;
            }
            (Some(name), Ok(view)) => (name.to_owned(), view),
        };
        bytes = bytes.saturating_add(storages.bytes_to_read(&view));
        let (dtype, shape) = (view.dtype, view.shape.clone());
        let (file, storages) = (path.to_owned(), storages.clone());
        let read = move || {
            let bytes = storages.read(&view).map_err(|error| describe(&file, &full, error))?;
            FileTensor::new(dtype, view.shape.clone(), bytes)
                .map_err(|error| Error::checkpoint(&file, format!("tensor {}: {error}", short(&full))))
        };
        checkpoint.tensors.insert(name, StoredTensor::new(dtype, shape, read));
    }
    checkpoint.left_out.sort();
    if key.is_none() {
        checkpoint.note_other_sets(&prefix);
    }
    checkpoint.partial |= !checkpoint.left_out.is_empty();
    guard::check_total(path, &guard::PYTORCH, std::iter::once(bytes))?;
    Ok(checkpoint)
}

/// The dotted path of the dictionary that holds the weights, at `key` or below, with a dot at its end; empty for the
/// root. `is_used` tells whether a tensor's name begins so.
fn prefix(contents: &Contents, key: Option<&str>, is_used: &dyn Fn(&str) -> bool) -> String {
    let mut prefix = key.map_or(String::new(), |key| format!("{key}."));
    let mut values = match key {
        Some(key) => below(contents, contents.pickle.root, key),
        None => Some(contents.pickle.root),
    };
    // What a module calls its parts says nothing.
    while let Some(outer) = values.filter(|values| contents.is_dictionary(*values)) {
        values = None;
        for key in WRAPPERS {
            let longer = format!("{prefix}{key}.");
            values = contents.below(outer, key).filter(|_| is_used(&longer));
            if values.is_some() {
                prefix = longer;
                break;
            }
        }
    }
    prefix
}

/// What is at a dotted path.
fn below(contents: &Contents, values: Id, path: &str) -> Option<Id> {
    contents.below(values, path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        below(contents, contents.below(values, first)?, rest)
    })
}

/// That a file is no dictionary of tensors, but `what`.
fn no_dictionary(what: &str) -> String {
    format!("holds {}, not a dictionary of tensors by name: save the weights alone, {SAVE}", short(&what))
}

fn no_tensors(imports: &BTreeSet<Global>) -> String {
    let foreign: Vec<String> =
        imports.iter().map(Global::to_string).filter(|name| name != "collections.OrderedDict").collect();
    if foreign.is_empty() {
        return format!("holds no tensors: save the weights of the network, {SAVE}");
    }
    let foreign = short(&foreign.join(", "));
    format!("holds no tensors, only Python objects that are not interpreted, {foreign}: save the weights, {SAVE}")
}

/// A message that may say as much as the file does, and anything.
fn short(message: &dyn Display) -> String {
    const LONGEST: usize = 400;
    let text = message.to_string();
    let mut shown: String = text.chars().take(LONGEST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// Tells a file that cannot be read from one that is damaged.
fn describe(path: &Path, tensor: &str, error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return Error::io(path, error);
    }
    let tensor = short(&tensor);
    Error::checkpoint(
        path,
        format!("is truncated or damaged (tensor {tensor}: {error}): was the download interrupted?"),
    )
}
