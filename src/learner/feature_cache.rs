//! What a trained classifier's backbone makes of images, from the cache of the training that left it as it was.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;

use super::{
    Classifier, Evaluation,
    evaluation::Tally,
    feed::{Fed, Feed},
    objective::pointwise,
    precompute::{Boundary, Decisive, about, prefix_key, row_key},
};
use crate::{
    Result, Tensor,
    autograd::Var,
    cache::{
        FileKeys, Key,
        store::{Entry, Store},
    },
    data::{Item, Loader, LoaderOptions, Skipped, Targets, Transforms, batches},
    nn::Pass,
};

/// Images in an order, each at most once, and which views of them are shown.
#[derive(Clone, Debug)]
pub struct Selection {
    /// All images.
    pub items: Arc<[Item]>,
    /// From file to pixels.
    pub transforms: Transforms,
    /// Numbers of the images that are shown.
    pub order: Vec<u32>,
    /// Images per batch.
    pub batch_size: usize,
    /// The views.
    pub options: LoaderOptions,
}

impl Selection {
    /// Goes through them once.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn loader(&self) -> Result<Loader> {
        self.loader_of(self.order.clone())
    }

    fn loader_of(&self, order: Vec<u32>) -> Result<Loader> {
        Loader::new(self.items.clone(), &self.transforms, order, self.batch_size, &self.options)
    }
}

/// The pooled features of images that a [`Classifier`] would compute, looked up where training keeps them.
///
/// The key is that of training: a model file holds the backbone's values and statistics to the bit, and the part of the
/// transforms that decides the clean view; architecture, pool, device and precision are the classifier's own. A backbone
/// that was trained after its activations were computed has other values, and with its other key finds nothing that is
/// not its own.
///
/// ```no_run
/// use unfreeze::{cache::store::Store, data::LoaderOptions, learner::{FeatureCache, Selection}, prelude::*};
/// # fn with(data: ImageData, folder: &std::path::Path) -> unfreeze::Result<()> {
/// let classifier = Classifier::load("run/model.safetensors", Device::auto()?)?;
/// let cache = FeatureCache::new(&classifier, Store::at(folder)?, data.root(), false)?;
/// let items = data.items(Split::Valid).clone();
/// let valid = Selection {
///     order: (0..items.len() as u32).collect(),
///     items,
///     transforms: classifier.transforms().clone(),
///     batch_size: 64,
///     options: LoaderOptions::evaluation(),
/// };
/// println!("{:.4}", cache.evaluate(&valid, None, |_| ())?.accuracy);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FeatureCache<'a> {
    classifier: &'a Classifier,
    store: Store,
    prefix: Key,
    root: PathBuf,
    verify_content: bool,
    adds: bool,
    files: FileKeys,
    notes: Mutex<Notes>,
}

/// What is to be said, each thing once.
#[derive(Debug, Default)]
struct Notes {
    all: Vec<String>,
    /// How many of them were taken.
    taken: usize,
}

impl<'a> FeatureCache<'a> {
    /// Looks features of this classifier up in `store`, and adds none. `root` is the folder that training named the
    /// images relative to; `verify_content` tells whether it [looked at all of their
    /// bytes](crate::data::ImageData::verify_content).
    ///
    /// # Errors
    /// Those of fetching parameters from their device.
    pub fn new(
        classifier: &'a Classifier,
        store: Store,
        root: impl Into<PathBuf>,
        verify_content: bool,
    ) -> Result<Self> {
        Ok(Self {
            classifier,
            store,
            prefix: prefix_key(classifier.model(), classifier.model().backbone.units())?,
            root: root.into(),
            verify_content,
            adds: false,
            files: FileKeys::default(),
            notes: Mutex::default(),
        })
    }

    /// Whether features that have to be computed are added. Default: false, as those of a backbone that was fine-tuned
    /// are of use to this one model only.
    pub fn adds(self, adds: bool) -> Self {
        Self { adds, ..self }
    }

