//! Summing up on the GPU: `kernels/reduce.cu`.

use std::sync::Arc;

use super::Summary;
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Params, Source, kernel_params},
    },
    tensor::cuda::ByType,
};

/// Threads of a block, and the elements that it sums up: `BLOCK`.
const THREADS: u32 = 256;
const BLOCK: usize = 16384;

kernel_params! {
    struct SummaryParams {
        input: u64,
        parts: u64,
        count: u64,
    }
}

pub static SOURCE: Source = Source {
    name: "reduce",
    text: include_str!("../../../kernels/reduce.cu"),
    archs: F32_ARCHS,
    entries: &["summary", "summary_bf16"],
    layouts: &[SummaryParams::LAYOUT],
};

static SUMMARY: ByType<SummaryParams> = ByType::new(&SOURCE, "summary", "summary_bf16", THREADS);

pub fn summaries(cuda: &Arc<CudaDevice>, tensor: &Tensor) -> Result<Vec<Summary>> {
    let (dtype, count) = (tensor.dtype(), tensor.shape().elements());
    let kernel = SUMMARY.of(dtype)?;
    let blocks = count.div_ceil(BLOCK);
    // A part is three words: two floats and a count.
    let parts = Tensor::uninit::<u32>([blocks, 3], cuda)?;
    let params =
        SummaryParams { input: tensor.address(dtype, cuda)?, parts: parts.pointer::<u32>(cuda)?, count: count as u64 };
    cuda.launch(kernel, [blocks, 1, 1], 0, &params)?;
    let part = |words: &[u32]| Summary {
        sum: f64::from(f32::from_bits(words[0])),
        largest: f32::from_bits(words[1]),
        not_finite: words[2] as usize,
    };
    Ok(parts.to_vec::<u32>()?.chunks_exact(3).map(part).collect())
}
