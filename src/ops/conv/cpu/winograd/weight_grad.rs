//! The gradient of the filters by Winograd's method, F(2×2): windows and output gradients are transformed, multiplied at each
//! position and summed over the tiles; the sums are the gradient of the transformed filters.

use std::{array, ops::Range};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    Method,
    transform::{Two, load, store, windows},
};
use crate::{
    device::CpuDevice,
    ops::{conv::Extents, tile},
};

/// Tiles of a band, about: few enough that a panel of their windows stays in the nearest cache.
const TILES: usize = 96;
/// Bands that are transformed before they are multiplied: few enough for the outer cache.
const BANDS: usize = 6;
/// Floats between sums that would else lie a power of two apart.
const SPACE: usize = 16;

/// Sides of a tile and of its window.
const M: usize = Method::Two.outputs();
const A: usize = Method::Two.window();

/// Whether [`weight_grad`] serves.
pub fn has_weight_grad(extents: &Extents) -> bool {
    Method::of_trained(extents) == Some(Method::Two) && extents.c.is_multiple_of(tile::columns().0)
}

/// The gradient of the filters, `[K, 3, 3, C]`, from those of the outputs, `[N, P, Q, K]`.
pub fn weight_grad(cpu: &CpuDevice, grad: &[f32], input: &[f32], extents: &Extents) -> Vec<f32> {
    let &Extents { n, p, q, c, k, .. } = extents;
    let (columns, _) = tile::columns();
    let (positions, panels) = (A * A, c / columns);
    let (down, across) = (p.div_ceil(M), q.div_ceil(M));
    let (rows, height) = (n * down, TILES.div_ceil(across));
    let slots = height * across;
    let filters = k.next_multiple_of(tile::ROWS);
    let grad_position = slots * filters.next_multiple_of(tile::GROUP);
    let (window_band, grad_band) = (positions * slots * c, positions * grad_position);
    if rows == 0 {
        return cpu.zeros(k * 9 * c);
    }
    let at_once = BANDS.min(rows.div_ceil(height));
    // [positions, panels, block], a block of [filters, columns]; all of a filter do not compete for the same lines of
    // the cache.
    let block = filters * columns + SPACE;
    let lengths = [at_once * window_band, at_once * grad_band, positions * panels * block];
    let mut buffers = lengths.map(|length| cpu.buffer(length + tile::SLACK));
    let [windows, grads, sums] = &mut buffers;
    let [windows, grads, sums] = [(windows, lengths[0]), (grads, lengths[1]), (sums, lengths[2])]
        .map(|(buffer, length)| tile::aligned_mut(buffer, length));
    for first in (0..rows).step_by(at_once * height) {
        let start = |band: usize| (first + band * height).min(rows);
        let bands = windows.par_chunks_mut(window_band).zip(grads.par_chunks_mut(grad_band)).enumerate();
        bands.for_each(|(band, (windows, grads))| {
            let rows = start(band)..start(band + 1);
            Arch::new().dispatch(Band { grad, input, extents, rows, slots, windows, grads });
        });
        sums.par_chunks_mut(block).enumerate().for_each(|(block, sums)| {
            let sums = &mut sums[..filters * columns];
            for band in 0..at_once {
                let tiles = (start(band + 1) - start(band)) * across;
                let panel = &windows[band * window_band + block * slots * columns..][..tiles * columns];
                let rows = &grads[band * grad_band + block / panels * grad_position..];
                let accumulate = first + band > 0;
                Arch::new().dispatch(tile::Outer { rows, width: filters, slots, panel, out: sums, accumulate });
            }
        });
    }
    let mut weight_grad = cpu.buffer(k * 9 * c);
    weight_grad.par_chunks_mut(9 * c).enumerate().for_each(|(filter, weight_grad)| {
        Arch::new().dispatch(Filter { sums, block, filter, weight_grad });
    });
    buffers.into_iter().for_each(|buffer| cpu.recycle(buffer));
    weight_grad
}

/// The gradient of a filter from that of the transformed one.
struct Filter<'a> {
    /// `[A·A, panels, block]`, a block of `[filters, columns]` …
    sums: &'a [f32],
    /// … and some floats more.
    block: usize,
    filter: usize,
    /// `[3, 3, C]`.
    weight_grad: &'a mut [f32],
}

impl WithSimd for Filter<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sums, block, filter, weight_grad } = self;
        let (c, columns, zero) = (weight_grad.len() / 9, tile::vectors::<S>() * S::F32_LANES, simd.splat_f32s(0.0));
        let panels = c / columns;
        for channel in (0..c).step_by(S::F32_LANES) {
            let place = |position: usize| {
                (position * panels + channel / columns) * block + filter * columns + channel % columns
            };
            let mut half = [[zero; 3]; A];
            for (j, half) in half.iter_mut().enumerate() {
                *half = Two::filter_gradient(simd, array::from_fn(|i| load::<S>(sums, place(i * A + j))));
            }
            for i in 0..3 {
                let row = Two::filter_gradient(simd, half.map(|column| column[i]));
                for (j, value) in row.into_iter().enumerate() {
                    store::<S>(weight_grad, (i * 3 + j) * c + channel, value);
                }
            }
        }
    }
}

/// The transformed windows and output gradients of some rows of tiles.
struct Band<'a> {
    grad: &'a [f32],
    input: &'a [f32],
    extents: &'a Extents,
    rows: Range<usize>,
    slots: usize,
    windows: &'a mut [f32],
    grads: &'a mut [f32],
}

impl WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { grad, input, extents, rows, slots, grads, .. } = self;
        let &Extents { c, p, q, k, .. } = extents;
        // [A·A, panels, slots, columns].
        let columns = tile::vectors::<S>() * S::F32_LANES;
        let place = |position: usize, index: usize, channel: usize| {
            ((position * (c / columns) + channel / columns) * slots + index) * columns + channel % columns
        };
        windows::<S, Two, M, A>(simd, input, extents, rows.clone(), self.windows, place);
        let (down, across) = (p.div_ceil(M), q.div_ceil(M));
        let (lanes, zero) = (S::F32_LANES, simd.splat_f32s(0.0));
        let filters = k.next_multiple_of(tile::ROWS);
        // [A·A, groups, slots, group].
        let groups = filters.div_ceil(tile::GROUP);
        let place = |position: usize, index: usize, filter: usize| {
            ((position * groups + filter / tile::GROUP) * slots + index) * tile::GROUP + filter % tile::GROUP
        };
        for (index, (row, column)) in rows.flat_map(|row| (0..across).map(move |x| (row, x))).enumerate() {
            let (top, left) = (row % down * M, column * M);
            let corner = (row / down * p + top) * q + left;
            for filter in (0..k).step_by(lanes) {
                let mut half = [[zero; A]; M];
                for (j, half) in half.iter_mut().enumerate() {
                    let mut column = [zero; M];
                    for (i, value) in column.iter_mut().enumerate() {
                        if top + i < p && left + j < q {
                            *value = load::<S>(grad, (corner + i * q + j) * k + filter);
                        }
                    }
                    *half = Two::gradient(simd, column);
                }
                for i in 0..A {
                    let mut row = [zero; M];
                    for (value, half) in row.iter_mut().zip(&half) {
                        *value = half[i];
                    }
                    for (j, value) in Two::gradient(simd, row).into_iter().enumerate() {
                        store::<S>(grads, place(i * A + j, index, filter), value);
                    }
                }
            }
            for position in 0..A * A {
                (k..filters).for_each(|filter| grads[place(position, index, filter)] = 0.0);
            }
        }
    }
}
