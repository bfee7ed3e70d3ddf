//! The little arithmetic that the tape itself needs, and conversions between element types.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{DType, Element, Tensor, cuda};
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
            Device::Cuda(device) => cuda::add_assign(device, self, other)?,
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

    /// The elements as `dtype`: to the nearest, ties to even; what is too large becomes infinite, a NaN stays one.
    /// Conversions go between f32 and the half-width floats, and from bytes to f32.
    ///
    /// # Errors
    /// [`Error::Shape`] for another pair of types; [`Error::OutOfMemory`].
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        let unknown = || Error::shape("cast", format!("there is no conversion from {:?} to {dtype:?}", self.dtype()));
        match self.device() {
            Device::Cuda(device) => cuda::cast(device, self, dtype)?.ok_or_else(unknown),
            Device::Cpu(_) => match (self.dtype(), dtype) {
                (DType::F32, DType::BF16) => self.convert(bf16::from_f32),
                (DType::BF16, DType::F32) => self.convert(bf16::to_f32),
                (DType::F32, DType::F16) => self.convert(f16::from_f32),
                (DType::F16, DType::F32) => self.convert(f16::to_f32),
                (DType::U8, DType::F32) => self.convert::<u8, f32>(f32::from),
                _ => Err(unknown()),
            },
        }
    }

    fn convert<From: Element, To: Element>(&self, convert: impl Fn(From) -> To) -> Result<Tensor> {
        let elements = self.as_slice::<From>()?.iter().map(|element| convert(*element)).collect();
        Tensor::new(elements, self.shape(), self.device())
    }
}
