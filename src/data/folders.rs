//! Finding images in folders: a folder per class, in a folder per split.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::decode::check_start;
use super::{Item, Skipped};
use crate::{Error, Result};

const LAYOUT: &str = "expected train/CLASS/* and valid/CLASS/* (or val/CLASS/*) in it";

/// What [`find_images`] found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Files that start as an image does.
    pub images: Vec<PathBuf>,
    /// All others, and why.
    pub skipped: Vec<Skipped>,
}

/// The images in `folder` and its subfolders, sorted by name. Hidden files and folders are passed over; links are
/// followed, each folder once. A file counts as an image by its first bytes, whatever its name.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be read.
pub fn find_images(folder: impl AsRef<Path>) -> Result<Found> {
    let mut found = Found::default();
    let mut files = Vec::new();
    walk(folder.as_ref(), &mut HashSet::new(), &mut files, &mut found.skipped)?;
    for path in files {
        match check_start(&path) {
            Ok(()) => found.images.push(path),
            Err(reason) => found.skipped.push(Skipped { path, reason }),
        }
    }
    Ok(found)
}

/// `seen` holds the folders already read, by their real paths: links may lead in circles.
fn walk(
    folder: &Path,
    seen: &mut HashSet<PathBuf>,
    files: &mut Vec<PathBuf>,
    skipped: &mut Vec<Skipped>,
) -> Result<()> {
    if !seen.insert(fs::canonicalize(folder).map_err(|e| Error::io(folder, e))?) {
        skipped.push(Skipped { path: folder.to_owned(), reason: "a link to a folder already read".into() });
        return Ok(());
    }
    for path in visible_entries(folder)? {
        match fs::metadata(&path) {
            Ok(kind) if kind.is_dir() => walk(&path, seen, files, skipped)?,
            Ok(kind) if kind.is_file() => files.push(path),
            Ok(_) => skipped.push(Skipped { path, reason: "not a regular file".into() }),
            Err(e) => skipped.push(Skipped { path, reason: e.to_string() }),
        }
    }
    Ok(())
}

/// The entries of `folder` that are not hidden, sorted by name.
fn visible_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io(folder, e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The contents of a folder of the layout `train/CLASS/*`, `valid/CLASS/*`.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub classes: Vec<String>,
    pub train: Vec<Item>,
    pub valid: Vec<Item>,
    pub skipped: Vec<Skipped>,
    pub notes: Vec<String>,
}

pub(super) fn scan(root: &Path) -> Result<Scan> {
    if !fs::metadata(root).map_err(|e| Error::io(root, e))?.is_dir() {
        return Err(Error::data(root, format!("is a file, not a folder; {LAYOUT}")));
    }
    let mut scan = Scan::default();
    let split = |names: &[&str]| names.iter().map(|name| root.join(name)).filter(|p| p.is_dir()).collect::<Vec<_>>();
    let Some(train) = split(&["train"]).pop() else {
        return Err(Error::data(root, format!("has no folder `train`; {LAYOUT}")));
    };
    let mut valid = split(&["val", "valid"]);
    if valid.len() > 1 {
        scan.notes.push(format!("{}: has both `valid` and `val`; `valid` is used", root.display()));
    }
    let Some(valid) = valid.pop() else {
        return Err(Error::data(root, format!("has no folder `valid` or `val`; {LAYOUT}")));
    };

    let train_folders = class_folders(&train, &mut scan.skipped)?;
    let valid_folders = class_folders(&valid, &mut scan.skipped)?;
    scan.classes = train_folders.keys().cloned().collect();
    match scan.classes.as_slice() {
        [] => return Err(Error::data(&train, format!("has no class folders; {LAYOUT}"))),
        [only] => return Err(Error::data(&train, format!("has one class, `{only}`; telling apart needs two or more"))),
        _ => {}
    }
    if let Some((class, folder)) = valid_folders.iter().find(|(class, _)| !train_folders.contains_key(*class)) {
        return Err(Error::data(folder, format!("class `{class}` has no folder in {}", train.display())));
    }
    for (label, (class, folder)) in (0u32..).zip(&train_folders) {
        scan.train.extend(class_items(folder, label, &mut scan.skipped)?);
        match valid_folders.get(class) {
            Some(folder) => scan.valid.extend(class_items(folder, label, &mut scan.skipped)?),
            None => scan.notes.push(format!("{}: has no folder for class `{class}`", valid.display())),
        }
    }
    if scan.valid.is_empty() {
        return Err(Error::data(&valid, format!("has no class folders; {LAYOUT}")));
    }
    Ok(scan)
}

/// The class folders of a split, by class name; files beside them are skipped.
fn class_folders(split: &Path, skipped: &mut Vec<Skipped>) -> Result<BTreeMap<String, PathBuf>> {
    let (folders, files): (Vec<_>, Vec<_>) = visible_entries(split)?.into_iter().partition(|path| path.is_dir());
    skipped.extend(files.into_iter().map(|path| Skipped { path, reason: "not in a class folder".into() }));
    let name = |path: &PathBuf| path.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned();
    Ok(folders.into_iter().map(|path| (name(&path), path)).collect())
}

fn class_items(folder: &Path, label: u32, skipped: &mut Vec<Skipped>) -> Result<Vec<Item>> {
    let found = find_images(folder)?;
    if found.images.is_empty() {
        let others = match found.skipped.first() {
            Some(first) => format!(" ({} other files, the first: {first})", found.skipped.len()),
            None => String::new(),
        };
        return Err(Error::data(folder, format!("this class folder holds no images{others}; add some or remove it")));
    }
    skipped.extend(found.skipped);
    Ok(found.images.into_iter().map(|path| Item { path, label }).collect())
}
