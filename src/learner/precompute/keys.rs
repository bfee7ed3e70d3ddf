//! What cached activations are named by.

use std::path::Path;

use rayon::prelude::*;

use super::Boundary;
use crate::{
    Device, Precision, Result,
    cache::{
        Key, KeyBuilder, Sought,
        store::{About, Stored},
    },
    data::{Item, LoaderOptions, Split, Transforms, Views},
    learner::Learner,
    nn::{Arch, Model, Unit, cost::Network},
};

/// Everything that decides activations beside the sample.
#[derive(Clone, Copy, Debug)]
pub(in crate::learner) struct Decisive<'a> {
    /// [What computes](crate::Device::arithmetic).
    pub arithmetic: &'a str,
    pub precision: Precision,
    /// Of the values and statistics of the prefix: [`prefix_key`].
    pub prefix: Key,
    pub arch: Arch,
    /// Where the prefix ends.
    pub boundary: Boundary,
    /// The name of the head's pool, of which only what comes out of it depends.
    pub pool: &'a str,
    /// The pipeline to the pixels, in training.
    pub transforms: &'a Transforms,
    /// Which views it shows.
    pub options: &'a LoaderOptions,
}

impl Decisive<'_> {
    /// The name of the entry.
    pub fn key(&self) -> Key {
        let Self { arithmetic, precision, prefix, arch, boundary, pool, transforms, options } = self;
        let mut key = KeyBuilder::new(arithmetic);
        key.text(&precision.to_string()).key(prefix).text(arch.name()).text(&boundary.to_string());
        if *boundary == Boundary::Pool {
            key.text(pool);
        }
        let transforms = match (&options.views, options.augment) {
            (Some(Views { seed, generation, .. }), _) => {
                key.text(&format!("views of seed {seed}, generation {generation}"));
                (*transforms).clone()
            }
            (None, true) => {
                key.text(&format!("drawn by position from seed {}", options.seed));
                (*transforms).clone()
            }
            (None, false) => transforms.evaluation(),
        };
        key.text(&serde_json::json!(transforms).to_string()).finish()
    }
}

/// Hash of the values and statistics of a backbone's first `units` units.
pub(in crate::learner) fn prefix_key(model: &Model, units: usize) -> Result<Key> {
    let end = model.units()[units];
    Ok(KeyBuilder::new("").parameters(&model.backbone, |name| Unit::of(name) < end)?.finish())
}

/// The key of the view of a file that `options` shows: `identity` is the file's, `index` its position.
pub(in crate::learner) fn row_key(identity: Key, path: &Path, index: u32, options: &LoaderOptions) -> Key {
    let view = match &options.views {
        Some(views) => match views.number(path) {
            0 => return identity,
            number => format!("view {number}"),
        },
        None if options.augment => format!("epoch {}, position {index}", options.epoch),
        None => return identity,
    };
    KeyBuilder::new("view").key(&identity).text(&view).finish()
}

/// What activations at `boundary` are, as `unfreeze cache list` shows it; `root` is the folder of the images.
pub(in crate::learner) fn about(
    model: &Model,
    device: &Device,
    transforms: &Transforms,
    root: &Path,
    boundary: Boundary,
) -> About {
    let (arch, size, precision) = (model.arch(), transforms.size, model.precision());
    let (name, dims) = match boundary {
        Boundary::Pool => (format!("{} pool", model.head.pool_name()), vec![model.head.inputs()]),
        Boundary::Units(units) => {
            let network = Network { arch, size, batch: 1, classes: model.head.classes(), precision };
            (model.units()[units - 1].to_string(), network.output(units).to_vec())
        }
    };
    let stored = match (boundary, precision) {
        (Boundary::Units(_), Precision::Bf16) => Stored::Bf16,
        _ => Stored::F32,
    };
    let computed = format!("{device}, {precision}");
    About { dims, stored, arch: arch.to_string(), boundary: name, size, computed, data: root.display().to_string() }
}

impl Learner {
    /// What the activations at a boundary are.
    pub(super) fn about(&self, boundary: Boundary) -> About {
        about(&self.model, &self.device, self.transforms(), self.data.root(), boundary)
    }

    /// Where the activations of a split's samples are to be found.
    pub(super) fn sought(&mut self, split: Split, boundary: Boundary, options: &LoaderOptions) -> Result<Vec<Sought>> {
        let clean = self.entry_key(boundary, &LoaderOptions::evaluation())?;
        let drawn = self.entry_key(boundary, options)?;
        let indices: Vec<u32> = (0..self.samples(split) as u32).collect();
        let rows = self.row_keys(split, &indices, options);
        let sought = indices.into_iter().zip(rows).map(|(index, row)| {
            let Item { path, label } = &self.data.items(split)[index as usize];
            let entry = match &options.views {
                Some(views) if views.number(path) == 0 => clean,
                _ => drawn,
            };
            Sought { entry, row, label: *label, index }
        });
        Ok(sought.collect())
    }

    /// The keys of samples as their files are now; `None` for one that is gone: whether that is an error is for the
    /// loader to say.
    pub(super) fn row_keys(&self, split: Split, indices: &[u32], options: &LoaderOptions) -> Vec<Option<Key>> {
        let (items, root, content) = (self.data.items(split), self.data.root(), self.data.verifies_content());
        let files = &self.files;
        let key = |index: &u32| {
            let path = &items[*index as usize].path;
            let identity = files.key(root, path, content).ok()?;
            Some(row_key(identity, path, *index, options))
        };
        self.device.install(|| indices.par_iter().map(key).collect())
    }

    /// The name of the entry that holds activations at `boundary` of the views that `options` shows.
    pub(super) fn entry_key(&mut self, boundary: Boundary, options: &LoaderOptions) -> Result<Key> {
        let units = match boundary {
            Boundary::Units(units) => units,
            Boundary::Pool => self.model.backbone.units(),
        };
        let prefix = match self.backbone_key {
            Some((of, key)) if of == units => key,
            _ => prefix_key(&self.model, units)?,
        };
        self.backbone_key = Some((units, prefix));
        let decisive = Decisive {
            arithmetic: &self.device.arithmetic(),
            precision: self.model.precision(),
            prefix,
            arch: self.model.arch(),
            boundary,
            pool: self.model.head.pool_name(),
            transforms: self.transforms(),
            options,
        };
        Ok(decisive.key())
    }
}
