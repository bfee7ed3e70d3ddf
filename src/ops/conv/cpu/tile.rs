//! The register tile of the processor's convolutions: six rows of one matrix times a panel of another, as wide as the
//! vector registers hold the sums.

use pulp::{Arch, Simd, WithSimd};

/// Rows of a tile.
pub const ROWS: usize = 6;

/// Vectors in a row of a tile; with 32 registers, 24 hold sums, and with 16, 12 do.
pub const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// Columns of a panel on this processor, and floats in one of its vectors.
pub fn columns() -> (usize, usize) {
    struct Columns;
    impl WithSimd for Columns {
        type Output = (usize, usize);
        fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
            (vectors::<S>() * S::F32_LANES, S::F32_LANES)
        }
    }
    Arch::new().dispatch(Columns)
}

/// `out = rows · panel`, or `out += rows · panel` if `accumulate`: `rows` of one length, `panel` `[length, columns]`
/// with [`columns`] columns in `V` vectors, rows of `out` `stride` apart. Every element is summed in the order of its
/// terms, whatever lies beside it.
#[inline(always)]
pub fn multiply<S: Simd, const V: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    panel: &[f32],
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let length = rows[0].len();
    let rows = rows.map(|row| &row[..length]);
    let panel = &pulp::as_arrays::<V, _>(S::as_simd_f32s(panel).0).0[..length];
    let mut sums = [[simd.splat_f32s(0.0); V]; ROWS];
    for (k, column) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let factor = simd.splat_f32s(row[k]);
            for (sum, &value) in sums.iter_mut().zip(column) {
                *sum = simd.mul_add_f32s(factor, value, *sum);
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        let row = S::as_mut_simd_f32s(&mut out[i * stride..][..V * S::F32_LANES]).0;
        for (to, sum) in row.iter_mut().zip(sums) {
            *to = if accumulate { simd.add_f32s(*to, sum) } else { sum };
        }
    }
}

/// `out += rowsᵀ · columns`, both `length` rows long: of the [`ROWS`] first columns of `rows` and all of `columns` that
/// `out` is wide, a multiple of a panel.
pub struct Outer<'a> {
    /// Rows of both matrices.
    pub length: usize,
    /// The matrix whose columns become rows …
    pub rows: &'a [f32],
    /// … and the distance of its rows.
    pub row_stride: usize,
    /// The matrix whose columns stay what they are …
    pub columns: &'a [f32],
    /// … and the distance of its rows.
    pub column_stride: usize,
    /// `[ROWS, width]`.
    pub out: &'a mut [f32],
}

impl WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match vectors::<S>() {
            4 => self.compute::<S, 4>(simd),
            _ => self.compute::<S, 2>(simd),
        }
    }
}

impl Outer<'_> {
    #[inline(always)]
    fn compute<S: Simd, const V: usize>(self, simd: S) {
        let (width, panel) = (self.out.len() / ROWS, V * S::F32_LANES);
        for first in (0..width).step_by(panel) {
            let mut sums = [[simd.splat_f32s(0.0); V]; ROWS];
            let pairs = self.rows.chunks(self.row_stride).zip(self.columns.chunks(self.column_stride));
            for (factors, values) in pairs.take(self.length) {
                let (factors, values) = (&factors[..ROWS], S::as_simd_f32s(&values[first..][..panel]).0);
                for (sums, &factor) in sums.iter_mut().zip(factors) {
                    let factor = simd.splat_f32s(factor);
                    for (sum, &value) in sums.iter_mut().zip(values) {
                        *sum = simd.mul_add_f32s(factor, value, *sum);
                    }
                }
            }
            for (row, sums) in self.out.chunks_exact_mut(width).zip(sums) {
                let row = S::as_mut_simd_f32s(&mut row[first..][..panel]).0;
                for (to, sum) in row.iter_mut().zip(sums) {
                    *to = simd.add_f32s(*to, sum);
                }
            }
        }
    }
}
