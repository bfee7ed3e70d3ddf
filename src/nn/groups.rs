//! Layer groups: which parts of a network share a learning rate, and which are frozen.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Arch;
use crate::{Error, Result};

/// The part of a network that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// The first convolution and its batchnorm.
    Stem,
    /// A block: stage from 1, block from 0.
    Block(usize, usize),
    /// The head.
    Head,
}

impl Unit {
    /// The unit of the parameter or batchnorm called `name`.
    pub fn of(name: &str) -> Self {
        let block = name.strip_prefix("layer").and_then(|rest| {
            let mut parts = rest.split('.');
            let stage = parts.next()?.parse().ok().filter(|stage| *stage > 0)?;
            Some(Unit::Block(stage, parts.next()?.parse().ok()?))
        });
        match block {
            Some(block) => block,
            None if name.starts_with("head.") || name.starts_with("fc.") => Unit::Head,
            None => Unit::Stem,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Stem => f.write_str("conv1"),
            Unit::Block(stage, block) => write!(f, "layer{stage}.{block}"),
            Unit::Head => f.write_str("head"),
        }
    }
}

/// How a network is cut into layer groups.
///
/// As text `fastai`, `stage` or `block`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Grouping {
    /// fastai 0.7's three groups: stem to layer2 | layer3 and layer4 | head. For the three-stage CIFAR networks: stem
    /// and stage 1 | stages 2 and 3 | head.
    #[default]
    Fastai,
    /// The stem, each stage, and the head.
    PerStage,
    /// The stem, each block, and the head.
    PerBlock,
}

impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grouping::Fastai => "fastai",
            Grouping::PerStage => "stage",
            Grouping::PerBlock => "block",
        })
    }
}

impl FromStr for Grouping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Grouping::Fastai, Grouping::PerStage, Grouping::PerBlock];
        let found = all.into_iter().find(|grouping| grouping.to_string() == text);
        found.ok_or_else(|| Error::setting("groups", format!("'{text}' is none; give fastai, stage or block")))
    }
}

impl TryFrom<String> for Grouping {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Grouping> for String {
    fn from(grouping: Grouping) -> Self {
        grouping.to_string()
    }
}

impl Grouping {
    /// The group of `unit` in `arch`.
    pub fn group(self, arch: Arch, unit: Unit) -> usize {
        let blocks = arch.spec().blocks;
        match (self, unit) {
            (Grouping::Fastai, Unit::Stem) => 0,
            (Grouping::Fastai, Unit::Block(stage, _)) => usize::from(stage > blocks.len() / 2),
            (Grouping::Fastai, Unit::Head) => 2,
            (Grouping::PerStage | Grouping::PerBlock, Unit::Stem) => 0,
            (Grouping::PerStage, Unit::Block(stage, _)) => stage,
            (Grouping::PerStage, Unit::Head) => blocks.len() + 1,
            (Grouping::PerBlock, Unit::Block(stage, block)) => 1 + blocks.iter().take(stage - 1).sum::<usize>() + block,
            (Grouping::PerBlock, Unit::Head) => 1 + blocks.iter().sum::<usize>(),
        }
    }

    /// A name for each group, such as `stem..layer2`.
    pub fn names(self, arch: Arch) -> Vec<String> {
        let stages = arch.stages();
        let backbone: Vec<String> = match self {
            Grouping::Fastai => {
                let middle = stages / 2;
                vec![format!("stem..layer{middle}"), format!("layer{}..layer{stages}", middle + 1)]
            }
            Grouping::PerStage => {
                let stages = (1..=stages).map(|stage| format!("layer{stage}"));
                std::iter::once("stem".into()).chain(stages).collect()
            }
            Grouping::PerBlock => {
                let blocks = arch.spec().blocks.iter().enumerate();
                let blocks =
                    blocks.flat_map(|(stage, &count)| (0..count).map(move |b| format!("layer{}.{b}", stage + 1)));
                std::iter::once("stem".into()).chain(blocks).collect()
            }
        };
        backbone.into_iter().chain(["head".into()]).collect()
    }
}

/// Which layer groups are trained. One typed value that only explicit calls change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeState {
    names: Vec<String>,
    trainable: Vec<bool>,
}

impl FreezeState {
    /// All groups of `arch` but the head frozen.
    pub fn head_only(arch: Arch, grouping: Grouping) -> Self {
        let names = grouping.names(arch);
        let trainable = (0..names.len()).map(|group| group + 1 == names.len()).collect();
        Self { names, trainable }
    }

    /// Freezes all groups before `first`; a negative number counts from the end, so −1 leaves only the head trainable.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such group.
    pub fn freeze_to(&mut self, first: isize) -> Result<()> {
        let first = self.position(first)?;
        self.trainable.iter_mut().enumerate().for_each(|(group, trainable)| *trainable = group >= first);
        Ok(())
    }

    /// The group that `number` means, which counts from the end where it is negative.
    pub(crate) fn position(&self, number: isize) -> Result<usize> {
        let count = self.trainable.len();
        let index = if number < 0 { number + count as isize } else { number };
        if index < 0 || index >= count as isize {
            let message = format!("group {number} does not exist; the groups are {self}");
            return Err(Error::setting("freeze_to", message));
        }
        Ok(index as usize)
    }

    /// Freezes `group` too, if there is one.
    pub(crate) fn freeze_group(&mut self, group: usize) {
        if let Some(trainable) = self.trainable.get_mut(group) {
            *trainable = false;
        }
    }

    /// Makes every group trainable.
    pub fn unfreeze(&mut self) {
        self.trainable.fill(true);
    }

    /// Freezes all groups but `group`.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such group.
    pub fn freeze_except(&mut self, group: usize) -> Result<()> {
        if group >= self.trainable.len() {
            let message = format!("group {group} does not exist; the groups are {self}");
            return Err(Error::setting("freeze_except", message));
        }
        self.trainable.fill(false);
        self.trainable[group] = true;
        Ok(())
    }

    /// Whether `group` is trained; false if there is no such group.
    pub fn is_trainable(&self, group: usize) -> bool {
        self.trainable.get(group).copied().unwrap_or(false)
    }

    /// Whether everything but the head is frozen.
    pub fn is_head_only(&self) -> bool {
        matches!(self.trainable.split_last(), Some((true, backbone)) if !backbone.contains(&true))
    }

    /// The groups' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl fmt::Display for FreezeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (group, (name, trainable)) in self.names.iter().zip(&self.trainable).enumerate() {
            let state = if *trainable { "trainable" } else { "frozen" };
            write!(f, "{}{group} {name} ({state})", if group > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}
