//! Finding images in folders: a folder per class, in a folder per split.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::decode::check_start;
use super::split::{Holdout, describe_leak, hold_out};
use super::{Item, Skipped, Split, Targets, Task};
use crate::{Error, Result};

const LAYOUT: &str = "expected train/CLASS/* and valid/CLASS/* (or val/CLASS/*) in it";
const OR_HOLD_OUT: &str = ", or CLASS/* and a fraction to hold out for validation (0.2 is usual)";

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

/// The contents of a data folder.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub task: Task,
    pub classes: Vec<String>,
    /// What images are, where that is no single class.
    pub targets: Option<Targets>,
    pub train: Vec<Item>,
    pub valid: Vec<Item>,
    pub test: Vec<Item>,
    pub test_labelled: bool,
    pub skipped: Vec<Skipped>,
    pub notes: Vec<String>,
}

/// Reads a folder of the layout `train/CLASS/*`, `valid/CLASS/*`; with `holdout` the validation images are taken from
/// `train/CLASS/*`, or from `CLASS/*`. A folder `test` may be there too, with or without class folders.
pub(super) fn scan(root: &Path, holdout: Option<Holdout>) -> Result<Scan> {
    if !fs::metadata(root).map_err(|e| Error::io(root, e))?.is_dir() {
        return Err(Error::data(root, format!("is a file, not a folder or a .csv table; {LAYOUT}")));
    }
    let mut scan = Scan::default();
    let folder = |name: &str| Some(root.join(name)).filter(|path| path.is_dir());
    let (train, valid) = (folder("train"), folder("valid").or(folder("val")));
    let train_folder = match (train, holdout) {
        (Some(train), _) => train,
        (None, Some(_)) => root.to_owned(),
        (None, None) => return Err(Error::data(root, format!("has no folder `train`; {LAYOUT}{OR_HOLD_OUT}"))),
    };
    match (&valid, holdout) {
        (Some(valid), Some(_)) => {
            let message = format!("{} holds validation images already; leave the fraction out", valid.display());
            return Err(Error::setting("valid_fraction", message));
        }
        (None, None) => {
            return Err(Error::data(root, format!("has no folder `valid` or `val`; {LAYOUT}{OR_HOLD_OUT}")));
        }
        _ => {}
    }
    let mut train_folders = class_folders(&train_folder, &mut scan.skipped)?;
    if train_folder == root && train_folders.remove("test").is_some() {
        let test = root.join("test");
        scan.notes.push(format!("{}: taken as the test set; rename it if it is a class", test.display()));
    }
    scan.classes = train_folders.keys().cloned().collect();
    match scan.classes.as_slice() {
        [] => return Err(Error::data(&train_folder, format!("has no class folders; {LAYOUT}"))),
        [only] => {
            let message = format!("has one class, `{only}`; telling apart needs two or more");
            return Err(Error::data(&train_folder, message));
        }
        _ => {}
    }
    for (label, folder) in (0u32..).zip(train_folders.values()) {
        scan.train.extend(class_items(folder, label, &mut scan.skipped)?);
    }
    if let Some(holdout) = holdout {
        let parts = hold_out(std::mem::take(&mut scan.train), &scan.classes, holdout)?;
        (scan.train, scan.valid) = (parts.train, parts.valid);
        scan.notes.extend(parts.notes);
    } else if let Some(valid) = valid {
        if folder("valid").is_some() && folder("val").is_some() {
            scan.notes.push(format!("{}: has both `valid` and `val`; `valid` is used", root.display()));
        }
        scan.valid = scan.labelled(&valid)?;
        scan.notes.extend(describe_leak(&scan.train, &scan.valid, "validation")?);
    }
    if scan.valid.is_empty() {
        return Err(Error::data(root, "no class has enough images to hold one out for validation".to_string()));
    }
    if let Some(test) = folder("test") {
        scan.read_test(&test)?;
    }
    Ok(scan)
}

