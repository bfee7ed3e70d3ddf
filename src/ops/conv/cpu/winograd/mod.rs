//! Convolutions of 3×3 with stride 1 by Winograd's minimal filtering, F(4×4, 3×3) and F(2×2, 3×3): a quarter, or four
//! ninths, of the multiplications (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
//! arXiv:1509.09308).
//!
//! A tile of outputs is computed from a slightly larger window of the input. Windows are transformed, channel by
//! channel; at each position of the transformed windows the channels are multiplied with the transformed filters, a
//! matrix product; the products are transformed back. A task does all three for a band of tiles whose windows and
//! products stay in its cache.

mod filters;
mod transform;
mod weight_grad;

pub use weight_grad::{has_weight_grad, weight_grad};

use std::{cell::RefCell, ops::Range};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::finish::Finish;
use crate::ops::{conv::Extents, tile};
use transform::{Four, Transform, Two, load, store};

/// Channels that a product sums before it stores: its panel of the filters stays in the nearest cache.
const CHANNELS: usize = 128;

/// Outputs along the side of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// F(2×2, 3×3).
    Two,
    /// F(4×4, 3×3).
    Four,
}

impl Method {
    /// The method for a convolution with fixed weights, by the extents of filters and images alone, not by their number:
    /// an image's result must not depend on its batch. `None` where Winograd's does not serve.
    pub fn of_fixed(extents: &Extents) -> Option<Self> {
        // Of small maps there are few tiles, and the larger transformed filters take longer to read.
        Self::of_trained(extents).map(|_| if extents.p.max(extents.q) <= 8 { Method::Two } else { Method::Four })
    }

    /// As [`Method::of_fixed`], for a convolution in training and its gradients. F(4×4) rounds up to ten times as much as
    /// F(2×2), and each pre-activation that moves across zero makes another training of it.
    pub fn of_trained(extents: &Extents) -> Option<Self> {
        let &Extents { c, k, r, s, stride, padding, groups, .. } = extents;
        let (columns, lanes) = tile::columns();
        let fits = (r, s, stride, groups) == (3, 3, 1, 1) && padding <= 2;
        (fits && c.is_multiple_of(lanes) && k.is_multiple_of(columns)).then_some(Method::Two)
    }

    const fn outputs(self) -> usize {
        match self {
            Method::Two => 2,
            Method::Four => 4,
        }
    }

    /// Side of a window.
    const fn window(self) -> usize {
        self.outputs() + 2
    }

    /// The convolution with filters that [`Method::pack`] put into `buffer`, into `output` `[N, P, Q, K]`.
    pub fn forward(self, input: &[f32], buffer: &[f32], extents: &Extents, finish: Finish, output: &mut [f32]) {
        let packed = self.packed(buffer, extents);
        let &Extents { n, p, q, k, .. } = extents;
        let (columns, _) = tile::columns();
        let (down, across) = (p.div_ceil(self.outputs()), q.div_ceil(self.outputs()));
        let (panels, threads) = (k / columns, rayon::current_num_threads());
        // Rows of tiles, of all images in turn; as their outputs lie one after the other, so do those of bands.
        let rows = n * down;
        let tiles = rows * across;
        if tiles == 0 {
            return;
        }
        // Where filters take longer to read than windows, each thread reads some of them, of all windows.
        let parts = if tiles < k { threads.min(panels) } else { 1 };
        // Enough tiles that reading the filters is cheap, few enough for the cache.
        let most = (k * 3 / 4).clamp(48, 128);
        let bands = tiles.div_ceil(most).next_multiple_of(threads.div_ceil(parts));
        let height = rows.div_ceil(bands);
        let task = |rows: Range<usize>, panels: Range<usize>, output: &mut [f32]| {
            let shared = Shared { method: self, input, packed, extents, finish };
            Arch::new().dispatch(Band { shared, rows, panels, output });
        };
        let bands: Vec<Range<usize>> = (0..rows).step_by(height).map(|from| from..(from + height).min(rows)).collect();
        let first_row = |row: usize| row / down * p + (row % down * self.outputs()).min(p);
        let size = |band: &Range<usize>| (first_row(band.end) - first_row(band.start)) * q;
        if parts == 1 {
            let mut rest = output;
            let tasks: Vec<_> = bands
                .into_iter()
                .map(|band| {
                    let (output, others) = std::mem::take(&mut rest).split_at_mut(size(&band) * k);
                    rest = others;
                    (band, output)
                })
                .collect();
            tasks.into_par_iter().for_each(|(band, output)| task(band, 0..panels, output));
            return;
        }
        let part = |part: usize| part * panels / parts..(part + 1) * panels / parts;
        let tasks: Vec<_> = bands.iter().flat_map(|band| (0..parts).map(move |index| (band, part(index)))).collect();
        let results: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|(band, panels)| {
                let mut output = vec![0.0; size(band) * panels.len() * columns];
                task((*band).clone(), panels.clone(), &mut output);
                output
            })
            .collect();
        for ((band, panels), result) in tasks.iter().zip(&results) {
            let pixels = output[first_row(band.start) * q * k..].chunks_exact_mut(k);
            for (pixel, part) in pixels.zip(result.chunks_exact(panels.len() * columns)) {
                pixel[panels.start * columns..][..part.len()].copy_from_slice(part);
            }
        }
    }
}

