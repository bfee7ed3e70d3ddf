//! Where a number stopped being finite: the error that ends a diverged fit.

use super::{Fit, Learner};
use crate::{
    Error, Result, Tensor,
    autograd::{Parameters, Var},
    nn::{Pass, Unit},
};

/// The place in training at which a loss was not finite.
pub(super) struct Place<'a> {
    pub fit: &'a Fit,
    pub epoch: usize,
    pub step: usize,
}

impl Place<'_> {
    /// The error for `what`, a loss, that is `value`; `cause` says where that began.
    pub fn error(&self, what: &str, value: f32, cause: Option<String>) -> Error {
        let (phase, lr) = (&self.fit.phase, &self.fit.lr);
        let place = format!("in phase '{phase}', epoch {}, step {}", self.epoch, self.step);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        Error::Diverged(format!("the {what} is {value} {place}{cause}; lower the learning rate ({lr})"))
    }
}

impl Learner {
    /// The first parameter that is not finite.
    pub(super) fn not_finite(&self) -> Option<String> {
        let mut found = None;
        self.model.visit(&mut |parameter| {
            if found.is_none() && !is_finite(&parameter.value) {
                found = Some(format!("{} is no longer finite after the step before", parameter.name()));
            }
        });
        found
    }

    /// The first layer whose output for `images` in `pass` is not finite, where every parameter is.
    pub(super) fn not_finite_layer(&self, mut pass: Pass, images: &Tensor) -> Result<Option<String>> {
        if !is_finite(images) {
            return Ok(Some("the images are not finite".into()));
        }
        let mut x = Var::constant(images.clone());
        for (number, unit) in self.model.units().into_iter().enumerate() {
            let before = largest(x.value())?;
            x = match unit {
                Unit::Head => {
                    let features = self.model.head.pool(&mut pass, &x)?;
                    self.model.head.classify(&mut pass, &features)?
                }
                _ => self.model.backbone.forward_units(&mut pass, &x, number..number + 1)?,
            };
            if !is_finite(x.value()) {
                return Ok(Some(format!("the output of {unit} is not finite (its input reaches {before:.1e})")));
            }
        }
        Ok(None)
    }
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.as_slice::<f32>().is_ok_and(|values| values.iter().all(|value| value.is_finite()))
}

fn largest(tensor: &Tensor) -> Result<f32> {
    Ok(tensor.as_slice::<f32>()?.iter().fold(0.0, |largest, value| value.abs().max(largest)))
}
