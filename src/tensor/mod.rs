//! Dense, contiguous tensors: a shape, a device and one block of elements. No strides, no views.

mod arithmetic;
pub(crate) mod cuda;
mod derived;
mod dtype;
mod precision;
mod shape;

pub use dtype::{DType, Element};
pub use precision::Precision;
pub use shape::Shape;

use std::{fmt, sync::Arc};

use crate::{
    Device, Error, Result,
    device::{CudaDevice, cuda::Buffer},
};

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
    Cuda(Arc<dtype::CudaBlock>),
}

impl Tensor {
    /// Uploads `elements`.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number is not that of `shape`; [`Error::OutOfMemory`].
    pub fn new<T: Element>(elements: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        if elements.len() != shape.elements() {
            return Err(Error::shape("tensor", format!("{} elements do not fill {shape}", elements.len())));
        }
        let storage = match device {
            Device::Cpu(cpu) => Storage::Cpu(Arc::new(dtype::Block::new(T::wrap(elements), cpu))),
            Device::Cuda(cuda) => {
                let buffer = cuda.upload(bytemuck::cast_slice(&elements))?;
                Storage::Cuda(Arc::new(dtype::CudaBlock { buffer, dtype: T::DTYPE }))
            }
        };
        Ok(Self { shape, device: device.clone(), storage })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeros(shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        match device {
            Device::Cpu(cpu) => Self::new(cpu.zeros(shape.elements()), shape, device),
            Device::Cuda(cuda) => {
                let zeros = Self::uninit::<f32>(shape, cuda)?;
                zeros.buffer(cuda)?.fill(0)?;
                Ok(zeros)
            }
        }
    }

    /// A tensor with every element equal to `value`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn full(shape: impl Into<Shape>, value: f32, device: &Device) -> Result<Self> {
        let shape = shape.into();
        match device {
            Device::Cpu(_) => Self::new(vec![value; shape.elements()], shape, device),
            Device::Cuda(cuda) => {
                let mut full = Self::uninit::<f32>(shape, cuda)?;
                cuda::fill(cuda, &mut full, value)?;
                Ok(full)
            }
        }
    }

