//! Batchnorm on the GPU: `kernels/batchnorm*.cu`. Every number stays on the device.

mod backward;
mod forward;
mod pooled;

pub(super) use backward::backward;
pub use backward::{Gate, SOURCE as GRAD_SOURCE, coefficients, input_grad, input_grad_pair, reduce};
pub use forward::{SOURCE, apply, fold, merge, moments, update_running};
pub use pooled::{SOURCE as POOL_SOURCE, apply_pooled, input_grad_pooled, reduce_pooled};

use std::sync::Arc;

use crate::{
    Error, Result, Shape, Tensor,
    device::{
        CudaDevice,
        cuda::{Kernel, Params, Source},
    },
    tensor::DType,
};

/// Threads of a block, and of one that merges tiles: `THREADS` and `MERGE_THREADS` of `kernels/include/batchnorm.cuh`.
const THREADS: u32 = 256;
const MERGE_THREADS: u32 = 1024;
/// Rows of a tile: `TILE`.
const TILE: usize = 128;
/// Channels that a block takes with four or eight in a thread: `CHANNELS`.
const CHANNELS: usize = 64;

/// Kernels over rows: of one and of four channels of f32 per thread, and of eight of bf16.
type Kernels<P> = [Kernel<P>; 3];

const fn kernels<P: Params>(source: &'static Source, [one, four, bf16]: [&'static str; 3]) -> Kernels<P> {
    [Kernel::new(source, one, THREADS), Kernel::new(source, four, THREADS), Kernel::new(source, bf16, THREADS)]
}

/// Launches a kernel over `rows` of `dtype`: a block per tile and group of channels.
fn over_rows<P: Params>(
    cuda: &CudaDevice,
    kernels: &Kernels<P>,
    dtype: DType,
    [rows, channels]: [usize; 2],
    params: &P,
) -> Result<()> {
    let kernel = match dtype {
        DType::F32 if !channels.is_multiple_of(4) => 0,
        DType::F32 => 1,
        DType::BF16 if channels.is_multiple_of(8) => 2,
        _ => {
            let message = format!("maps are f32, or bf16 with a multiple of 8 channels; got {channels} of {dtype:?}");
            return Err(Error::shape("batchnorm", message));
        }
    };
    over_tiles(cuda, &kernels[kernel], [rows, channels.div_ceil([16, CHANNELS, CHANNELS][kernel])], params)
}

/// Launches a kernel over `rows`, with `across` blocks for each tile.
fn over_tiles<P: Params>(cuda: &CudaDevice, kernel: &Kernel<P>, [rows, across]: [usize; 2], params: &P) -> Result<()> {
    cuda.launch(kernel, [rows.div_ceil(TILE) * across, 1, 1], 0, params)
}

/// Channels of a block that merges `tiles`: few of many tiles, so that there are blocks enough.
fn merge_width(tiles: usize) -> u32 {
    match tiles {
        0..=128 => 32,
        129..=1024 => 8,
        _ => 2,
    }
}

/// The grid of a kernel that merges tiles, `width` channels in a block.
fn merge_grid(channels: usize, width: u32) -> [usize; 3] {
    [channels.div_ceil(width as usize), 1, 1]
}

/// `N` tensors of a shape, to be written.
fn uninit<const N: usize>(shape: impl Into<Shape>, cuda: &Arc<CudaDevice>) -> Result<[Tensor; N]> {
    let shape = shape.into();
    let tensors = (0..N).map(|_| Tensor::uninit::<f32>(shape, cuda)).collect::<Result<Vec<_>>>()?;
    Ok(tensors.try_into().unwrap_or_else(|_| unreachable!("N tensors")))
}