    /// What is to be said of the store since this was last asked: what was damaged, or why nothing is kept.
    pub fn take_notes(&self) -> Vec<String> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let new = notes.all[notes.taken..].to_vec();
        notes.taken = notes.all.len();
        new
    }

    fn note(&self, notes: impl IntoIterator<Item = String>) {
        let mut told = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for note in notes {
            if !told.all.contains(&note) {
                told.all.push(note);
            }
        }
    }

    /// As [`Classifier::evaluate`], with the same result: images whose features are not there are computed. A store
    /// that cannot be used costs a [note](Self::take_notes).
    ///
    /// # Errors
    /// As [`Classifier::evaluate`].
    pub fn evaluate(
        &self,
        selection: &Selection,
        targets: Option<&Targets>,
        mut failed: impl FnMut(&Skipped),
    ) -> Result<Evaluation> {
        let classifier = self.classifier;
        let mut entry = match self.entry(selection) {
            Ok(entry) => entry,
            Err(error) => {
                self.note([format!("no cached activations are used: {error}")]);
                return classifier.evaluate(selection.loader()?, targets, failed);
            }
        };
        let order = &selection.order;
        let keys = self.keys(selection, order);
        let known = known(&entry, &keys)?;
        self.note(entry.notes());
        let missing: Vec<u32> =
            order.iter().zip(&known).filter(|(_, row)| row.is_none()).map(|(index, _)| *index).collect();
        if missing.len() == order.len() && !self.adds {
            return classifier.evaluate(selection.loader()?, targets, failed);
        }

        let (model, device) = (classifier.model(), classifier.device());
        let mut feed = Feed::new(selection.loader_of(missing)?, &selection.transforms, device, model.precision());
        let mut tally = Tally::new(classifier.task(), classifier.threshold(), pointwise(classifier.task()), targets);
        let width = model.head.inputs();
        let mut adds = self.adds;
        // How many of the missing were asked for, and came.
        let (mut asked, mut done) = (0, 0);
        let expected: HashSet<Key> = keys.into_iter().flatten().collect();
        let mut computed: HashMap<u32, Vec<f32>> = HashMap::new();
        for range in batches(order.len(), selection.batch_size) {
            asked += known[range.clone()].iter().filter(|row| row.is_none()).count();
            while done < asked {
                let Some(fed) = feed.next() else { break };
                let Fed { batch, images } = fed?;
                done += batch.len() + batch.failed.len();
                batch.failed.iter().for_each(&mut failed);
                let Some(images) = images.map(Var::constant) else { continue };
                let features = model.features(&mut Pass::evaluation(), &images)?;
                drop(images);
                feed.prefetch();
                let features = features.value().to_vec::<f32>()?;
                if adds {
                    // A file that has changed meanwhile may have been read as it was, or as it is.
                    let now = self.keys(selection, &batch.indices);
                    let unchanged = now.into_iter().zip(features.chunks(width)).filter_map(|(key, features)| {
                        key.filter(|key| expected.contains(key)).map(|key| (key, features))
                    });
                    let (keys, rows): (Vec<Key>, Vec<&[f32]>) = unchanged.unzip();
                    adds = self.kept(entry.append(&keys, &rows.concat()));
                }
                computed.extend(batch.indices.into_iter().zip(features.chunks(width).map(<[f32]>::to_vec)));
            }
            let (mut values, mut labels, mut indices) = (Vec::new(), Vec::new(), Vec::new());
            for (&index, row) in order[range.clone()].iter().zip(&known[range]) {
                match (row, computed.remove(&index)) {
                    (Some(row), _) => {
                        let end = values.len();
                        values.resize(end + width, 0.0);
                        entry.read(*row, &mut values[end..])?;
                    }
                    (None, Some(features)) => values.extend(features),
                    (None, None) => continue,
                }
                labels.push(selection.items[index as usize].label);
                indices.push(index);
            }
            if !labels.is_empty() {
                let batch = Var::constant(Tensor::new(values, [labels.len(), width], device)?);
                let logits = model.head.classify(&mut Pass::evaluation(), &batch)?;
                tally.add(logits.into_value(), labels, indices)?;
            }
        }
        if adds {
            self.kept(entry.flush());
        }
        tally.finish("the images")
    }

    fn entry(&self, selection: &Selection) -> Result<Entry> {
        let (classifier, model) = (self.classifier, self.classifier.model());
        let decisive = Decisive {
            arithmetic: &classifier.device().arithmetic(),
            precision: model.precision(),
            prefix: self.prefix,
            arch: model.arch(),
            boundary: Boundary::Pool,
            pool: model.head.pool_name(),
            transforms: &selection.transforms,
            options: &selection.options,
        };
        let about = about(model, classifier.device(), &selection.transforms, &self.root, Boundary::Pool);
        self.store.entry(&decisive.key(), &about)
    }

    /// The keys of images as their files are now.
    fn keys(&self, selection: &Selection, indices: &[u32]) -> Vec<Option<Key>> {
        let key = |index: &u32| {
            let path = &selection.items.get(*index as usize)?.path;
            let identity = self.files.key(&self.root, path, self.verify_content).ok()?;
            Some(row_key(identity, path, *index, &selection.options))
        };
        self.classifier.device().install(|| indices.par_iter().map(key).collect())
    }

    /// Whether what was added is kept, and more may be.
    fn kept(&self, outcome: Result<()>) -> bool {
        if let Err(error) = &outcome {
            self.note([format!("activations are not kept: {error}")]);
        }
        outcome.is_ok()
    }
}

/// The rows under `keys`, for those that are there and whole, and so can be read from here on.
fn known(entry: &Entry, keys: &[Option<Key>]) -> Result<Vec<Option<u32>>> {
    let mut values = vec![0.0; entry.elements()];
    let row = |key: &Option<Key>| {
        let Some(row) = key.as_ref().and_then(|key| entry.find(key)) else { return Ok(None) };
        Ok(entry.read(row, &mut values)?.then_some(row))
    };
    keys.iter().map(row).collect()
}
