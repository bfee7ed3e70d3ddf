//! What `compare` and the processes that it measures say to each other: a JSON object to a line, a request on standard
//! input, its answer on standard output. `benches/torch_baseline.py` speaks it too.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cell::Cell;

/// What a process is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "request")]
pub enum Request {
    /// Who it is. Answer: [`Hello`].
    Hello,
    /// Logits of `images` images by the weights in a safetensors file, in torchvision's names and order. Pixel `i`,
    /// counted in the order `[N, H, W, 3]`, is `sin(0.7·i)`. Answer: [`Logits`].
    Logits {
        /// Network, size and precision.
        cell: Cell,
        /// The weights.
        weights: PathBuf,
        /// How many.
        images: usize,
    },
    /// To get a cell ready, in one of the ways that it named, and to warm up. Answer: [`Ready`].
    Prepare {
        /// What is to be measured.
        cell: Cell,
        /// One of [`Hello::variants`].
        variant: String,
        /// Seconds.
        warm_up: f64,
    },
    /// To do as many steps as take about so many seconds. Answer: [`Done`].
    Block {
        /// Seconds.
        seconds: f64,
    },
    /// To let go of the cell. Answer: [`Peak`].
    Finish,
}

/// Who answers, and how it can work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The product that it runs on.
    pub device: String,
    /// Name and version, with those of what it stands on.
    pub software: String,
    /// Ways to do the same work, such as `eager`.
    pub variants: Vec<String>,
}

/// Logits, image by image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Logits {
    /// `[N, classes]`.
    pub logits: Vec<f32>,
}

/// A cell is ready to be measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    /// True.
    pub ready: bool,
}

/// What a block did.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Steps.
    pub steps: usize,
    /// Seconds that they took.
    pub seconds: f64,
}

/// What a cell took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Peak {
    /// Most bytes of tensors at a time since the cell was got ready; nothing where nobody counts them.
    pub peak_memory: Option<u64>,
    /// Most bytes of the process, its libraries included, that were resident at a time since then; nothing where the
    /// system does not tell.
    #[serde(default)]
    pub peak_resident: Option<u64>,
}

/// A request that failed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub error: String,
}
