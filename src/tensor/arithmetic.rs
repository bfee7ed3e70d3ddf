//! The little arithmetic that the tape itself needs.

use rayon::prelude::*;

use super::Tensor;
use crate::{Device, Error, Result};

/// Elements per task: large enough to be worth a thread.
const CHUNK: usize = 1 << 14;

impl Tensor {
    /// Adds `other` in place.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn add_assign(&mut self, other: &Tensor) -> Result<()> {
        if self.shape() != other.shape() {
            return Err(Error::shape("add", format!("{} and {} differ", self.shape(), other.shape())));
        }
        let device = self.device().clone();
        match &device {
            Device::Cuda(cuda) => return Err(cuda.error("this operation has no kernel yet")),
            Device::Cpu(cpu) => {
                let (sum, other) = (self.as_slice_mut::<f32>()?, other.as_slice::<f32>()?);
                cpu.install(|| {
                    sum.par_chunks_mut(CHUNK).zip(other.par_chunks(CHUNK)).for_each(|(sum, other)| {
                        sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
                    });
                });
            }
        }
        Ok(())
    }
}
