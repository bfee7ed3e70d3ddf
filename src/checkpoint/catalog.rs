//! Published checkpoints by name, and where on this machine their files lie, or are fetched to.
//!
//! ```no_run
//! # fn main() -> unfreeze::Result<()> {
//! use unfreeze::checkpoint::catalog::{self, Fetching, Folders};
//!
//! let entry = catalog::entry("resnet50.v2")?;
//! let weights = entry.weights(&Folders::of_user()?, &mut |event| {
//!     if let Fetching::Progress { done, .. } = event {
//!         println!("{done} bytes");
//!     }
//! })?;
//! # Ok(()) }
//! ```

use std::{
    env,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Weights, weights::IMAGENET};
use crate::{
    Error, Result,
    files::{CACHE_VARIABLE, cache_folder},
    nn::Arch,
};

/// A published checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Entry {
    /// The architecture, then `v1` or `v2` for torchvision's `IMAGENET1K_V1` and `_V2`, or timm's tag.
    pub name: String,
    /// The architecture.
    pub arch: Arch,
    /// Where it is published.
    pub url: String,
    /// The file's SHA-256 in hexadecimal digits, or its first digits. Without one it is what the Hugging Face Hub tells
    /// with the file.
    pub sha256: Option<String>,
    /// The file's size in MiB, where it is published.
    pub mib: Option<f64>,
    /// Licence of the weights (SPDX).
    pub licence: String,
    /// Published accuracy on ImageNet's validation images, in percent.
    pub top1: f64,
    /// What images went through for that accuracy.
    pub transforms: Preprocessing,
}

/// From an image to what a published network sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Preprocessing {
    /// Short side before the central crop, in pixels.
    pub resize: usize,
    /// Side of the crop, in pixels.
    pub crop: usize,
    /// Filter of the resizing. This engine's own is bilinear, with antialiasing.
    pub interpolation: Interpolation,
    /// Mean per channel (red, green, blue) in units of 1. Default: ImageNet's.
    #[serde(default = "imagenet_mean")]
    pub mean: [f32; 3],
    /// Standard deviation per channel. Default: ImageNet's.
    #[serde(default = "imagenet_std")]
    pub std: [f32; 3],
}

/// A filter of resizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Interpolation {
    /// Bilinear.
    Bilinear,
    /// Bicubic.
    Bicubic,
}

fn imagenet_mean() -> [f32; 3] {
    IMAGENET.0
}

fn imagenet_std() -> [f32; 3] {
    IMAGENET.1
}

/// Reads a catalogue: TOML with a table `[[weights]]` for each [`Entry`].
///
/// # Errors
/// [`Error::Setting`] if it is none.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    #[derive(Deserialize)]
    struct Catalogue {
        weights: Vec<Entry>,
    }
    let catalogue: Catalogue =
        toml::from_str(text).map_err(|error| Error::setting("catalogue", error.message().to_string()))?;
    Ok(catalogue.weights)
}

/// The published checkpoints that this engine knows: `weights/catalog.toml`, which names its sources.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> =
        LazyLock::new(|| parse(include_str!("../../weights/catalog.toml")).expect("a test reads it"));
    &ENTRIES
}

/// The entry of this name.
///
/// # Errors
/// [`Error::Setting`] with the names that the catalogue has instead.
pub fn entry(name: &str) -> Result<&'static Entry> {
    entries().iter().find(|entry| entry.name == name).ok_or_else(|| {
        let arch = name.split('.').next().and_then(|arch| arch.parse().ok());
        let known = arch.map(|arch| names_of(arch).join(", ")).filter(|names| !names.is_empty());
        let known = known.unwrap_or("`unfreeze weights list` shows what there is".into());
        Error::setting("weights", format!("the catalogue has no '{name}'; {known}"))
    })
}

