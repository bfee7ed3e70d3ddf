//! Batches of images on their way into the network.

use super::Learner;
use crate::{
    Device, Precision, Result, Tensor,
    data::{Batch, Loader, LoaderOptions, Split, Transforms},
};

/// The batches of a loader with their images on the device.
///
/// A GPU works on what it was given while the host goes on: [`Feed::prefetch`], called between the two, has the next
/// batch decoded and uploaded meanwhile. Whatever comes of that shows when the batch is asked for.
pub(super) struct Feed {
    loader: Loader,
    transforms: Transforms,
    device: Device,
    precision: Precision,
    /// What [`Iterator::next`] will return, where that is known already.
    ahead: Option<Option<Result<Fed>>>,
}

/// A batch, and its images as the network takes them; `None` if all samples failed.
pub(super) struct Fed {
    pub batch: Batch,
    pub images: Option<Tensor>,
}

impl Learner {
    /// The images of a split, read with as many threads as compute.
    pub(super) fn feed(&self, split: Split, options: LoaderOptions) -> Result<Feed> {
        let loader = self.data.loader(split, &options.on(&self.device))?;
        Ok(Feed::new(loader, self.transforms(), &self.device, self.model.precision()))
    }

    /// As [`Learner::feed`], of the samples that are numbered in `order`.
    pub(super) fn feed_of(&self, split: Split, order: Vec<u32>, options: &LoaderOptions) -> Result<Feed> {
        let loader = self.data.loader_of(split, order, &options.clone().on(&self.device))?;
        Ok(Feed::new(loader, self.transforms(), &self.device, self.model.precision()))
    }
}

impl Feed {
    pub fn new(loader: Loader, transforms: &Transforms, device: &Device, precision: Precision) -> Self {
        Self { loader, transforms: transforms.clone(), device: device.clone(), precision, ahead: None }
    }

    /// Gets the next batch ready.
    pub fn prefetch(&mut self) {
        if self.ahead.is_none() {
            self.ahead = Some(self.fetch());
        }
    }

    /// Batches that are left.
    pub fn len(&self) -> usize {
        self.loader.len() + usize::from(matches!(self.ahead, Some(Some(_))))
    }

    fn fetch(&mut self) -> Option<Result<Fed>> {
        let batch = self.loader.next()?;
        Some(batch.and_then(|mut batch| {
            let upload = || batch.upload(&self.transforms, &self.device, self.precision);
            let images = (!batch.is_empty()).then(upload).transpose()?;
            // The device has them.
            batch.patches = Vec::new();
            Ok(Fed { batch, images })
        }))
    }
}

impl Iterator for Feed {
    type Item = Result<Fed>;

    fn next(&mut self) -> Option<Result<Fed>> {
        self.ahead.take().unwrap_or_else(|| self.fetch())
    }
}
