//! Images on disk to batches in memory: folders, decoding, transforms, loader.
//!
//! Pixels leave here as bytes: finished pictures, or the patches in which a GPU looks them up. Lighting and
//! normalisation are the device's work.

mod augment;
mod batch;
mod crop;
mod decode;
mod folders;
mod loader;
mod order;
mod pixels;
mod resize;
mod split;
mod table;
mod targets;
mod transforms;
mod views;
mod warp;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use augment::{Augment, Change};
pub use batch::{Batch, LoaderOptions};
pub use crop::Crop;
pub use decode::{decode, decode_bytes, save_png};
pub use folders::{Found, Labelled, find_images, find_labelled, find_split};
pub use image::RgbImage;
pub use loader::Loader;
pub use order::{batches, shuffled, weighted};
pub use resize::{resize, short_side};
pub use split::Holdout;
pub use targets::{Targets, Task};
pub use transforms::{Lighting, Prepared, Sample, Transforms, View};
pub use views::Views;

use crate::{Error, Result};

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Split {
    /// What is learned from.
    Train,
    /// What progress is measured on.
    Valid,
    /// What the outcome is measured on, or predicted, at the end.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "training",
            Split::Valid => "validation",
            Split::Test => "test",
        })
    }
}

/// An image file and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The file.
    pub path: PathBuf,
    /// Position of the class among [`ImageData::classes`]; where images have no single class, of their row among
    /// [`ImageData::targets`].
    pub label: u32,
}

impl Item {
    /// Items for files of no known class (label 0), as a [`Loader`] takes them.
    pub fn unlabelled<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Arc<[Item]> {
        paths.into_iter().map(|path| Item { path: path.into(), label: 0 }).collect()
    }
}

/// A file left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub reason: String,
}

