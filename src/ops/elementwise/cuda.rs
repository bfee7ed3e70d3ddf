//! Operations element by element on the GPU: `kernels/elementwise.cu`.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Params, Source, kernel_params},
    },
    tensor::cuda::{ByType, MAP_THREADS, map_grid},
};

kernel_params! {
    struct UnaryParams {
        input: u64,
        output: u64,
        count: u64,
    }
}

kernel_params! {
    struct BinaryParams {
        left: u64,
        right: u64,
        output: u64,
        count: u64,
    }
}

kernel_params! {
    struct ScaleParams {
        input: u64,
        factor: u64,
        output: u64,
        count: u64,
    }
}

pub static SOURCE: Source = Source {
    name: "elementwise",
    text: include_str!("../../../kernels/elementwise.cu"),
    archs: F32_ARCHS,
    entries: &["relu", "relu_bf16", "add", "add_bf16", "relu_grad", "relu_grad_bf16", "scale", "scale_bf16"],
    layouts: &[UnaryParams::LAYOUT, BinaryParams::LAYOUT, ScaleParams::LAYOUT],
};

static RELU: ByType<UnaryParams> = ByType::new(&SOURCE, "relu", "relu_bf16", MAP_THREADS);
static ADD: ByType<BinaryParams> = ByType::new(&SOURCE, "add", "add_bf16", MAP_THREADS);
static RELU_GRAD: ByType<BinaryParams> = ByType::new(&SOURCE, "relu_grad", "relu_grad_bf16", MAP_THREADS);
static SCALE: ByType<ScaleParams> = ByType::new(&SOURCE, "scale", "scale_bf16", MAP_THREADS);

pub fn relu(cuda: &Arc<CudaDevice>, input: &Tensor) -> Result<Tensor> {
    let (dtype, count) = (input.dtype(), input.shape().elements());
    let (kernel, output) = (RELU.of(dtype)?, Tensor::uninit_of(dtype, input.shape(), cuda)?);
    let params =
        UnaryParams { input: input.address(dtype, cuda)?, output: output.address(dtype, cuda)?, count: count as u64 };
    cuda.launch(kernel, map_grid(count), 0, &params)?;
    Ok(output)
}

pub fn relu_grad(cuda: &Arc<CudaDevice>, grad: &Tensor, output: &Tensor) -> Result<Tensor> {
    binary(cuda, &RELU_GRAD, grad, output)
}

pub fn add(cuda: &Arc<CudaDevice>, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    binary(cuda, &ADD, left, right)
}

fn binary(cuda: &Arc<CudaDevice>, kernels: &ByType<BinaryParams>, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (dtype, count) = (left.dtype(), left.shape().elements());
    let (kernel, output) = (kernels.of(dtype)?, Tensor::uninit_of(dtype, left.shape(), cuda)?);
    let params = BinaryParams {
        left: left.address(dtype, cuda)?,
        right: right.address(dtype, cuda)?,
        output: output.address(dtype, cuda)?,
        count: count as u64,
    };
    cuda.launch(kernel, map_grid(count), 0, &params)?;
    Ok(output)
}

pub fn scale(cuda: &Arc<CudaDevice>, input: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let (dtype, count) = (input.dtype(), input.shape().elements());
    let (kernel, output) = (SCALE.of(dtype)?, Tensor::uninit_of(dtype, input.shape(), cuda)?);
    let params = ScaleParams {
        input: input.address(dtype, cuda)?,
        factor: factor.pointer::<f32>(cuda)?,
        output: output.address(dtype, cuda)?,
        count: count as u64,
    };
    cuda.launch(kernel, map_grid(count), 0, &params)?;
    Ok(output)
}
