//! Element types, and the typed blocks of elements in a device's memory.

use std::sync::{Arc, Mutex};

use half::{bf16, f16};

use crate::{
    Result,
    device::{CpuDevice, cuda::Buffer},
};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float: activations, parameters.
    F32,
    /// bfloat16: storage of activations.
    BF16,
    /// IEEE half precision: storage of activations.
    F16,
    /// Bytes: images.
    U8,
    /// 32-bit unsigned: labels, positions of maxima.
    U32,
}

impl DType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }
}

/// Elements in host memory.
#[derive(Clone)]
pub enum Elements {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
    U8(Vec<u8>),
    U32(Vec<u32>),
}

/// A block of elements, counted by the device that it was made on.
pub(super) struct Block {
    pub elements: Elements,
    /// What was computed from the elements and is valid as long as they are.
    pub derived: Mutex<Option<Derived>>,
    owner: Arc<CpuDevice>,
}

/// Elements computed from others.
pub(super) struct Derived {
    /// Tells by what they were computed.
    pub key: usize,
    pub block: Arc<Block>,
}

impl Block {
    pub fn new(elements: Elements, owner: &Arc<CpuDevice>) -> Self {
        owner.allocated(elements.bytes());
        Self { elements, derived: Mutex::new(None), owner: owner.clone() }
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        Self::new(self.elements.clone(), &self.owner)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.owner.freed(self.elements.bytes());
        if let Elements::F32(elements) = &mut self.elements {
            self.owner.recycle(std::mem::take(elements));
        }
    }
}

/// Elements in a GPU's memory.
pub(super) struct CudaBlock {
    pub buffer: Buffer,
    pub dtype: DType,
}

impl CudaBlock {
    /// A copy of its own.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { buffer: self.buffer.duplicate()?, dtype: self.dtype })
    }
}

impl Elements {
    fn bytes(&self) -> usize {
        match self {
            Elements::F32(elements) => size_of_val(elements.as_slice()),
            Elements::BF16(elements) => size_of_val(elements.as_slice()),
            Elements::F16(elements) => size_of_val(elements.as_slice()),
            Elements::U8(elements) => size_of_val(elements.as_slice()),
            Elements::U32(elements) => size_of_val(elements.as_slice()),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        match self {
            Elements::F32(_) => DType::F32,
            Elements::BF16(_) => DType::BF16,
            Elements::F16(_) => DType::F16,
            Elements::U8(_) => DType::U8,
            Elements::U32(_) => DType::U32,
        }
    }
}

/// A Rust type that can be a tensor's element. Sealed.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The matching [`DType`].
    const DTYPE: DType;
}

pub(super) mod sealed {
    use super::Elements;

    pub trait Sealed: Sized {
        fn wrap(elements: Vec<Self>) -> Elements;
        fn unwrap(elements: &Elements) -> Option<&[Self]>;
        fn unwrap_mut(elements: &mut Elements) -> Option<&mut [Self]>;
    }
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
        }

        impl sealed::Sealed for $type {
            fn wrap(elements: Vec<Self>) -> Elements {
                Elements::$variant(elements)
            }

            fn unwrap(elements: &Elements) -> Option<&[Self]> {
                match elements {
                    Elements::$variant(elements) => Some(elements),
                    _ => None,
                }
            }

            fn unwrap_mut(elements: &mut Elements) -> Option<&mut [Self]> {
                match elements {
                    Elements::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        }
    };
}

element!(f32, F32);
element!(bf16, BF16);
element!(f16, F16);
element!(u8, U8);
element!(u32, U32);
