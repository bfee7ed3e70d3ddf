//! Tensor names: what wrappers around a model add is taken away, and other programs' names become torchvision's.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use super::{Checkpoint, CheckpointFile};
use crate::{Error, Result};

/// What `DataParallel`, `torch.compile`, training frameworks and self-supervised methods put before a ResNet's names.
const PREFIXES: [&str; 8] = ["module.", "_orig_mod.", "backbone.", "model.", "net.", "network.", "encoder.", "resnet."];

/// Of which part of a self-supervised method a ResNet is taken: what its names begin with.
const ENCODERS: [&str; 3] = ["encoder_q.", "base_encoder.", "online_encoder."];

/// What `torch.optim.swa_utils.AveragedModel` adds to a network's tensors.
const AVERAGED: &str = "n_averaged";

/// More wrappers around a model than anyone puts there.
const MAX_PREFIXES: usize = 16;

/// How many names a message lists of each kind.
pub(super) const LISTED: usize = 8;

/// A longer name, in bytes, is compared with no other: the longest that is known has a tenth of it, and comparing takes
/// time in proportion.
const COMPARED: usize = 256;

/// How a program names a ResNet's tensors.
struct Convention {
    /// Whose names they are.
    name: &'static str,
    /// A file has these names if the name of some tensor begins so.
    sign: &'static str,
    /// What a name begins with, and what in torchvision's names or this engine's head stands for it.
    rules: &'static [(&'static str, &'static str)],
}

/// Names by position in `torch.nn.Sequential`: 2 is the stem's ReLU and 3 its pool, and in a head only batchnorm and
/// linear layers have tensors. Heads of up to two hidden layers; `head.0` stands for the pool of this engine's.
const CONVENTIONS: [Convention; 6] = [
    Convention {
        name: "fastai 2",
        sign: "0.4.0.",
        rules: &[
            ("0.0.", "conv1."),
            ("0.1.", "bn1."),
            ("0.4.", "layer1."),
            ("0.5.", "layer2."),
            ("0.6.", "layer3."),
            ("0.7.", "layer4."),
            ("1.2.", "head.1."),
            ("1.4.", "head.3."),
            ("1.6.", "head.5."),
            ("1.8.", "head.7."),
            ("1.10.", "head.9."),
            ("1.12.", "head.11."),
        ],
    },
    Convention {
        name: "fastai 2 around timm",
        sign: "0.model.layer1.",
        rules: &[
            ("0.model.", ""),
            ("1.2.", "head.1."),
            ("1.4.", "head.3."),
            ("1.6.", "head.5."),
            ("1.8.", "head.7."),
            ("1.10.", "head.9."),
            ("1.12.", "head.11."),
        ],
    },
    Convention {
        name: "fastai 0.7",
        sign: "4.0.",
        rules: &[
            ("0.", "conv1."),
            ("1.", "bn1."),
            ("4.", "layer1."),
            ("5.", "layer2."),
            ("6.", "layer3."),
            ("7.", "layer4."),
            ("10.", "head.1."),
            ("12.", "head.3."),
            ("14.", "head.5."),
            ("16.", "head.7."),
            ("18.", "head.9."),
            ("20.", "head.11."),
        ],
    },
    Convention {
        name: "fastai 0.7, of a head alone (saved with precompute on)",
        sign: "0.running_mean",
        rules: &[
            ("0.", "head.1."),
            ("2.", "head.3."),
            ("4.", "head.5."),
            ("6.", "head.7."),
            ("8.", "head.9."),
            ("10.", "head.11."),
        ],
    },
    Convention { name: "MMPretrain", sign: "head.fc.", rules: &[("head.fc.", "fc.")] },
    Convention { name: "a CIFAR network", sign: "linear.", rules: &[("linear.", "fc.")] },
];

/// Where a `torch.nn.Sequential` in the place of `fc` has its one linear layer: after dropout, for example. What its
/// names begin with stands for `fc.`.
const SEQUENTIAL: [&str; 4] = ["fc.0.", "fc.1.", "fc.2.", "fc.3."];

/// Whose names those are.
const SEQUENTIAL_NAME: &str = "a torch.nn.Sequential for fc";

