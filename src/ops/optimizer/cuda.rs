//! Optimizer steps on the GPU: `kernels/optimizer.cu`, one launch for all parameters.

use std::sync::Arc;

use super::{Item, Rule, Table};
use crate::{
    Result,
    device::{
        CudaDevice,
        cuda::{Buffer, F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::small,
};

/// Threads of a block, and the elements that it moves: `BLOCK`.
const THREADS: u32 = 256;
const BLOCK: usize = 4096;

kernel_params! {
    /// A parameter in the table.
    struct Segment {
        value: u64,
        grad: u64,
        first: u64,
        second: u64,
        count: u64,
        first_block: u32,
        lr: f32,
        weight_decay: f32,
        unused: u32,
    }
}

kernel_params! {
    struct SgdParams {
        segments: u64,
        count: u32,
        momentum: f32,
        nesterov: u32,
    }
}

kernel_params! {
    struct AdamWParams {
        segments: u64,
        count: u32,
        beta1: f32,
        beta2: f32,
        eps: f32,
        correction1: f32,
        correction2: f32,
    }
}

pub static SOURCE: Source = Source {
    name: "optimizer",
    text: include_str!("../../../kernels/optimizer.cu"),
    archs: F32_ARCHS,
    entries: &["sgd", "adamw"],
    layouts: &[Segment::LAYOUT, SgdParams::LAYOUT, AdamWParams::LAYOUT],
};

static SGD: Kernel<SgdParams> = Kernel::new(&SOURCE, "sgd", THREADS);
static ADAMW: Kernel<AdamWParams> = Kernel::new(&SOURCE, "adamw", THREADS);

/// A table on the GPU, and what is in it.
pub struct Uploaded {
    bytes: Vec<u8>,
    buffer: Buffer,
}

pub fn step(cuda: &Arc<CudaDevice>, rule: Rule, items: &mut [Item], table: &mut Table) -> Result<()> {
    let (mut bytes, mut blocks) = (Vec::new(), 0);
    for item in &mut *items {
        let elements = item.parameter.shape().elements();
        let [first, second] = match &mut *item.buffers {
            [first, second] => [first.pointer_mut::<f32>(cuda)?, second.pointer_mut::<f32>(cuda)?],
            buffers => [buffers[0].pointer_mut::<f32>(cuda)?, 0],
        };
        let segment = Segment {
            value: item.parameter.pointer_mut::<f32>(cuda)?,
            grad: item.grad.pointer::<f32>(cuda)?,
            first,
            second,
            count: elements as u64,
            first_block: small("optimizer", blocks)?,
            lr: item.lr,
            weight_decay: item.weight_decay,
            unused: 0,
        };
        bytes.extend(segment.to_bytes());
        blocks += elements.div_ceil(BLOCK);
    }
    let segments = uploaded(cuda, table, bytes)?;
    let count = small("optimizer", items.len())?;
    let grid = [blocks, 1, 1];
    match rule {
        Rule::Sgd { momentum, nesterov } => {
            cuda.launch(&SGD, grid, 0, &SgdParams { segments, count, momentum, nesterov: nesterov.into() })
        }
        Rule::AdamW { beta1, beta2, eps, step } => {
            let [correction1, correction2] = Rule::corrections(beta1, beta2, step);
            cuda.launch(&ADAMW, grid, 0, &AdamWParams { segments, count, beta1, beta2, eps, correction1, correction2 })
        }
    }
}

/// The address of a table of `bytes`: that of the last one if it has as many, so that a step leaves memory as it was.
pub(in crate::ops) fn uploaded(cuda: &Arc<CudaDevice>, table: &mut Table, bytes: Vec<u8>) -> Result<u64> {
    if let Some(last) = &mut table.0
        && last.bytes.len() == bytes.len()
        && Arc::ptr_eq(last.buffer.device(), cuda)
    {
        if last.bytes != bytes {
            last.buffer.overwrite(&bytes)?;
            last.bytes = bytes;
        }
        return Ok(last.buffer.address());
    }
    let buffer = cuda.upload(&bytes)?;
    Ok(table.0.insert(Uploaded { bytes, buffer }).buffer.address())
}
