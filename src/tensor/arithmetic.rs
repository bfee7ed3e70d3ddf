//! The little arithmetic that the tape itself needs, and conversions between element types.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{DType, Element, Tensor, cuda};
use crate::{Device, Error, Result};

/// Elements per task: large enough to be worth a thread.
const CHUNK: usize = 1 << 14;

impl Tensor {
    /// Adds `other` in place: f32, on a GPU also bf16, which is rounded once.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes or types differ.
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

    /// Moves each element by `share` of the way to that of `other`, in place: `x += share · (other − x)`, f32. Where they are
    /// equal they stay so.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes or types differ.
    pub fn lerp_assign(&mut self, other: &Tensor, share: f32) -> Result<()> {
        if self.shape() != other.shape() {
            return Err(Error::shape("lerp", format!("{} and {} differ", self.shape(), other.shape())));
        }
        let device = self.device().clone();
        match &device {
            Device::Cuda(device) => cuda::lerp_assign(device, self, other, share)?,
            Device::Cpu(cpu) => {
                let (own, other) = (self.as_slice_mut::<f32>()?, other.as_slice::<f32>()?);
                cpu.install(|| {
                    own.par_chunks_mut(CHUNK).zip(other.par_chunks(CHUNK)).for_each(|(own, other)| {
                        own.iter_mut().zip(other).for_each(|(own, other)| *own += share * (other - *own));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, cpu, devices, normal, on};

    #[test]
    fn sums_and_fills_of_any_length_are_the_same_bits_everywhere() -> Result<()> {
        for len in [0, 1, 3, 4, 1024, 1030, 2 * CHUNK + 1] {
            let [a, b] = ["a", "b"].map(|name| normal(1, name, [len], &cpu(1)));
            let expected: Vec<u32> =
                a.to_vec::<f32>()?.iter().zip(b.to_vec::<f32>()?).map(|(a, b)| (a + b).to_bits()).collect();
            for device in devices() {
                let (before, mut sum) = (on(&device, &a), on(&device, &a));
                sum.add_assign(&on(&device, &b))?;
                assert!(bits(&sum) == expected && bits(&before) == bits(&a), "{len} on {device}");
                let mut twice = before.clone();
                twice.add_assign(&before)?;
                assert!(bits(&before) == bits(&a), "a clone changed on {device}");
                let (mut between, from) = (before.clone(), a.to_vec::<f32>()?);
                between.lerp_assign(&on(&device, &b), 0.3)?;
                let way = from.iter().zip(b.to_vec::<f32>()?).map(|(a, b)| (a + 0.3 * (b - a)).to_bits());
                assert!(bits(&between).into_iter().eq(way) && bits(&before) == bits(&a), "{len} on {device}");
                assert!(between.lerp_assign(&Tensor::zeros([len, 1], &device)?, 0.5).is_err());
                let full = Tensor::full([len], -0.3, &device)?;
                assert!(bits(&full).iter().all(|bits| *bits == (-0.3f32).to_bits()), "{len} on {device}");
                assert!(sum.add_assign(&Tensor::zeros([len, 1], &device)?).is_err());
            }
        }
        Ok(())
    }

    /// Values of every exponent, with mantissas that round down, up, and are ties; both zeros, infinities.
    fn hard() -> Vec<f32> {
        let mantissas = [0u32, 1, 0x7FFF, 0x8000, 0x8001, 0x1_8000, 0x1000, 0x3000, 0x1001, 0x7F_FFFF, 0x7F_8000];
        let exponents = (0..255u32).flat_map(|exponent| mantissas.map(|mantissa| exponent << 23 | mantissa));
        let positive = exponents.chain([0x7F80_0000]);
        positive.flat_map(|bits| [bits, bits | 1 << 31]).map(f32::from_bits).collect()
    }

    #[test]
    fn casts_round_as_the_half_crate_does() -> Result<()> {
        let values = hard();
        let len = values.len();
        for device in devices() {
            let x = Tensor::new(values.clone(), [len], &device)?;
            let (brain, half) = (x.cast(DType::BF16)?, x.cast(DType::F16)?);
            let expected: Vec<u16> = values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
            assert!(brain.to_vec::<bf16>()?.iter().map(|x| x.to_bits()).eq(expected), "bf16 on {device}");
            let expected: Vec<u16> = values.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
            assert!(half.to_vec::<f16>()?.iter().map(|x| x.to_bits()).eq(expected), "f16 on {device}");
        }
        Ok(())
    }

    #[test]
    fn every_half_width_float_and_byte_comes_back() -> Result<()> {
        for device in devices() {
            let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
            let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
            let same =
                |wide: f32, expected: f32| wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan();
            let wide = Tensor::new(brains.clone(), [1 << 16], &device)?.cast(DType::F32)?;
            let mut pairs = wide.to_vec::<f32>()?.into_iter().zip(&brains);
            assert!(pairs.all(|(wide, brain)| same(wide, brain.to_f32())), "bf16 on {device}");
            let again = wide.cast(DType::BF16)?.to_vec::<bf16>()?;
            assert!(again.iter().zip(&brains).all(|(a, b)| same(a.to_f32(), b.to_f32())), "bf16 on {device}");
            let wide = Tensor::new(halves.clone(), [1 << 16], &device)?.cast(DType::F32)?;
            let mut pairs = wide.to_vec::<f32>()?.into_iter().zip(&halves);
            assert!(pairs.all(|(wide, half)| same(wide, half.to_f32())), "f16 on {device}");
            let again = wide.cast(DType::F16)?.to_vec::<f16>()?;
            assert!(again.iter().zip(&halves).all(|(a, b)| same(a.to_f32(), b.to_f32())), "f16 on {device}");
            let bytes = Tensor::new((0..=u8::MAX).collect(), [256], &device)?.cast(DType::F32)?.to_vec::<f32>()?;
            assert!(bytes.iter().enumerate().all(|(byte, wide)| *wide == byte as f32), "bytes on {device}");
        }
        Ok(())
    }

    #[test]
    fn a_nan_stays_one_and_other_casts_are_errors() -> Result<()> {
        for device in devices() {
            // Payloads that would carry into the sign, or vanish.
            let nans = [0x7FFF_FFFFu32, 0xFFFF_FFFF, 0x7F80_0001, 0xFF80_0001, 0x7FC0_0000].map(f32::from_bits);
            let x = Tensor::new(nans.to_vec(), [5], &device)?;
            for dtype in [DType::BF16, DType::F16] {
                let back = x.cast(dtype)?.cast(DType::F32)?.to_vec::<f32>()?;
                assert!(back.iter().all(|x| x.is_nan()), "{dtype:?} on {device}");
            }
            assert_eq!(x.cast(DType::F32)?.dtype(), DType::F32);
            let error = x.cast(DType::U8).expect_err("no such conversion").to_string();
            assert!(error.contains("from F32 to U8"), "{error}");
            assert_eq!(Tensor::zeros([0, 2], &device)?.cast(DType::BF16)?.dims(), [0, 2]);
        }
        Ok(())
    }
}