/// The entry that stands for `arch`: torchvision's `IMAGENET1K_V1`. But for ResNeXt-101 64x4d's it was trained by plain
/// softmax cross entropy. Objectives that reach a higher accuracy on ImageNet, such as label smoothing in V2's recipe,
/// leave features that serve other tasks less well while they are frozen; with everything trained the choice matters
/// little (Kornblith et al. 2021, arXiv 2010.16402).
///
/// # Errors
/// [`Error::Setting`] if nothing is published for `arch`.
pub fn standard(arch: Arch) -> Result<&'static Entry> {
    let name = format!("{arch}.v1");
    entries().iter().find(|entry| entry.name == name).ok_or_else(|| {
        let message = format!("the catalogue has none for {arch}; give a file, or `random`");
        Error::setting("weights", message)
    })
}

fn names_of(arch: Arch) -> Vec<&'static str> {
    entries().iter().filter(|entry| entry.arch == arch).map(|entry| entry.name.as_str()).collect()
}

/// Folders with checkpoints: this engine's own, and what other programs have fetched.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Where files are fetched to.
    pub own: PathBuf,
    /// PyTorch's: `hub/checkpoints` in `TORCH_HOME` or `~/.cache/torch`.
    pub torch: Option<PathBuf>,
    /// The Hugging Face Hub's: `HF_HUB_CACHE`, or `hub` in `HF_HOME` or `~/.cache/huggingface`.
    pub hub: Option<PathBuf>,
}

impl Folders {
    /// The user's: files are fetched to `weights` in `UNFREEZE_CACHE`, or in the user's cache folder.
    ///
    /// # Errors
    /// [`Error::Setting`] if this user has no cache folder.
    pub fn of_user() -> Result<Self> {
        let missing =
            || Error::setting(CACHE_VARIABLE, "this user has no cache folder; set it to a folder for weights");
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // Both take the cache folder of the desktop standard on every system.
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(etcetera::home_dir().ok()?.join(".cache")));
        let home = |name: &str, below: &str| variable(name).or_else(|| Some(cache.as_ref()?.join(below)));
        Ok(Self {
            own: cache_folder("weights").ok_or_else(missing)?,
            torch: home("TORCH_HOME", "torch").map(|folder| folder.join("hub/checkpoints")),
            hub: variable("HF_HUB_CACHE").or_else(|| Some(home("HF_HOME", "huggingface")?.join("hub"))),
        })
    }
}

