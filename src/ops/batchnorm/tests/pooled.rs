//! The stem's batchnorm, ReLU and maximum pool in one pass, against the passes one by one and f64.

use proptest::prelude::*;

use super::EPS;
use crate::{
    Device, Result, Tensor,
    ops::{
        batchnorm::{
            Sink, cuda,
            fused::{
                Coefficients, Normaliser, apply_masked, apply_pooled, coefficients, finalize, input_grad,
                input_grad_pooled, reduce, reduce_pooled,
            },
            gpu,
        },
        pool::{self, Window, max_forward},
        testing::{F32, activations, assert_close_to, bits, cases, gpus, norm, normal, tolerance, wide},
    },
    tensor::DType,
};

/// A stem's input, and what normalises it.
struct Stem {
    input: Tensor,
    scale: Tensor,
    norm: Normaliser,
}

impl Stem {
    /// Scales of both signs: the largest output may be that of the smallest input.
    fn new(dims: [usize; 4], dtype: DType, device: &Device) -> Result<Self> {
        let c = dims[3];
        let input = normal(dims[1] as u64, "x", dims, device).cast(dtype)?;
        let [scale, shift] = ["scale", "shift"].map(|name| normal(5, name, [c], device));
        let norm = finalize(&cuda::moments(gpu(&input)?, &input)?, &scale, &shift, EPS)?;
        Ok(Self { input, scale, norm })
    }

    /// Output and winners of the pool; the gradients of input, scale and shift.
    fn fused(&self, window: Window, grad: &Tensor) -> Result<[Tensor; 5]> {
        let Normaliser { moments, factor, offset } = &self.norm;
        let (output, at) = apply_pooled(&self.input, factor, offset, window)?;
        let sums = reduce_pooled(grad, &self.input, &at, factor, offset, &moments.mean, window)?;
        let of = coefficients(&sums, moments, &self.scale, EPS, true)?;
        let dx = input_grad_pooled(grad, &self.input, &at, factor, offset, window, &of)?;
        let Coefficients { scale_grad, shift_grad, .. } = of;
        Ok([output, at, dx, scale_grad, shift_grad])
    }

    /// The same by one pass after the other, but for the winners.
    fn separate(&self, window: Window, grad: &Tensor) -> Result<[Tensor; 4]> {
        let Normaliser { moments, factor, offset } = &self.norm;
        let (z, mask) = apply_masked(&self.input, factor, offset, None, true)?;
        let (output, at) = max_forward(&z, window)?;
        let &[n, h, w, c] = self.input.dims() else { panic!("a map") };
        let grad = pool::cuda::max_grad(gpu(grad)?, grad, &at, [n, h, w, c], window)?;
        let (masked, sums) = reduce(&grad, &Sink { mask, input: self.input.clone(), mean: moments.mean.clone() })?;
        let of = coefficients(&sums, moments, &self.scale, EPS, true)?;
        let dx = input_grad(&masked, &self.input, &of)?;
        Ok([output, dx, of.scale_grad, of.shift_grad])
    }

    /// The same in f64, with the winners as numbers of taps.
    fn exact(&self, window: Window, grad: &Tensor) -> [Vec<f64>; 5] {
        let Normaliser { moments, factor, offset } = &self.norm;
        let (&[n, h, w, c], &[_, p, q, _]) = (self.input.dims(), grad.dims()) else { panic!("maps") };
        let [x, grad, factor, offset] = [&self.input, grad, factor, offset].map(wide);
        let z: Vec<f64> = x.iter().enumerate().map(|(at, x)| (x * factor[at % c] + offset[at % c]).max(0.0)).collect();
        let (mut output, mut winners, mut g) = (vec![], vec![], vec![0.0; x.len()]);
        for (place, grad) in grad.iter().enumerate() {
            let (image, row, col, channel) = (place / (p * q * c), place / (q * c) % p, place / c % q, place % c);
            let taps = (0..9).filter_map(|tap| {
                let y = (row * window.stride + tap / 3).checked_sub(window.padding).filter(|y| *y < h)?;
                let x = (col * window.stride + tap % 3).checked_sub(window.padding).filter(|x| *x < w)?;
                Some((tap, ((image * h + y) * w + x) * c + channel))
            });
            let best = taps.reduce(|best, next| if z[next.1] > z[best.1] { next } else { best });
            let (tap, at) = best.expect("a window reaches the map");
            output.push(z[at]);
            winners.push(tap as f64);
            g[at] += if z[at] > 0.0 { *grad } else { 0.0 };
        }
        let (mean, variance, scale) = (wide(&moments.mean), wide(&moments.variance), wide(&self.scale));
        let rows = (n * h * w) as f64;
        let (mut shift_grad, mut scale_grad) = (vec![0.0; c], vec![0.0; c]);
        let sigma: Vec<f64> = variance.iter().map(|variance| (variance + f64::from(EPS)).sqrt()).collect();
        let normed = |at: usize| (x[at] - mean[at % c]) / sigma[at % c];
        for (at, g) in g.iter().enumerate() {
            shift_grad[at % c] += g;
            scale_grad[at % c] += g * normed(at);
        }
        let dx = g.iter().enumerate().map(|(at, g)| {
            let channel = at % c;
            scale[channel] / sigma[channel] * (g - (shift_grad[channel] + normed(at) * scale_grad[channel]) / rows)
        });
        [output, winners, dx.collect(), scale_grad, shift_grad]
    }

    fn grad(&self, window: Window) -> Result<Tensor> {
        let &[n, h, w, c] = self.input.dims() else { panic!("a map") };
        let dims = [n, window.output(h)?, window.output(w)?, c];
        normal(7, "grad", dims, self.input.device()).cast(self.input.dtype())
    }
}

