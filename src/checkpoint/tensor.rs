//! A tensor as it lies in a file.

use std::{fmt, str::FromStr};

use bytemuck::Pod;
use half::{bf16, f16};

use crate::{Error, Result};

/// The element type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileDtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754.
    F16,
    /// 16-bit float with the exponent of `f32`.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl FileDtype {
    const ALL: [FileDtype; 13] = {
        use FileDtype::*;
        [F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, Bool]
    };

    /// Bytes of an element.
    pub fn size(self) -> usize {
        use FileDtype::*;
        match self {
            F64 | I64 | U64 => 8,
            F32 | I32 | U32 => 4,
            F16 | BF16 | I16 | U16 => 2,
            I8 | U8 | Bool => 1,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, FileDtype::F64 | FileDtype::F32 | FileDtype::F16 | FileDtype::BF16)
    }

    /// The name in lower case, such as `bf16`.
    fn name(self) -> &'static str {
        use FileDtype::*;
        match self {
            F64 => "f64",
            F32 => "f32",
            F16 => "f16",
            BF16 => "bf16",
            I64 => "i64",
            I32 => "i32",
            I16 => "i16",
            I8 => "i8",
            U64 => "u64",
            U32 => "u32",
            U16 => "u16",
            U8 => "u8",
            Bool => "bool",
        }
    }
}

impl fmt::Display for FileDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FileDtype {
    type Err = String;

    /// Reads a name in either case: `bf16`, or the `BF16` of safetensors.
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let found = FileDtype::ALL.into_iter().find(|dtype| dtype.name() == lower);
        found.ok_or_else(|| format!("'{text}' is no element type; use f32, f16, bf16 or f64"))
    }
}

/// A tensor as stored in a file: contiguous, little-endian, in PyTorch's order of extents.
#[derive(Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// The element type.
    pub dtype: FileDtype,
    /// The extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl FileTensor {
    /// A tensor of little-endian `bytes`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not fill `shape`.
    pub fn new(dtype: FileDtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self> {
        let tensor = Self { dtype, shape, bytes };
        if tensor.is_consistent() {
            return Ok(tensor);
        }
        let message = format!("{} bytes do not fill {:?} of {dtype}", tensor.bytes.len(), tensor.shape);
        Err(Error::shape("checkpoint tensor", message))
    }

    /// A tensor of `f32`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `values` do not fill `shape`.
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        Self::new(FileDtype::F32, shape, bytemuck::cast_slice(&values).to_vec())
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, &extent| product.saturating_mul(extent))
    }

    /// The elements' bytes, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A matrix with rows and columns exchanged.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is none.
    pub(super) fn transposed(&self) -> Result<Self> {
        let &[rows, columns] = self.shape.as_slice() else {
            return Err(Error::shape("checkpoint tensor", format!("{:?} is no matrix", self.shape)));
        };
        let size = self.dtype.size();
        let element = |row: usize, column: usize| &self.bytes[(row * columns + column) * size..][..size];
        let turned = (0..columns).flat_map(|column| (0..rows).flat_map(move |row| element(row, column)));
        let mut bytes = Vec::with_capacity(self.bytes.len());
        bytes.extend(turned);
        Self::new(self.dtype, vec![columns, rows], bytes)
    }

    /// The same, without the rest of the tensor.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The elements as `f32`, rounded where the type is wider. A value beyond the range of `f32` becomes infinite.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            FileDtype::F32 => bytemuck::pod_collect_to_vec(&self.bytes),
            _ => self.values().map(|value| value as f32).collect(),
        }
    }

    /// The same values in a floating-point type.
    ///
    /// # Errors
    /// [`Error::Setting`] if `dtype` is no floating-point type, or a finite value does not fit it.
    pub fn to_dtype(&self, dtype: FileDtype) -> Result<Self> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let bytes = match dtype {
            FileDtype::F64 => self.pack(|value| value),
            FileDtype::F32 => self.pack(|value| value as f32),
            // Through f32: `from_f64` of `half` looks at the upper 32 bits only, and misrounds near a tie.
            FileDtype::F16 => self.pack(|value| f16::from_f32(value as f32)),
            FileDtype::BF16 => self.pack(|value| bf16::from_f32(value as f32)),
            _ => return Err(Error::setting("dtype", format!("{dtype} is no float; use f32, f16, bf16 or f64"))),
        };
        let cast = Self { dtype, shape: self.shape.clone(), bytes };
        if self.dtype.is_float() && self.values().zip(cast.values()).any(|(a, b)| a.is_finite() && !b.is_finite()) {
            return Err(Error::setting("dtype", format!("a value exceeds the range of {dtype}; use a wider type")));
        }
        Ok(cast)
    }

    /// As [`FileTensor::to_dtype`], without a copy of what is of that type already.
    ///
    /// # Errors
    /// As [`FileTensor::to_dtype`].
    pub fn into_dtype(self, dtype: FileDtype) -> Result<Self> {
        if dtype == self.dtype { Ok(self) } else { self.to_dtype(dtype) }
    }

    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        !self.dtype.is_float() || self.values().all(f64::is_finite)
    }

    /// Whether the bytes fill the shape; the public fields can be set to anything.
    fn is_consistent(&self) -> bool {
        let elements = self.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        elements.and_then(|elements| elements.checked_mul(self.dtype.size())) == Some(self.bytes.len())
    }

    /// The elements one after the other; integers of more than 53 bits are rounded.
    pub fn values(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        fn each<'a, T: Pod + 'a>(bytes: &'a [u8], convert: fn(T) -> f64) -> Box<dyn Iterator<Item = f64> + 'a> {
            let elements = bytes.chunks_exact(size_of::<T>());
            Box::new(elements.map(move |element| convert(bytemuck::pod_read_unaligned(element))))
        }
        let bytes = &self.bytes;
        match self.dtype {
            FileDtype::F64 => each(bytes, |value: f64| value),
            FileDtype::F32 => each(bytes, |value: f32| value.into()),
            FileDtype::F16 => each(bytes, |value: f16| value.into()),
            FileDtype::BF16 => each(bytes, |value: bf16| value.into()),
            FileDtype::I64 => each(bytes, |value: i64| value as f64),
            FileDtype::I32 => each(bytes, |value: i32| value.into()),
            FileDtype::I16 => each(bytes, |value: i16| value.into()),
            FileDtype::I8 => each(bytes, |value: i8| value.into()),
            FileDtype::U64 => each(bytes, |value: u64| value as f64),
            FileDtype::U32 => each(bytes, |value: u32| value.into()),
            FileDtype::U16 => each(bytes, |value: u16| value.into()),
            FileDtype::U8 | FileDtype::Bool => each(bytes, |value: u8| value.into()),
        }
    }

    /// The bytes of what `convert` makes of each element.
    fn pack<T: Pod>(&self, convert: impl Fn(f64) -> T) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.elements() * size_of::<T>());
        self.values().for_each(|value| bytes.extend_from_slice(bytemuck::bytes_of(&convert(value))));
        bytes
    }
}

impl fmt::Debug for FileTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileTensor({} {:?})", self.dtype, self.shape)
    }
}
