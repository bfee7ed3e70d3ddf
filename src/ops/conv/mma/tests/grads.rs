//! The gradients: against f64, under every tile, with every finish.

use proptest::prelude::*;

use super::{
    super::{
        GradFinish, Master, Partial, cuda, forward, input_grad, input_grad_strided,
        table::{Problem, Product, Tile},
        weight_grad,
    },
    Operands, PRECISIONS, TILES, activation, any_case, assert_close, bits, gpu, stored, wide,
};
use crate::{
    Device, Result, Tensor,
    ops::{
        batchnorm::Sink,
        conv::{
            Epilogue,
            tests::{Case, case},
        },
        testing::{assert_close_to, cases, norm, normal},
    },
    random::Random,
    tensor::{DType, Precision},
};

impl Case {
    /// The gradient of the input in f64.
    fn exact_input_grad(&self, operands: &Operands) -> Vec<f64> {
        let (dy, w) = (wide(&operands.grad), wide(&operands.weight));
        let mut grad = vec![0.0; self.input_dims().iter().product()];
        self.products(|at_x, at_w, at_y| grad[at_x] += dy[at_y] * w[at_w]);
        grad
    }

    /// The gradient of the weight in f64, and what it would be if the signs of its terms were random.
    fn exact_weight_grad(&self, operands: &Operands) -> (Vec<f64>, f64) {
        let (x, dy) = (wide(&operands.input), wide(&operands.grad));
        let (mut grad, mut squares) = (vec![0.0; self.weight_dims().iter().product()], 0.0);
        self.products(|at_x, at_w, at_y| {
            grad[at_w] += x[at_x] * dy[at_y];
            squares += (x[at_x] * dy[at_y]).powi(2);
        });
        let scale = f64::max(norm(&grad), f64::sqrt(squares));
        (grad, scale)
    }

    /// Whether the input has channels that gradients are stored of.
    fn has_input_grad(&self, operands: &Operands) -> bool {
        operands.extents.group_c().is_multiple_of(8)
    }
}

/// A batchnorm before a convolution.
pub(super) fn sink(dims: [usize; 4], masked: bool, precision: Precision, device: &Device) -> Result<Sink> {
    let [n, h, w, c] = dims;
    let mut random = Random::stream(7, "mask", &[]);
    let mask: Vec<u8> = (0..n * h * w * c / 8).map(|_| random.uniform(0.0, 256.0) as u8).collect();
    let mask = masked.then(|| Tensor::new(mask, [n * h * w, c / 8], device)).transpose()?;
    Ok(Sink { mask, input: activation(8, "y", dims, precision, device), mean: normal(9, "mean", [c], device) })
}

