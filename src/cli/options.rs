//! Flags that several commands share.

use std::{
    path::{Path, PathBuf},
    sync::Once,
};

use clap::{Args, ValueEnum};
use unfreeze::{
    Device, DeviceName, Error, Precision, Result,
    checkpoint::{CheckpointFile, Weights, catalog},
    data::{Augment, Crop, Holdout, ImageData, Skipped, Task, Transforms, find_images},
    nn::{Arch, HeadSpec},
};

use super::{inspect::printable, weights};

/// Where and how to compute.
#[derive(Args, Clone)]
pub struct Compute {
    /// Device: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: DeviceName,
    /// Worker threads; 0 means one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Decides every random choice
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
}

impl Compute {
    /// Opens the device asked for, and says once on standard error why it is not a GPU where there seems to be one.
    pub fn open(&self) -> Result<Device> {
        static SAID: Once = Once::new();
        let (device, note) = Device::open_with_note(self.device, self.threads)?;
        if let Some(reason) = note.as_deref().and_then(|note| note.lines().next()) {
            SAID.call_once(|| errln!("note: computing on the processor: {reason}"));
        }
        Ok(device)
    }
}

/// What the network computes with.
#[derive(Args, Clone, Copy)]
pub struct Arithmetic {
    /// Type that the network computes with: f32, or on a GPU with tensor cores tf32 or bf16
    #[arg(long, default_value_t, value_name = "TYPE")]
    pub dtype: Precision,
}

/// How much is printed, and in which form.
#[derive(Args, Clone, Copy, Default)]
pub struct Mode {
    /// Print one JSON object per epoch: phase, epoch, train_loss, valid_loss, metrics, lrs, seconds,
    /// images_per_second, device, cached
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors, and JSON where that is asked for
    #[arg(long, short)]
    pub quiet: bool,
}

/// The pretrained network.
#[derive(Args, Clone)]
pub struct Pretrained {
    /// Architecture, such as resnet34 [default: told from the weights]
    #[arg(long)]
    pub arch: Option<Arch>,
    /// Pretrained weights: a .safetensors or PyTorch file; `auto`, torchvision's for the architecture, or a name of
    /// `unfreeze weights list`, found on this machine or fetched; or `random`
    #[arg(long, value_name = "FILE|auto|NAME|random", required = true)]
    weights: Option<String>,
    /// Which weights of a training checkpoint to read, by their key in it, such as model_ema [default: the likeliest]
    #[arg(long, requires = "weights")]
    pub key: Option<String>,
}

impl Pretrained {
    /// Reads the weights, and says on standard error what of the catalogue's are used, and with which images.
    pub fn read(&self, quiet: bool) -> Result<Weights> {
        let weights = read_weights(self.name(), self.key.as_deref(), self.arch, quiet)?;
        if let Some(entry) = weights.published().filter(|_| !quiet) {
            errln!("note: {}", weights::published_with(entry));
        }
        Ok(weights)
    }

    /// The weights as a later command can find them, wherever it is started.
    pub fn absolute(&self) -> Result<String> {
        match self.name() {
            "random" => Ok("random".into()),
            name => match published(name, self.arch)? {
                Some(entry) => Ok(entry.name.clone()),
                None => Ok(absolute(Path::new(name))?.to_string_lossy().into_owned()),
            },
        }
    }

    fn name(&self) -> &str {
        self.weights.as_deref().unwrap_or_default()
    }
}

/// Reads the weights that a flag or a run's configuration names, of several sets in a file those under `key`, and says
/// on standard error what of the file a user should know.
pub fn read_weights(name: &str, key: Option<&str>, arch: Option<Arch>, quiet: bool) -> Result<Weights> {
    let no_key = || match key {
        Some(key) => Err(Error::setting("--key", format!("{key} is of a checkpoint file, and {name} names none"))),
        None => Ok(()),
    };
    if name == "random" {
        no_key()?;
        let missing = || Error::setting("--arch", "random weights need an architecture, such as resnet18");
        return arch.map(Weights::random).ok_or_else(missing);
    }
    let weights = match published(name, arch)? {
        Some(entry) => {
            no_key()?;
            entry.weights(&catalog::Folders::of_user()?, &mut weights::teller(quiet))?
        }
        None => Weights::opened(open_checkpoint(Path::new(name), key)?, arch)?,
    };
    if !quiet {
        weights.notes().iter().for_each(|note| errln!("note: {}", printable(note)));
    }
    Ok(weights)
}