impl Skipped {
    fn new(path: &Path, error: &Error) -> Self {
        let reason = match error {
            Error::Io { source, .. } => source.to_string(),
            Error::Image { message, .. } => message.clone(),
            other => other.to_string(),
        };
        Self { path: path.to_owned(), reason }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// A data set for image classification: files, their classes, and how they are turned into batches.
///
/// Files that do not start as an image does are left out when it is made, and listed by [`skipped`](Self::skipped).
/// Damage further inside shows when a file is decoded: the [`Loader`] then leaves it out of its [`Batch`].
#[derive(Clone, Debug)]
pub struct ImageData {
    /// The pipeline from file to pixels. Default: 224 pixels, no augmentation.
    pub transforms: Transforms,
    /// Samples per batch. Default: 64.
    pub batch_size: usize,
    root: PathBuf,
    task: Task,
    classes: Vec<String>,
    targets: Option<Targets>,
    train: Arc<[Item]>,
    valid: Arc<[Item]>,
    test: Arc<[Item]>,
    test_labelled: bool,
    skipped: Vec<Skipped>,
    notes: Vec<String>,
    strict: bool,
    verify_content: bool,
}

impl ImageData {
    /// Reads the names of the files in `path/train/CLASS/` and `path/valid/CLASS/` (or `path/val/CLASS/`), and those in
    /// `path/test/`, if it is there: in folders of the same classes, or without labels.
    ///
    /// Classes and files are in the order of their names; subfolders belong to their class; hidden files are passed
    /// over. A class that is missing in the validation set is [noted](Self::notes), and so are validation images whose
    /// very bytes are in the training set.
    ///
    /// # Errors
    /// [`Error::Data`] naming the folder if the layout is another one, there are fewer than two classes, a class
    /// folder holds no images, or a class is not in the training set; [`Error::Io`] if a folder cannot be read.
    pub fn from_folders(path: impl AsRef<Path>) -> Result<Self> {
        Self::scanned(path.as_ref(), folders::scan(path.as_ref(), None)?)
    }

    /// As [`from_folders`](Self::from_folders), for `path/train/CLASS/` or `path/CLASS/` alone: a share of each class
    /// is held out for validation. Files of equal content stay on one side, and are [noted](Self::notes).
    ///
    /// # Errors
    /// As [`from_folders`](Self::from_folders); [`Error::Setting`] for a share that is none, or if there is a
    /// validation folder already; [`Error::Data`] if no class has two different images.
    pub fn from_class_folders(path: impl AsRef<Path>, holdout: Holdout) -> Result<Self> {
        Self::scanned(path.as_ref(), folders::scan(path.as_ref(), Some(holdout))?)
    }

    /// The set that a CSV file describes, with the columns `path` (relative to the file's folder), `label` and, unless
    /// a share is held out, `split`: train, valid or test. Labels of test images may be left empty.
    ///
    /// # Errors
    /// [`Error::Data`] naming the line at fault; [`Error::Setting`] for a share to hold out of a table that has
    /// validation images; [`Error::Io`].
    pub fn from_csv(path: impl AsRef<Path>, holdout: Option<Holdout>) -> Result<Self> {
        Self::from_csv_for(Task::SingleLabel, path, holdout)
    }

    /// As [`from_csv`](Self::from_csv), for a task. [Several labels](Task::MultiLabel) stand in the column `label` with
    /// spaces between them, and may be none; the share held out is of all images. [Numbers](Task::Regression) have a
    /// column each, of any names, instead of `label`.
    ///
    /// # Errors
    /// As [`from_csv`](Self::from_csv).
    pub fn from_csv_for(task: Task, path: impl AsRef<Path>, holdout: Option<Holdout>) -> Result<Self> {
        let path = path.as_ref();
        Self::scanned(path.parent().unwrap_or(Path::new("")), table::read(path, task, holdout)?)
    }

    /// As [`open`](Self::open), for a task; only a table knows of others than single labels.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Data`] for folders where a table is needed.
    pub fn open_for(task: Task, path: impl AsRef<Path>, holdout: Option<Holdout>) -> Result<Self> {
        match is_table(path.as_ref()) {
            true => Self::from_csv_for(task, path, holdout),
            false => task.check_folders(path.as_ref()).and_then(|()| Self::open(path, holdout)),
        }
    }

    /// What an image is, in words: its class; its labels, or numbers, with spaces between them.
    pub fn describe(&self, item: &Item) -> String {
        let Some(row) = self.targets.as_ref().and_then(|targets| targets.row(item.label)) else {
            return self.classes.get(item.label as usize).cloned().unwrap_or_default();
        };
        let words: Vec<String> = match self.task {
            Task::Regression => row.iter().map(f32::to_string).collect(),
            Task::SingleLabel | Task::MultiLabel => {
                let named = self.classes.iter().zip(row);
                named.filter(|(_, holds)| **holds > 0.5).map(|(name, _)| name.clone()).collect()
            }
        };
        words.join(" ")
    }

    /// The set at `path`: a table where its name ends in `.csv`, else folders, with or without a share to hold out.
    ///
    /// # Errors
    /// As [`from_csv`](Self::from_csv), [`from_class_folders`](Self::from_class_folders) and
    /// [`from_folders`](Self::from_folders).
    pub fn open(path: impl AsRef<Path>, holdout: Option<Holdout>) -> Result<Self> {
        match (path.as_ref(), holdout) {
            (path, holdout) if is_table(path) => Self::from_csv(path, holdout),
            (path, Some(holdout)) => Self::from_class_folders(path, holdout),
            (path, None) => Self::from_folders(path),
        }
    }

    fn scanned(root: &Path, scan: folders::Scan) -> Result<Self> {
        Ok(Self {
            transforms: Transforms::new(224),
            batch_size: 64,
            root: root.to_owned(),
            task: scan.task,
            classes: scan.classes,
            targets: scan.targets,
            train: scan.train.into(),
            valid: scan.valid.into(),
            test: scan.test.into(),
            test_labelled: scan.test_labelled,
            skipped: scan.skipped,
            notes: scan.notes,
            strict: false,
            verify_content: false,
        })
    }

    /// Sets the pipeline from file to pixels.
    pub fn transforms(self, transforms: Transforms) -> Self {
        Self { transforms, ..self }
    }

    /// Sets the number of samples per batch.
    pub fn batch_size(self, batch_size: usize) -> Self {
        Self { batch_size, ..self }
    }

    /// Whether a file that is not a readable image is an error: here for those found already, in the loaders for
    /// those that fail to decode.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first of the files skipped so far.
    pub fn strict(self, strict: bool) -> Result<Self> {
        match self.skipped.first() {
            Some(first) if strict => {
                let message = format!("{} (strict; {} such files in all)", first.reason, self.skipped.len());
                Err(Error::data(&first.path, message))
            }
            _ => Ok(Self { strict, ..self }),
        }
    }

    /// Whether a cached activation is told to be a file's by all of the file's bytes, not by its path, length, time of
    /// last change and end alone. That sees what else was altered under the same length and time, and reads every file
    /// each time that activations are looked up, in each epoch. Default: false.
    pub fn verify_content(self, verify_content: bool) -> Self {
        Self { verify_content, ..self }
    }

    /// Whether files are told apart by their bytes.
    pub fn verifies_content(&self) -> bool {
        self.verify_content
    }

    /// The folder that it was made from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file's name relative to the root, where it lies within.
    pub fn relative(&self, file: &Path) -> String {
        file.strip_prefix(&self.root).unwrap_or(file).to_string_lossy().into_owned()
    }

    /// Whether an image that cannot be decoded is an error.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// What is to be told of the images.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Names of the classes, sorted; a label is a position among them. Those of the labels where images may have
    /// several, and of the numbers, in the order of their columns.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// What the images of all splits are, where that is no single class.
    pub fn targets(&self) -> Option<&Targets> {
        self.targets.as_ref()
    }

    /// The files of a split, by class and name.
    pub fn items(&self, split: Split) -> &Arc<[Item]> {
        match split {
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        }
    }

    /// Whether the classes of a split's images are known.
    pub fn is_labelled(&self, split: Split) -> bool {
        split != Split::Test || self.test_labelled
    }

    /// Files that are no images.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Oddities that a user should know of, as sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Goes once through a split.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn loader(&self, split: Split, options: &LoaderOptions) -> Result<Loader> {
        let items = self.items(split);
        let len = u32::try_from(items.len())
            .map_err(|_| Error::data(&self.root, format!("{} files are more than can be numbered", items.len())))?;
        let (seed, epoch) = (options.seed, options.epoch);
        let order = if options.weighted {
            weighted(&items.iter().map(|item| item.label).collect::<Vec<_>>(), seed, epoch)
        } else if options.shuffle {
            shuffled(len, seed, epoch)
        } else {
            (0..len).collect()
        };
        self.loader_of(split, order, options)
    }

    /// Goes through the samples of a split that are numbered in `order`.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn loader_of(&self, split: Split, order: Vec<u32>, options: &LoaderOptions) -> Result<Loader> {
        let options = LoaderOptions { strict: self.strict || options.strict, ..options.clone() };
        Loader::new(self.items(split).clone(), &self.transforms, order, self.batch_size, &options)
    }
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|name| name.eq_ignore_ascii_case("csv"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::random::Random;

    pub(crate) fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
        let mut random = Random::stream(seed, "noise", &[]);
        RgbImage::from_fn(width, height, |_, _| image::Rgb([(); 3].map(|()| random.uniform(0.0, 256.0) as u8)))
    }
}
