//! What is measured: a network, its images, and what is done with them.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use unfreeze::{
    Error, Precision, Result,
    nn::{
        Arch, HeadSpec,
        cost::{Kernel, Network},
    },
};

/// Classes of the networks measured, as ImageNet has.
pub const CLASSES: usize = 1000;

/// Units of the hidden layer of fastai's head.
const HIDDEN: usize = 512;

/// What is done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// The frozen network
    Forward,
    /// A step of the whole network
    Full,
    /// A step of layer4 and the head
    Layer4,
    /// A step of layer3, layer4 and the head
    Layer3,
    /// A step of the head on the frozen network
    Head,
    /// A step of a linear head on cached activations
    Cached,
    /// A step of fastai's head on cached activations
    #[serde(rename = "cached-fastai")]
    CachedFastai,
}

impl Work {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Work::Forward => "forward",
            Work::Full => "full",
            Work::Layer4 => "layer4",
            Work::Layer3 => "layer3",
            Work::Head => "head",
            Work::Cached => "cached",
            Work::CachedFastai => "cached-fastai",
        }
    }

    /// Whether nothing is trained.
    pub fn is_forward(self) -> bool {
        self == Work::Forward
    }

    /// Whether a head is trained on cached activations.
    pub fn is_cached(self) -> bool {
        self.head_on_cache().is_some()
    }

    /// The head that is trained on cached activations; `None` where they are not cached.
    pub fn head_on_cache(self) -> Option<HeadSpec> {
        match self {
            Work::Cached => Some(HeadSpec::Linear),
            Work::CachedFastai => Some(HeadSpec::fastai(vec![HIDDEN])),
            Work::Forward | Work::Full | Work::Layer4 | Work::Layer3 | Work::Head => None,
        }
    }

    /// The first stage that is trained; `None` where all or none is.
    pub fn first_stage(self) -> Option<usize> {
        match self {
            Work::Layer3 => Some(3),
            Work::Layer4 => Some(4),
            Work::Forward | Work::Full | Work::Head | Work::Cached | Work::CachedFastai => None,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// The network.
    pub arch: Arch,
    /// Side of the images.
    pub size: usize,
    /// Images of a batch.
    pub batch_size: usize,
    /// What is done with them.
    pub work: Work,
    /// What it computes in.
    #[serde(with = "precision")]
    pub dtype: Precision,
    /// Classes of its head.
    #[serde(default = "usual", skip_serializing_if = "is_usual")]
    pub classes: usize,
}

fn usual() -> usize {
    CLASSES
}

fn is_usual(classes: &usize) -> bool {
    *classes == CLASSES
}

impl Cell {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`Error::Setting`] if not.
    pub fn validate(&self) -> Result<()> {
        if self.work != Work::Forward && self.batch_size < 2 {
            return Err(Error::setting("--batch-size", "training needs batches of at least 2 images"));
        }
        match self.work.first_stage() {
            Some(stage) if stage > self.arch.stages() => {
                let message = format!("{} has no layer{stage}; its stages end at {}", self.arch, self.arch.stages());
                Err(Error::setting("--trainable", message))
            }
            _ => Ok(()),
        }
    }

    /// The model of its cost.
    pub fn network(&self) -> Network {
        let Cell { arch, size, batch_size: batch, dtype: precision, classes, .. } = *self;
        Network { arch, size, batch, classes, precision }
    }

    /// Units that are not trained: the stem and blocks before the first that is.
    pub fn frozen_units(&self) -> usize {
        let units = self.network().units();
        match self.work {
            Work::Forward => units,
            Work::Full => 0,
            Work::Head | Work::Cached | Work::CachedFastai => units - 1,
            Work::Layer3 | Work::Layer4 => {
                let first = format!("layer{}.0.", self.work.first_stage().unwrap_or_default());
                let names = self.arch.convolutions();
                // Names come in order: units before the first of that stage.
                let before = names.iter().take_while(|(name, _)| !name.starts_with(&first));
                let mut units: Vec<&str> = before.map(|(name, _)| unit(name)).collect();
                units.dedup();
                units.len()
            }
        }
    }

    /// The kernels of its step.
    pub fn kernels(&self) -> Vec<Kernel> {
        let network = self.network();
        match self.work {
            Work::Forward => network.forward(false),
            Work::Cached => network.cached_step(),
            Work::CachedFastai => network.cached_fastai_step(HIDDEN),
            Work::Full | Work::Layer4 | Work::Layer3 | Work::Head => network.training_step(self.frozen_units()),
        }
    }
}

/// The unit of a convolution: `layer1.0` of `layer1.0.conv1.weight`.
fn unit(convolution: &str) -> &str {
    match convolution.match_indices('.').nth(1) {
        Some((end, _)) if convolution.starts_with("layer") => &convolution[..end],
        _ => convolution,
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { arch, size, batch_size, work, dtype, classes } = self;
        write!(f, "{} {arch} {size} px, batch {batch_size}, {dtype}", work.name())?;
        if is_usual(classes) { Ok(()) } else { write!(f, ", {classes} classes") }
    }
}

/// Precisions by their names.
mod precision {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use unfreeze::Precision;

    pub fn serialize<S: Serializer>(precision: &Precision, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(precision)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Precision, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_units_end_where_the_stage_begins() {
        let cell = |arch, work| Cell { arch, size: 224, batch_size: 2, work, dtype: Precision::F32, classes: CLASSES };
        for (arch, layer3, layer4, head) in
            [(Arch::ResNet18, 5, 7, 9), (Arch::ResNet50, 8, 14, 17), (Arch::ResNet20, 7, 10, 10)]
        {
            let frozen = |work| cell(arch, work).frozen_units();
            assert_eq!([frozen(Work::Layer3), frozen(Work::Layer4), frozen(Work::Head)], [layer3, layer4, head]);
            assert_eq!((frozen(Work::Full), frozen(Work::Forward)), (0, head + 1));
        }
        assert!(cell(Arch::ResNet20, Work::Layer4).validate().is_err());
        assert!(cell(Arch::ResNet20, Work::Layer3).validate().is_ok());
    }

    #[test]
    fn a_cell_is_read_as_it_is_written() {
        let (arch, work, dtype) = (Arch::ResNet34, Work::Layer4, Precision::Bf16);
        let cell = Cell { arch, size: 96, batch_size: 7, work, dtype, classes: CLASSES };
        let text = serde_json::to_string(&cell).unwrap();
        assert_eq!(text, r#"{"arch":"resnet34","size":96,"batch_size":7,"work":"layer4","dtype":"bf16"}"#);
        assert_eq!(serde_json::from_str::<Cell>(&text).unwrap(), cell);
        assert!(serde_json::from_str::<Cell>(&text.replace("bf16", "f8")).is_err());
        let head = Cell { work: Work::CachedFastai, classes: 10, ..cell };
        let text = serde_json::to_string(&head).unwrap();
        assert!(text.contains(r#""work":"cached-fastai","dtype":"bf16","classes":10"#), "{text}");
        assert_eq!(serde_json::from_str::<Cell>(&text).unwrap(), head);
    }
}