    /// A tensor on a GPU whose elements a kernel is about to write.
    pub(crate) fn uninit<T: Element>(shape: impl Into<Shape>, cuda: &Arc<CudaDevice>) -> Result<Self> {
        let shape = shape.into();
        let bytes = shape.elements().checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| Error::shape("tensor", format!("{shape} is beyond any memory")))?;
        Self::from_buffer::<T>(cuda.alloc(bytes)?, shape)
    }

    /// The tensor that fills `buffer`.
    pub(crate) fn from_buffer<T: Element>(buffer: Buffer, shape: impl Into<Shape>) -> Result<Self> {
        let (shape, device) = (shape.into(), Device::Cuda(buffer.device().clone()));
        if buffer.bytes() != shape.elements() * size_of::<T>() {
            return Err(Error::shape("tensor", format!("{} bytes are not those of {shape}", buffer.bytes())));
        }
        Ok(Self { shape, device, storage: Storage::Cuda(Arc::new(dtype::CudaBlock { buffer, dtype: T::DTYPE })) })
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
            Storage::Cuda(block) => block.dtype,
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
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        match (&self.storage, device) {
            (Storage::Cpu(_), Device::Cpu(_)) => Ok(Self { device: device.clone(), ..self.clone() }),
            (Storage::Cuda(block), Device::Cuda(cuda)) if Arc::ptr_eq(block.buffer.device(), cuda) => Ok(self.clone()),
            _ => match self.dtype() {
                DType::F32 => Self::new(self.to_vec::<f32>()?, self.shape, device),
                DType::BF16 => Self::new(self.to_vec::<half::bf16>()?, self.shape, device),
                DType::F16 => Self::new(self.to_vec::<half::f16>()?, self.shape, device),
                DType::U8 => Self::new(self.to_vec::<u8>()?, self.shape, device),
                DType::U32 => Self::new(self.to_vec::<u32>()?, self.shape, device),
            },
        }
    }

    /// Copies the elements to the host, waiting for what computes them.
    ///
    /// # Errors
    /// [`Error::Shape`] if `T` is not the element type; [`Error::Device`] if the device failed.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.download(self.shape.elements())
    }

    /// The first element, on the host: a loss, a count.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor is empty or not f32; [`Error::Device`] if the device failed.
    pub fn scalar(&self) -> Result<f32> {
        let first = self.download::<f32>(self.shape.elements().min(1))?.first().copied();
        first.ok_or_else(|| Error::shape("scalar", format!("{} has no element", self.shape)))
    }

    /// Writes other elements to the place where they are, from the host; to a copy if another tensor shares them.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer, or of another type; [`Error::OutOfMemory`].
    pub fn overwrite<T: Element>(&mut self, elements: &[T]) -> Result<()> {
        if elements.len() != self.shape.elements() {
            return Err(Error::shape("tensor", format!("{} elements do not fill {}", elements.len(), self.shape)));
        }
        match self.device.clone() {
            Device::Cpu(_) => self.as_slice_mut::<T>()?.copy_from_slice(elements),
            Device::Cuda(cuda) => {
                self.pointer_mut::<T>(&cuda)?;
                self.buffer(&cuda)?.overwrite(bytemuck::cast_slice(elements))?;
            }
        }
        Ok(())
    }

    /// The first `count` elements.
    fn download<T: Element>(&self, count: usize) -> Result<Vec<T>> {
        match &self.storage {
            Storage::Cpu(_) => Ok(self.as_slice::<T>()?[..count].to_vec()),
            Storage::Cuda(block) if block.dtype == T::DTYPE => {
                let mut elements = vec![T::zeroed(); count];
                block.buffer.download(bytemuck::cast_slice_mut(&mut elements))?;
                Ok(elements)
            }
            Storage::Cuda(block) => Err(wrong_dtype::<T>(block.dtype)),
        }
    }

    /// The elements, where the device is the host.
    pub(crate) fn as_slice<T: Element>(&self) -> Result<&[T]> {
        match &self.storage {
            Storage::Cpu(block) => T::unwrap(&block.elements).ok_or_else(|| wrong_dtype::<T>(self.dtype())),
            Storage::Cuda(_) => Err(self.elsewhere()),
        }
    }

    /// The elements for writing, copied first if another tensor shares them.
    pub(crate) fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let (found, elsewhere) = (self.dtype(), self.elsewhere());
        match &mut self.storage {
            Storage::Cpu(block) => {
                let block = Arc::make_mut(block);
                block.forget_derived();
                T::unwrap_mut(&mut block.elements).ok_or_else(|| wrong_dtype::<T>(found))
            }
            Storage::Cuda(_) => Err(elsewhere),
        }
    }

    /// The address of the elements on `cuda`.
    pub(crate) fn pointer<T: Element>(&self, cuda: &CudaDevice) -> Result<u64> {
        if self.dtype() != T::DTYPE {
            return Err(wrong_dtype::<T>(self.dtype()));
        }
        Ok(self.buffer(cuda)?.address())
    }

    /// The address of the elements on `cuda` for writing, copied first if another tensor shares them.
    pub(crate) fn pointer_mut<T: Element>(&mut self, cuda: &CudaDevice) -> Result<u64> {
        if let Storage::Cuda(block) = &mut self.storage
            && Arc::get_mut(block).is_none()
        {
            *block = Arc::new(block.duplicate()?);
        }
        self.pointer::<T>(cuda)
    }

    fn buffer(&self, cuda: &CudaDevice) -> Result<&Buffer> {
        match &self.storage {
            Storage::Cuda(block) if std::ptr::eq(&**block.buffer.device(), cuda) => Ok(&block.buffer),
            _ => Err(self.elsewhere()),
        }
    }

    fn elsewhere(&self) -> Error {
        Error::shape("device", format!("a tensor {} on {} was used on another device", self.shape, self.device))
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
