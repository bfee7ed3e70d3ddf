//! What is to be known of a tensor at a glance.

pub(super) mod cuda;

use rayon::prelude::*;

use super::CHUNK;
use crate::{Device, Result, Tensor};

/// A tensor of floats, summed up. Reading it from a GPU waits for what computes the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// The sum of all elements.
    pub sum: f64,
    /// The largest magnitude of those that are numbers.
    pub largest: f32,
    /// How many are infinite or no number.
    pub not_finite: usize,
}

impl Summary {
    /// Sums up `tensor`, f32 or on a GPU also bf16, in parts of fixed extents.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if it is of another type; [`Error::Device`](crate::Error::Device).
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let parts = match tensor.device() {
            Device::Cuda(device) => cuda::summaries(device, tensor)?,
            Device::Cpu(device) => {
                let elements = tensor.as_slice::<f32>()?;
                device.install(|| elements.par_chunks(CHUNK).map(Self::of_chunk).collect())
            }
        };
        Ok(parts.into_iter().fold(Self::default(), Self::merge))
    }

    fn of_chunk(elements: &[f32]) -> Self {
        elements.iter().fold(Self::default(), |summary, x| {
            let single = Self { sum: f64::from(*x), largest: x.abs(), not_finite: usize::from(!x.is_finite()) };
            summary.merge(single)
        })
    }

    /// A NaN is not the largest.
    fn merge(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            largest: self.largest.max(other.largest),
            not_finite: self.not_finite + other.not_finite,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::testing::{cpu, devices, gpus, norm, normal, wide},
        tensor::DType,
    };

    #[test]
    fn the_sum_the_largest_and_what_is_not_finite() -> Result<()> {
        for device in devices() {
            // Around vectors of four and blocks of 16384.
            for len in [0, 1, 3, 4, 1023, 16384, 16387, 40001] {
                let mut values = normal(len as u64, "x", [len], &cpu(1)).to_vec::<f32>()?;
                if let Some(last) = values.last_mut() {
                    *last = -7.5;
                }
                let x = Tensor::new(values, [len], &device)?;
                let (summary, exact) = (Summary::of(&x)?, wide(&x));
                assert_eq!((summary.largest, summary.not_finite), (if len > 0 { 7.5 } else { 0.0 }, 0));
                let error = (summary.sum - exact.iter().sum::<f64>()).abs();
                assert!(error <= 1e-6 * norm(&exact), "{len} on {device}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn bf16_is_summed_up_in_f32() -> Result<()> {
        for device in gpus() {
            for len in [0, 1, 3, 4, 1023, 16384, 16387, 40001] {
                let mut values = normal(len as u64, "x", [len], &cpu(1)).to_vec::<f32>()?;
                values.iter_mut().step_by(1000).for_each(|value| *value = -7.5);
                let x = Tensor::new(values.clone(), [len], &device)?.cast(DType::BF16)?;
                let (summary, exact) = (Summary::of(&x)?, wide(&x));
                assert_eq!((summary.largest, summary.not_finite), (if len > 0 { 7.5 } else { 0.0 }, 0));
                let error = (summary.sum - exact.iter().sum::<f64>()).abs();
                assert!(error <= 1e-6 * norm(&exact), "{len}: {error:e}");
                if let Some(last) = values.last_mut() {
                    *last = f32::NAN;
                    let x = Tensor::new(values, [len], &device)?.cast(DType::BF16)?;
                    assert_eq!(Summary::of(&x)?.not_finite, 1, "{len}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn infinities_are_large_and_a_nan_is_not() -> Result<()> {
        for device in devices() {
            let mut values = vec![0.5; 600];
            (values[599], values[7]) = (f32::NAN, -3.0);
            let summary = Summary::of(&Tensor::new(values.clone(), [600], &device)?)?;
            assert_eq!((summary.largest, summary.not_finite), (3.0, 1), "{device}");
            (values[0], values[301]) = (f32::INFINITY, f32::NEG_INFINITY);
            let summary = Summary::of(&Tensor::new(values, [600], &device)?)?;
            assert_eq!((summary.largest, summary.not_finite), (f32::INFINITY, 3), "{device}");
            assert!(summary.sum.is_nan());
            assert!(Summary::of(&Tensor::new(vec![1u8], [1], &device)?).is_err());
        }
        Ok(())
    }
}
