//! What a loader yields, and how it is asked.

use super::{Prepared, Skipped, Transforms, Views};
use crate::ops::augment::{Patch, augment};
use crate::{Device, Precision, Result, Tensor};

/// How a [`Loader`](super::Loader) goes through a split.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Decides the shuffling and augmentation, together with `epoch`. Default: 0.
    pub seed: u64,
    /// Which pass this is, or which of several views. Default: 0.
    pub epoch: u64,
    /// Samples in random order, not that of the files. Default: false.
    pub shuffle: bool,
    /// Samples drawn with replacement by [`weighted`](super::weighted), each class as often as any other; goes before
    /// `shuffle`. Default: false.
    pub weighted: bool,
    /// Random views, not clean ones, drawn anew for each `epoch` and position. Default: false.
    pub augment: bool,
    /// One of a fixed number of views of each file, whatever `augment` says. Default: none.
    pub views: Option<Views>,
    /// Threads that decode; 0 stands for one per core. Default: 0.
    pub workers: usize,
    /// Batches that may be decoded ahead of the one asked for. Default: 2.
    pub prefetch: usize,
    /// Makes an image that cannot be decoded an error. Default: false, it is left out of its batch.
    pub strict: bool,
    /// Leaves the lookup of a view's pixels to the device: for GPUs. Default: false, the threads that decode finish it.
    pub patches: bool,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            epoch: 0,
            shuffle: false,
            weighted: false,
            augment: false,
            views: None,
            workers: 0,
            prefetch: 2,
            strict: false,
            patches: false,
        }
    }
}

impl LoaderOptions {
    /// Shuffled and augmented: a training pass.
    pub fn training(seed: u64, epoch: u64) -> Self {
        Self { seed, epoch, shuffle: true, augment: true, ..Self::default() }
    }

    /// In order and clean.
    pub fn evaluation() -> Self {
        Self::default()
    }

    /// With as many threads as `device` has, and the work shared with it as suits it.
    pub fn on(self, device: &Device) -> Self {
        Self { workers: device.threads(), patches: matches!(device, Device::Cuda(_)), ..self }
    }
}

/// Samples that go through the network together, `n` of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Pixels of each sample; finished pictures, unless [`LoaderOptions::patches`] asked otherwise.
    pub patches: Vec<Patch>,
    /// Gain and offset of each sample's [`Lighting`](super::Lighting).
    pub lighting: Vec<[f32; 2]>,
    /// Class of each sample; 0 where it is not known.
    pub labels: Vec<u32>,
    /// Position of each sample in its split.
    pub indices: Vec<u32>,
    /// Samples that belong here but could not be decoded, and are left out.
    pub failed: Vec<Skipped>,
}

impl Batch {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if every sample of the batch failed.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Adds a sample.
    pub fn push(&mut self, sample: Prepared, label: u32, index: u32) {
        self.patches.push(sample.patch);
        self.lighting.push([sample.lighting.gain, sample.lighting.offset]);
        self.labels.push(label);
        self.indices.push(index);
    }

    /// The input of a network of this precision on `device`, lit, and normalised as `transforms` says: f32
    /// `[n, size, size, 3]`; for TF32 and bf16 `[n, size, size, 4]` of f32 and bf16, the fourth channel zero.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for another precision than f32 on a processor;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn upload(&self, transforms: &Transforms, device: &Device, precision: Precision) -> Result<Tensor> {
        augment(&self.patches, &self.lighting, transforms.mean, transforms.std, precision, device)
    }
}
