//! The operations. Each has one folder: `mod.rs` is the contract (docs, shape checks, dispatch by device), `cpu.rs`
//! the work on the processor, `grad.rs` its place on the tape.

pub mod augment;
pub mod batchnorm;
pub mod conv;
pub mod dropout;
pub mod elementwise;
pub mod gather;
pub mod head_trainer;
pub mod kernels;
pub mod linear;
pub mod loss;
pub mod mix;
pub mod optimizer;
pub mod pointwise_loss;
pub mod pool;
mod products;
pub mod reduce;
pub mod shortcut;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tile;

use crate::{Error, Result, Shape, Tensor, device::CudaDevice, tensor::Element};

/// Elements per task of an elementwise operation: large enough to be worth a thread.
const CHUNK: usize = 1 << 14;

/// Runs `work` on the processor's widest vectors: what of it is inlined is compiled for them.
fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Blocks that kernels have at most along the images of a batch, each taking every so-many-th: what CUDA allows.
const MOST_IMAGES: usize = 65535;

/// The extents `[N, H, W, C]` of an activation, with at least one channel.
fn nhwc(op: &'static str, tensor: &Tensor) -> Result<[usize; 4]> {
    match *tensor.dims() {
        [n, h, w, c] if c > 0 => Ok([n, h, w, c]),
        _ => Err(Error::shape(op, format!("expected an activation [N, H, W, C], got {}", tensor.shape()))),
    }
}

/// The extents `[rows, cols]` of a matrix, with at least one column.
fn matrix(op: &'static str, tensor: &Tensor) -> Result<[usize; 2]> {
    match *tensor.dims() {
        [rows, cols] if cols > 0 => Ok([rows, cols]),
        _ => Err(Error::shape(op, format!("expected a matrix, got {}", tensor.shape()))),
    }
}

fn expect_shape(op: &'static str, what: &str, tensor: &Tensor, expected: impl Into<Shape>) -> Result<()> {
    let expected = expected.into();
    if tensor.shape() == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} should be {expected}, is {}", tensor.shape())))
}

/// The address of a tensor's elements on `cuda`; 0 if there is none.
fn optional<T: Element>(cuda: &CudaDevice, tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), |tensor| tensor.pointer::<T>(cuda))
}

/// A count as kernels take it.
fn small(op: &'static str, count: usize) -> Result<u32> {
    // Half of what 32 bits hold, so that a kernel may reach beyond the end before it looks.
    let fitting = u32::try_from(count).ok().filter(|count| *count <= i32::MAX as u32);
    fitting.ok_or_else(|| Error::shape(op, format!("{count} is too large an extent; use a smaller batch or images")))
}
