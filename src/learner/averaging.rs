//! Averages of weights over a fit: the exponential moving average of its steps, and stochastic weight averaging over
//! its epochs or cycles.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr, sync::Arc};

use super::{Fit, Learner};
use crate::{
    Error, Result, Tensor,
    autograd::{Parameter, Parameters},
    checkpoint::{Checkpoint, FileTensor},
    nn::Pass,
    optim::Point,
};

/// An average of a network's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightAverage {
    /// The exponential moving average: see [`Fit::ema`].
    Ema,
    /// Stochastic weight averaging: see [`Fit::swa`].
    Swa,
}

impl WeightAverage {
    /// Both.
    pub const ALL: [WeightAverage; 2] = [WeightAverage::Ema, WeightAverage::Swa];

    /// What its model file in a run folder is called.
    pub fn file(self) -> String {
        format!("{self}.safetensors")
    }
}

impl fmt::Display for WeightAverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightAverage::Ema => "ema",
            WeightAverage::Swa => "swa",
        })
    }
}

impl FromStr for WeightAverage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|average| average.to_string() == text);
        known.ok_or_else(|| Error::setting("average", format!("'{text}' is neither ema nor swa")))
    }
}

/// The averages of the last fit, of what it trained: parameters and statistics of its trainable layer groups by name.
#[derive(Default)]
pub(super) struct Averages {
    ema: Option<Values>,
    swa: Option<Values>,
    /// Networks in the latter.
    count: u64,
}

type Values = BTreeMap<Arc<str>, Tensor>;

impl Averages {
    fn of(&mut self, average: WeightAverage) -> &mut Option<Values> {
        match average {
            WeightAverage::Ema => &mut self.ema,
            WeightAverage::Swa => &mut self.swa,
        }
    }

    /// Networks that stochastic weight averaging has averaged.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Its values by the names that a checkpoint gives them.
    pub fn tensors(&self) -> Result<Vec<(String, FileTensor)>> {
        let mut tensors = Vec::new();
        for (average, values) in [(WeightAverage::Ema, &self.ema), (WeightAverage::Swa, &self.swa)] {
            for (name, value) in values.iter().flatten() {
                let tensor = FileTensor::from_f32(value.dims().to_vec(), value.to_vec()?)?;
                tensors.push((format!("{average}.{name}"), tensor));
            }
        }
        Ok(tensors)
    }
}

impl Learner {
    /// Begins the averages of a fit.
    pub(super) fn begin_averages(&mut self, fit: &Fit) {
        let ema = fit.options.ema.map(|_| self.trained());
        self.averages = Averages { ema, ..Averages::default() };
    }

    /// What the layer groups that are trained hold.
    fn trained(&self) -> Values {
        let mut values = Values::new();
        self.model.visit(&mut |parameter| {
            if self.is_averaged(parameter) {
                values.insert(parameter.name().clone(), parameter.value.clone());
            }
        });
        values
    }

    fn is_averaged(&self, parameter: &Parameter) -> bool {
        self.state.is_trainable(self.model.group_of(parameter.name()))
    }

    /// Takes a step's network into the exponential moving average, of which it becomes `1 − decay`.
    pub(super) fn follow(&mut self, decay: Option<f32>) -> Result<()> {
        match (decay, &mut self.averages.ema) {
            (Some(decay), Some(values)) => approach(values, &self.model, 1.0 - decay),
            _ => Ok(()),
        }
    }

    /// Takes the network at the end of `epoch` into the average, where it belongs there.
    pub(super) fn average(&mut self, fit: &Fit, epoch: usize, end: &Point) -> Result<()> {
        let Some(start) = fit.options.swa else { return Ok(()) };
        if epoch + 1 < start || !fit.averages_at(end) {
            return Ok(());
        }
        match &mut self.averages.swa {
            // Running means: each of n + 1 networks counts as much as any other.
            Some(values) => approach(values, &self.model, 1.0 / (self.averages.count + 1) as f32)?,
            None => self.averages.swa = Some(self.trained()),
        }
        self.averages.count += 1;
        Ok(())
    }

    /// Gives the average of weights the batchnorm statistics that it has, once the fit is over.
    pub(super) fn finish_averages(&mut self) -> Result<()> {
        if self.averages.swa.is_none() {
            return Ok(());
        }
        self.exchange(WeightAverage::Swa)?;
        let outcome = self.estimate_statistics();
        self.exchange(WeightAverage::Swa)?;
        outcome
    }

    /// Sets the running statistics of every batchnorm that uses its batches' own to the mean over one pass through the
    /// training set, each batch counted by its samples, as fastai 0.7's `fix_batchnorm`. Dropout is on, as in training.
    fn estimate_statistics(&mut self) -> Result<()> {
        let momenta: Vec<f32> = self.model.norms_mut().map(|norm| norm.momentum).collect();
        if !self.model.norms_mut().any(|norm| norm.batch_statistics) {
            return Ok(());
        }
        let outcome = self.estimate_from_batches();
        self.model.norms_mut().zip(momenta).for_each(|(norm, momentum)| norm.momentum = momentum);
        outcome
    }

