//! Tensor names: what wrappers around a model add to them is taken away.

use std::collections::{BTreeMap, btree_map::Entry};

use super::Checkpoint;
use crate::{Error, Result};

/// What `DataParallel`, `torch.compile`, training frameworks and self-supervised methods put before a ResNet's names.
const PREFIXES: [&str; 6] = ["module.", "_orig_mod.", "backbone.", "model.", "encoder.", "resnet."];

/// Other names of the classifier, and this engine's.
const CLASSIFIER: [(&str, &str); 2] = [("linear.weight", "fc.weight"), ("linear.bias", "fc.bias")];

impl Checkpoint {
    /// The same tensors under torchvision's names: prefixes such as `module.` and `backbone.` are taken away,
    /// repeatedly, each where more than half of the tensors carry it (a head beside a backbone carries none), and
    /// the `linear` of CIFAR networks becomes `fc`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if two tensors would get the same name.
    pub fn normalised(mut self) -> Result<Self> {
        let mut names: Vec<String> = self.tensors.keys().cloned().collect();
        while let Some(prefix) = common_prefix(&names) {
            names
                .iter_mut()
                .filter(|name| name.starts_with(prefix))
                .for_each(|name| *name = name[prefix.len()..].into());
        }

        let mut tensors = BTreeMap::new();
        let mut origins: BTreeMap<String, String> = BTreeMap::new();
        for ((original, tensor), name) in self.tensors.into_iter().zip(names) {
            let name = CLASSIFIER.iter().find(|(other, _)| *other == name).map_or(name, |(_, ours)| (*ours).to_owned());
            match origins.entry(name.clone()) {
                Entry::Occupied(first) => {
                    let message = format!("{} and {original} both stand for {name}: remove one of them", first.get());
                    return Err(Error::checkpoint(&self.path, message));
                }
                Entry::Vacant(place) => place.insert(original),
            };
            tensors.insert(name, tensor);
        }
        self.tensors = tensors;
        Ok(self)
    }
}

/// A known prefix that more than half of the names carry.
fn common_prefix(names: &[String]) -> Option<&'static str> {
    let carried = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    PREFIXES.into_iter().find(|prefix| 2 * carried(prefix) > names.len())
}
