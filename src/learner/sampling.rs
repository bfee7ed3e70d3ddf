//! Which training samples an epoch sees.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Learner;
use crate::{
    Error, Result,
    data::{shuffled, weighted},
};

/// How the samples of an epoch are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// Each once, in random order.
    #[default]
    Shuffled,
    /// As many, drawn with replacement, each class as often as any other on average (PyTorch's
    /// `WeightedRandomSampler` with the inverse of the class's count): see [`weighted`].
    Weighted,
}

impl FromStr for Sampling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "shuffled" => Ok(Sampling::Shuffled),
            "weighted" => Ok(Sampling::Weighted),
            _ => Err(Error::setting("sample", format!("'{text}' is neither shuffled nor weighted"))),
        }
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sampling::Shuffled => "shuffled",
            Sampling::Weighted => "weighted",
        })
    }
}

impl Learner {
    /// How the samples of a training epoch are drawn, images and cached activations alike. Default: each once.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// The samples of `epoch` by number, of those with `labels`.
    pub(super) fn order(&self, labels: &[u32], epoch: u64) -> Vec<u32> {
        match self.sampling {
            Sampling::Shuffled => shuffled(labels.len() as u32, self.seed, epoch),
            Sampling::Weighted => weighted(labels, self.seed, epoch),
        }
    }
}
