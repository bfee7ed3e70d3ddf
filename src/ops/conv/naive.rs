//! The convolutions of `kernels/conv_naive.cu`, one thread per result: what tests compare the tiled kernels with, and
//! benchmarks measure them against. For a GPU only.

use std::sync::Arc;

use super::{Extents, Geometry, cuda::ConvExtents};
use crate::{
    Device, Error, Result, Shape, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
};

kernel_params! {
    struct ConvNaiveParams {
        left: u64,
        right: u64,
        output: u64,
        extents: ConvExtents,
    }
}

pub(crate) static SOURCE: Source = Source {
    name: "conv_naive",
    text: include_str!("../../../kernels/conv_naive.cu"),
    archs: F32_ARCHS,
    entries: &["conv_forward_naive", "conv_input_grad_naive", "conv_weight_grad_naive"],
    layouts: &[ConvExtents::LAYOUT, ConvNaiveParams::LAYOUT],
};
static FORWARD: Kernel<ConvNaiveParams> = Kernel::new(&SOURCE, "conv_forward_naive", 256);
static INPUT_GRAD: Kernel<ConvNaiveParams> = Kernel::new(&SOURCE, "conv_input_grad_naive", 256);
static WEIGHT_GRAD: Kernel<ConvNaiveParams> = Kernel::new(&SOURCE, "conv_weight_grad_naive", 256);

/// As [`conv::forward`](super::forward), without epilogue.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit; [`Error::Device`] on a device that is no GPU.
pub fn forward(input: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor> {
    let extents = Extents::new(input.shape(), weight.shape(), geometry)?;
    launch(&FORWARD, input, weight, &extents, extents.output())
}

/// As [`conv::input_grad`](super::input_grad).
///
/// # Errors
/// As of [`forward`].
pub fn input_grad(output_grad: &Tensor, weight: &Tensor, input: Shape, geometry: Geometry) -> Result<Tensor> {
    let extents = Extents::new(input, weight.shape(), geometry)?;
    launch(&INPUT_GRAD, output_grad, weight, &extents, input)
}

/// As [`conv::weight_grad`](super::weight_grad).
///
/// # Errors
/// As of [`forward`].
pub fn weight_grad(output_grad: &Tensor, input: &Tensor, weight: Shape, geometry: Geometry) -> Result<Tensor> {
    let extents = Extents::new(input.shape(), weight, geometry)?;
    launch(&WEIGHT_GRAD, output_grad, input, &extents, weight)
}

fn launch(
    kernel: &Kernel<ConvNaiveParams>,
    left: &Tensor,
    right: &Tensor,
    extents: &Extents,
    output: Shape,
) -> Result<Tensor> {
    let cuda: &Arc<CudaDevice> = match left.device() {
        Device::Cuda(cuda) => cuda,
        device @ Device::Cpu(_) => {
            let message = "naive convolutions are kernels of a GPU; use conv::forward".into();
            return Err(Error::Device { device: device.to_string(), message });
        }
    };
    let output = Tensor::uninit::<f32>(output, cuda)?;
    let params = ConvNaiveParams {
        left: left.pointer::<f32>(cuda)?,
        right: right.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        extents: extents.for_kernels(cuda)?,
    };
    cuda.launch(kernel, [output.shape().elements().div_ceil(256), 1, 1], 0, &params)?;
    Ok(output)
}
