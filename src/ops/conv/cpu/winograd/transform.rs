//! The transforms of Winograd's method, a vector of channels at a time.

use std::ops::Range;

use pulp::Simd;

use crate::ops::conv::Extents;

#[inline(always)]
pub fn load<S: Simd>(from: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&from[at..][..S::F32_LANES]).0[0]
}

#[inline(always)]
pub fn store<S: Simd>(to: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut to[at..][..S::F32_LANES]).0[0] = value;
}

/// The transforms of one side of a tile, each applied to columns and then to rows.
pub trait Transform<const M: usize, const A: usize> {
    /// Of a window: Bᵀ d.
    fn window<S: Simd>(simd: S, d: [S::f32s; A]) -> [S::f32s; A];
    /// Of a product: Aᵀ m.
    fn product<S: Simd>(simd: S, m: [S::f32s; A]) -> [S::f32s; M];
}

/// Transforms the windows of some rows of tiles; `place` says where in `windows` a position of a tile has a channel and
/// those that follow it in a vector.
#[inline(always)]
pub fn windows<S: Simd, T: Transform<M, A>, const M: usize, const A: usize>(
    simd: S,
    input: &[f32],
    extents: &Extents,
    rows: Range<usize>,
    windows: &mut [f32],
    place: impl Fn(usize, usize, usize) -> usize,
) {
    let &Extents { h, w, c, p, q, padding, .. } = extents;
    let (down, across) = (p.div_ceil(M), q.div_ceil(M));
    let (lanes, zero) = (S::F32_LANES, simd.splat_f32s(0.0));
    for (index, (row, column)) in rows.flat_map(|row| (0..across).map(move |x| (row, x))).enumerate() {
        let image = row / down * h * w;
        let (top, left) = (row % down * M, column * M);
        for channel in (0..c).step_by(lanes) {
            let mut half = [[zero; A]; A];
            for (j, half) in half.iter_mut().enumerate() {
                let mut column = [zero; A];
                let x = (left + j).wrapping_sub(padding);
                for (i, value) in column.iter_mut().enumerate() {
                    let y = (top + i).wrapping_sub(padding);
                    if x < w && y < h {
                        *value = load::<S>(input, (image + y * w + x) * c + channel);
                    }
                }
                *half = T::window(simd, column);
            }
            for i in 0..A {
                let mut row = [zero; A];
                for (value, half) in row.iter_mut().zip(&half) {
                    *value = half[i];
                }
                for (j, value) in T::window(simd, row).into_iter().enumerate() {
                    store::<S>(windows, place(i * A + j, index, channel), value);
                }
            }
        }
    }
}

/// Of F(2×2, 3×3).
pub struct Two;

impl Transform<2, 4> for Two {
    #[inline(always)]
    fn window<S: Simd>(simd: S, [d0, d1, d2, d3]: [S::f32s; 4]) -> [S::f32s; 4] {
        [simd.sub_f32s(d0, d2), simd.add_f32s(d1, d2), simd.sub_f32s(d2, d1), simd.sub_f32s(d1, d3)]
    }

    #[inline(always)]
    fn product<S: Simd>(simd: S, [m0, m1, m2, m3]: [S::f32s; 4]) -> [S::f32s; 2] {
        [simd.add_f32s(simd.add_f32s(m0, m1), m2), simd.sub_f32s(simd.sub_f32s(m1, m2), m3)]
    }
}

impl Two {
    /// Of the gradient of outputs, to that of a product: A y.
    #[inline(always)]
    pub fn gradient<S: Simd>(simd: S, [y0, y1]: [S::f32s; 2]) -> [S::f32s; 4] {
        [y0, simd.add_f32s(y0, y1), simd.sub_f32s(y0, y1), simd.neg_f32s(y1)]
    }

    /// Of the gradient of transformed filters, to that of filters: Gᵀ s.
    #[inline(always)]
    pub fn filter_gradient<S: Simd>(simd: S, [s0, s1, s2, s3]: [S::f32s; 4]) -> [S::f32s; 3] {
        let half = simd.splat_f32s(0.5);
        let [sum, difference] = [simd.add_f32s(s1, s2), simd.sub_f32s(s1, s2)].map(|value| simd.mul_f32s(half, value));
        [simd.add_f32s(s0, sum), difference, simd.add_f32s(sum, s3)]
    }
}

/// Of F(4×4, 3×3).
pub struct Four;

impl Transform<4, 6> for Four {
    #[inline(always)]
    fn window<S: Simd>(simd: S, [d0, d1, d2, d3, d4, d5]: [S::f32s; 6]) -> [S::f32s; 6] {
        let [two, four, minus_four, minus_five] = [2.0, 4.0, -4.0, -5.0].map(|factor| simd.splat_f32s(factor));
        let (even, odd) = (simd.mul_add_f32s(minus_four, d2, d4), simd.mul_add_f32s(minus_four, d1, d3));
        let (outer, inner) = (simd.sub_f32s(d4, d2), simd.mul_f32s(two, simd.sub_f32s(d3, d1)));
        [
            simd.mul_add_f32s(four, d0, simd.mul_add_f32s(minus_five, d2, d4)),
            simd.add_f32s(even, odd),
            simd.sub_f32s(even, odd),
            simd.add_f32s(outer, inner),
            simd.sub_f32s(outer, inner),
            simd.mul_add_f32s(four, d1, simd.mul_add_f32s(minus_five, d3, d5)),
        ]
    }

    #[inline(always)]
    fn product<S: Simd>(simd: S, [m0, m1, m2, m3, m4, m5]: [S::f32s; 6]) -> [S::f32s; 4] {
        let [two, four, eight] = [2.0, 4.0, 8.0].map(|factor| simd.splat_f32s(factor));
        let (near, near_odd) = (simd.add_f32s(m1, m2), simd.sub_f32s(m1, m2));
        let (far, far_odd) = (simd.add_f32s(m3, m4), simd.sub_f32s(m3, m4));
        [
            simd.add_f32s(m0, simd.add_f32s(near, far)),
            simd.mul_add_f32s(two, far_odd, near_odd),
            simd.mul_add_f32s(four, far, near),
            simd.add_f32s(simd.mul_add_f32s(eight, far_odd, near_odd), m5),
        ]
    }
}
