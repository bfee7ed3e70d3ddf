//! Tensors' own kernels: `kernels/tensor.cu`.

use std::sync::Arc;

use half::{bf16, f16};

use super::{DType, Element, Shape, Tensor};
use crate::{
    Error, Result,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
};

/// Threads of a block of a kernel that goes element by element: `MAP_THREADS` of `kernels/include/map.cuh`.
pub(crate) const MAP_THREADS: u32 = 256;
/// Its elements: `MAP_BLOCK`.
const MAP_BLOCK: usize = 1024;

/// The grid of a kernel that goes element by element over `count`.
pub(crate) fn map_grid(count: usize) -> [usize; 3] {
    [count.div_ceil(MAP_BLOCK), 1, 1]
}

/// A kernel for f32 elements, and its likeness for bf16.
pub(crate) struct ByType<P> {
    f32: Kernel<P>,
    bf16: Kernel<P>,
}

impl<P: Params> ByType<P> {
    /// The kernels `f32` and `bf16` of `source`, launched in blocks of `threads`.
    pub const fn new(source: &'static Source, f32: &'static str, bf16: &'static str, threads: u32) -> Self {
        Self { f32: Kernel::new(source, f32, threads), bf16: Kernel::new(source, bf16, threads) }
    }

    /// The kernel for elements `dtype`.
    pub fn of(&self, dtype: DType) -> Result<&Kernel<P>> {
        match dtype {
            DType::F32 => Ok(&self.f32),
            DType::BF16 => Ok(&self.bf16),
            _ => Err(Error::shape("dtype", format!("{} takes F32 and BF16, not {dtype:?}", self.f32.entry))),
        }
    }
}

impl Tensor {
    /// As [`Tensor::uninit`], of a type known at run time.
    pub(crate) fn uninit_of(dtype: DType, shape: impl Into<Shape>, cuda: &Arc<CudaDevice>) -> Result<Self> {
        match dtype {
            DType::F32 => Self::uninit::<f32>(shape, cuda),
            DType::BF16 => Self::uninit::<bf16>(shape, cuda),
            DType::F16 => Self::uninit::<f16>(shape, cuda),
            DType::U8 => Self::uninit::<u8>(shape, cuda),
            DType::U32 => Self::uninit::<u32>(shape, cuda),
        }
    }

    /// As [`Tensor::pointer`], of a type known at run time.
    pub(crate) fn address(&self, dtype: DType, cuda: &CudaDevice) -> Result<u64> {
        match dtype {
            DType::F32 => self.pointer::<f32>(cuda),
            DType::BF16 => self.pointer::<bf16>(cuda),
            DType::F16 => self.pointer::<f16>(cuda),
            DType::U8 => self.pointer::<u8>(cuda),
            DType::U32 => self.pointer::<u32>(cuda),
        }
    }

    /// As [`Tensor::pointer_mut`], of a type known at run time.
    pub(crate) fn address_mut(&mut self, dtype: DType, cuda: &CudaDevice) -> Result<u64> {
        match dtype {
            DType::F32 => self.pointer_mut::<f32>(cuda),
            DType::BF16 => self.pointer_mut::<bf16>(cuda),
            DType::F16 => self.pointer_mut::<f16>(cuda),
            DType::U8 => self.pointer_mut::<u8>(cuda),
            DType::U32 => self.pointer_mut::<u32>(cuda),
        }
    }
}

impl Tensor {
    /// Writes the elements of `from`, which lies on `cuda` too, to the place where these are; to a copy if another
    /// tensor shares them.
    pub(crate) fn assign(&mut self, from: &Tensor, cuda: &CudaDevice) -> Result<()> {
        if (from.shape(), from.dtype()) != (self.shape(), self.dtype()) {
            return Err(Error::shape("assign", format!("{from:?} is not in the form of {self:?}")));
        }
        self.address_mut(self.dtype(), cuda)?;
        self.buffer(cuda)?.assign(from.buffer(cuda)?)
    }
}

kernel_params! {
    struct FillParams {
        to: u64,
        count: u64,
        value: f32,
    }
}

kernel_params! {
    struct AddAssignParams {
        sum: u64,
        other: u64,
        count: u64,
    }
}

kernel_params! {
    struct LerpAssignParams {
        to: u64,
        other: u64,
        count: u64,
        share: f32,
    }
}

kernel_params! {
    struct CastParams {
        from: u64,
        to: u64,
        count: u64,
    }
}