/// What all tasks of a convolution share.
#[derive(Clone, Copy)]
struct Shared<'a> {
    method: Method,
    input: &'a [f32],
    packed: &'a [f32],
    extents: &'a Extents,
    finish: Finish<'a>,
}

/// The outputs of some rows of tiles and some panels of filters.
struct Band<'a> {
    shared: Shared<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// `[pixels, filters of the panels]`.
    output: &'a mut [f32],
}

impl WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match (self.shared.method, tile::vectors::<S>()) {
            (Method::Two, 4) => self.compute::<S, Two, 2, 4, 4>(simd),
            (Method::Two, _) => self.compute::<S, Two, 2, 4, 2>(simd),
            (Method::Four, 4) => self.compute::<S, Four, 4, 6, 4>(simd),
            (Method::Four, _) => self.compute::<S, Four, 4, 6, 2>(simd),
        }
    }
}

thread_local! {
    /// Transformed windows and products, kept from task to task.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Band<'_> {
    /// Tiles of `M`×`M` outputs from windows of `A`×`A` inputs, panels of `V` vectors.
    #[inline(always)]
    fn compute<S: Simd, T: Transform<M, A>, const M: usize, const A: usize, const V: usize>(self, simd: S) {
        let Self { shared: Shared { input, packed, extents, finish, .. }, rows, panels, output } = self;
        let &Extents { c, k, p, q, .. } = extents;
        let (lanes, columns) = (S::F32_LANES, V * S::F32_LANES);
        let (down, across) = (p.div_ceil(M), q.div_ceil(M));
        let tiles = rows.len() * across;
        let filters = panels.len() * columns;
        // Rows of whole register tiles, a vector apart so that they do not compete for the same lines of the cache.
        let slots = tiles.next_multiple_of(tile::ROWS);
        let (window_stride, product_stride) = (c + lanes, filters + lanes);
        let mut scratch = SCRATCH.take();
        let needed = A * A * slots * (window_stride + product_stride);
        if scratch.len() < needed + tile::SLACK {
            scratch.resize(needed + tile::SLACK, 0.0);
        }
        let (windows, products) = tile::aligned_mut(&mut scratch, needed).split_at_mut(A * A * slots * window_stride);
        let zero = simd.splat_f32s(0.0);

        let place =
            |position: usize, index: usize, channel: usize| (position * slots + index) * window_stride + channel;
        transform::windows::<S, T, M, A>(simd, input, extents, rows.clone(), windows, place);

        // Filters block by block: of a panel, at a position, of some channels.
        let blocks = c.div_ceil(CHANNELS);
        let block = |index: usize| {
            let (position, local, channel) =
                (index / blocks / panels.len(), index / blocks % panels.len(), index % blocks);
            let (panel, channel) = (panels.start + local, channel * CHANNELS);
            let length = CHANNELS.min(c - channel);
            let first = ((panel * A * A + position) * c + channel) * columns;
            (position, local, channel, &packed[first..first + length * columns])
        };
        let blocks = A * A * panels.len() * blocks;
        for index in 0..blocks {
            let (position, local, channel, panel) = block(index);
            // The next comes from far away: some of it with each product.
            let next = if index + 1 < blocks { block(index + 1).3 } else { &[] };
            let mut next = next.chunks(panel.len().div_ceil(tiles.div_ceil(tile::ROWS)));
            for first in (0..tiles).step_by(tile::ROWS) {
                tile::prefetch(next.next().unwrap_or_default());
                let mut rows = [&windows[..0]; tile::ROWS];
                for (i, row) in rows.iter_mut().enumerate() {
                    let at = (position * slots + first + i) * window_stride + channel;
                    *row = &windows[at..at + panel.len() / columns];
                }
                let to = &mut products[(position * slots + first) * product_stride + local * columns..];
                tile::multiply::<S, V>(simd, rows, panel, to, product_stride, channel > 0);
            }
        }

        let first_filter = panels.start * columns;
        let first_row = rows.start / down * p + rows.start % down * M;
        for (index, (row, column)) in rows.flat_map(|row| (0..across).map(move |x| (row, x))).enumerate() {
            let (top, left) = (row / down * p + row % down * M, column * M);
            let (height, width) = (M.min(p - row % down * M), M.min(q - left));
            for filter in (0..filters).step_by(lanes) {
                let mut half = [[zero; M]; A];
                for (j, half) in half.iter_mut().enumerate() {
                    let mut column = [zero; A];
                    for (i, value) in column.iter_mut().enumerate() {
                        *value = load::<S>(products, ((i * A + j) * slots + index) * product_stride + filter);
                    }
                    *half = T::product(simd, column);
                }
                for i in 0..height {
                    let mut row = [zero; A];
                    for (value, half) in row.iter_mut().zip(&half) {
                        *value = half[i];
                    }
                    for (j, value) in T::product(simd, row).into_iter().take(width).enumerate() {
                        let pixel = (top + i) * q + left + j;
                        let filter_in_all = first_filter + filter;
                        let value = finish.vector(simd, value, pixel * k + filter_in_all, filter_in_all);
                        store::<S>(output, (pixel - first_row * q) * filters + filter, value);
                    }
                }
            }
        }
        SCRATCH.set(scratch);
    }
}
