//! Dropout on the GPU: `kernels/dropout.cu`.

use std::sync::Arc;

use super::Stream;
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::optional,
    tensor::cuda::{MAP_THREADS, map_grid},
};

kernel_params! {
    struct DropoutParams {
        input: u64,
        output: u64,
        count: u64,
        key: u64,
        step: u64,
        p: f32,
        keep: f32,
    }
}

pub static SOURCE: Source = Source {
    name: "dropout",
    text: include_str!("../../../kernels/dropout.cu"),
    archs: F32_ARCHS,
    entries: &["dropout"],
    layouts: &[DropoutParams::LAYOUT],
};

static DROPOUT: Kernel<DropoutParams> = Kernel::new(&SOURCE, "dropout", MAP_THREADS);

pub fn apply_mask(cuda: &Arc<CudaDevice>, input: &Tensor, p: f32, stream: &Stream) -> Result<Tensor> {
    let (output, count) = (Tensor::uninit::<f32>(input.shape(), cuda)?, input.shape().elements());
    let params = DropoutParams {
        input: input.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        count: count as u64,
        key: stream.random.key(),
        step: optional::<u32>(cuda, stream.step.as_ref())?,
        p,
        keep: 1.0 / (1.0 - p),
    };
    cuda.launch(&DROPOUT, map_grid(count), 0, &params)?;
    Ok(output)
}
