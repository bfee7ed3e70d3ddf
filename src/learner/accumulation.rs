//! Steps on the gradients of several batches.

use std::{collections::btree_map::Entry, sync::Arc};

use super::{
    Input, Labels, Learner, Objective,
    step::loss,
    train::{Made, Source, State},
};
use crate::{Device, Result, Tensor, autograd::ParameterGradients, nn::Pass, ops::batchnorm::Moments};

/// Where the number of a batch within its step begins, in the number that decides what is dropped.
const PART: u32 = 48;

/// What the batches of a step add up to.
#[derive(Default)]
struct Sums {
    /// Of the batches' losses, each times its samples.
    gradients: ParameterGradients,
    /// What each batch's batchnorms met.
    statistics: Vec<Vec<(Arc<str>, Moments)>>,
    /// Loss of each batch, and its samples.
    losses: Vec<(Tensor, usize)>,
}

impl Learner {
    /// Makes step `number` of a fit on as many of the next batches as its options say, or as there are; `None` if none
    /// of them is of use.
    pub(super) fn make_accumulated(
        &mut self,
        source: &mut Source,
        state: &mut State,
        number: usize,
    ) -> Result<Option<Made>> {
        let (mut sums, mut first, moves) = (Sums::default(), None, state.moves(number));
        for part in 0..state.options.accumulate as u64 {
            let Some((input, labels)) = self.next_batch(source)? else { continue };
            let first = match first {
                Some(first) => first,
                None => *first.insert(self.begin_step()?),
            };
            let (number, samples) = (first | part << PART, labels.samples(self.model.head.classes()));
            let (input, labels) = self.mixed(input, labels, &state.options, number)?;
            let not_finite = self.add_up(&input, labels, samples, number, &mut sums)?;
            source.prefetch();
            if let Some(loss) = not_finite {
                let cause = self.cause(&input, number)?;
                return Ok(Some(Made { loss, samples, moves, cause }));
            }
        }
        let samples: usize = sums.losses.iter().map(|(_, samples)| samples).sum();
        if samples == 0 {
            return Ok(None);
        }
        let (model, gradients, decays) = (&mut self.model, &sums.gradients, &state.weight_decays);
        let factor = 1.0 / samples as f32;
        state.optimizer.step_scaled(model, gradients, &moves.lrs, decays, moves.momentum, factor)?;
        sums.statistics.into_iter().try_for_each(|statistics| self.model.update_statistics(statistics))?;
        self.follow(state.options.ema)?;
        let mut loss = 0.0;
        for (of_batch, samples) in &sums.losses {
            loss += f64::from(of_batch.scalar()?) * *samples as f64;
        }
        Ok(Some(Made { loss: (loss / samples as f64) as f32, samples, moves, cause: None }))
    }

    /// Adds a batch to `sums`; its loss if that is not finite, as far as that is known: to ask a GPU would be to wait
    /// for it.
    fn add_up(
        &self,
        input: &Input,
        labels: Labels,
        samples: usize,
        number: u64,
        sums: &mut Sums,
    ) -> Result<Option<f32>> {
        let target = labels.target(self.model.head.classes(), &self.device)?;
        let mut pass = Pass::training(self.seed, number);
        let loss = loss(&self.model, &mut pass, input, &target, Objective::of(&self.loss, self.pointwise))?;
        let value = loss.value().clone();
        if let Device::Cpu(_) = self.device
            && let Some(value) = Some(value.scalar()?).filter(|value| !value.is_finite())
        {
            return Ok(Some(value));
        }
        sums.losses.push((value, samples));
        sums.statistics.push(pass.take_statistics());
        let seed = Tensor::full([], samples as f32, &self.device)?;
        for (name, gradient) in pass.tape.backward_from(&loss, seed)? {
            match sums.gradients.entry(name) {
                Entry::Occupied(mut sum) => sum.get_mut().add_assign(&gradient)?,
                Entry::Vacant(place) => {
                    place.insert(gradient);
                }
            }
        }
        Ok(None)
    }
}
