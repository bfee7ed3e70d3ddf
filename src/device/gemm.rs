//! Matrix products on the processor: a checked wrapper around the `gemm` crate.

use std::ops::Range;

/// A matrix inside a slice: element `(i, j)` lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub elements: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A dense row-major matrix.
    pub fn dense(elements: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { elements, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Some rows and columns of a dense matrix whose rows are `stride` long.
    pub fn part(elements: &'a [f32], stride: usize, rows: Range<usize>, cols: Range<usize>) -> Self {
        let elements = elements.get(rows.start * stride + cols.start..).unwrap_or_default();
        Self { elements, rows: rows.len(), cols: cols.len(), row_stride: stride, col_stride: 1 }
    }

    /// The same elements, rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn fits(&self) -> bool {
        within(self.rows, self.row_stride, self.cols, self.col_stride, self.elements.len())
    }
}

/// Whether every element of a matrix lies within `len`; an overflow does not.
fn within(rows: usize, row_stride: usize, cols: usize, col_stride: usize, len: usize) -> bool {
    if rows == 0 || cols == 0 {
        return true;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    last.and_then(|(row, col)| row.checked_add(col)).is_some_and(|last| last < len)
}

/// `out = a · b`, or `out += a · b` if `accumulate`; `out` has rows `out_stride` apart. Runs on the calling thread.
///
/// A sample's result must not depend on its batch, but the `gemm` crate sums over the inner dimension in another
/// order for a single row, for small dot products and for narrow products with a long inner dimension. These paths
/// are avoided here: by computing the row twice, by transposing the small `b`, by splitting the inner dimension.
pub(crate) fn gemm(a: Matrix, b: Matrix, out: &mut [f32], out_stride: usize, accumulate: bool) {
    let (rows, inner, cols) = (a.rows, a.cols, b.cols);
    assert_eq!(inner, b.rows, "inner dimensions of a matrix product");
    assert!(a.fits() && b.fits() && out_stride >= cols, "matrix outside its slice");
    assert!(within(rows, out_stride, cols, 1, out.len()), "product outside its slice");
    if rows == 1 {
        let mut both = vec![0.0; 2 * cols];
        both[..cols].copy_from_slice(&out[..cols]);
        gemm(Matrix { rows: 2, row_stride: 0, ..a }, b, &mut both, cols, accumulate);
        out[..cols].copy_from_slice(&both[..cols]);
    } else if a.col_stride == 1 && b.row_stride == 1 && cols > 1 && rows * cols <= SMALL_PRODUCT {
        let mut dense = vec![0.0; inner * cols];
        for (i, row) in dense.chunks_exact_mut(cols).enumerate() {
            row.iter_mut().enumerate().for_each(|(j, to)| *to = b.elements[i + j * b.col_stride]);
        }
        gemm(a, Matrix::dense(&dense, inner, cols), out, out_stride, accumulate);
    } else if cols <= NARROW {
        for start in (0..inner).step_by(INNER_BLOCK) {
            let block = INNER_BLOCK.min(inner - start);
            let a = Matrix { elements: &a.elements[start * a.col_stride..], cols: block, ..a };
            let b = Matrix { elements: &b.elements[start * b.row_stride..], rows: block, ..b };
            raw(a, b, out, out_stride, accumulate || start > 0);
        }
    } else {
        raw(a, b, out, out_stride, accumulate);
    }
}

/// Where the crate's dot-product path ends (rows × columns).
const SMALL_PRODUCT: usize = 256;
/// Up to here its blocking of the inner dimension depends on the number of rows …
const NARROW: usize = 64;
/// … unless the inner dimension is no longer than this.
const INNER_BLOCK: usize = 512;

fn raw(a: Matrix, b: Matrix, out: &mut [f32], out_stride: usize, accumulate: bool) {
    // The crate thinks in columns: out^T = b^T · a^T.
    let (lhs, rhs) = (b.transposed(), a.transposed());
    // SAFETY: the callers checked that every index that the strides reach lies inside its slice, and `out` is
    // borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            lhs.rows,
            rhs.cols,
            lhs.cols,
            out.as_mut_ptr(),
            out_stride as isize,
            1,
            accumulate,
            lhs.elements.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.elements.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let mut random = Random::stream(0, "gemm", &[]);
        for (inner, cols) in [(7, 2), (600, 2), (1024, 10), (576, 64), (700, 65), (4608, 512), (2048, 2)] {
            let rows = 300;
            let a: Vec<f32> = (0..rows * inner).map(|_| random.uniform(-1.0, 1.0)).collect();
            let b: Vec<f32> = (0..inner * cols).map(|_| random.uniform(-1.0, 1.0)).collect();
            for b in [Matrix::dense(&b, inner, cols), Matrix::dense(&b, cols, inner).transposed()] {
                let mut whole = vec![0.0; rows * cols];
                gemm(Matrix::dense(&a, rows, inner), b, &mut whole, cols, false);
                for batch in [1, 2, 49, 100] {
                    let mut part = vec![0.0; batch * cols];
                    gemm(Matrix::dense(&a, batch, inner), b, &mut part, cols, false);
                    assert_eq!(part, whole[..batch * cols], "inner {inner}, cols {cols}, batch {batch}");
                }
                let exact: f64 = (0..inner)
                    .map(|i| f64::from(a[inner + i]) * f64::from(b.elements[i * b.row_stride + b.col_stride]))
                    .sum();
                assert!((f64::from(whole[cols + 1]) - exact).abs() < 1e-4 * (inner as f64).sqrt());
            }
        }
    }
}