/// How the tensors of a file are called.
#[derive(Debug)]
pub(super) struct Names {
    /// Whose names they were, where they were not torchvision's.
    pub convention: Option<&'static str>,
    /// The prefixes taken away, in this order.
    pub prefixes: Vec<&'static str>,
    /// torchvision's name, or this engine's, by the file's.
    pub new: BTreeMap<String, String>,
    /// Tensors that are none of the network's, and why.
    pub left_out: Vec<(String, &'static str)>,
    /// What names begin with when the prefixes are taken away, and what stands for it.
    rules: Vec<(&'static str, &'static str)>,
}

impl Names {
    /// # Errors
    /// [`Error::Checkpoint`] if two tensors would get the same name.
    pub fn of<'a>(path: &Path, originals: impl Iterator<Item = &'a String>) -> Result<Self> {
        let mut names: Vec<(&str, &str)> = originals.map(|name| (name.as_str(), name.as_str())).collect();
        let (mut prefixes, mut left_out) = (Vec::new(), Vec::new());
        let mut leave_out = |names: &mut Vec<(&str, &str)>, why, is_left: &dyn Fn(&str) -> bool| {
            left_out.extend(names.extract_if(.., |(_, name)| is_left(name)).map(|(name, _)| (name.to_owned(), why)));
        };
        leave_out(&mut names, "how many sets of weights were averaged", &|name| name == AVERAGED);
        while let Some(prefix) = common_prefix(&names).filter(|_| prefixes.len() < MAX_PREFIXES) {
            prefixes.push(prefix);
            if ENCODERS.contains(&prefix) {
                leave_out(&mut names, "of another part of the method than its encoder", &|name| {
                    !name.starts_with(prefix)
                });
            }
            names.iter_mut().for_each(|(_, name)| *name = name.strip_prefix(prefix).unwrap_or(name));
        }

        let signed = |convention: &&Convention| names.iter().any(|(_, name)| name.starts_with(convention.sign));
        let convention = CONVENTIONS.iter().find(signed);
        let sequential = sequential(&names).filter(|_| convention.is_none());
        let rules = convention.map_or(&[][..], |convention| convention.rules);
        let rules: Vec<_> = rules.iter().copied().chain(sequential.map(|from| (from, "fc."))).collect();
        let mut new = BTreeMap::new();
        let mut taken: BTreeMap<String, &str> = BTreeMap::new();
        for (original, name) in names {
            let name = ruled(&rules, name);
            match taken.entry(name.clone()) {
                Entry::Occupied(first) => {
                    let [first, second, name] = [first.get(), original, &name].map(short_name);
                    let message = format!("{first} and {second} both stand for {name}: remove one of them");
                    return Err(Error::checkpoint(path, message));
                }
                Entry::Vacant(place) => place.insert(original),
            };
            new.insert(original.to_owned(), name);
        }
        let convention = convention.map(|convention| convention.name).or(sequential.map(|_| SEQUENTIAL_NAME));
        Ok(Self { convention, prefixes, new, left_out, rules })
    }

    /// What a tensor that is not among them would be called.
    pub fn renamed(&self, name: &str) -> String {
        let bare = |name, prefix: &&'static str| str::strip_prefix(name, *prefix).unwrap_or(name);
        ruled(&self.rules, self.prefixes.iter().fold(name, bare))
    }

    /// The tensors under their new names, without those that are left out.
    pub fn rename<T>(&self, tensors: BTreeMap<String, T>) -> BTreeMap<String, T> {
        tensors.into_iter().filter_map(|(name, tensor)| Some((self.new.get(&name)?.clone(), tensor))).collect()
    }
}

impl Checkpoint {
    /// The same tensors under torchvision's names: prefixes such as `module.` and `backbone.` are taken away,
    /// repeatedly, each where more than half of the tensors carry it (a head beside a backbone carries none); of a
    /// self-supervised method the encoder that it trains is taken (MoCo's `encoder_q.`); the names
    /// of fastai (by position, `0.weight`), MMPretrain and CIFAR networks become torchvision's, that of a classifier's
    /// only layer too (`fc.1.weight`), and fastai's head this engine's (`head.1.weight`).
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if two tensors would get the same name.
    pub fn normalised(mut self) -> Result<Self> {
        let names = Names::of(&self.path, self.tensors.keys())?;
        self.tensors = names.rename(self.tensors);
        self.left_out.iter_mut().for_each(|(name, _)| *name = names.renamed(name));
        Ok(self)
    }
}

