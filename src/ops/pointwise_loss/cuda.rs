//! Losses output by output on the GPU: `kernels/pointwise_loss.cu`.

use std::sync::Arc;

use super::Pointwise;
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{optional, small},
};

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows of a block: one for each warp.
const ROWS: usize = 8;

kernel_params! {
    struct PointwiseLossParams {
        outputs: u64,
        targets: u64,
        weights: u64,
        row_loss: u64,
        loss: u64,
        grad: u64,
        n: u32,
        columns: u32,
        kind: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "pointwise_loss",
    text: include_str!("../../../kernels/pointwise_loss.cu"),
    archs: F32_ARCHS,
    entries: &["pointwise_loss", "pointwise_loss_mean"],
    layouts: &[PointwiseLossParams::LAYOUT],
};

static LOSS: Kernel<PointwiseLossParams> = Kernel::new(&SOURCE, "pointwise_loss", THREADS);
static MEAN: Kernel<PointwiseLossParams> = Kernel::new(&SOURCE, "pointwise_loss_mean", THREADS);

pub fn pointwise_loss(
    cuda: &Arc<CudaDevice>,
    outputs: &Tensor,
    targets: &Tensor,
    loss: Pointwise,
    weights: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let n = outputs.shape().rows();
    let (value, grad) = (Tensor::uninit::<f32>([], cuda)?, Tensor::uninit::<f32>(outputs.shape(), cuda)?);
    let row_loss = Tensor::uninit::<f32>([n], cuda)?;
    let params = PointwiseLossParams {
        outputs: outputs.pointer::<f32>(cuda)?,
        targets: targets.pointer::<f32>(cuda)?,
        weights: optional::<f32>(cuda, weights)?,
        row_loss: row_loss.pointer::<f32>(cuda)?,
        loss: value.pointer::<f32>(cuda)?,
        grad: grad.pointer::<f32>(cuda)?,
        n: small("pointwise loss", n)?,
        columns: small("pointwise loss", outputs.shape().last())?,
        kind: match loss {
            Pointwise::Binary => 0,
            Pointwise::Absolute => 1,
            Pointwise::Squared => 2,
        },
    };
    cuda.launch(&LOSS, [n.div_ceil(ROWS), 1, 1], 0, &params)?;
    cuda.launch(&MEAN, [1, 1, 1], 0, &params)?;
    Ok((value, grad))
}
