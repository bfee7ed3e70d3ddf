//! The architectures by name, and the numbers that define them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// A ResNet as torchvision defines it, or one of He et al.'s CIFAR networks (resnet20 … resnet56; resnet8 is one of
/// half their width with a single block per stage, for tests and teaching).
#[allow(missing_docs)] // the names say it
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Arch {
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNext50_32x4d,
    ResNext101_32x8d,
    ResNext101_64x4d,
    WideResNet50_2,
    WideResNet101_2,
    ResNet8,
    ResNet20,
    ResNet32,
    ResNet44,
    ResNet56,
}

/// What defines a network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Blocks per stage.
    pub blocks: &'static [usize],
    /// Output channels of a block divided by its width: 1 for basic blocks, 4 for bottlenecks.
    pub expansion: usize,
    /// Groups of the middle convolution.
    pub groups: usize,
    /// Width of one group where the stage's base width is 64.
    pub group_width: usize,
    /// Channels of the stem, and base width of the first stage.
    pub stem: usize,
    /// A 3×3 stem without pooling, and parameter-free shortcuts.
    pub cifar: bool,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 15] = [
        Arch::ResNet18,
        Arch::ResNet34,
        Arch::ResNet50,
        Arch::ResNet101,
        Arch::ResNet152,
        Arch::ResNext50_32x4d,
        Arch::ResNext101_32x8d,
        Arch::ResNext101_64x4d,
        Arch::WideResNet50_2,
        Arch::WideResNet101_2,
        Arch::ResNet8,
        Arch::ResNet20,
        Arch::ResNet32,
        Arch::ResNet44,
        Arch::ResNet56,
    ];

    /// The name, as torchvision spells it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::ResNet18 => "resnet18",
            Arch::ResNet34 => "resnet34",
            Arch::ResNet50 => "resnet50",
            Arch::ResNet101 => "resnet101",
            Arch::ResNet152 => "resnet152",
            Arch::ResNext50_32x4d => "resnext50_32x4d",
            Arch::ResNext101_32x8d => "resnext101_32x8d",
            Arch::ResNext101_64x4d => "resnext101_64x4d",
            Arch::WideResNet50_2 => "wide_resnet50_2",
            Arch::WideResNet101_2 => "wide_resnet101_2",
            Arch::ResNet8 => "resnet8",
            Arch::ResNet20 => "resnet20",
            Arch::ResNet32 => "resnet32",
            Arch::ResNet44 => "resnet44",
            Arch::ResNet56 => "resnet56",
        }
    }

    pub(super) fn spec(self) -> Spec {
        let basic = |blocks| Spec { blocks, expansion: 1, groups: 1, group_width: 64, stem: 64, cifar: false };
        let bottleneck =
            |blocks, groups, group_width| Spec { blocks, expansion: 4, groups, group_width, stem: 64, cifar: false };
        let cifar = |blocks, stem| Spec { blocks, expansion: 1, groups: 1, group_width: 64, stem, cifar: true };
        match self {
            Arch::ResNet18 => basic(&[2, 2, 2, 2]),
            Arch::ResNet34 => basic(&[3, 4, 6, 3]),
            Arch::ResNet50 => bottleneck(&[3, 4, 6, 3], 1, 64),
            Arch::ResNet101 => bottleneck(&[3, 4, 23, 3], 1, 64),
            Arch::ResNet152 => bottleneck(&[3, 8, 36, 3], 1, 64),
            Arch::ResNext50_32x4d => bottleneck(&[3, 4, 6, 3], 32, 4),
            Arch::ResNext101_32x8d => bottleneck(&[3, 4, 23, 3], 32, 8),
            Arch::ResNext101_64x4d => bottleneck(&[3, 4, 23, 3], 64, 4),
            Arch::WideResNet50_2 => bottleneck(&[3, 4, 6, 3], 1, 128),
            Arch::WideResNet101_2 => bottleneck(&[3, 4, 23, 3], 1, 128),
            Arch::ResNet8 => cifar(&[1, 1, 1], 8),
            Arch::ResNet20 => cifar(&[3, 3, 3], 16),
            Arch::ResNet32 => cifar(&[5, 5, 5], 16),
            Arch::ResNet44 => cifar(&[7, 7, 7], 16),
            Arch::ResNet56 => cifar(&[9, 9, 9], 16),
        }
    }

    /// Name and shape, in PyTorch's order `[K, C, R, S]`, of every convolution's weight: what tells architectures
    /// apart.
    pub fn convolutions(self) -> Vec<(String, Vec<usize>)> {
        super::resnet::plan(self)
            .into_iter()
            .map(|(name, kernel, geometry)| {
                let shape = vec![kernel.outputs, kernel.inputs / geometry.groups, kernel.size, kernel.size];
                (format!("{name}.weight"), shape)
            })
            .collect()
    }

    /// Channels of the stem.
    pub(super) fn stem_channels(self) -> usize {
        self.spec().stem
    }

    /// Stages of blocks: 4, or 3 for the CIFAR networks.
    pub fn stages(self) -> usize {
        self.spec().blocks.len()
    }

    /// Channels of the last activation.
    pub fn features(self) -> usize {
        (self.stem_channels() << (self.stages() - 1)) * self.spec().expansion
    }

    /// Classes of the data set that published checkpoints were trained on: ImageNet's 1000, or CIFAR's 10.
    pub fn published_classes(self) -> usize {
        if self.spec().cifar { 10 } else { 1000 }
    }

    /// The image size that published checkpoints were trained on, in pixels.
    pub fn published_size(self) -> usize {
        if self.spec().cifar { 32 } else { 224 }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Arch::ALL.into_iter().find(|arch| arch.name() == text).ok_or_else(|| {
            let names: Vec<_> = Arch::ALL.iter().map(|arch| arch.name()).collect();
            Error::setting("arch", format!("'{text}' is unknown; choose one of {}", names.join(", ")))
        })
    }
}

impl TryFrom<String> for Arch {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Arch> for String {
    fn from(arch: Arch) -> Self {
        arch.name().into()
    }
}
