//! A trained network that predicts.

use std::path::Path;

use super::{
    Evaluation, ModelFile,
    evaluation::{Tally, best, probabilities},
    feed::{Fed, Feed},
    metrics::{THRESHOLD, check_threshold},
    objective::pointwise,
};
use crate::{
    Device, Precision, Result,
    data::{Batch, Loader, RgbImage, Skipped, Targets, Task, Transforms, View, decode},
    nn::Model,
};

/// Classifies images. `&self` everywhere and `Send + Sync`: many threads may share one.
///
/// ```no_run
/// use unfreeze::prelude::*;
/// # fn main() -> unfreeze::Result<()> {
/// let classifier = Classifier::load("model.safetensors", Device::auto()?)?;
/// let prediction = classifier.predict_file("cat.jpg")?;
/// println!("{} ({:.1} %)", prediction.class, 100.0 * prediction.probability);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Classifier {
    model: Model,
    task: Task,
    threshold: f32,
    classes: Vec<String>,
    transforms: Transforms,
    device: Device,
}

/// What an image shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The most probable class, or label.
    pub class: String,
    /// Its probability.
    pub probability: f32,
    /// The probability of every class, in the order of [`Classifier::classes`]; of labels each its own, and for
    /// regression the numbers.
    pub probabilities: Vec<f32>,
    /// From which of them on a label is given.
    pub threshold: f32,
}

impl Prediction {
    /// That of probabilities, one for each of `classes`; of equal ones the first decides.
    pub fn new(classes: &[String], probabilities: Vec<f32>) -> Self {
        let best = best(&probabilities);
        let class = classes.get(best).cloned().unwrap_or_default();
        let probability = probabilities.get(best).copied().unwrap_or_default();
        Self { class, probability, probabilities, threshold: THRESHOLD }
    }

    /// With labels given from `threshold` on, not from 0.5.
    pub fn at_threshold(self, threshold: f32) -> Self {
        Self { threshold, ..self }
    }

    /// Positions of the labels that are given.
    pub fn given(&self) -> Vec<usize> {
        (0..self.probabilities.len()).filter(|label| self.probabilities[*label] >= self.threshold).collect()
    }

    /// Positions of the `k` most probable classes, the most probable first.
    pub fn top(&self, k: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.probabilities.len()).collect();
        order.sort_by(|&a, &b| self.probabilities[b].total_cmp(&self.probabilities[a]));
        order.truncate(k);
        order
    }
}

impl Classifier {
    /// Loads a model file.
    ///
    /// # Errors
    /// As [`ModelFile::load`].
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let ModelFile { model, task, threshold, classes, transforms } = ModelFile::load(path, &device)?;
        Ok(Self { model, task, threshold, classes, transforms, device })
    }

    /// The probability from which on a label is given. Default: the one that the model was trained with.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if it is not between 0 and 1, or the task is not
    /// [multi-label](Task::MultiLabel).
    pub fn label_threshold(mut self, threshold: f32) -> Result<Self> {
        check_threshold(threshold, self.task)?;
        self.threshold = threshold;
        Ok(self)
    }

    /// Chooses what the network computes with. Default: f32.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if the device cannot compute with it.
    pub fn precision(mut self, precision: Precision) -> Result<Self> {
        self.model.set_precision(precision)?;
        Ok(self)
    }

    /// What it tells of an image.
    pub fn task(&self) -> Task {
        self.task
    }

    /// The probability from which on a label is given.
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Names of the classes; of labels or numbers for other tasks than single labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The network.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// From image to network input.
    pub fn transforms(&self) -> &Transforms {
        &self.transforms
    }

    /// What it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Classifies one image.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if the image has no pixels.
    pub fn predict(&self, image: &RgbImage) -> Result<Prediction> {
        let mut batch = Batch::default();
        batch.push(self.transforms.prepare(image, View::Clean)?, 0, 0);
        let mut predictions = self.predict_batch(&batch)?;
        Ok(predictions.remove(0))
    }

    /// Decodes and classifies one file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::Image`](crate::Error::Image) if it cannot be read.
    pub fn predict_file(&self, path: impl AsRef<Path>) -> Result<Prediction> {
        self.predict(&decode(path)?)
    }

    /// Measures the model on the images of `loader`; `failed` is told of those that cannot be decoded. For other tasks
    /// than single labels `targets` are what the labels of its items name; without, nothing is measured but predicted.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if none can be; in strict mode the error of the first.
    pub fn evaluate(
        &self,
        loader: Loader,
        targets: Option<&Targets>,
        mut failed: impl FnMut(&Skipped),
    ) -> Result<Evaluation> {
        let mut tally = Tally::new(self.task, self.threshold, pointwise(self.task), targets);
        let mut feed = Feed::new(loader, &self.transforms, &self.device, self.model.precision());
        while let Some(fed) = feed.next() {
            let Fed { batch, images } = fed?;
            batch.failed.iter().for_each(&mut failed);
            if let Some(images) = images {
                let logits = self.model.logits(&images)?;
                drop(images);
                feed.prefetch();
                tally.add(logits, batch.labels, batch.indices)?;
            }
        }
        tally.finish("the images")
    }

    /// Classifies the samples of a batch, in order.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if they are too small for the model;
    /// [`Error::Device`](crate::Error::Device).
    pub fn predict_batch(&self, batch: &Batch) -> Result<Vec<Prediction>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let images = batch.upload(&self.transforms, &self.device, self.model.precision())?;
        let logits = self.model.logits(&images)?;
        let probabilities = probabilities(self.task, &logits)?;
        let prediction = |row: &[f32]| Prediction::new(&self.classes, row.to_vec()).at_threshold(self.threshold);
        Ok(probabilities.chunks_exact(self.classes.len()).map(prediction).collect())
    }
}
