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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, devices, normal};

    #[test]
    fn rows_of_any_width_and_type() -> Result<()> {
        for device in devices() {
            let rows = [4u32, 0, 4, 6, 2];
            let numbers = Tensor::new(rows.to_vec(), [5], &device)?;
            // Units of 16, 4, 2 and 1 bytes; more than a block of them.
            for width in [1usize, 2, 3, 4, 8, 260, 1028] {
                let picked = |values: &[f32]| -> Vec<f32> {
                    rows.iter().flat_map(|row| &values[*row as usize * width..][..width]).copied().collect()
                };
                let matrix = normal(1, "matrix", [7, width], &device);
                let expected = picked(&matrix.to_vec::<f32>()?);
                let gathered = gather(&matrix, &numbers)?;
                assert_eq!((gathered.dims(), gathered.to_vec::<f32>()?), (&[5, width][..], expected), "{device}");
                for dtype in [DType::BF16, DType::F16] {
                    let half = matrix.cast(dtype)?;
                    let expected = picked(&half.cast(DType::F32)?.to_vec::<f32>()?);
                    let gathered = gather(&half, &numbers)?.cast(DType::F32)?;
                    assert_eq!(gathered.to_vec::<f32>()?, expected, "{dtype:?} of {width} on {device}");
                }
                let bytes: Vec<u8> = (0..7 * width).map(|at| at as u8).collect();
                let expected = picked(&bytes.iter().map(|byte| f32::from(*byte)).collect::<Vec<_>>());
                let gathered = gather(&Tensor::new(bytes, [7, width], &device)?, &numbers)?.cast(DType::F32)?;
                assert_eq!(gathered.to_vec::<f32>()?, expected, "bytes on {device}");
            }
            let labels = Tensor::new((10..17u32).collect(), [7], &device)?;
            assert_eq!(gather(&labels, &numbers)?.to_vec::<u32>()?, [14, 10, 14, 16, 12]);
            let none = Tensor::new(Vec::<u32>::new(), [0], &device)?;
            assert_eq!(gather(&labels, &none)?.dims(), [0]);
        }
        Ok(())
    }

    #[test]
    fn more_rows_than_a_grid_has_blocks() -> Result<()> {
        for device in devices() {
            let rows: Vec<u32> = (0..crate::ops::MOST_IMAGES as u32 + 70).map(|i| i % 3).collect();
            let expected: Vec<u32> = rows.iter().map(|row| 10 + row).collect();
            let numbers = Tensor::new(rows, [expected.len()], &device)?;
            let labels = Tensor::new(vec![10u32, 11, 12], [3], &device)?;
            assert!(gather(&labels, &numbers)?.to_vec::<u32>()? == expected, "{device}");
        }
        Ok(())
    }

    #[test]
    fn a_row_that_does_not_exist_passes_for_nothing() -> Result<()> {
        for device in devices() {
            let matrix = Tensor::zeros([3, 5], &device)?;
            for row in [3, u32::MAX] {
                match (gather(&matrix, &Tensor::new(vec![1, row], [2], &device)?), &device) {
                    (Err(error), Device::Cpu(_)) => assert!(error.to_string().contains(&format!("row {row} of 3"))),
                    (Ok(gathered), Device::Cuda(_)) => {
                        assert_eq!(bits(&gathered), [[0; 5], [u32::MAX; 5]].concat());
                        assert!(gathered.to_vec::<f32>()?[5..].iter().all(|value| value.is_nan()));
                    }
                    (outcome, device) => panic!("{outcome:?} on {device}"),
                }
            }
            let rows = Tensor::new(vec![0u32], [1], &device)?;
            assert!(gather(&Tensor::zeros([1, 1, 1], &device)?, &rows).is_err());
            assert!(gather(&matrix, &Tensor::zeros([1], &device)?).is_err(), "rows that are floats");
            assert!(gather(&matrix, &rows.reshape([1, 1])?).is_err());
        }
        Ok(())
    }
}