impl CheckpointFile {
    /// As [`Checkpoint::normalised`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if two tensors would get the same name.
    pub fn normalised(mut self) -> Result<Self> {
        let names = Names::of(&self.path, self.tensors.keys())?;
        self.tensors = names.rename(self.tensors);
        self.left_out.iter_mut().for_each(|(name, _)| *name = names.renamed(name));
        Ok(self)
    }
}

/// The name after the first of `rules` that it fits.
fn ruled(rules: &[(&str, &str)], name: &str) -> String {
    let renamed = rules.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    renamed.unwrap_or_else(|| name.to_owned())
}

/// A known prefix that more than half of the names carry; that of an encoder if a quarter does.
fn common_prefix(names: &[(&str, &str)]) -> Option<&'static str> {
    let carried = |prefix: &str| names.iter().filter(|(_, name)| name.starts_with(prefix)).count();
    let common = PREFIXES.into_iter().find(|prefix| 2 * carried(prefix) > names.len());
    common.or_else(|| ENCODERS.into_iter().find(|prefix| carried(prefix) > names.len() / 4))
}

/// A name without what wrappers around a model put before it.
pub(super) fn bare(mut name: &str) -> &str {
    let wrapped = |name: &str| PREFIXES.into_iter().chain(ENCODERS).find(|prefix| name.starts_with(prefix));
    while let Some(prefix) = wrapped(name) {
        name = &name[prefix.len()..];
    }
    name
}

/// What the names of the one layer in the place of `fc` begin with, if weight and bias are all that is there.
fn sequential(names: &[(&str, &str)]) -> Option<&'static str> {
    let mut classifier = names.iter().map(|(_, name)| *name).filter(|name| name.starts_with("fc."));
    let first = classifier.clone().next()?;
    let layer = SEQUENTIAL.into_iter().find(|layer| first.starts_with(layer))?;
    classifier.all(|name| matches!(name.strip_prefix(layer), Some("weight" | "bias"))).then_some(layer)
}

/// A tensor's name as a message shows it: one of more than 100 characters without its middle, and none with characters
/// that would move a terminal's cursor.
pub fn short_name(name: &str) -> Cow<'_, str> {
    const END: usize = 48;
    let start = name.char_indices().nth(END).map_or(name.len(), |(at, _)| at);
    let end = name.char_indices().rev().nth(END - 1).map_or(0, |(at, _)| at);
    let is_long = name.len() > 100 && name.chars().count() > 100;
    match (is_long, name.contains(char::is_control)) {
        (false, false) => Cow::Borrowed(name),
        (false, true) => name.replace(char::is_control, "\u{fffd}").into(),
        (true, _) => format!("{}…{}", &name[..start], &name[end..]).replace(char::is_control, "\u{fffd}").into(),
    }
}

/// The first of `names`, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The one of `known` that takes the fewest changes of a letter, if a third of the name stays unchanged.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > COMPARED {
        return None;
    }
    let measured = known.map(|known| (strsim::levenshtein(name, known), known));
    measured.min().filter(|(changes, _)| 3 * changes <= 2 * name.len()).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_show_the_ends_of_a_long_name() {
        for name in ["layer1.0.conv1.weight", &"x".repeat(100), &"ü".repeat(100)] {
            assert_eq!(short_name(name), name);
        }
        let long = format!("first.{}.last", "ü".repeat(1000));
        let short = short_name(&long);
        assert_eq!(short.chars().count(), 97);
        assert!(short.starts_with("first.üü") && short.ends_with("üü.last") && short.contains('…'), "{short}");
        assert_eq!(short_name("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn what_is_long_is_compared_with_nothing() {
        let known = || ["layer1.0.conv1.weight", "fc.bias"].into_iter();
        assert_eq!(nearest("layer1.0.conv7.weight", known()), Some("layer1.0.conv1.weight"));
        assert_eq!(nearest("optimizer", known()), None);
        let long = "x".repeat(257);
        assert_eq!(nearest(&long, [long.as_str()].into_iter()), None);
        assert_eq!(nearest(&long[1..], [&long[1..]].into_iter()), Some(&long[1..]));
    }
}
