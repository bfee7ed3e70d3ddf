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

mod check;
mod files;
mod sums;

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use self::files::{Fetching, Folders};
pub(super) use self::sums::sha256;
#[cfg(feature = "fetch")]
pub(super) use self::{
    check::LONGEST,
    sums::{is_sha256, record},
};
use super::{names::nearest, weights::IMAGENET};
use crate::{Error, Result, nn::Arch};

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
/// [`Error::Setting`] if it is none, or naming the entry that cannot be right: names and the files they are stored as
/// must be unique, and names begin with the architecture; addresses are of HTTPS; a hash is of 8 to 64 hexadecimal
/// digits, those in the name of torchvision's file; sizes, accuracies and transforms are within what there can be.
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    #[derive(Deserialize)]
    struct Catalogue {
        weights: Vec<toml::Table>,
    }
    let wrong = |message: String| Error::setting("catalogue", message);
    let catalogue: Catalogue = toml::from_str(text).map_err(|error| wrong(error.message().to_string()))?;
    let mut entries = Vec::<Entry>::with_capacity(catalogue.weights.len());
    for (number, table) in catalogue.weights.into_iter().enumerate() {
        let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default();
        let title = format!("entry {} '{name}'", number + 1);
        let entry: Entry = table.try_into().map_err(|error| {
            let error: toml::de::Error = error;
            wrong(format!("{title}: {}", error.message()))
        })?;
        if let Some(flaw) = check::flaw(&entry, &entries) {
            return Err(wrong(format!("{title}: {flaw}")));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The published checkpoints that this engine knows: `weights/catalog.toml`, which names its sources.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> =
        LazyLock::new(|| parse(include_str!("../../../weights/catalog.toml")).expect("a test reads it"));
    &ENTRIES
}

/// The entry of this name.
///
/// # Errors
/// [`Error::Setting`] with the names that the catalogue has instead.
pub fn entry(name: &str) -> Result<&'static Entry> {
    let names = || entries().iter().map(|entry| entry.name.as_str());
    entries().iter().find(|entry| entry.name == name).ok_or_else(|| {
        let stem = name.split('.').next().unwrap_or_default();
        let of_arch: Vec<_> = names().filter(|known| known.split('.').next() == Some(stem)).collect();
        let near = nearest(name, names()).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        let known = match of_arch.is_empty() {
            true => "`unfreeze weights list` shows what there is".into(),
            false => format!("there is {}", of_arch.join(", ")),
        };
        Error::setting("weights", format!("the catalogue has no '{name}'; {near}{known}"))
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