pub(crate) static SOURCE: Source = Source {
    name: "tensor",
    text: include_str!("../../kernels/tensor.cu"),
    archs: F32_ARCHS,
    entries: &[
        "tensor_fill",
        "tensor_add_assign",
        "tensor_add_assign_bf16",
        "tensor_lerp_assign",
        "cast_f32_bf16",
        "cast_bf16_f32",
        "cast_f32_f16",
        "cast_f16_f32",
        "cast_u8_f32",
    ],
    layouts: &[FillParams::LAYOUT, AddAssignParams::LAYOUT, LerpAssignParams::LAYOUT, CastParams::LAYOUT],
};

static FILL: Kernel<FillParams> = Kernel::new(&SOURCE, "tensor_fill", MAP_THREADS);
static ADD_ASSIGN: ByType<AddAssignParams> =
    ByType::new(&SOURCE, "tensor_add_assign", "tensor_add_assign_bf16", MAP_THREADS);
static LERP_ASSIGN: Kernel<LerpAssignParams> = Kernel::new(&SOURCE, "tensor_lerp_assign", MAP_THREADS);
static F32_TO_BF16: Kernel<CastParams> = Kernel::new(&SOURCE, "cast_f32_bf16", MAP_THREADS);
static BF16_TO_F32: Kernel<CastParams> = Kernel::new(&SOURCE, "cast_bf16_f32", MAP_THREADS);
static F32_TO_F16: Kernel<CastParams> = Kernel::new(&SOURCE, "cast_f32_f16", MAP_THREADS);
static F16_TO_F32: Kernel<CastParams> = Kernel::new(&SOURCE, "cast_f16_f32", MAP_THREADS);
static U8_TO_F32: Kernel<CastParams> = Kernel::new(&SOURCE, "cast_u8_f32", MAP_THREADS);

pub(super) fn fill(cuda: &Arc<CudaDevice>, tensor: &mut Tensor, value: f32) -> Result<()> {
    let count = tensor.shape().elements();
    let params = FillParams { to: tensor.pointer_mut::<f32>(cuda)?, count: count as u64, value };
    cuda.launch(&FILL, map_grid(count), 0, &params)
}

pub(super) fn add_assign(cuda: &Arc<CudaDevice>, sum: &mut Tensor, other: &Tensor) -> Result<()> {
    let (count, dtype) = (sum.shape().elements(), sum.dtype());
    let kernel = ADD_ASSIGN.of(dtype)?;
    let other = other.address(dtype, cuda)?;
    let params = AddAssignParams { sum: sum.address_mut(dtype, cuda)?, other, count: count as u64 };
    cuda.launch(kernel, map_grid(count), 0, &params)
}

pub(super) fn lerp_assign(cuda: &Arc<CudaDevice>, to: &mut Tensor, other: &Tensor, share: f32) -> Result<()> {
    let (count, other) = (to.shape().elements(), other.pointer::<f32>(cuda)?);
    let params = LerpAssignParams { to: to.pointer_mut::<f32>(cuda)?, other, count: count as u64, share };
    cuda.launch(&LERP_ASSIGN, map_grid(count), 0, &params)
}

/// `None` where there is no such conversion.
pub(super) fn cast(cuda: &Arc<CudaDevice>, from: &Tensor, dtype: DType) -> Result<Option<Tensor>> {
    match (from.dtype(), dtype) {
        (DType::F32, DType::BF16) => convert::<f32, bf16>(cuda, &F32_TO_BF16, from),
        (DType::BF16, DType::F32) => convert::<bf16, f32>(cuda, &BF16_TO_F32, from),
        (DType::F32, DType::F16) => convert::<f32, f16>(cuda, &F32_TO_F16, from),
        (DType::F16, DType::F32) => convert::<f16, f32>(cuda, &F16_TO_F32, from),
        (DType::U8, DType::F32) => convert::<u8, f32>(cuda, &U8_TO_F32, from),
        _ => return Ok(None),
    }
    .map(Some)
}

fn convert<From: Element, To: Element>(
    cuda: &Arc<CudaDevice>,
    kernel: &Kernel<CastParams>,
    from: &Tensor,
) -> Result<Tensor> {
    let (to, count) = (Tensor::uninit::<To>(from.shape(), cuda)?, from.shape().elements());
    let params = CastParams { from: from.pointer::<From>(cuda)?, to: to.pointer::<To>(cuda)?, count: count as u64 };
    cuda.launch(kernel, map_grid(count), 0, &params)?;
    Ok(to)
}
