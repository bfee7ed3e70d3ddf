//! Flags of cached activations.

use std::{fmt, path::PathBuf, str::FromStr};

use clap::Args;
use unfreeze::{
    Error, Result,
    cache::store::{DEFAULT_BUDGET, Store},
    learner::Learner,
};

/// Bytes.
const GIB: f64 = (1u64 << 30) as f64;
const DEFAULT_GIB: f64 = DEFAULT_BUDGET as f64 / GIB;

fn gib(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(gib) if gib > 0.0 && gib <= 1e9 => Ok(gib),
        _ => Err("give a number of GiB above 0, such as 20".into()),
    }
}

/// Most views of an image.
const MOST_VIEWS: usize = 1024;

/// Which activations are computed once.
#[derive(Args, Clone)]
pub struct PrecomputeFlags {
    /// Train what is not frozen on activations computed once: on, those of clean views; a number, those of so many
    /// views of each image, the clean one and augmented ones, of which an epoch shows one; or off, on augmented images
    /// anew each epoch
    #[arg(long, default_value_t = Precompute::Views(1), value_name = "on|off|VIEWS")]
    precompute: Precompute,
    /// With --precompute VIEWS: draw other augmented views after every N epochs
    #[arg(long, default_value_t = 0, value_name = "N", hide_default_value = true)]
    pub renew_views: usize,
    #[command(flatten)]
    pub cache: CacheFlags,
}

/// Where activations are kept, and how a file's are told.
#[derive(Args, Clone)]
pub struct CacheFlags {
    /// Folder in which activations are kept from one run to the next, or off: see `unfreeze cache` [default:
    /// activations in UNFREEZE_CACHE, or in the user's cache folder]
    #[arg(long, value_name = "DIR|off")]
    cache: Option<PathBuf>,
    /// GiB that the folder may take; what was read longest ago makes room for what is new
    #[arg(long, default_value_t = DEFAULT_GIB, value_name = "GIB", value_parser = gib)]
    cache_budget: f64,
    /// Tell cached activations to be a file's by all of its bytes, not by path, length, time of last change and end
    /// alone
    #[arg(long)]
    pub verify_content: bool,
}

impl CacheFlags {
    /// The folder, unless there is none.
    pub fn folder(&self) -> Option<PathBuf> {
        match &self.cache {
            Some(folder) if folder.as_os_str() == "off" => None,
            Some(folder) => Some(folder.clone()),
            None => Store::default_folder(),
        }
    }

    /// Bytes that the folder may take.
    pub fn budget(&self) -> u64 {
        (self.cache_budget * GIB) as u64
    }

    /// Whether a folder, or none, was asked for.
    pub fn is_given(&self) -> bool {
        self.cache.is_some()
    }

    /// `learner`, keeping its activations there.
    pub fn keep(&self, learner: Learner) -> Learner {
        match self.folder() {
            Some(folder) => learner.cache_folder(folder).cache_budget(self.budget()),
            None => learner,
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Precompute {
    Off,
    Views(usize),
}

impl PrecomputeFlags {
    /// Views of each image; 0 if nothing is to be computed once.
    pub fn views(&self) -> usize {
        match self.precompute {
            Precompute::Off => 0,
            Precompute::Views(count) => count,
        }
    }

    /// Whether the flags make sense together.
    pub fn check(&self) -> Result<()> {
        if self.renew_views > 0 && self.views() < 2 {
            let message = format!("is for several views, such as --precompute 8, not for {}", self.precompute);
            return Err(Error::setting("--renew-views", message));
        }
        Ok(())
    }

    /// Sets a learner accordingly.
    pub fn set(&self, learner: &mut Learner) -> Result<()> {
        learner.renew_views_every(self.renew_views);
        match self.views() {
            0 => learner.precompute(false),
            count => learner.precompute_views(count)?,
        }
        Ok(())
    }
}

impl FromStr for Precompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("on", _) => Ok(Precompute::Views(1)),
            ("off", _) => Ok(Precompute::Off),
            (_, Ok(count)) if (1..=MOST_VIEWS).contains(&count) => Ok(Precompute::Views(count)),
            _ => Err(format!("give on, off, or a number of views from 1 to {MOST_VIEWS}")),
        }
    }
}

impl fmt::Display for Precompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Precompute::Off => f.write_str("off"),
            Precompute::Views(1) => f.write_str("on"),
            Precompute::Views(count) => write!(f, "{count}"),
        }
    }
}