/// Opens a checkpoint file, of several sets of weights for those under `key`. Where there is no file, it says what else
/// the name may be.
pub fn open_checkpoint(path: &Path, key: Option<&str>) -> Result<CheckpointFile> {
    // One that may not be looked at is there.
    if path.try_exists().is_ok_and(|exists| !exists) {
        let name = path.to_string_lossy();
        let hint = match catalog::entry(&name) {
            Ok(_) => {
                format!("published weights have this name, and `unfreeze weights path {name}` says where they are")
            }
            Err(_) => "names of published weights are those of `unfreeze weights list`".to_owned(),
        };
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, format!("there is no such file; {hint}"));
        return Err(Error::io(path, missing));
    }
    match key {
        Some(key) => CheckpointFile::open_key(path, key),
        None => CheckpointFile::open(path),
    }
}

/// What `name` means in the catalogue. A file of this name comes first.
fn published(name: &str, arch: Option<Arch>) -> Result<Option<&'static catalog::Entry>> {
    let looks_published = name.split('.').next().is_some_and(|arch| arch.parse::<Arch>().is_ok());
    if Path::new(name).exists() || !(name == "auto" || looks_published) {
        return Ok(None);
    }
    let entry = match (name, arch) {
        ("auto", None) => {
            return Err(Error::setting("--arch", "`--weights auto` needs an architecture, such as resnet18"));
        }
        ("auto", Some(arch)) => catalog::standard(arch)?,
        _ => catalog::entry(name).map_err(|error| match error {
            Error::Setting { setting, message } => {
                Error::setting(setting, format!("there is no such file, and {message}"))
            }
            other => other,
        })?,
    };
    match arch.filter(|arch| *arch != entry.arch) {
        Some(arch) => Err(Error::setting("--arch", format!("{name} is of {}, not of {arch}", entry.arch))),
        None => Ok(Some(entry)),
    }
}

/// A path as a later command can find it, wherever it is started.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(path, error))
}

/// The data set.
#[derive(Args, Clone)]
pub struct DataSource {
    /// Folder with train/CLASS/* and valid/CLASS/* (or val/); folder with CLASS/*, and --valid-fraction; or a CSV file
    /// with the columns path, label and split (train, valid, test)
    #[arg(required = true)]
    data: Option<PathBuf>,
    /// What is told of an image: single-label (its class); multi-label (any number of labels, which a CSV file has in
    /// the column label with spaces between them); regression (numbers: all columns of a CSV file but path and split)
    #[arg(long, default_value_t, value_name = "TASK")]
    pub task: Task,
    /// Hold out this share of each class for validation, where there is no folder for it; copies of a file stay on one
    /// side
    #[arg(long, value_name = "F")]
    pub valid_fraction: Option<f32>,
    /// Stop at the first file that is no image, instead of skipping it
    #[arg(long)]
    pub strict: bool,
}

impl DataSource {
    /// Whether there is one.
    pub fn is_given(&self) -> bool {
        self.data.is_some()
    }

    /// Its path as a later command can find it, wherever it is started.
    pub fn absolute(&self) -> Result<PathBuf> {
        absolute(self.path())
    }

    /// Its path as given.
    pub fn path(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new(""))
    }
}

/// From an image file to what the network sees.
#[derive(Args, Clone)]
pub struct TransformFlags {
    /// Side of the square that the network sees, in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
    /// Short side before the crop, in pixels [default: the size, or in proportion what weights of the catalogue were
    /// published with, such as 256 for 224]
    #[arg(long, value_name = "N")]
    resize: Option<usize>,
    /// Random changes to training images: side-on (rotate, lighting, flip), top-down (dihedral instead of flip), basic
    /// (neither), none, or a list in order such as rotate:10,lighting:0.05:0.05,flip,blur:5,cutout:1:16; there are
    /// dihedral and rotate-zoom:10:0.5:0.5 too
    #[arg(long, default_value_t = Augment::SideOn, value_name = "NAME|LIST")]
    augment: Augment,
    /// Largest random zoom of training images
    #[arg(long, default_value_t = 1.1, value_name = "X")]
    max_zoom: f32,
    /// Pixels by which training images are continued on each side, by reflection, before the crop
    #[arg(long, default_value_t = 0, value_name = "N")]
    pad: usize,
    /// How the square is taken: random or centre; none (squashed, not cropped); googlenet (training images by a random
    /// part, squashed). But for none, other images are cropped in the centre
    #[arg(long, default_value_t = Crop::Random, value_name = "NAME")]
    crop: Crop,
}

impl TransformFlags {
    /// The pipeline as asked for, starting from its size and normalisation.
    pub fn set(&self, transforms: Transforms) -> Result<Transforms> {
        let resize = self.resize.unwrap_or(transforms.resize);
        let transforms = transforms.resize(resize).augment(self.augment.clone()).max_zoom(self.max_zoom);
        let transforms = transforms.pad(self.pad).crop(self.crop);
        transforms.validate().map(|()| transforms)
    }
}

