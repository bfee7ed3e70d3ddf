//! Where a number stopped being finite: the error that ends a diverged fit.

use super::{Fit, Learner};
use crate::{
    Error, Result, Tensor,
    autograd::{Parameters, Var},
    data::{LoaderOptions, Split},
    nn::{Pass, Unit},
    ops::reduce::Summary,
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
    pub(super) fn not_finite(&self) -> Result<Option<String>> {
        let mut found = Ok(None);
        self.model.visit(&mut |parameter| {
            if let Ok(None) = found {
                let message = || format!("{} is no longer finite after the step before", parameter.name());
                found = Summary::of(&parameter.value).map(|summary| (summary.not_finite > 0).then(message));
            }
        });
        found
    }

    /// Why the loss on the validation set is not finite.
    pub(super) fn validation_cause(&self) -> Result<Option<String>> {
        if let Some(found) = self.not_finite()? {
            return Ok(Some(found));
        }
        for fed in self.feed(Split::Valid, LoaderOptions::evaluation())? {
            let Some(images) = fed?.images else { continue };
            if let Some(found) = self.not_finite_layer(Pass::evaluation(), &images, 0)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The first layer whose output for `input`, the output of the first `units`, is not finite in `pass`, where every
    /// parameter is.
    pub(super) fn not_finite_layer(&self, mut pass: Pass, input: &Tensor, units: usize) -> Result<Option<String>> {
        let mut summary = Summary::of(input)?;
        if summary.not_finite > 0 {
            let what = if units == 0 { "images" } else { "cached activations" };
            return Ok(Some(format!("the {what} are not finite")));
        }
        let mut x = Var::constant(input.clone());
        for (number, unit) in self.model.units().into_iter().enumerate().skip(units) {
            let before = summary.largest;
            x = match unit {
                Unit::Head => {
                    let features = self.model.head.pool(&mut pass, &x)?;
                    self.model.head.classify(&mut pass, &features)?
                }
                _ => self.model.backbone.forward_units(&mut pass, &x, number..number + 1)?,
            };
            summary = Summary::of(x.value())?;
            if summary.not_finite > 0 {
                return Ok(Some(format!("the output of {unit} is not finite (its input reaches {before:.1e})")));
            }
        }
        Ok(None)
    }
}
