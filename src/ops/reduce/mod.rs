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
    /// Sums up `tensor`, in parts of fixed extents.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if it is not f32; [`Error::Device`](crate::Error::Device).
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
