//! Tensors' own kernels: `kernels/tensor.cu`.

use std::sync::Arc;

use half::{bf16, f16};

use super::{DType, Element, Tensor};
use crate::{
    Result,
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
        "cast_f32_bf16",
        "cast_bf16_f32",
        "cast_f32_f16",
        "cast_f16_f32",
        "cast_u8_f32",
    ],
    layouts: &[FillParams::LAYOUT, AddAssignParams::LAYOUT, CastParams::LAYOUT],
};

static FILL: Kernel<FillParams> = Kernel::new(&SOURCE, "tensor_fill", MAP_THREADS);
static ADD_ASSIGN: Kernel<AddAssignParams> = Kernel::new(&SOURCE, "tensor_add_assign", MAP_THREADS);
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
    let count = sum.shape().elements();
    let params =
        AddAssignParams { sum: sum.pointer_mut::<f32>(cuda)?, other: other.pointer::<f32>(cuda)?, count: count as u64 };
    cuda.launch(&ADD_ASSIGN, map_grid(count), 0, &params)
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
