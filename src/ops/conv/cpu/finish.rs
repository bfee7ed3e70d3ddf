//! The last of a convolution: batchnorm, addition and ReLU.

use pulp::Simd;

/// What is done to each output before it is stored, as [`Epilogue`](super::Epilogue) says.
#[derive(Clone, Copy, Default)]
pub struct Finish<'a> {
    /// Of a batchnorm, for each filter.
    pub scale_shift: Option<(&'a [f32], &'a [f32])>,
    /// `[N, P, Q, K]`.
    pub residual: Option<&'a [f32]>,
    pub relu: bool,
}

impl Finish<'_> {
    /// Finishes whole pixels, the first of their elements at `first` of the output.
    #[inline(always)]
    pub fn apply(&self, tile: &mut [f32], first: usize) {
        if let Some((scale, shift)) = self.scale_shift {
            for row in tile.chunks_exact_mut(scale.len()) {
                for ((value, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
                    *value = *value * scale + shift;
                }
            }
        }
        if let Some(residual) = self.residual {
            tile.iter_mut().zip(&residual[first..]).for_each(|(value, residual)| *value += residual);
        }
        if self.relu {
            // Not `max`, which would turn a NaN into 0 and hide a diverged run.
            tile.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
        }
    }

    /// Finishes one vector, at `at` of the output, of the filters from `filter` on.
    #[inline(always)]
    pub fn vector<S: Simd>(&self, simd: S, value: S::f32s, at: usize, filter: usize) -> S::f32s {
        let load = |from: &[f32], at: usize| S::as_simd_f32s(&from[at..][..S::F32_LANES]).0[0];
        let mut value = value;
        if let Some((scale, shift)) = self.scale_shift {
            value = simd.mul_add_f32s(value, load(scale, filter), load(shift, filter));
        }
        if let Some(residual) = self.residual {
            value = simd.add_f32s(value, load(residual, at));
        }
        if self.relu {
            let zero = simd.splat_f32s(0.0);
            value = simd.select_f32s(simd.less_than_f32s(value, zero), zero, value);
        }
        value
    }
}
