//! Operations element by element on the GPU: `kernels/elementwise.cu`.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    tensor::cuda::{MAP_THREADS, map_grid},
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
    entries: &["relu", "add", "relu_grad", "scale"],
    layouts: &[UnaryParams::LAYOUT, BinaryParams::LAYOUT, ScaleParams::LAYOUT],
};

static RELU: Kernel<UnaryParams> = Kernel::new(&SOURCE, "relu", MAP_THREADS);
static ADD: Kernel<BinaryParams> = Kernel::new(&SOURCE, "add", MAP_THREADS);
static RELU_GRAD: Kernel<BinaryParams> = Kernel::new(&SOURCE, "relu_grad", MAP_THREADS);
static SCALE: Kernel<ScaleParams> = Kernel::new(&SOURCE, "scale", MAP_THREADS);

pub fn relu(cuda: &Arc<CudaDevice>, input: &Tensor) -> Result<Tensor> {
    let (output, count) = (Tensor::uninit::<f32>(input.shape(), cuda)?, input.shape().elements());
    let params =
        UnaryParams { input: input.pointer::<f32>(cuda)?, output: output.pointer::<f32>(cuda)?, count: count as u64 };
    cuda.launch(&RELU, map_grid(count), 0, &params)?;
    Ok(output)
}

pub fn relu_grad(cuda: &Arc<CudaDevice>, grad: &Tensor, output: &Tensor) -> Result<Tensor> {
    binary(cuda, &RELU_GRAD, grad, output)
}

pub fn add(cuda: &Arc<CudaDevice>, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    binary(cuda, &ADD, left, right)
}

fn binary(cuda: &Arc<CudaDevice>, kernel: &Kernel<BinaryParams>, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (output, count) = (Tensor::uninit::<f32>(left.shape(), cuda)?, left.shape().elements());
    let params = BinaryParams {
        left: left.pointer::<f32>(cuda)?,
        right: right.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        count: count as u64,
    };
    cuda.launch(kernel, map_grid(count), 0, &params)?;
    Ok(output)
}

pub fn scale(cuda: &Arc<CudaDevice>, input: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let (output, count) = (Tensor::uninit::<f32>(input.shape(), cuda)?, input.shape().elements());
    let params = ScaleParams {
        input: input.pointer::<f32>(cuda)?,
        factor: factor.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        count: count as u64,
    };
    cuda.launch(&SCALE, map_grid(count), 0, &params)?;
    Ok(output)
}
