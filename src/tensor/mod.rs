//! Dense, contiguous tensors: a shape, a device and one block of elements. No strides, no views.

mod arithmetic;
mod dtype;
mod shape;

pub use dtype::{DType, Element};
pub use shape::Shape;

use std::{fmt, sync::Arc};

use crate::{Device, Error, Result};

/// Elements in row-major order on a device. Cloning shares them; writing copies if they are shared.
///
/// ```
/// # use unfreeze::{Device, Tensor};
/// # fn main() -> unfreeze::Result<()> {
/// let device = Device::cpu(1)?;
/// let tensor = Tensor::new(vec![1f32, 2., 3., 4.], [2, 2], &device)?;
/// assert_eq!(tensor.to_vec::<f32>()?, [1., 2., 3., 4.]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    device: Device,
    storage: Storage,
}

/// Where the elements lie.
#[derive(Clone)]
enum Storage {
    Cpu(Arc<dtype::Block>),
}

impl Tensor {
    /// Uploads `elements`.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number is not that of `shape`.
    pub fn new<T: Element>(elements: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        if elements.len() != shape.elements() {
            return Err(Error::shape("tensor", format!("{} elements do not fill {shape}", elements.len())));
        }
        Ok(Self::filled(elements, shape, device))
    }

    /// As [`Tensor::new`], for callers that made exactly as many elements as `shape` has.
    pub(crate) fn filled<T: Element>(elements: Vec<T>, shape: Shape, device: &Device) -> Self {
        debug_assert_eq!(elements.len(), shape.elements());
        let storage = match device {
            Device::Cpu(cpu) => Storage::Cpu(Arc::new(dtype::Block::new(T::wrap(elements), cpu))),
        };
        Self { shape, device: device.clone(), storage }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>, device: &Device) -> Self {
        Self::full(shape, 0.0, device)
    }

    /// A tensor with every element equal to `value`.
    pub fn full(shape: impl Into<Shape>, value: f32, device: &Device) -> Self {
        let shape = shape.into();
        Self::filled(vec![value; shape.elements()], shape, device)
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::Cpu(block) => block.elements.dtype(),
        }
    }

    /// The device that holds the elements.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elements() != self.shape.elements() {
            return Err(Error::shape("reshape", format!("{} has not the elements of {shape}", self.shape)));
        }
        Ok(Self { shape, ..self.clone() })
    }

    /// The same elements on another device.
    pub fn to_device(&self, device: &Device) -> Self {
        match (&self.storage, device) {
            (Storage::Cpu(_), Device::Cpu(_)) => Self { device: device.clone(), ..self.clone() },
        }
    }

    /// Copies the elements to the host.
    ///
    /// # Errors
    /// [`Error::Shape`] if `T` is not the element type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        Ok(self.as_slice::<T>()?.to_vec())
    }

    /// The first element, on the host: a loss, a count.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor is empty or not f32.
    pub fn scalar(&self) -> Result<f32> {
        let first = self.as_slice::<f32>()?.first().copied();
        first.ok_or_else(|| Error::shape("scalar", format!("{} has no element", self.shape)))
    }

    /// The elements, where the device is the host.
    pub(crate) fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let Storage::Cpu(block) = &self.storage;
        T::unwrap(&block.elements).ok_or_else(|| wrong_dtype::<T>(self.dtype()))
    }

    /// The elements for writing, copied first if another tensor shares them.
    pub(crate) fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let found = self.dtype();
        let Storage::Cpu(block) = &mut self.storage;
        T::unwrap_mut(&mut Arc::make_mut(block).elements).ok_or_else(|| wrong_dtype::<T>(found))
    }
}

fn wrong_dtype<T: Element>(found: DType) -> Error {
    Error::shape("dtype", format!("a tensor of {found:?} was used as {:?}", T::DTYPE))
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {} on {})", self.dtype(), self.shape, self.device)
    }
}