/// The head.
#[derive(Args, Clone)]
pub struct HeadFlags {
    /// Hidden layer sizes of the head, such as 512 or 512,128; `none` for none
    #[arg(long, default_value = "512", value_name = "N,N|none")]
    hidden: String,
    /// Dropout before each linear layer of the head (fastai's ps): one value, or one each [default: .25 … .5]
    #[arg(long, value_delimiter = ',', value_name = "P,P")]
    ps: Option<Vec<f32>>,
    /// A plain linear head instead of fastai's
    #[arg(long, conflicts_with_all = ["hidden", "ps"])]
    linear_head: bool,
}

impl HeadFlags {
    /// The head asked for.
    pub fn spec(&self) -> Result<HeadSpec> {
        if self.linear_head {
            return Ok(HeadSpec::Linear);
        }
        let hidden = match self.hidden.as_str() {
            "none" => Vec::new(),
            text => text.split(',').map(|size| size.trim().parse()).collect::<Result<_, _>>().map_err(|_| {
                let message = format!("'{text}' is no list of sizes; give for example 512 or 512,128 or none");
                Error::setting("hidden", message)
            })?,
        };
        let head = match (HeadSpec::fastai(hidden), &self.ps) {
            (HeadSpec::Fastai { hidden, .. }, Some(ps)) => HeadSpec::Fastai { hidden, dropout: ps.clone() },
            (head, _) => head,
        };
        head.validate()?;
        Ok(head)
    }
}

/// A switch.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// Finds the images, and says on standard error what was left out or is odd.
pub fn open_data(
    path: &Path,
    task: Task,
    valid_fraction: Option<f32>,
    strict: bool,
    seed: u64,
    mode: Mode,
) -> Result<ImageData> {
    let holdout = valid_fraction.map(|fraction| Holdout { fraction, seed });
    let data = ImageData::open_for(task, path, holdout)?.strict(strict)?;
    if !mode.quiet {
        report_skipped(data.skipped());
        data.notes().iter().for_each(|note| errln!("note: {note}"));
    }
    Ok(data)
}

/// The model file that an argument names, itself or by its run folder.
pub fn model_file(argument: &Path) -> PathBuf {
    if argument.is_dir() { argument.join("model.safetensors") } else { argument.to_owned() }
}

/// The images that a command's arguments name: files as they are, folders by their images, sorted by name. Files in
/// folders that are no images are reported on standard error.
pub fn images(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for argument in arguments {
        if argument.is_dir() {
            let found = find_images(argument)?;
            if found.images.is_empty() {
                return Err(Error::data(argument, "holds no images"));
            }
            images.extend(found.images);
            report_skipped(&found.skipped);
        } else {
            images.push(argument.clone());
        }
    }
    Ok(images)
}

/// Names the files left out, and how many they are.
pub fn report_skipped(skipped: &[Skipped]) {
    for file in skipped {
        errln!("skipped {file}");
    }
    if skipped.len() > 1 {
        errln!("{} files skipped", skipped.len());
    }
}

/// Files that a command was to read and could not.
#[derive(Default)]
pub struct Failed(Vec<Skipped>);

impl Failed {
    /// Names files that could not be read on standard error.
    pub fn report(&mut self, files: Vec<Skipped>) {
        files.iter().for_each(|file| errln!("skipped {file}"));
        self.0.extend(files);
    }

    /// An error that names the first of them, if there are any.
    pub fn check(&self, total: usize) -> Result<()> {
        match self.0.first() {
            Some(first) => {
                let count = self.0.len();
                Err(Error::data(&first.path, format!("could not be read ({count} of {total} files could not)")))
            }
            None => Ok(()),
        }
    }
}

/// A side in pixels, from 1 to 8192.
pub fn side(text: &str) -> Result<usize, String> {
    within(text, 8192)
}

/// A number of images, classes or rounds, from 1 to 65536.
pub fn count(text: &str) -> Result<usize, String> {
    within(text, 1 << 16)
}

fn within(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("give a whole number from 1 to {most}")),
    }
}

/// Whether a file of the format of `extension` can be written to `path`: asked before the work, not after it.
pub fn check_output(flag: &str, path: &Path, extension: &str) -> Result<()> {
    if path.extension().is_none_or(|found| found != extension) {
        let message = format!("'{}' should end in .{extension}, the format written", path.display());
        return Err(Error::setting(flag, message));
    }
    if path.is_dir() {
        return Err(Error::io(path, std::io::ErrorKind::IsADirectory.into()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::io(folder, std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such folder")));
    }
    // A file without a name, which is gone at once.
    tempfile::tempfile_in(folder).map(drop).map_err(|error| Error::io(path, error.kind().into()))
}