fn check(dims: [usize; 4], window: Window, dtype: DType, device: &Device) -> Result<()> {
    let stem = Stem::new(dims, dtype, device)?;
    let grad = stem.grad(window)?;
    let what = format!("{dims:?} of {dtype:?}, {window:?}");
    let [output, at, dx, scale_grad, shift_grad] = stem.fused(window, &grad)?;
    let exact = stem.exact(window, &grad);
    let taps: Vec<f64> = at.to_vec::<u8>()?.into_iter().map(f64::from).collect();
    // Where nothing in a window is positive all are equal.
    let clear = |at: &usize| exact[0][*at] > 1e-3;
    let differ = (0..taps.len()).filter(clear).filter(|at| taps[*at] != exact[1][*at]).count();
    assert_eq!(differ, 0, "winners of {what}");
    assert_close_to(&what, &output, &exact[0], norm(&exact[0]), tolerance(dtype));
    assert_close_to(&what, &dx, &exact[2], norm(&exact[2]), tolerance(dtype));
    for (grad, exact) in [(&scale_grad, &exact[3]), (&shift_grad, &exact[4])] {
        assert_close_to(&what, grad, exact, norm(exact).max((grad.shape().elements() as f64).sqrt()), F32);
    }
    // In bf16 the passes one by one round more often, and a tie may be won by another.
    let [expected, expected_dx, expected_scale, expected_shift] = stem.separate(window, &grad)?;
    assert!(bits(&output) == bits(&expected), "output of {what}");
    if dtype == DType::F32 {
        let same = [(&dx, expected_dx), (&scale_grad, expected_scale), (&shift_grad, expected_shift)];
        for (actual, expected) in same {
            let expected = wide(&expected);
            assert_close_to(&what, actual, &expected, norm(&expected).max(1.0), F32);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn the_stem_matches_f64_and_the_passes_one_by_one(
        (n, h, w, eights) in (1..4usize, 3..20usize, 3..20usize, 1..4usize),
        stride in 2..4usize,
        padding in 0..2usize,
    ) {
        for device in gpus() {
            for dtype in activations(&device) {
                check([n, h, w, 8 * eights], Window { size: 3, stride, padding }, *dtype, &device)?;
            }
        }
    }
}

#[test]
fn patches_of_any_raggedness() -> Result<()> {
    for device in gpus() {
        for dtype in activations(&device) {
            // Patches have 8 × 16 pixels, or 2 or 4 × 8 outputs; groups 64 channels.
            for dims in [[2, 16, 32, 64], [1, 17, 33, 72], [1, 7, 5, 136]] {
                check(dims, Window::STEM, *dtype, &device)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_nan_wins_and_the_first_of_equals() -> Result<()> {
    for device in gpus() {
        for dtype in activations(&device) {
            let mut values = vec![1.0; 9 * 8];
            let ones = Tensor::full([8], 1.0, &device)?;
            let window = Window { size: 3, stride: 2, padding: 0 };
            let pooled = |values: &[f32]| {
                apply_pooled(&Tensor::new(values.to_vec(), [1, 3, 3, 8], &device)?.cast(*dtype)?, &ones, &ones, window)
            };
            assert_eq!(pooled(&values)?.1.to_vec::<u8>()?, [0; 8]);
            values[5 * 8 + 2] = f32::NAN;
            values[6 * 8 + 2] = f32::NAN;
            values[8 * 8 + 3] = 2.0;
            let (output, at) = pooled(&values)?;
            assert!(wide(&output)[2].is_nan());
            assert_eq!((at.to_vec::<u8>()?, wide(&output)[3]), (vec![0, 0, 5, 8, 0, 0, 0, 0], 3.0));
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    for device in gpus() {
        let stem = Stem::new([1, 5, 5, 8], DType::F32, &device)?;
        let Normaliser { moments, factor, offset } = &stem.norm;
        let (window, wrong) = (Window::STEM, Tensor::full([16], 1.0, &device)?);
        assert!(apply_pooled(&stem.input, factor, offset, Window { size: 2, ..window }).is_err());
        assert!(apply_pooled(&stem.input, factor, offset, Window { stride: 1, ..window }).is_err());
        assert!(apply_pooled(&stem.input, &wrong, offset, window).is_err());
        assert!(apply_pooled(&stem.input, factor, &wrong, window).is_err());
        assert!(apply_pooled(&stem.input.reshape([25, 8])?, factor, offset, window).is_err());
        let flat = stem.input.reshape([1, 5, 10, 4])?;
        assert!(apply_pooled(&flat, factor, offset, window).is_err(), "four channels");
        let (_, at) = apply_pooled(&stem.input, factor, offset, window)?;
        let grad = stem.grad(window)?;
        let sums = |grad: &Tensor, at: &Tensor, mean: &Tensor| {
            reduce_pooled(grad, &stem.input, at, factor, offset, mean, window)
        };
        let of = coefficients(&sums(&grad, &at, &moments.mean)?, moments, &stem.scale, EPS, true)?;
        assert!(sums(&stem.input, &at, &moments.mean).is_err() && sums(&grad, &at, &wrong).is_err());
        assert!(sums(&grad, &grad, &moments.mean).is_err(), "winners are bytes");
        assert!(sums(&grad.cast(DType::BF16)?, &at, &moments.mean).is_err(), "one type");
        let wrong = Coefficients { a: wrong, ..of };
        assert!(input_grad_pooled(&grad, &stem.input, &at, factor, offset, window, &wrong).is_err());
    }
    Ok(())
}
