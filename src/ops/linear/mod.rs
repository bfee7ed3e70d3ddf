//! The fully connected layer: `output = input · weightᵀ + bias`, with input `[N, in]` and weight `[out, in]`.

mod cpu;
pub(super) mod cuda;
mod grad;
#[cfg(test)]
mod tests;

pub(super) use cpu::{add_bias, column_sums};
pub use grad::linear;

use super::{expect_shape, matrix};
use crate::{Device, Error, Result, Tensor};

/// `[N, out]`.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit.
pub fn forward(input: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ([_, inputs], [outputs, expected]) = (matrix("linear", input)?, matrix("linear", weight)?);
    if inputs != expected || outputs == 0 {
        return Err(Error::shape(
            "linear",
            format!(
                "input {} and weight {} do not fit: the last extents must be equal, and outputs more than none",
                input.shape(),
                weight.shape()
            ),
        ));
    }
    expect_shape("linear", "bias", bias, [outputs])?;
    match input.device() {
        Device::Cuda(cuda) => cuda::forward(cuda, input, weight, bias),
        Device::Cpu(cpu) => cpu::forward(cpu, input, weight, bias),
    }
}
