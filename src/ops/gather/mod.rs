//! Rows of a matrix by number: batches of cached activations.

pub(super) mod cuda;

use half::{bf16, f16};

use super::expect_shape;
use crate::{DType, Device, Error, Result, Shape, Tensor, tensor::Element};

/// The given `rows`, u32 `[n]`, of `matrix` `[R, F]`: `[n, F]`; or of a vector `[R]`: `[n]`. Elements of any type.
///
/// # Errors
/// [`Error::Shape`] if extents do not fit or, on the processor, a row does not exist. A GPU cannot say so without being
/// waited for: there such a row's bits are all set, in floats a NaN.
pub fn gather(matrix: &Tensor, rows: &Tensor) -> Result<Tensor> {
    expect_shape("gather", "rows", rows, [rows.shape().elements()])?;
    let (n, found) = (rows.shape().elements(), matrix.shape());
    let (count, width, shape): (_, _, Shape) = match *found.dims() {
        [count] => (count, 1, [n].into()),
        [count, width] => (count, width, [n, width].into()),
        _ => return Err(Error::shape("gather", format!("expected a matrix or a vector, got {found}"))),
    };
    match matrix.dtype() {
        DType::F32 => typed::<f32>(matrix, rows, [count, width], shape),
        DType::BF16 => typed::<bf16>(matrix, rows, [count, width], shape),
        DType::F16 => typed::<f16>(matrix, rows, [count, width], shape),
        DType::U8 => typed::<u8>(matrix, rows, [count, width], shape),
        DType::U32 => typed::<u32>(matrix, rows, [count, width], shape),
    }
}

fn typed<T: Element>(matrix: &Tensor, rows: &Tensor, [count, width]: [usize; 2], shape: Shape) -> Result<Tensor> {
    match matrix.device() {
        Device::Cuda(device) => cuda::gather::<T>(device, matrix, rows, [count, width], shape),
        Device::Cpu(_) => {
            let (elements, rows) = (matrix.as_slice::<T>()?, rows.as_slice::<u32>()?);
            if let Some(row) = rows.iter().find(|row| **row as usize >= count) {
                return Err(Error::shape("gather", format!("row {row} of {count}")));
            }
            let gathered = rows.iter().flat_map(|row| &elements[*row as usize * width..][..width]).copied().collect();
            Tensor::new(gathered, shape, matrix.device())
        }
    }
}
