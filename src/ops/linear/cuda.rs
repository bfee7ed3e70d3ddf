//! The fully connected layer on the GPU: a convolution over maps of one pixel, and the sums of `kernels/linear.cu`.

use std::sync::Arc;

use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{
        conv::{
            Extents,
            cuda::{self as conv, Finish},
            plan::Problem,
        },
        matrix, small,
    },
};

kernel_params! {
    struct LinearBiasGradParams {
        grad: u64,
        output: u64,
        rows: u32,
        cols: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "linear",
    text: include_str!("../../../kernels/linear.cu"),
    archs: F32_ARCHS,
    entries: &["linear_bias_grad"],
    layouts: &[LinearBiasGradParams::LAYOUT],
};
static BIAS_GRAD: Kernel<LinearBiasGradParams> = Kernel::new(&SOURCE, "linear_bias_grad", 256);
/// Columns of one block of it.
const BIAS_GRAD_COLS: usize = 32;

pub fn forward(cuda: &Arc<CudaDevice>, input: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ([n, inputs], [outputs, _]) = (matrix("linear", input)?, matrix("linear", weight)?);
    let extents = Extents::linear(n, inputs, outputs);
    let finish = Finish { shift: Some(bias), ..Finish::default() };
    conv::forward(cuda, input, weight, &extents, finish, Problem::forward(&extents).plan())?.reshape([n, outputs])
}

/// `grad · weight`, `[N, in]`.
pub fn input_grad(cuda: &Arc<CudaDevice>, grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ([n, outputs], [_, inputs]) = (matrix("linear", grad)?, matrix("linear", weight)?);
    let extents = Extents::linear(n, inputs, outputs);
    conv::input_grad(cuda, grad, weight, &extents, Problem::input_grad(&extents).plan())?.reshape([n, inputs])
}

/// `gradᵀ · input`, `[out, in]`.
pub fn weight_grad(cuda: &Arc<CudaDevice>, grad: &Tensor, input: &Tensor) -> Result<Tensor> {
    let ([n, outputs], [_, inputs]) = (matrix("linear", grad)?, matrix("linear", input)?);
    let extents = Extents::linear(n, inputs, outputs);
    let plan = Problem::weight_grad(&extents).sliced_plan();
    conv::weight_grad(cuda, grad, input, &extents, plan)?.reshape([outputs, inputs])
}

/// Sums over rows, `[out]`.
pub fn bias_grad(cuda: &Arc<CudaDevice>, grad: &Tensor) -> Result<Tensor> {
    let [rows, cols] = matrix("linear", grad)?;
    let output = Tensor::uninit::<f32>([cols], cuda)?;
    let params = LinearBiasGradParams {
        grad: grad.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        rows: small("linear", rows)?,
        cols: small("linear", cols)?,
    };
    cuda.launch(&BIAS_GRAD, [cols.div_ceil(BIAS_GRAD_COLS), 1, 1], 0, &params)?;
    Ok(output)
}
