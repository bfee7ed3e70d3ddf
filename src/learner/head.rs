//! Steps of a linear head on cached activations: so small that many of them are made at once, by a GPU in one launch.

use crate::{
    Device, Error, Result,
    cache::Activations,
    nn::{HeadSpec, Model},
    ops::{
        head_trainer::{self, EXACT_ROWS, Samples, Steps},
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
    /// Most steps at once, after which the host hears of them.
    pub const MOST: usize = 64;

    /// Multiplications after which a processor lets itself be heard.
    const MULTIPLICATIONS: usize = 1 << 28;

    /// How many steps of so many samples can be made at once: of a linear head, where the device has the pooled features
    /// in its memory; none if not.
    pub fn possible(model: &Model, activations: &Activations, batch_size: usize) -> usize {
        if activations.dims().len() != 1 || *model.head.spec() != HeadSpec::Linear {
            return 0;
        }
        match model.device() {
            device @ Device::Cuda(_) => {
                let resident = activations.resident().is_some_and(|(features, _)| features.device().is(device));
                if resident && batch_size <= EXACT_ROWS { Self::MOST } else { 0 }
            }
            Device::Cpu(_) if activations.are_slices() => {
                let step = batch_size.saturating_mul(activations.dims()[0] * model.head.classes());
                (Self::MULTIPLICATIONS / step.max(1)).clamp(1, Self::MOST)
            }
            Device::Cpu(_) => 0,
        }
    }

    /// Makes a step for each of `batches`, rows of the activations, with its learning rate of `lrs` and its momentum, or
    /// β₁, of `momenta`; the loss of each. A processor ends with the first whose loss is not finite, which moves nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] where batches are empty, or rates and batches differ in number;
    /// [`Error::Device`] where such steps are [not possible](Self::possible); [`Error::OutOfMemory`].
    pub fn run(self, batches: &[Vec<u32>], lrs: &[f32], momenta: &[f32]) -> Result<Vec<f32>> {
        let Self { model, optimizer, loss, activations, weight_decay } = self;
        let most = batches.iter().map(Vec::len).max().unwrap_or_default();
        let labels = batches.iter().flatten().filter_map(|row| activations.labels().get(*row as usize)).copied();
        check_labels(&labels.collect::<Vec<u32>>(), model.head.classes())?;
        // The norm of the gradients is known when all of them are.
        let possible = Self::possible(model, activations, most) > 0 && !optimizer.clips();
        let rules = momenta.iter().enumerate().map(|(ahead, momentum)| optimizer.next_rule(ahead, *momentum));
        let rules: Vec<Rule> = rules.collect();
        let weight_decays = [weight_decay, optimizer.vector_decay(weight_decay)];
        let steps = Steps { batches, lrs, weight_decays, rules: &rules };
        let device = model.device().to_string();
        match model.head.linear_mut() {
            Some(head) if possible => optimizer.head_steps(head, |head| match activations.resident() {
                Some((features, labels)) => {
                    head_trainer::train(head, Samples { features, labels }, steps, loss)?.to_vec()
                }
                None => {
                    let extents = [activations.rows(), activations.dims()[0]];
                    let sample = |row| (activations.slice(row), activations.labels()[row as usize]);
                    head_trainer::train_rows(head, extents, sample, steps, loss)
                }
            }),
            _ => Err(Error::Device {
                device,
                message: format!(
                    "many steps are made at once for a linear head, activations in the device's memory, on a GPU batches \
                     of at most {EXACT_ROWS}, and gradients of any norm; make them one by one"
                ),
            }),
        }
    }
}
