//! What cached activations are named by.

use rayon::prelude::*;

use super::Boundary;
use crate::{
    Result,
    cache::{Key, KeyBuilder, Sought},
    data::{Item, LoaderOptions, Split, Views},
    learner::Learner,
    nn::Unit,
};

impl Learner {
    /// Where the activations of a split's samples are to be found.
    pub(super) fn sought(&mut self, split: Split, boundary: Boundary, options: &LoaderOptions) -> Result<Vec<Sought>> {
        let clean = self.entry_key(boundary, &LoaderOptions::evaluation())?;
        let drawn = self.entry_key(boundary, options)?;
        let indices: Vec<u32> = (0..self.samples(split) as u32).collect();
        let identities = self.identities(split, &indices);
        let sought = indices.into_iter().zip(identities).map(|(index, identity)| {
            let Item { path, label } = &self.data.items(split)[index as usize];
            let entry = match &options.views {
                Some(views) if views.number(path) == 0 => clean,
                _ => drawn,
            };
            Sought { entry, row: self.row(split, index, identity, options), label: *label, index }
        });
        Ok(sought.collect())
    }

    /// What a sample's file is; `None` if it is gone: whether that is an error is for the loader to say.
    pub(super) fn identities(&self, split: Split, indices: &[u32]) -> Vec<Option<Key>> {
        let (items, root, content) = (self.data.items(split), self.data.root(), self.data.verifies_content());
        let identity = |index: &u32| {
            let path = &items[*index as usize].path;
            KeyBuilder::new("file").file(root, path, content).ok().map(|key| key.finish())
        };
        self.device.install(|| indices.par_iter().map(identity).collect())
    }

    /// The key of the view of a file that `options` shows.
    pub(super) fn row(&self, split: Split, index: u32, identity: Option<Key>, options: &LoaderOptions) -> Option<Key> {
        let view = match &options.views {
            Some(views) => match views.number(&self.data.items(split)[index as usize].path) {
                0 => return identity,
                number => format!("view {number}"),
            },
            None if options.augment => format!("epoch {}, position {index}", options.epoch),
            None => return identity,
        };
        identity.map(|identity| KeyBuilder::new("view").key(&identity).text(&view).finish())
    }

    /// Everything that decides activations beside the sample: the prefix's values and statistics, its architecture and
    /// its end, the numbers it computes with, the pipeline to the pixels, and what draws the views.
    pub(super) fn entry_key(&mut self, boundary: Boundary, options: &LoaderOptions) -> Result<Key> {
        let units = match boundary {
            Boundary::Units(units) => units,
            Boundary::Pool => self.model.backbone.units(),
        };
        let prefix = self.prefix_key(units)?;
        let mut key = KeyBuilder::new(&self.device.arithmetic());
        key.text(&self.model.precision().to_string());
        key.key(&prefix).text(self.model.arch().name()).text(&boundary.to_string());
        if boundary == Boundary::Pool {
            key.text(self.model.head.pool_name());
        }
        // What was left out as undecodable must not be left out in silence once that is an error.
        key.text(&format!("strict {}", self.data.is_strict()));
        let transforms = match (&options.views, options.augment) {
            (Some(Views { seed, generation, .. }), _) => {
                key.text(&format!("views of seed {seed}, generation {generation}"));
                self.transforms().clone()
            }
            (None, true) => {
                key.text(&format!("drawn by position from seed {}", options.seed));
                self.transforms().clone()
            }
            (None, false) => self.transforms().evaluation(),
        };
        Ok(key.text(&serde_json::json!(transforms).to_string()).finish())
    }

    /// Hash of the values and statistics of the backbone's first `units` units.
    fn prefix_key(&mut self, units: usize) -> Result<Key> {
        if let Some((of, key)) = self.backbone_key
            && of == units
        {
            return Ok(key);
        }
        let end = self.model.units()[units];
        let mut key = KeyBuilder::new("");
        let key = key.parameters(&self.model.backbone, |name| Unit::of(name) < end)?.finish();
        self.backbone_key = Some((units, key));
        Ok(key)
    }
}