    fn estimate_from_batches(&mut self) -> Result<()> {
        let mut source = self.source(self.history.len() as u64)?;
        let mut seen = 0;
        for batch in 0..source.len() as u64 {
            self.cancel.check()?;
            let Some((input, labels)) = self.next_batch(&mut source)? else { continue };
            let samples = labels.samples(self.model.head.classes());
            seen += samples;
            let share = samples as f32 / seen as f32;
            let mut pass = Pass::statistics(self.seed, self.steps + batch);
            input.logits(&self.model, &mut pass)?;
            source.prefetch();
            self.model.norms_mut().for_each(|norm| norm.momentum = share);
            self.model.update_statistics(pass.take_statistics())?;
        }
        Ok(())
    }

    /// The averages that the last fit made.
    pub fn averages(&self) -> Vec<WeightAverage> {
        let made = [(WeightAverage::Ema, &self.averages.ema), (WeightAverage::Swa, &self.averages.swa)];
        made.into_iter().filter(|(_, values)| values.is_some()).map(|(average, _)| average).collect()
    }

    /// Exchanges the network's weights with an average that the last fit made of them; a second time, back.
    ///
    /// ```no_run
    /// use unfreeze::{learner::WeightAverage, prelude::*};
    /// # fn with(learner: &mut Learner) -> unfreeze::Result<()> {
    /// learner.fit(Fit::epochs(10).lr(1e-3).swa(5))?;
    /// learner.swap_average(WeightAverage::Swa)?;
    /// learner.save("averaged.safetensors")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if it made none; [`Error::OutOfMemory`].
    pub fn swap_average(&mut self, average: WeightAverage) -> Result<()> {
        self.last_evaluation = None;
        self.exchange(average)
    }

    fn exchange(&mut self, average: WeightAverage) -> Result<()> {
        let Some(values) = self.averages.of(average).as_mut() else {
            return Err(Error::setting(
                "average",
                format!("the last fit made no {average}; ask for it in its options"),
            ));
        };
        let mut backbone = false;
        self.model.visit_mut(&mut |parameter| {
            if let Some(other) = values.get_mut(parameter.name()) {
                let own = std::mem::replace(other, parameter.value.clone());
                parameter.set_value(own);
                backbone |= !parameter.name().starts_with("head.") && !parameter.name().starts_with("fc.");
            }
        });
        if backbone {
            self.backbone_key = None;
            self.progress.backbone_changed();
        }
        // Copies for tensor cores are of the other weights.
        self.model.set_precision(self.model.precision())
    }

    /// Writes an average as [`Learner::save`] writes the network, which stays as it is.
    ///
    /// # Errors
    /// [`Error::Setting`] if the last fit made none; [`Error::Io`]; [`Error::OutOfMemory`].
    pub fn save_average(&mut self, average: WeightAverage, path: impl AsRef<Path>) -> Result<()> {
        self.exchange(average)?;
        let outcome = self.save(path);
        self.exchange(average)?;
        outcome
    }

    /// Takes up the averages of a checkpoint, of which stochastic weight averaging has averaged `count` networks.
    pub(super) fn restore_averages(&mut self, file: &Checkpoint, count: u64) -> Result<()> {
        let mut averages = Averages { count, ..Averages::default() };
        let mut outcome = Ok(());
        self.model.visit(&mut |parameter| {
            for average in WeightAverage::ALL {
                let Some(tensor) = file.tensors.get(&format!("{average}.{}", parameter.name())) else { continue };
                let value = match tensor.shape == parameter.value.dims() {
                    true => Tensor::new(tensor.to_f32(), parameter.value.shape(), &self.device),
                    false => {
                        let message = format!("has an average of '{}' that does not fit", parameter.name());
                        Err(Error::checkpoint(&file.path, message))
                    }
                };
                match value {
                    Ok(value) => {
                        let values = averages.of(average).get_or_insert_default();
                        values.insert(parameter.name().clone(), value);
                    }
                    Err(error) => outcome = Err(error),
                }
            }
        });
        self.averages = averages;
        outcome
    }
}

/// Moves each of `values` towards the network's by `share` of the way.
fn approach(values: &mut Values, model: &impl Parameters, share: f32) -> Result<()> {
    let mut outcome = Ok(());
    model.visit(&mut |parameter| {
        if let (Ok(()), Some(value)) = (&outcome, values.get_mut(parameter.name())) {
            outcome = value.lerp_assign(&parameter.value, share);
        }
    });
    outcome
}
