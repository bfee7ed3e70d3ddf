//! The records of a run: an epoch is a line of `history.jsonl`, a step of `steps.jsonl`, a validation sample of
//! `predictions.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What an epoch did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Name of the fit, such as `head`.
    pub phase: String,
    /// Epoch of the fit, from 0.
    pub epoch: usize,
    /// Loss averaged over the training samples, in training mode.
    pub train_loss: f32,
    /// Loss on the validation set.
    pub valid_loss: f32,
    /// Metrics on the validation set, such as `accuracy`.
    pub metrics: BTreeMap<String, f32>,
    /// Learning rate of each layer group at the epoch's last step; 0 for frozen groups.
    pub lrs: Vec<f32>,
    /// Wall time of training and validation, the filling of the cache included.
    pub seconds: f64,
    /// Training samples per second of the training part.
    pub images_per_second: f64,
    /// Where it ran.
    pub device: String,
    /// Whether it trained on cached activations.
    pub cached: bool,
}

impl EpochRecord {
    /// One line of JSON, numbers as short as they read back exactly.
    pub fn to_json(&self) -> String {
        // A struct of numbers, strings and lists always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What was measured on the validation set beside the accuracy, by name.
    pub fn other_metrics(&self) -> impl Iterator<Item = (&str, f32)> {
        self.metrics.iter().map(|(name, value)| (name.as_str(), *value)).filter(|(name, _)| *name != "accuracy")
    }

    /// The accuracy on the validation set; no number where there is none.
    pub fn accuracy(&self) -> f32 {
        self.metrics.get("accuracy").copied().unwrap_or(f32::NAN)
    }
}

/// What a training step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Name of the fit, such as `head`.
    pub phase: String,
    /// Epoch of the fit, from 0.
    pub epoch: usize,
    /// Step of the epoch, from 0.
    pub step: usize,
    /// Loss of its batch.
    pub loss: f32,
    /// Learning rate of each layer group; 0 for frozen groups.
    pub lrs: Vec<f32>,
    /// Momentum, the same for all groups.
    pub momentum: f32,
}

impl StepRecord {
    /// One line of JSON, numbers as short as they read back exactly.
    pub fn to_json(&self) -> String {
        // A struct of numbers, strings and lists always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What the network says of a validation sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictionRecord {
    /// The file, relative to the data folder where it lies within.
    pub file: String,
    /// Position of its class among the run's classes; 0 for other tasks than single labels.
    pub label: u32,
    /// Probability of each class or label, or the numbers.
    pub probabilities: Vec<f32>,
    /// For other tasks than single labels what they should be: 1 for labels that hold, or the numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<f32>,
}

impl PredictionRecord {
    /// One line of JSON, numbers as short as they read back exactly.
    pub fn to_json(&self) -> String {
        // A struct of numbers, strings and lists always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The probability of a class; 0 of one that there is not.
    pub fn probability(&self, class: usize) -> f32 {
        self.probabilities.get(class).copied().unwrap_or_default()
    }

    /// Its part of the cross entropy, the probability being taken for no less than the smallest normal f32.
    pub fn loss(&self) -> f32 {
        // Not negated: of a certainty the loss is 0, not −0.
        0.0 - self.probability(self.label as usize).max(f32::MIN_POSITIVE).ln()
    }

    /// Position of the most probable class, the first of equals.
    pub fn predicted(&self) -> usize {
        super::evaluation::best(&self.probabilities)
    }
}
