//! Activations of the frozen backbone, from the cache or computed.

use std::sync::Arc;

use super::{Event, Learner, feed::Fed};
use crate::{
    Result,
    autograd::Var,
    cache::{Activations, Key, KeyBuilder},
    data::{Batch, LoaderOptions, Split},
    nn::Pass,
};

impl Learner {
    /// The clean view's features of every sample of `split`, computed if the cache does not have them.
    pub(super) fn activations(&mut self, split: Split) -> Result<Arc<Activations>> {
        if *self.transforms() != self.transforms().evaluation() {
            self.note("precompute is on: the head trains on clean views, augmentation has no effect".into())?;
        }
        let key = self.activation_key(split)?;
        if let Some(found) = self.cache.get(&key) {
            return Ok(found);
        }
        let total = self.samples(split);
        self.check_memory(self.data.batch_size.min(total), false)?;
        let mut activations = Activations::default();
        let mut done = 0;
        let mut feed = self.feed(split, LoaderOptions::evaluation())?;
        while let Some(fed) = feed.next() {
            self.cancel.check()?;
            let Fed { batch, images } = fed?;
            done += batch.len() + batch.failed.len();
            self.report_failures(&batch)?;
            if let Some(images) = images.map(Var::constant) {
                let features = self.model.features(&mut Pass::evaluation(), &images)?;
                drop(images);
                feed.prefetch();
                activations.push(features.value(), &batch.labels, &batch.indices)?;
            }
            self.tell(&Event::Caching { split, done, total })?;
        }
        activations.keep_on(&self.device)?;
        Ok(self.cache.insert(key, activations))
    }

    /// Everything that decides the features: the backbone's values and statistics, its architecture, the pool, the
    /// clean pipeline, and the files.
    fn activation_key(&mut self, split: Split) -> Result<Key> {
        let backbone = match self.backbone_key {
            Some(key) => key,
            None => {
                let key = KeyBuilder::new(&self.device.to_string()).parameters(&self.model.backbone)?.finish();
                *self.backbone_key.insert(key)
            }
        };
        let mut key = KeyBuilder::new(&self.device.to_string());
        key.text(&self.model.precision().to_string());
        key.key(&backbone).text(self.model.arch().name()).text(self.model.head.pool_name());
        key.text(&serde_json::json!(self.transforms().evaluation()).to_string());
        // What was left out as undecodable must not be left out in silence once that is an error.
        key.text(&format!("strict {}", self.data.is_strict()));
        for item in self.data.items(split).iter() {
            // A file that is gone has no identity; whether that is an error is for the loader to say.
            if key.file(&item.path).is_err() {
                key.text("gone");
            }
            key.text(&item.label.to_string());
        }
        Ok(key.finish())
    }

    /// Tells of files that could not be decoded, each once.
    pub(super) fn report_failures(&mut self, batch: &Batch) -> Result<()> {
        batch.failed.iter().try_for_each(|failed| self.note(format!("skipped {failed}")))
    }
}