/// What [`Entry::obtain`] meets on its way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Fetching<'a> {
    /// A file that is there already is not the published one, and is left aside.
    PassedOver {
        /// The file.
        path: &'a Path,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// Another process is fetching the same file, and this one waits for it.
    Waiting {
        /// Where it is fetched to.
        path: &'a Path,
    },
    /// The file is being fetched.
    Begun {
        /// From there.
        url: &'a str,
        /// To there.
        path: &'a Path,
    },
    /// So many bytes are there, of as many as the server says there are.
    Progress {
        /// Bytes that are there, those of an earlier attempt included.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// The connection was cut; another attempt goes on from there.
    Resuming {
        /// What happened.
        reason: &'a str,
    },
}

impl Entry {
    /// The name that its file has in [`Folders::own`].
    pub fn file_name(&self) -> String {
        match self.hub_file() {
            // Whose files are all called alike.
            Some((_, file)) => match Path::new(file).extension() {
                Some(extension) => format!("{}.{}", self.name, extension.display()),
                None => self.name.clone(),
            },
            None => self.url.rsplit('/').next().unwrap_or(&self.name).to_string(),
        }
    }

    /// Repository and file of an entry on the Hugging Face Hub.
    fn hub_file(&self) -> Option<(&str, &str)> {
        self.url.strip_prefix(HUB)?.split_once("/resolve/main/")
    }

    /// Where it is fetched from: [`url`](Self::url), or the same on the mirror of the Hub that `HF_ENDPOINT` names.
    pub fn address(&self) -> String {
        let mirror = env::var("HF_ENDPOINT").ok().filter(|mirror| !mirror.is_empty());
        match (mirror, self.url.strip_prefix(HUB)) {
            (Some(mirror), Some(rest)) => format!("{}/{rest}", mirror.trim_end_matches('/')),
            _ => self.url.clone(),
        }
    }

    /// Its file, if it is on this machine already. Its content is not looked at.
    pub fn find(&self, folders: &Folders) -> Option<PathBuf> {
        self.places(folders).into_iter().next()
    }

    /// Where its file lies, in the order in which they are preferred: the own folder, then the latest of others.
    fn places(&self, folders: &Folders) -> Vec<PathBuf> {
        let mut places = vec![folders.own.join(self.file_name())];
        match (self.hub_file(), &folders.torch, &folders.hub) {
            (None, Some(torch), _) => places.push(torch.join(self.file_name())),
            (Some((repository, file)), _, Some(hub)) => {
                let folder = hub.join(format!("models--{}", repository.replace('/', "--")));
                let snapshots = folder.join("snapshots");
                let latest = fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
                places.push(snapshots.join(latest.trim()).join(file));
                let revisions = fs::read_dir(&snapshots).into_iter().flatten().flatten();
                places.extend(revisions.map(|revision| revision.path().join(file)));
            }
            _ => {}
        }
        places.retain(|path| path.is_file());
        places
    }

    /// Its file: one that is on this machine already, or fetched to [`Folders::own`]. `tell` hears what happens.
    ///
    /// A file is compared with the entry's hash each time. The cache of the Hugging Face Hub has the hash in the name
    /// of what it stores.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is not here and cannot be fetched, with the path to put it at by hand, [`Error::Io`]
    /// if it cannot be written there.
    pub fn obtain(&self, folders: &Folders, tell: &mut dyn FnMut(Fetching)) -> Result<PathBuf> {
        for path in self.places(folders) {
            match self.flaw(&path) {
                None => return Ok(path),
                Some(reason) => tell(Fetching::PassedOver { path: &path, reason: &reason }),
            }
        }
        let path = folders.own.join(self.file_name());
        self.fetch(&path, tell)?;
        Ok(path)
    }

    /// Reads its weights, which [`obtain`](Self::obtain) finds or fetches.
    ///
    /// # Errors
    /// As [`obtain`](Self::obtain), and as [`Weights::file_of`].
    pub fn weights(&self, folders: &Folders, tell: &mut dyn FnMut(Fetching)) -> Result<Weights> {
        Ok(Weights::file_of(self.arch, self.obtain(folders, tell)?)?.published_as(self.clone()))
    }

    #[cfg(feature = "fetch")]
    fn fetch(&self, path: &Path, tell: &mut dyn FnMut(Fetching)) -> Result<()> {
        use super::fetch::{Failure, fetch};
        fetch(self, path, tell).map_err(|failure| match failure {
            Failure::Local(error) => Error::io(path, error),
            Failure::Remote(reason) => self.by_hand(path, &reason),
        })
    }

    #[cfg(not(feature = "fetch"))]
    fn fetch(&self, path: &Path, _tell: &mut dyn FnMut(Fetching)) -> Result<()> {
        Err(self.by_hand(path, "this program was built without the feature `fetch`"))
    }

    fn by_hand(&self, path: &Path, reason: &str) -> Error {
        let message = format!(
            "could not be fetched: {reason}\ndownload {} where there is a network, and put it there under this name",
            self.address()
        );
        Error::checkpoint(path, message)
    }

    /// Why a file is not the published one; `None` if it is, or if nothing is known to compare it with.
    pub(super) fn flaw(&self, path: &Path) -> Option<String> {
        let expected = self.sha256.clone().or_else(|| {
            let stored = fs::canonicalize(path).ok()?;
            let name = stored.file_name()?.to_str()?;
            is_sha256(name).then(|| name.to_string())
        })?;
        match sha256(path) {
            Ok(found) if found.starts_with(&expected) => None,
            Ok(found) => Some(format!("its sha256 is {found}, not {expected}")),
            Err(error) => Some(error.to_string()),
        }
    }
}

const HUB: &str = "https://huggingface.co/";

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The SHA-256 of a file's content, in hexadecimal digits.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hash.update(&buffer[..count]),
        }
    }
}
