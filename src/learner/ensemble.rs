//! Several trained networks that decide together.

use std::path::{Path, PathBuf};

use super::{Classifier, Evaluation, Mean, Prediction};
use crate::{
    Device, Error, Precision, Result,
    data::{Loader, RgbImage, Skipped, Targets, Transforms},
};

/// Networks of the same classes, whose probabilities are averaged: the snapshots of one training, mostly (Huang et al.
/// 2017, [arXiv 1704.00109](https://arxiv.org/abs/1704.00109)). Architectures and image sizes may differ.
///
/// ```no_run
/// use unfreeze::{learner::Ensemble, prelude::*};
/// # fn with(learner: &mut Learner) -> unfreeze::Result<()> {
/// learner.fit(Fit::cycles(5).cycle_len(2).lr([1e-4, 1e-3, 1e-2]).snapshots("dogs"))?;
/// let ensemble = Ensemble::last("dogs", 3, &Device::auto()?)?;
/// println!("{}", ensemble.predict(&unfreeze::data::decode("rex.jpg")?)?.class);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Ensemble {
    members: Vec<Classifier>,
}

/// How good an ensemble and its members are.
#[derive(Clone, Debug, Default)]
pub struct EnsembleEvaluation {
    /// Of each member.
    pub members: Vec<Evaluation>,
    /// Of the average.
    pub averaged: Evaluation,
}

/// The file of snapshot `number`, counted from 1, of those called `prefix`.
pub(super) fn snapshot(prefix: &Path, number: usize) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!("-{number}.safetensors"));
    name.into()
}

impl Ensemble {
    /// The networks of these model files.
    ///
    /// # Errors
    /// Those of [`Classifier::load`]; [`Error::Setting`] if there is none, [`Error::Data`] naming a file whose classes
    /// are not those of the first.
    pub fn load(files: &[impl AsRef<Path>], device: &Device) -> Result<Self> {
        let mut members: Vec<Classifier> = Vec::with_capacity(files.len());
        for file in files {
            let member = Classifier::load(file, device.clone())?;
            if let Some(first) = members.first().filter(|first| first.classes() != member.classes()) {
                let message =
                    format!("has the classes {:?}, not {:?} as the others", member.classes(), first.classes());
                return Err(Error::data(file.as_ref(), message));
            }
            members.push(member);
        }
        match members.is_empty() {
            true => Err(Error::setting("ensemble", "of no networks; give at least one file")),
            false => Ok(Self { members }),
        }
    }

    /// The last `count` of the snapshots that [`Fit::snapshots`](super::Fit::snapshots) called `prefix`.
    ///
    /// # Errors
    /// As of [`Ensemble::load`]; [`Error::Setting`] if there are not so many.
    pub fn last(prefix: impl AsRef<Path>, count: usize, device: &Device) -> Result<Self> {
        let prefix = prefix.as_ref();
        let found = (1..).take_while(|number| snapshot(prefix, *number).exists()).count();
        if found < count {
            let first = snapshot(prefix, found + 1);
            let message =
                format!("of the last {count}, but there are {found} snapshots: there is no {}", first.display());
            return Err(Error::setting("ensemble", message));
        }
        let files: Vec<PathBuf> = (found - count + 1..=found).map(|number| snapshot(prefix, number)).collect();
        Self::load(&files, device)
    }

    /// Chooses what the networks compute with. Default: f32.
    ///
    /// # Errors
    /// [`Error::Setting`] if the device cannot compute with it.
    pub fn precision(self, precision: Precision) -> Result<Self> {
        let members = self.members.into_iter().map(|member| member.precision(precision)).collect::<Result<_>>()?;
        Ok(Self { members })
    }

    /// The probability from which on a label is given. Default: that of the first network.
    ///
    /// # Errors
    /// As of [`Classifier::label_threshold`].
    pub fn label_threshold(self, threshold: f32) -> Result<Self> {
        let members = self.members.into_iter().map(|member| member.label_threshold(threshold));
        Ok(Self { members: members.collect::<Result<_>>()? })
    }

    /// The networks.
    pub fn members(&self) -> &[Classifier] {
        &self.members
    }

    /// Classifies one image, which each member sees as its own transforms make it.
    ///
    /// # Errors
    /// As of [`Classifier::predict`].
    pub fn predict(&self, image: &RgbImage) -> Result<Prediction> {
        let mut probabilities: Vec<f32> = Vec::new();
        for member in &self.members {
            let found = member.predict(image)?.probabilities;
            probabilities.resize(found.len(), 0.0);
            probabilities.iter_mut().zip(found).for_each(|(sum, p)| *sum += p / self.members.len() as f32);
        }
        let first = &self.members[0];
        Ok(Prediction::new(first.classes(), probabilities).at_threshold(first.threshold()))
    }

    /// Measures it on the images that `loader` makes for the transforms of each member; `failed` is told once of those
    /// that cannot be decoded.
    ///
    /// # Errors
    /// As of [`Classifier::evaluate`]; [`Error::Shape`] if the loaders are of different samples.
    pub fn evaluate(
        &self,
        mut loader: impl FnMut(&Transforms) -> Result<Loader>,
        targets: Option<&Targets>,
        mut failed: impl FnMut(&Skipped),
    ) -> Result<EnsembleEvaluation> {
        let mut members = Vec::with_capacity(self.members.len());
        for (number, member) in self.members.iter().enumerate() {
            let told = number > 0;
            members.push(member.evaluate(loader(member.transforms())?, targets, |skipped| {
                if !told {
                    failed(skipped)
                }
            })?);
        }
        let share = 1.0 / members.len() as f64;
        let shares: Vec<(f64, &Evaluation)> = members.iter().map(|member| (share, member)).collect();
        let averaged = Evaluation::average(&shares, Mean::Probabilities)?;
        Ok(EnsembleEvaluation { members, averaged })
    }
}