impl Scan {
    /// The images of a folder of class folders, which must be among the classes.
    fn labelled(&mut self, split: &Path) -> Result<Vec<Item>> {
        let folders = class_folders(split, &mut self.skipped)?;
        if folders.is_empty() {
            return Err(Error::data(split, format!("has no class folders; {LAYOUT}")));
        }
        if let Some((class, folder)) = folders.iter().find(|(class, _)| !self.classes.contains(class)) {
            return Err(Error::data(folder, format!("class `{class}` is not among the classes {:?}", self.classes)));
        }
        let mut items = Vec::new();
        for (label, class) in (0u32..).zip(&self.classes) {
            match folders.get(class) {
                Some(folder) => items.extend(class_items(folder, label, &mut self.skipped)?),
                None => self.notes.push(format!("{}: has no folder for class `{class}`", split.display())),
            }
        }
        Ok(items)
    }

    /// Test images are in folders of the known classes, or all together without labels.
    fn read_test(&mut self, test: &Path) -> Result<()> {
        let folders = class_folders(test, &mut Vec::new())?;
        self.test_labelled = folders.keys().any(|class| self.classes.contains(class));
        if self.test_labelled {
            self.test = self.labelled(test)?;
        } else {
            let found = find_images(test)?;
            self.skipped.extend(found.skipped);
            self.test = found.images.into_iter().map(|path| Item { path, label: 0 }).collect();
        }
        self.notes.extend(describe_leak(&self.train, &self.test, "test")?);
        Ok(())
    }
}

/// What [`find_labelled`] found.
#[derive(Clone, Debug, Default)]
pub struct Labelled {
    /// The images, by class and name.
    pub items: Vec<Item>,
    /// What they are, where that is no single class.
    pub targets: Option<Targets>,
    /// Files that are no images.
    pub skipped: Vec<Skipped>,
}

/// The images of `split` at `path`, where the classes are among `classes` and labels are positions there: those of a
/// `.csv` table (all of them if it has no column `split`), of `path/valid/CLASS/` and the like, or of `path/CLASS/`.
/// Only a table knows of other tasks than single labels; there `classes` are the labels, or the columns of numbers.
///
/// # Errors
/// [`Error::Data`] if there are none, one is of no known class, or a class folder holds no images; [`Error::Io`].
pub fn find_labelled(path: impl AsRef<Path>, task: Task, classes: &[String], split: Split) -> Result<Labelled> {
    let path = path.as_ref();
    if super::is_table(path) {
        return super::table::labelled(path, task, classes, split);
    }
    task.check_folders(path)?;
    let names = folder_names(split).iter().filter(|name| !classes.iter().any(|class| class == *name));
    let folder = names.map(|name| path.join(name)).find(|folder| folder.is_dir());
    let mut scan = Scan { classes: classes.to_vec(), ..Scan::default() };
    let items = scan.labelled(folder.as_deref().unwrap_or(path))?;
    Ok(Labelled { items, targets: None, skipped: scan.skipped })
}

/// The images of `split` at `path`, whatever they are: those of a `.csv` table with a column `split`, in its order, or those in `path/test/`, `path/valid/` and the like, subfolders included, sorted by name.
///
/// # Errors
/// [`Error::Data`] if there are none; [`Error::Io`].
pub fn find_split(path: impl AsRef<Path>, task: Task, split: Split) -> Result<Found> {
    let path = path.as_ref();
    let found = match super::is_table(path) {
        true => super::table::images(path, task, split)?,
        false => {
            let names = folder_names(split);
            let Some(folder) = names.iter().map(|name| path.join(name)).find(|folder| folder.is_dir()) else {
                return Err(Error::data(path, format!("has no folder `{}` of {split} images", names[0])));
            };
            find_images(folder)?
        }
    };
    if found.images.is_empty() {
        return Err(Error::data(path, format!("has no {split} images that can be read")));
    }
    Ok(found)
}

/// What the folder of a split may be called.
fn folder_names(split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => &["train"],
        Split::Valid => &["valid", "val"],
        Split::Test => &["test"],
    }
}

/// The class folders of a split, by class name; files beside them are skipped.
fn class_folders(split: &Path, skipped: &mut Vec<Skipped>) -> Result<BTreeMap<String, PathBuf>> {
    let (folders, files): (Vec<_>, Vec<_>) = visible_entries(split)?.into_iter().partition(|path| path.is_dir());
    skipped.extend(files.into_iter().map(|path| Skipped { path, reason: "not in a class folder".into() }));
    let name = |path: PathBuf| match path.file_name().and_then(OsStr::to_str) {
        Some(name) => Ok((name.to_owned(), path)),
        None => Err(Error::data(path, "the name of this class folder is not UTF-8; rename it")),
    };
    folders.into_iter().map(name).collect()
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