/// Checks a gradient of the input, finished in some way, and the sums of every tile of `tiles_of` rows' sums.
fn check(case: &Case, operands: &Operands, precision: Precision, finish: GradFinish) -> Result<()> {
    let Some((_, cuda)) = gpu() else { return Ok(()) };
    let [_, h, w, c] = case.input_dims();
    let mut exact = case.exact_input_grad(operands);
    match finish.partial {
        Some(Partial::Dense(grad)) => exact.iter_mut().zip(wide(grad)).for_each(|(exact, grad)| *exact += grad),
        Some(Partial::Strided { grad, stride }) => {
            let (rows, cols, grad) = (h.div_ceil(stride), w.div_ceil(stride), wide(grad));
            for (at, exact) in exact.iter_mut().enumerate() {
                let (image, y, x) = (at / c / w / h, at / c / w % h, at / c % w);
                if y % stride == 0 && x % stride == 0 {
                    *exact += grad[((image * rows + y / stride) * cols + x / stride) * c + at % c];
                }
            }
        }
        None => {}
    }
    if let Some(mask) = finish.sink.and_then(|sink| sink.mask.as_ref()) {
        let mask = mask.to_vec::<u8>()?;
        exact.iter_mut().enumerate().filter(|(at, _)| mask[at / 8] >> (at % 8) & 1 == 0).for_each(|(_, g)| *g = 0.0);
    }
    let Operands { grad, packed, extents, .. } = operands;
    let what = format!("{case:?}, {precision}");
    let (chosen, _) = input_grad(grad, packed, case.input_dims().into(), case.geometry, finish)?;
    assert_eq!((chosen.dims(), chosen.dtype()), (&case.input_dims()[..], precision.storage()));
    assert_close(&what, &chosen, &exact, precision);
    let patches = Problem::new(Product::InputGrad, operands.factors(), extents).patches;
    for tile in TILES.into_iter().chain(patches.then_some(Tile::Patches)) {
        let flipped = packed.flipped.as_ref().expect("packed with it");
        let (output, sums) = cuda::input_grad(&cuda, tile, grad, flipped, extents, finish)?;
        assert!(bits(&output) == bits(&chosen), "{tile:?}: {what}");
        assert_eq!(sums.is_some(), finish.sink.is_some());
        let (Some(sums), Some(sink)) = (sums, finish.sink) else { continue };
        // Over all tiles: which rows a tile has is the kernel's own affair.
        let (g, y, mean) = (wide(&output), wide(&sink.input), wide(&sink.mean));
        let (sum, product) = (wide(&sums.sum), wide(&sums.product));
        for (channel, mean) in mean.iter().enumerate() {
            let column = || g.iter().zip(&y).skip(channel).step_by(c).map(|(g, y)| (*g, *y));
            let of = |sums: &[f64]| sums.iter().skip(channel).step_by(c).sum::<f64>();
            let expected = column().fold([0.0; 4], |[s, p, s_size, p_size], (g, y)| {
                let product = g * (y - mean);
                [s + g, p + product, s_size + g.abs(), p_size + product.abs()]
            });
            let bound = |size: f64| 1e-5 * size + 1e-30;
            assert!((of(&sum) - expected[0]).abs() <= bound(expected[2]), "sum of {channel}, {tile:?}: {what}");
            assert!((of(&product) - expected[1]).abs() <= bound(expected[3]), "product of {channel}, {tile:?}: {what}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn input_gradients_match_the_reference_under_every_tile(case in any_case(8)) {
        let Some((device, _)) = gpu() else { return Ok(()) };
        for precision in PRECISIONS {
            let operands = Operands::new(&case, precision, &device)?;
            if case.has_input_grad(&operands) {
                check(&case, &operands, precision, GradFinish::default())?;
            }
        }
    }

    #[test]
    fn weight_gradients_match_the_reference_under_every_tile(case in any_case(12)) {
        let Some((device, cuda)) = gpu() else { return Ok(()) };
        for (precision, tolerance) in PRECISIONS.into_iter().zip([1e-4, 1e-3]) {
            let operands = Operands::new(&case, precision, &device)?;
            let Operands { input, weight, grad, extents, .. } = &operands;
            let (exact, scale) = case.exact_weight_grad(&operands);
            let chosen = weight_grad(grad, input, weight.shape(), case.geometry)?;
            assert_eq!((chosen.dims(), chosen.dtype()), (&case.weight_dims()[..], DType::F32));
            assert_close_to(&format!("{case:?}, {precision}"), &chosen, &exact, scale, tolerance);
            let master = Master { c: case.group_c, k: case.group_k };
            let narrow = operands.tiles() == [Tile::TallBy4];
            let tiles = if narrow { vec![Tile::SmallBy4] } else { vec![Tile::Large, Tile::Small] };
            let pixels = extents.n * extents.p * extents.q;
            for slices in [(1, pixels.next_multiple_of(32)), (pixels.div_ceil(32), 32)] {
                let mut first = None;
                for tile in tiles.iter().copied() {
                    let actual = cuda::weight_grad(&cuda, tile, slices, grad, input, extents, master)?;
                    let what = format!("{tile:?}, {slices:?}: {case:?}, {precision}");
                    assert_close_to(&what, &actual, &exact, scale, tolerance);
                    assert!(*first.get_or_insert_with(|| bits(&actual)) == bits(&actual), "{what}");
                }
            }
        }
    }

    #[test]
    fn every_finish_of_an_input_gradient_matches_the_reference(case in any_case(4), stride in 2..4usize) {
        let Some((device, _)) = gpu() else { return Ok(()) };
        let dims @ [n, h, w, c] = case.input_dims();
        for precision in PRECISIONS {
            let operands = Operands::new(&case, precision, &device)?;
            if !case.has_input_grad(&operands) {
                continue;
            }
            let dense = activation(4, "partial", dims, precision, &device);
            let strided = [n, h.div_ceil(stride), w.div_ceil(stride), c];
            let strided = activation(5, "strided", strided, precision, &device);
            let (masked, plain) = (sink(dims, true, precision, &device)?, sink(dims, false, precision, &device)?);
            for (partial, sink) in [
                (Some(Partial::Dense(&dense)), None),
                (Some(Partial::Strided { grad: &strided, stride }), Some(&masked)),
                (None, Some(&plain)),
                (Some(Partial::Dense(&dense)), Some(&masked)),
            ] {
                check(&case, &operands, precision, GradFinish { partial, sink })?;
            }
        }
    }
}

/// Gradients whose source is copied once for all taps.
#[test]
fn patches_serve_the_input_gradient_too() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    for case in [case([1, 16, 8, 72, 64, 3, 3, 1, 1, 1]), case([3, 8, 8, 64, 64, 3, 3, 1, 1, 8])] {
        let (dims, precision) = (case.input_dims(), Precision::Bf16);
        let operands = Operands::new(&case, precision, &device)?;
        let (dense, masked) =
            (activation(4, "partial", dims, precision, &device), sink(dims, true, precision, &device)?);
        let strided = activation(5, "strided", [dims[0], dims[1] / 2, dims[2] / 2, dims[3]], precision, &device);
        check(&case, &operands, precision, GradFinish::default())?;
        check(&case, &operands, precision, GradFinish { partial: Some(Partial::Dense(&dense)), sink: Some(&masked) })?;
        let partial = Some(Partial::Strided { grad: &strided, stride: 2 });
        check(&case, &operands, precision, GradFinish { partial, sink: Some(&masked) })?;
    }
    Ok(())
}

/// Images with a fourth channel, of whose gradient the master has three.
#[test]
fn a_stems_weight_gradient_has_three_channels() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    let case = case([2, 21, 18, 3, 72, 7, 7, 2, 3, 1]);
    for (precision, tolerance) in PRECISIONS.into_iter().zip([1e-4, 1e-3]) {
        let image = wide(&activation(1, "image", case.input_dims(), precision, &device));
        let four: Vec<f64> = image.chunks(3).flat_map(|x| [x[0], x[1], x[2], 0.0]).collect();
        let input = stored(&four, [case.n, case.h, case.w, 4], precision, &device);
        let grad = activation(2, "grad", case.output_dims(), precision, &device);
        let mut exact = vec![0.0; case.weight_dims().iter().product()];
        let dy = wide(&grad);
        case.products(|at_x, at_w, at_y| exact[at_w] += image[at_x] * dy[at_y]);
        let actual = weight_grad(&grad, &input, case.weight_dims().into(), case.geometry)?;
        assert_close_to(&format!("a stem in {precision}"), &actual, &exact, norm(&exact), tolerance);
    }
    Ok(())
}

