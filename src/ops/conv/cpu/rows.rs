//! Convolutions of few input channels, such as a stem's: a row of a window is so short that to gather windows takes a
//! third of the time. A task has the rows of the image that it sees in its cache, with their padding, and reads windows
//! in place.

use std::array;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::finish::Finish;
use crate::ops::{conv::Extents, tile};

/// Rows of outputs of a task.
const BAND: usize = 8;
/// Most floats in a row of a window.
const SHORT: usize = 64;

/// Whether it serves.
pub fn serves(extents: &Extents) -> bool {
    let &Extents { c, k, r, s, q, groups, .. } = extents;
    let (columns, _) = tile::columns();
    groups == 1 && r * s > 1 && s * c <= SHORT && k.is_multiple_of(columns) && q >= tile::ROWS
}

/// Elements of a buffer for the weights.
pub fn packed_elements(extents: &Extents) -> usize {
    extents.k * extents.window() + tile::SLACK
}

/// Filters `[K, R, S, C]` as panels in a buffer for them: `[K / columns, R·S·C, columns]`.
pub fn pack(weight: &[f32], extents: &Extents, buffer: &mut [f32]) {
    let ((columns, _), window) = (tile::columns(), extents.window());
    let packed = tile::aligned_mut(buffer, extents.k * window);
    for (panel, filters) in packed.chunks_exact_mut(window * columns).zip(weight.chunks_exact(window * columns)) {
        for (column, filter) in filters.chunks_exact(window).enumerate() {
            panel[column..].iter_mut().step_by(columns).zip(filter).for_each(|(to, value)| *to = *value);
        }
    }
}

/// The convolution with filters that [`pack`] put into `buffer`, into `output` `[N, P, Q, K]`.
pub fn forward(input: &[f32], buffer: &[f32], extents: &Extents, finish: Finish, output: &mut [f32]) {
    let &Extents { p, q, k, .. } = extents;
    let packed = tile::aligned(buffer, k * extents.window());
    output.par_chunks_mut(p * q * k).enumerate().for_each(|(image, output)| {
        output.par_chunks_mut(BAND * q * k).enumerate().for_each(|(band, output)| {
            Arch::new().dispatch(Band { input, packed, extents, finish, image, first: band * BAND, output });
        });
    });
}

/// Some rows of outputs of an image.
struct Band<'a> {
    input: &'a [f32],
    packed: &'a [f32],
    extents: &'a Extents,
    finish: Finish<'a>,
    image: usize,
    /// The first row.
    first: usize,
    output: &'a mut [f32],
}

impl WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match tile::vectors::<S>() {
            4 => self.compute::<S, 4>(simd),
            _ => self.compute::<S, 2>(simd),
        }
    }
}

impl Band<'_> {
    #[inline(always)]
    fn compute<S: Simd, const V: usize>(self, simd: S) {
        let &Extents { c, k, r, s, p, q, stride, .. } = self.extents;
        let (width, row) = (V * S::F32_LANES, s * c);
        let rows = self.output.len() / (q * k);
        let (length, lines) = (((q - 1) * stride + s) * c, self.lines(rows));
        for y in 0..rows {
            for column in (0..q).step_by(tile::ROWS) {
                // The last of a row are computed with some before them.
                let column = column.min(q - tile::ROWS);
                for (panel, filters) in self.packed.chunks_exact(r * row * width).enumerate() {
                    let mut sums = [[simd.splat_f32s(0.0); V]; tile::ROWS];
                    for (tap, filters) in filters.chunks_exact(row * width).enumerate() {
                        let line = &lines[(y * stride + tap) * length..][..length];
                        let windows: [&[f32]; tile::ROWS] =
                            array::from_fn(|i| &line[(column + i) * stride * c..][..row]);
                        let filters = &pulp::as_arrays::<V, _>(S::as_simd_f32s(filters).0).0[..row];
                        for (at, filters) in filters.iter().enumerate() {
                            for (sums, window) in sums.iter_mut().zip(windows) {
                                let factor = simd.splat_f32s(window[at]);
                                for (sum, &filter) in sums.iter_mut().zip(filters) {
                                    *sum = simd.mul_add_f32s(factor, filter, *sum);
                                }
                            }
                        }
                    }
                    for (i, sums) in sums.into_iter().enumerate() {
                        let within = (y * q + column + i) * k + panel * width;
                        let at = (self.image * p + self.first) * q * k + within;
                        let to = S::as_mut_simd_f32s(&mut self.output[within..][..width]).0;
                        for (lane, (to, sum)) in to.iter_mut().zip(sums).enumerate() {
                            let lane = lane * S::F32_LANES;
                            *to = self.finish.vector(simd, sum, at + lane, panel * width + lane);
                        }
                    }
                }
            }
        }
    }

    /// What windows of `rows` rows see of the image, line by line, with its padding.
    fn lines(&self, rows: usize) -> Vec<f32> {
        let &Extents { h, w, c, r, s, q, stride, padding, .. } = self.extents;
        let seen = (q - 1) * stride + s;
        let mut lines = vec![0.0; ((rows - 1) * stride + r) * seen * c];
        let inside = w.min(seen - padding.min(seen)) * c;
        for (line, to) in lines.chunks_exact_mut(seen * c).enumerate() {
            let y = (self.first * stride + line).wrapping_sub(padding);
            if y < h {
                to[seen.min(padding) * c..][..inside]
                    .copy_from_slice(&self.input[(self.image * h + y) * w * c..][..inside]);
            }
        }
        lines
    }
}
