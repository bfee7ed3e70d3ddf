//! The register tiles of the processor's matrix products: six rows of one matrix times a panel of another, as wide as the
//! vector registers hold the sums; and rows times rows, whose sums run across the vectors.

use pulp::{Arch, Simd, WithSimd};

/// Rows of a tile.
pub const ROWS: usize = 6;

/// Floats in a line of the cache.
const LINE: usize = 16;
/// Floats that a buffer has more, for [`aligned`] ones to be in it.
pub const SLACK: usize = LINE - 1;

/// `len` floats of `values` from the beginning of a line of the cache on: a vector that lies across two takes as long to
/// load as two.
pub fn aligned(values: &[f32], len: usize) -> &[f32] {
    let first = values.as_ptr().align_offset(LINE * size_of::<f32>());
    &values[first..][..len]
}

/// The same, to be written to.
pub fn aligned_mut(values: &mut [f32], len: usize) -> &mut [f32] {
    let first = values.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut values[first..][..len]
}

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

/// The products of each row of `a` with each of `b`, all of one length. A sum's terms are dealt to the places of a
/// vector, and their sums added up at the end, whatever lies beside it.
#[inline(always)]
pub fn dots<S: Simd, const A: usize, const B: usize>(simd: S, a: [&[f32]; A], b: [&[f32]; B]) -> [[f32; B]; A] {
    let length = a[0].len();
    let (a, b) = (a.map(|row| S::as_simd_f32s(&row[..length])), b.map(|row| S::as_simd_f32s(&row[..length])));
    let (full, tail) = (a[0].0.len(), a[0].1.len());
    let (wide_a, wide_b) = (a.map(|row| &row.0[..full]), b.map(|row| &row.0[..full]));
    let mut sums = [[simd.splat_f32s(0.0); B]; A];
    for k in 0..full {
        for j in 0..B {
            let factor = wide_b[j][k];
            for i in 0..A {
                sums[i][j] = simd.mul_add_f32s(wide_a[i][k], factor, sums[i][j]);
            }
        }
    }
    if tail > 0 {
        for j in 0..B {
            let factor = simd.partial_load_f32s(b[j].1);
            for i in 0..A {
                sums[i][j] = simd.mul_add_f32s(simd.partial_load_f32s(a[i].1), factor, sums[i][j]);
            }
        }
    }
    let mut products = [[0.0; B]; A];
    for (products, sums) in products.iter_mut().zip(sums) {
        for (product, sum) in products.iter_mut().zip(sums) {
            *product = simd.reduce_sum_f32s(sum);
        }
    }
    products
}

/// Asks the processor to have values that are read soon in its cache; no more than a hint.
#[inline(always)]
#[allow(unsafe_code)]
pub fn prefetch(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which neither faults nor changes what is read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Columns that lie side by side in the first matrix of [`Outer`]: a multiple of [`ROWS`] and of a vector.
pub const GROUP: usize = 48;

/// `out = rowsᵀ · panel`, or `out += rowsᵀ · panel` if `accumulate`.
pub struct Outer<'a> {
    /// `[columns / GROUP, slots, GROUP]`: a matrix whose columns become rows, of which there are …
    pub rows: &'a [f32],
    /// … `width`, a multiple of [`ROWS`].
    pub width: usize,
    /// Rows that there is place for, of which `panel` has the number.
    pub slots: usize,
    /// `[rows, columns of a panel]`.
    pub panel: &'a [f32],
    /// `[width, columns of a panel]`.
    pub out: &'a mut [f32],
    /// Whether they are added to what is there.
    pub accumulate: bool,
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
        let Self { rows, width, slots, panel, out, accumulate } = self;
        let panel = pulp::as_arrays::<V, _>(S::as_simd_f32s(panel).0).0;
        let out = out.chunks_exact_mut(ROWS * V * S::F32_LANES);
        for (first, out) in (0..width).step_by(ROWS).zip(out) {
            let mut sums = [[simd.splat_f32s(0.0); V]; ROWS];
            let group = &rows[first / GROUP * slots * GROUP..][..slots * GROUP];
            for (values, row) in panel.iter().zip(group.chunks_exact(GROUP)) {
                for (sums, &factor) in sums.iter_mut().zip(&row[first % GROUP..][..ROWS]) {
                    let factor = simd.splat_f32s(factor);
                    for (sum, &value) in sums.iter_mut().zip(values) {
                        *sum = simd.mul_add_f32s(factor, value, *sum);
                    }
                }
            }
            let out = pulp::as_arrays_mut::<V, _>(S::as_mut_simd_f32s(out).0).0;
            for (to, sums) in out.iter_mut().zip(sums) {
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = if accumulate { simd.add_f32s(*to, sum) } else { sum };
                }
            }
        }
    }
}
