//! Steps of a linear head on cached activations: so small that a GPU makes many of them in one launch.

use crate::{
    Device, Error, Result,
    cache::Activations,
    nn::{HeadSpec, Model},
    ops::{
        head_trainer::{EXACT_ROWS, Samples, Steps},
        loss::{CrossEntropy, check_labels},
        optimizer::Rule,
    },
    optim::Optimizer,
};

/// What such steps train, and on what. They end on the same bits as steps one by one.
pub struct HeadSteps<'a> {
    /// The network, of which the head alone is trained.
    pub model: &'a mut Model,
    /// What moves it.
    pub optimizer: &'a mut Optimizer,
    /// The loss; class weights lie on the network's device.
    pub loss: &'a CrossEntropy,
    /// What is learned from.
    pub activations: &'a Activations,
    /// The head's.
    pub weight_decay: f32,
}

impl HeadSteps<'_> {
    /// Most steps of one launch, after which the host hears of them.
    pub const MOST: usize = 64;

    /// Whether steps of so many samples can be made so: of a linear head, on a GPU that holds the pooled
    /// features.
    pub fn are_possible(model: &Model, activations: &Activations, batch_size: usize) -> bool {
        let device = model.device();
        matches!(device, Device::Cuda(_))
            && activations.resident().is_some_and(|(features, _)| features.device().is(device))
            && activations.dims().len() == 1
            && *model.head.spec() == HeadSpec::Linear
            && batch_size <= EXACT_ROWS
    }

    /// Makes a step for each of `batches`, rows of the activations, with its learning rate of `lrs` and its momentum, or
    /// β₁, of `momenta`; the loss of each.
    ///
    /// # Errors
    /// [`Error::Shape`] where batches are empty, or rates and batches differ in number;
    /// [`Error::Device`] where such steps are [not possible](Self::are_possible); [`Error::OutOfMemory`].
    pub fn run(self, batches: &[Vec<u32>], lrs: &[f32], momenta: &[f32]) -> Result<Vec<f32>> {
        let Self { model, optimizer, loss, activations, weight_decay } = self;
        let most = batches.iter().map(Vec::len).max().unwrap_or_default();
        let labels = batches.iter().flatten().filter_map(|row| activations.labels().get(*row as usize)).copied();
        check_labels(&labels.collect::<Vec<u32>>(), model.head.classes())?;
        // The norm of the gradients is known when all of them are.
        let possible = Self::are_possible(model, activations, most) && !optimizer.clips();
        let samples = activations.resident().map(|(features, labels)| Samples { features, labels });
        let rules = momenta.iter().enumerate().map(|(ahead, momentum)| optimizer.next_rule(ahead, *momentum));
        let rules: Vec<Rule> = rules.collect();
        let weight_decays = [weight_decay, optimizer.vector_decay(weight_decay)];
        let steps = Steps { batches, lrs, weight_decays, rules: &rules };
        match (model.head.linear_mut(), samples) {
            (Some(head), Some(samples)) if possible => optimizer.head_steps(head, samples, steps, loss)?.to_vec(),
            _ => Err(Error::Device {
                device: model.device().to_string(),
                message: format!(
                    "many steps go into one launch for a linear head, activations that a GPU holds, batches of at most \
                     {EXACT_ROWS} and gradients of any norm; make them one by one"
                ),
            }),
        }
    }
}