/// A strided 1×1 convolution's gradient comes in two forms: with zeros between the pixels that were read, and without.
#[test]
fn a_compact_gradient_holds_the_pixels_that_were_read() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    let case = case([2, 7, 6, 16, 24, 1, 1, 2, 0, 1]);
    for precision in PRECISIONS {
        let Operands { input, grad, packed, .. } = Operands::new(&case, precision, &device)?;
        let compact = input_grad_strided(&grad, &packed)?;
        assert_eq!(compact.dims(), [2, 4, 3, 16]);
        let whole = input_grad(&grad, &packed, input.shape(), case.geometry, GradFinish::default())?.0;
        let (whole, compact) = (wide(&whole), wide(&compact));
        for (at, value) in whole.iter().enumerate() {
            let (image, y, x) = (at / 16 / 42, at / 16 / 6 % 7, at / 16 % 6);
            let read = y % 2 == 0 && x % 2 == 0;
            let expected = if read { compact[((image * 4 + y / 2) * 3 + x / 2) * 16 + at % 16] } else { 0.0 };
            assert_eq!(*value, expected, "({y}, {x}) of {image}");
        }
    }
    Ok(())
}

/// ⟨conv(x), dy⟩ = ⟨x, its gradient⟩, for each of them up to its rounding.
#[test]
fn the_gradient_is_the_adjoint_of_the_convolution() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    for case in [
        case([2, 9, 7, 16, 24, 3, 3, 1, 1, 1]),
        case([2, 9, 8, 16, 24, 3, 3, 2, 1, 1]),
        case([1, 8, 9, 32, 64, 3, 3, 2, 1, 8]),
        case([2, 7, 5, 8, 16, 2, 4, 3, 2, 1]),
    ] {
        for precision in PRECISIONS {
            let Operands { input, grad, packed, .. } = Operands::new(&case, precision, &device)?;
            let output = forward(&input, &packed, case.geometry, Epilogue::default())?;
            let (dx, _) = input_grad(&grad, &packed, input.shape(), case.geometry, GradFinish::default())?;
            let dot = |a: &Tensor, b: &Tensor| wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum::<f64>();
            let size = norm(&wide(&output)) * norm(&wide(&grad));
            let difference = (dot(&output, &grad) - dot(&input, &dx)).abs();
            assert!(difference <= 2e-4 * size, "{difference:e} of {size:e}: {case:?}, {precision}");
        }
    }
    Ok(())
}
