//! Statistics of a tensor's values.

use serde::Serialize;

use super::FileTensor;

/// What is wrong with the values of the tensor `name`, whichever network it is of; nothing if that cannot be told.
pub(super) fn flaw(name: &str, tensor: &FileTensor) -> Option<&'static str> {
    if !tensor.is_finite() {
        return Some("values that are not finite");
    }
    is_negative_variance(name, tensor).then_some("a negative variance")
}

/// Whether the tensor `name` is the variances of a batchnorm, and one of them negative.
pub(super) fn is_negative_variance(name: &str, tensor: &FileTensor) -> bool {
    name.ends_with("running_var") && tensor.values().any(|value| value < 0.0)
}

/// Statistics of the finite values of a tensor; `None` where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TensorStats {
    /// The smallest.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// The mean.
    pub mean: Option<f64>,
    /// The standard deviation, the sum of squares divided by the number of values.
    pub std: Option<f64>,
    /// How many values are NaN or infinite.
    pub non_finite: usize,
}

impl TensorStats {
    /// Looks at every value twice, in `f64`.
    pub fn of(tensor: &FileTensor) -> Self {
        let finite = || tensor.values().filter(|value| value.is_finite());
        let (mut count, mut sum) = (0usize, 0.0);
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in finite() {
            (count, sum) = (count + 1, sum + value);
            (min, max) = (min.min(value), max.max(value));
        }
        let mean = sum / count as f64;
        let squares: f64 = finite().map(|value| (value - mean).powi(2)).sum();
        let some = |value: f64| (count > 0).then_some(value);
        Self {
            min: some(min),
            max: some(max),
            mean: some(mean),
            std: some((squares / count as f64).sqrt()),
            non_finite: tensor.elements() - count,
        }
    }
}
