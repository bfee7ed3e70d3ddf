//! Filters, transformed for Winograd's method and laid out as its products read them.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    Method,
    transform::{load, store},
};
use crate::ops::{conv::Extents, tile};

impl Method {
    /// The matrix that transforms a filter from both sides.
    pub(super) fn filter_transform(self) -> &'static [[f32; 3]] {
        const TWO: [[f32; 3]; 4] = [[1., 0., 0.], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0., 0., 1.]];
        const FOUR: [[f32; 3]; 6] = [
            [1. / 4., 0., 0.],
            [-1. / 6., -1. / 6., -1. / 6.],
            [-1. / 6., 1. / 6., -1. / 6.],
            [1. / 24., 1. / 12., 1. / 6.],
            [1. / 24., -1. / 12., 1. / 6.],
            [0., 0., 1.],
        ];
        match self {
            Method::Two => &TWO,
            Method::Four => &FOUR,
        }
    }

    /// Positions of a transformed window or filter.
    pub(super) fn positions(self) -> usize {
        self.window() * self.window()
    }

    /// Elements of all transformed filters.
    fn transformed_elements(self, extents: &Extents) -> usize {
        self.positions() * extents.k * extents.c
    }

    /// Elements of a buffer for them.
    pub fn packed_elements(self, extents: &Extents) -> usize {
        self.transformed_elements(extents) + tile::SLACK
    }

    /// The transformed filters in their buffer.
    pub(super) fn packed<'a>(self, buffer: &'a [f32], extents: &Extents) -> &'a [f32] {
        tile::aligned(buffer, self.transformed_elements(extents))
    }

    /// Filters `[K, 3, 3, C]` transformed: `[K / columns, positions, C, columns]`, in a buffer for them.
    pub fn pack(self, weight: &[f32], extents: &Extents, buffer: &mut [f32]) {
        let packed = tile::aligned_mut(buffer, self.transformed_elements(extents));
        let (columns, _) = tile::columns();
        let c = extents.c;
        let panels = packed.par_chunks_mut(self.positions() * c * columns).zip(weight.par_chunks(columns * 9 * c));
        panels.for_each(|(packed, filters)| {
            Arch::new().dispatch(Panel { method: self, filters, c, packed });
        });
    }

    /// As [`Method::pack`] for F(2×2), for the gradient of the input: a convolution of `extents` with filters turned by
    /// 180°, whose channels are the filters `[C, 3, 3, K]` of `weight` and whose filters are the channels.
    pub fn pack_turned(weight: &[f32], extents: &Extents, buffer: &mut [f32]) {
        let packed = tile::aligned_mut(buffer, Method::Two.transformed_elements(extents));
        let (columns, _) = tile::columns();
        let panels = packed.par_chunks_mut(Method::Two.positions() * extents.c * columns).enumerate();
        panels.for_each(|(panel, packed)| {
            Arch::new().dispatch(Turned { filters: weight, channels: extents.k, first: panel * columns, packed });
        });
    }
}

/// The filters of a panel, `[columns, 3, 3, C]`, and what becomes of them.
struct Panel<'a> {
    method: Method,
    filters: &'a [f32],
    c: usize,
    packed: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.method {
            Method::Two => self.compute::<S, 4>(simd),
            Method::Four => self.compute::<S, 6>(simd),
        }
    }
}

impl Panel<'_> {
    /// For windows of `A`×`A`.
    #[inline(always)]
    fn compute<S: Simd, const A: usize>(self, simd: S) {
        let Self { method, filters, c, packed } = self;
        let (columns, lanes) = (filters.len() / (9 * c), S::F32_LANES);
        let transform = method.filter_transform();
        // [A·A, columns, lanes]: written to where they belong at once, the values would fall into few sets of the cache.
        let mut values = vec![0.0; A * A * columns * lanes];
        for channel in (0..c).step_by(lanes) {
            for (column, filter) in filters.chunks_exact(9 * c).enumerate() {
                let tap = |r: usize, s: usize| load::<S>(filter, (r * 3 + s) * c + channel);
                for (i, row) in transformed::<S, A>(simd, transform, tap).into_iter().enumerate() {
                    for (j, value) in row.into_iter().enumerate() {
                        store::<S>(&mut values, ((i * A + j) * columns + column) * lanes, value);
                    }
                }
            }
            for (position, values) in values.chunks_exact(columns * lanes).enumerate() {
                let packed = &mut packed[(position * c + channel) * columns..][..lanes * columns];
                for (lane, row) in packed.chunks_exact_mut(columns).enumerate() {
                    for (to, values) in row.iter_mut().zip(values.chunks_exact(lanes)) {
                        *to = values[lane];
                    }
                }
            }
        }
    }
}

/// All filters `[K, 3, 3, channels]`, and the panel of the channels from `first` on that becomes of them when turned.
struct Turned<'a> {
    filters: &'a [f32],
    channels: usize,
    first: usize,
    packed: &'a mut [f32],
}

impl WithSimd for Turned<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const A: usize = Method::Two.window();
        let Self { filters, channels, first, packed } = self;
        let count = filters.len() / (9 * channels);
        let (columns, transform) = (packed.len() / (A * A * count), Method::Two.filter_transform());
        for (index, filter) in filters.chunks_exact(9 * channels).enumerate() {
            for column in (0..columns).step_by(S::F32_LANES) {
                let tap = |r: usize, s: usize| load::<S>(filter, (8 - r * 3 - s) * channels + first + column);
                for (i, row) in transformed::<S, A>(simd, transform, tap).into_iter().enumerate() {
                    for (j, value) in row.into_iter().enumerate() {
                        store::<S>(packed, ((i * A + j) * count + index) * columns + column, value);
                    }
                }
            }
        }
    }
}

/// `transform · taps · transformᵀ`, for a vector of filters or channels.
#[inline(always)]
fn transformed<S: Simd, const A: usize>(
    simd: S,
    transform: &[[f32; 3]],
    tap: impl Fn(usize, usize) -> S::f32s,
) -> [[S::f32s; A]; A] {
    let zero = simd.splat_f32s(0.0);
    let mut factors = [[zero; 3]; A];
    for (factors, row) in factors.iter_mut().zip(transform) {
        for (factor, &value) in factors.iter_mut().zip(row) {
            *factor = simd.splat_f32s(value);
        }
    }
    let product = |row: &[S::f32s; 3], a: S::f32s, b: S::f32s, c: S::f32s| {
        simd.mul_add_f32s(row[0], a, simd.mul_add_f32s(row[1], b, simd.mul_f32s(row[2], c)))
    };
    let mut half = [[zero; 3]; A];
    for s in 0..3 {
        let (top, middle, bottom) = (tap(0, s), tap(1, s), tap(2, s));
        for (half, row) in half.iter_mut().zip(&factors) {
            half[s] = product(row, top, middle, bottom);
        }
    }
    let mut values = [[zero; A]; A];
    for (values, half) in values.iter_mut().zip(&half) {
        for (value, row) in values.iter_mut().zip(&factors) {
            *value = product(row, half[0], half[1], half[2]);
        }
    }
    values
}
