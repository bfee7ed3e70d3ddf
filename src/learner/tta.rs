//! Test-time augmentation: predictions averaged over several views of each image.

use super::{Evaluation, Learner, Mean};
use crate::{
    Error, Result,
    data::{LoaderOptions, Split},
};

/// Numbers of the augmented views start here, far from those of the epochs of a training run.
const FIRST_VIEW: u64 = 1 << 63;

/// Which views are averaged, and how.
///
/// ```no_run
/// # use unfreeze::{data::Split, learner::{Learner, Tta}};
/// # fn with(learner: &mut Learner) -> unfreeze::Result<()> {
/// let found = learner.tta(Tta::views(4), Split::Valid)?;
/// println!("{:.4} on clean images, {:.4} over all views", found.clean.accuracy, found.averaged.accuracy);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tta {
    views: usize,
    clean: Option<f32>,
    mean: Mean,
}

/// What the network says of the clean views alone, and of all.
#[derive(Clone, Debug, Default)]
pub struct TtaEvaluation {
    /// Of the clean views: [`Learner::evaluate`].
    pub clean: Evaluation,
    /// Of the average.
    pub averaged: Evaluation,
}

impl Tta {
    /// So many views, augmented as in training, beside the clean one. fastai 0.7 takes 4.
    pub fn views(count: usize) -> Self {
        Self { views: count, clean: None, mean: Mean::default() }
    }

    /// Share of the clean view. Default: as much as any other, which is 1 in `count + 1`, as in fastai 0.7; fastai 2
    /// has .25.
    pub fn clean_weight(self, weight: f32) -> Self {
        Self { clean: Some(weight), ..self }
    }

    /// What is averaged. Default: probabilities.
    pub fn mean(self, mean: Mean) -> Self {
        Self { mean, ..self }
    }

    /// Augmented views beside the clean one.
    pub fn count(&self) -> usize {
        self.views
    }

    /// Whether the values make sense.
    ///
    /// # Errors
    /// [`Error::Setting`] for no views, or a share that is none.
    pub fn validate(&self) -> Result<()> {
        if self.views == 0 {
            return Err(Error::setting("tta", "0 views are no augmentation; give at least 1"));
        }
        match self.clean {
            Some(weight) if !(0.0..=1.0).contains(&weight) => {
                Err(Error::setting("tta", format!("{weight} is no share of the clean view; give 0 to 1")))
            }
            _ => Ok(()),
        }
    }

    /// The options of a loader for the augmented view `number`.
    pub fn loader_options(seed: u64, number: usize) -> LoaderOptions {
        let epoch = FIRST_VIEW + number as u64;
        LoaderOptions { shuffle: false, ..LoaderOptions::training(seed, epoch) }
    }

    /// The average of `clean` and of the evaluations of augmented views of the same samples.
    ///
    /// # Errors
    /// [`Error::Setting`] as [`Tta::validate`]; [`Error::Shape`] if there are more or fewer views, or of other samples.
    pub fn average(&self, clean: Evaluation, views: &[Evaluation]) -> Result<TtaEvaluation> {
        self.validate()?;
        if views.len() != self.views {
            return Err(Error::shape("tta", format!("{} views, not {}", views.len(), self.views)));
        }
        let share = self.clean.map_or(1.0 / (self.views + 1) as f64, f64::from);
        let other = (1.0 - share) / self.views as f64;
        let weighted = std::iter::once((share, &clean)).chain(views.iter().map(|view| (other, view)));
        let averaged = Evaluation::average(&weighted.collect::<Vec<_>>(), self.mean)?;
        Ok(TtaEvaluation { clean, averaged })
    }
}

impl Learner {
    /// Evaluates the network on a split, on clean views and on views augmented as in training, which the seed decides;
    /// from cached activations where precompute allows.
    ///
    /// # Errors
    /// As of [`Learner::evaluate`]; [`Error::Setting`] if nothing is random in training, or `tta` makes no sense.
    pub fn tta(&mut self, tta: Tta, split: Split) -> Result<TtaEvaluation> {
        tta.validate()?;
        if *self.transforms() == self.transforms().evaluation() {
            let message =
                "nothing is random in the transforms, so that every view is the clean one; set an augmentation";
            return Err(Error::setting("tta", message));
        }
        let clean = self.evaluate(split)?;
        let views: Vec<Evaluation> = (0..tta.count())
            .map(|number| self.evaluate_views(split, Tta::loader_options(self.seed, number)))
            .collect::<Result<_>>()?;
        tta.average(clean, &views)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(probabilities: &[f32]) -> Evaluation {
        Evaluation {
            probabilities: probabilities.to_vec(),
            labels: vec![0, 1],
            indices: vec![0, 1],
            ..Evaluation::default()
        }
    }

    #[test]
    fn means_are_weighted_and_scored() -> Result<()> {
        let clean = evaluation(&[0.6, 0.4, 0.6, 0.4]);
        let views = [evaluation(&[0.3, 0.7, 0.2, 0.8]), evaluation(&[0.9, 0.1, 0.1, 0.9])];
        let close = |found: &[f32], expected: [f32; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}, not {expected:?}");
        };
        let found = Tta::views(2).average(clean.clone(), &views)?;
        close(&found.averaged.probabilities, [0.6, 0.4, 0.3, 0.7]);
        assert_eq!(found.averaged.accuracy, 1.0);
        assert!((found.averaged.loss - -(0.6f32.ln() + 0.7f32.ln()) / 2.0).abs() < 1e-6);
        assert_eq!(found.clean.probabilities, clean.probabilities);
        let found = Tta::views(2).clean_weight(0.5).average(clean.clone(), &views)?;
        close(&found.averaged.probabilities, [0.6, 0.4, 0.375, 0.625]);
        // Cube roots of .6 · .3 · .9 and .4 · .7 · .1, and so on, normalised.
        let found = Tta::views(2).mean(Mean::Logits).average(clean.clone(), &views)?;
        let [a, b] = [0.162f64.cbrt(), 0.028f64.cbrt()].map(|root| root as f32);
        let [c, d] = [0.012f64.cbrt(), 0.288f64.cbrt()].map(|root| root as f32);
        close(&found.averaged.probabilities, [a / (a + b), b / (a + b), c / (c + d), d / (c + d)]);
        // A view that rules the class out altogether does not make it impossible.
        let sure = [evaluation(&[0.0, 1.0, 0.0, 1.0]), views[1].clone()];
        let found = Tta::views(2).mean(Mean::Logits).average(clean.clone(), &sure)?;
        assert!(found.averaged.loss.is_finite() && found.averaged.probabilities[0] > 0.0);
        Ok(())
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let clean = evaluation(&[0.5; 4]);
        let other = Evaluation { indices: vec![0, 2], ..clean.clone() };
        for (tta, views, named) in [
            (Tta::views(0), vec![], "0 views"),
            (Tta::views(1).clean_weight(1.5), vec![clean.clone()], "1.5"),
            (Tta::views(1).clean_weight(f32::NAN), vec![clean.clone()], "NaN"),
            (Tta::views(2), vec![clean.clone()], "1 views, not 2"),
            (Tta::views(1), vec![other], "other samples"),
        ] {
            let error = tta.average(clean.clone(), &views).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
