//! How much each class counts in the loss.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Learner;
use crate::{Error, Result, Tensor, data::Split};

/// A factor for the loss of each class; the mean over a batch is weighted by them, as in PyTorch's `CrossEntropyLoss`.
///
/// ```
/// use unfreeze::learner::ClassWeights;
/// assert_eq!("balanced".parse::<ClassWeights>()?, ClassWeights::Balanced);
/// assert_eq!("1,2.5".parse::<ClassWeights>()?, ClassWeights::Each(vec![1.0, 2.5]));
/// # Ok::<(), unfreeze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ClassWeights {
    /// Inverse to how often a class occurs among the training images: `images / (classes · images of the class)`, as
    /// scikit-learn's `class_weight="balanced"`.
    Balanced,
    /// One for each class, in order.
    Each(Vec<f32>),
}

impl ClassWeights {
    /// The weight of each of `classes`, of which there are `counts` training images.
    ///
    /// # Errors
    /// [`Error::Setting`] listing the classes if there are not as many weights, or naming a weight that is not above 0.
    pub fn resolve(&self, classes: &[String], counts: &[usize]) -> Result<Vec<f32>> {
        let weights = match self {
            ClassWeights::Balanced => {
                let share = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
                counts.iter().map(|count| (share / (*count).max(1) as f64) as f32).collect()
            }
            ClassWeights::Each(weights) => weights.clone(),
        };
        if weights.len() != classes.len() {
            let message = format!(
                "{} weights given for {} classes: {}; give one for each, or balanced",
                weights.len(),
                classes.len(),
                classes.join(", ")
            );
            return Err(Error::setting("class_weights", message));
        }
        match weights.iter().zip(classes).find(|(weight, _)| !(weight.is_finite() && **weight > 0.0)) {
            Some((weight, class)) => {
                let message = format!("{weight} for {class} is no weight; give a finite value above 0");
                Err(Error::setting("class_weights", message))
            }
            None => Ok(weights),
        }
    }
}

impl FromStr for ClassWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "balanced" {
            return Ok(ClassWeights::Balanced);
        }
        let weights = text.split(',').map(|weight| weight.trim().parse()).collect::<Result<_, _>>();
        weights.map(ClassWeights::Each).map_err(|_| {
            let message = format!("'{text}' is neither balanced nor a list of weights such as 1,2.5");
            Error::setting("class_weights", message)
        })
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClassWeights::Balanced => f.write_str("balanced"),
            ClassWeights::Each(weights) => {
                let weights: Vec<String> = weights.iter().map(f32::to_string).collect();
                f.write_str(&weights.join(","))
            }
        }
    }
}

impl TryFrom<String> for ClassWeights {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ClassWeights> for String {
    fn from(weights: ClassWeights) -> Self {
        weights.to_string()
    }
}

impl Learner {
    /// Weighs the classes in the training loss, by the training images as they are now; to be called after
    /// [`Learner::loss`], whose other options stay. Validation is measured
    /// without weights.
    ///
    /// # Errors
    /// As of [`ClassWeights::resolve`]; [`Error::Setting`] where images have no single class; [`Error::OutOfMemory`].
    pub fn class_weights(mut self, weights: &ClassWeights) -> Result<Self> {
        self.single_labels("class_weights")?;
        let classes = self.data.classes();
        let weights = weights.resolve(classes, &self.class_counts())?;
        self.loss.class_weights = Some(Tensor::new(weights, [classes.len()], &self.device)?);
        Ok(self)
    }

    /// Training images of each class.
    pub(super) fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.data.classes().len()];
        for item in self.data.items(Split::Train).iter() {
            counts[item.label as usize] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_weights_are_those_of_scikit_learn() -> Result<()> {
        let classes = ["a", "b", "c"].map(String::from);
        // compute_class_weight("balanced", classes=[0, 1, 2], y=[0] * 8 + [1] * 2 + [2] * 2)
        assert_eq!(ClassWeights::Balanced.resolve(&classes, &[8, 2, 2])?, [0.5, 2.0, 2.0]);
        Ok(())
    }

    #[test]
    fn odd_weights_are_errors_that_name_the_classes() {
        let classes = ["cat", "dog"].map(String::from);
        for (text, named) in
            [("1", "cat, dog"), ("1,2,3", "2 classes"), ("1,-2", "-2 for dog"), ("0,1", "0 for cat"), ("NaN,1", "NaN")]
        {
            let weights: ClassWeights = text.parse().expect("numbers");
            let error = weights.resolve(&classes, &[3, 3]).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
            assert_eq!(weights.to_string(), text, "writes what it reads");
        }
        assert!("even".parse::<ClassWeights>().unwrap_err().to_string().contains("balanced"));
    }
}
