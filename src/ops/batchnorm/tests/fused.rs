//! The passes one by one, in f32 and bf16, against f64 on the very inputs.

use proptest::prelude::*;

use super::{EPS, reference, reference_moments};
use crate::{
    Device, Result, Tensor,
    autograd::Tape,
    ops::{
        batchnorm::{
            Affine, FixedNorm, Fused, Moments, Sink, TileSums, batchnorm, cuda,
            fused::{
                Addend, Coefficients, Normaliser, RunningUpdate, apply_masked, coefficients, finalize, input_grad,
                input_grad_pair, reduce, reduce_again, update_running,
            },
            gpu,
        },
        conv::TileMoments,
        optimizer::Table,
        testing::{
            activations, assert_close, assert_close_to, bits, cases, devices, emulator, gpus, norm, normal, tolerance,
            wide,
        },
    },
    tensor::DType,
};

/// One batchnorm's input and parameters.
struct Branch {
    input: Tensor,
    scale: Tensor,
    shift: Tensor,
}

impl Branch {
    fn new(name: &str, [rows, c]: [usize; 2], dtype: DType, device: &Device) -> Result<Self> {
        let values = normal(rows as u64, name, [rows, c], device).to_vec::<f32>()?;
        let spread = values.iter().enumerate().map(|(at, x)| x * (1.0 + (at % c) as f32 / 8.0) + 0.75).collect();
        let [scale, shift] = ["scale", "shift"].map(|part| normal(1, &format!("{part} of {name}"), [c], device));
        Ok(Self { input: Tensor::new(spread, [rows, c], device)?.cast(dtype)?, scale, shift })
    }

    fn normaliser(&self) -> Result<Normaliser> {
        finalize(&cuda::moments(gpu(&self.input)?, &self.input)?, &self.scale, &self.shift, EPS)
    }

    fn exact(&self) -> [Vec<f64>; 3] {
        [wide(&self.input), wide(&self.scale), wide(&self.shift)]
    }
}

/// What is added to the first batchnorm's output.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Added {
    Nothing,
    Value,
    Normed,
}

/// Outputs and gradients of `relu(batchnorm(first) + addend)`: output, then dx, dscale and dshift of the first, and of
/// the second (a value's is the masked gradient alone).
fn passes(branches: &[Branch; 2], added: Added, relu: bool, grad: &Tensor) -> Result<Vec<Tensor>> {
    let [first, second] = branches;
    let (one, two) = (first.normaliser()?, second.normaliser()?);
    let addend = match added {
        Added::Nothing => None,
        Added::Value => Some(Addend::Value(&second.input)),
        Added::Normed => Some(Addend::Normed { input: &second.input, factor: &two.factor, offset: &two.offset }),
    };
    let (output, mask) = apply_masked(&first.input, &one.factor, &one.offset, addend, relu)?;
    assert_eq!(mask.is_some(), relu);
    if let Some(mask) = &mask {
        let set = mask.to_vec::<u8>()?;
        let positive =
            wide(&output).into_iter().enumerate().all(|(at, y)| (set[at / 8] >> (at % 8) & 1 == 1) == (y > 0.0));
        assert!(positive, "the mask tells where the output is positive");
    }
    let sink = Sink { mask, input: first.input.clone(), mean: one.moments.mean.clone() };
    let (masked, sums) = reduce(grad, &sink)?;
    let of = coefficients(&sums, &one.moments, &first.scale, EPS, true)?;
    let mut results =
        vec![output, input_grad(&masked, &first.input, &of)?, of.scale_grad.clone(), of.shift_grad.clone()];
    match added {
        Added::Nothing => {}
        Added::Value => results.push(masked),
        Added::Normed => {
            let sums = reduce_again(&masked, &second.input, &two.moments.mean)?;
            let other = coefficients(&sums, &two.moments, &second.scale, EPS, true)?;
            let alone = input_grad(&masked, &second.input, &other)?;
            let pair = input_grad_pair(&masked, [(&first.input, &of), (&second.input, &other)])?;
            assert!(bits(&pair[0]) == bits(&results[1]) && bits(&pair[1]) == bits(&alone), "read once or twice");
            results.extend([alone, other.scale_grad, other.shift_grad]);
        }
    }
    Ok(results)
}

/// The output in f64.
fn exact_output(branches: &[[Vec<f64>; 3]; 2], added: Added, relu: bool) -> Vec<f64> {
    let mut output = reference(&branches[0], None, false);
    let other = match added {
        Added::Nothing => vec![0.0; output.len()],
        Added::Value => branches[1][0].clone(),
        Added::Normed => reference(&branches[1], None, false),
    };
    output.iter_mut().zip(other).for_each(|(y, other)| *y += other);
    output.into_iter().map(|y| if relu { y.max(0.0) } else { y }).collect()
}

/// Output and gradients as [`passes`], in f64 by the formulas of the field.
fn exact(branches: &[Branch; 2], added: Added, relu: bool, grad: &Tensor) -> Vec<Vec<f64>> {
    let exact = branches.each_ref().map(Branch::exact);
    let output = exact_output(&exact, added, relu);
    let masked: Vec<f64> =
        wide(grad).iter().zip(&output).map(|(grad, y)| if relu && *y <= 0.0 { 0.0 } else { *grad }).collect();
    let gradients = |[x, scale, _]: &[Vec<f64>; 3]| {
        let (c, rows) = (scale.len(), x.len() / scale.len());
        let [mean, variance] = reference_moments(x, c);
        let sigma: Vec<f64> = variance.iter().map(|variance| (variance + f64::from(EPS)).sqrt()).collect();
        let sum = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..c).map(|channel| (channel..x.len()).step_by(c).map(f).sum()).collect()
        };
        let shift_grad = sum(&|at| masked[at]);
        let scale_grad = sum(&|at| masked[at] * (x[at] - mean[at % c]) / sigma[at % c]);
        let dx = (0..x.len()).map(|at| {
            let channel = at % c;
            let centred = masked[at]
                - (shift_grad[channel] + (x[at] - mean[channel]) / sigma[channel] * scale_grad[channel]) / rows as f64;
            scale[channel] / sigma[channel] * centred
        });
        [dx.collect(), scale_grad, shift_grad]
    };
    let mut results = vec![output];
    results.extend(gradients(&exact[0]));
    match added {
        Added::Nothing => {}
        Added::Value => results.push(masked.clone()),
        Added::Normed => results.extend(gradients(&exact[1])),
    }
    results
}

/// Every combination of addend and ReLU.
fn check(shape: [usize; 2], dtype: DType, device: &Device) -> Result<()> {
    let branches = [Branch::new("first", shape, dtype, device)?, Branch::new("second", shape, dtype, device)?];
    let grad = normal(3, "grad", shape, device).cast(dtype)?;
    for added in [Added::Nothing, Added::Value, Added::Normed] {
        for relu in [false, true] {
            let actual = passes(&branches, added, relu, &grad)?;
            let expected = exact(&branches, added, relu, &grad);
            assert_eq!(actual.len(), expected.len());
            for (at, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                let what = format!("{shape:?} of {dtype:?}, {added:?}, ReLU {relu}, tensor {at}");
                let tolerance = tolerance(actual.dtype());
                // Sums may cancel.
                let scale = norm(expected).max(if actual.shape().rank() == 1 { (shape[0] as f64).sqrt() } else { 0.0 });
                assert_close_to(&what, actual, expected, scale, tolerance);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn passes_match_f64(rows in 3..300usize, eights in 1..12usize) {
        for device in gpus() {
            for dtype in activations(&device) {
                check([rows, 8 * eights], *dtype, &device)?;
            }
        }
    }
}

#[test]
fn the_formulas_are_the_numeric_gradient() -> Result<()> {
    let Some(device) = emulator::gpu() else { return Ok(()) };
    let shape = [7, 8];
    let branches =
        [Branch::new("first", shape, DType::F32, &device)?, Branch::new("second", shape, DType::F32, &device)?];
    let grad = normal(3, "grad", shape, &device);
    let inputs = branches.each_ref().map(Branch::exact);
    for added in [Added::Nothing, Added::Value, Added::Normed] {
        let weights = wide(&grad);
        let loss = |inputs: &[[Vec<f64>; 3]; 2]| -> f64 {
            exact_output(inputs, added, true).iter().zip(&weights).map(|(y, weight)| y * weight).sum()
        };
        let mut places = vec![(0, 0), (0, 1), (0, 2)];
        match added {
            Added::Nothing => {}
            Added::Value => places.push((1, 0)),
            Added::Normed => places.extend([(1, 0), (1, 1), (1, 2)]),
        }
        for ((branch, input), analytic) in places.into_iter().zip(&exact(&branches, added, true, &grad)[1..]) {
            for (at, analytic) in analytic.iter().enumerate() {
                let moved = |by: f64| {
                    let mut inputs = inputs.clone();
                    inputs[branch][input][at] += by;
                    loss(&inputs)
                };
                let numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((numeric - analytic).abs() < 1e-7, "{added:?} {branch} {input} {at}: {numeric} {analytic}");
            }
        }
    }
    Ok(())
}

#[test]
fn tiles_of_any_raggedness() -> Result<()> {
    for device in gpus() {
        for dtype in activations(&device) {
            // Rows around tiles of 128, channels around groups of 64; more tiles than one width merges.
            for shape in [[127, 64], [129, 72], [256, 136], [130 * 128 + 1, 8]] {
                check(shape, *dtype, &device)?;
            }
        }
    }
    Ok(())
}

#[test]
fn moments_and_sums_of_many_tiles_are_merged() -> Result<()> {
    for device in gpus() {
        for tiles in [2, 129, 1025, 3000] {
            let c = 24;
            let x = normal(tiles as u64, "x", [tiles, c], &device);
            // Tiles of one row each: the row is their mean.
            let m2 = Tensor::zeros([tiles, c], &device)?;
            let of_rows = TileMoments { rows: tiles, rows_per_tile: 1, mean: x.clone(), m2 };
            let [scale, shift] = ["scale", "shift"].map(|name| normal(2, name, [c], &device));
            let Normaliser { moments, factor, offset } = finalize(&of_rows, &scale, &shift, EPS)?;
            let [mean, variance] = reference_moments(&wide(&x), c);
            assert_close_to("mean", &moments.mean, &mean, (c as f64).sqrt(), 1e-6);
            assert_close("variance", &moments.variance, &variance, 1e-6);
            let whole = Moments::of_tiles(&of_rows)?;
            let (mean, spread) = (&whole.mean, &whole.variance);
            let folded = FixedNorm { scale: &scale, shift: &shift, mean, variance: spread, eps: EPS }.fold()?;
            assert!(
                [&moments.mean, &moments.variance, &factor, &offset].map(bits)
                    == [mean, spread, &folded.0, &folded.1].map(bits),
                "one launch or two"
            );

            let sums = TileSums { sum: x.clone(), product: normal(4, "product", [tiles, c], &device) };
            let of = coefficients(&sums, &moments, &scale, EPS, true)?;
            let total = |tensor: &Tensor| -> Vec<f64> {
                let values = wide(tensor);
                (0..c).map(|channel| values.iter().skip(channel).step_by(c).sum()).collect()
            };
            let scale = (tiles as f64).sqrt() * (c as f64).sqrt();
            assert_close_to("shift's gradient", &of.shift_grad, &total(&sums.sum), scale, 1e-6);
            let expected: Vec<f64> =
                total(&sums.product).iter().zip(&variance).map(|(sum, v)| sum / (v + f64::from(EPS)).sqrt()).collect();
            assert_close_to("scale's gradient", &of.scale_grad, &expected, scale, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn fixed_moments_leave_the_input_out() -> Result<()> {
    for device in gpus() {
        let branch = Branch::new("x", [20, 16], DType::F32, &device)?;
        let Normaliser { moments, factor, .. } = branch.normaliser()?;
        let (masked, sums) =
            reduce(&branch.input, &Sink { mask: None, input: branch.input.clone(), mean: moments.mean.clone() })?;
        assert!(bits(&masked) == bits(&branch.input));
        let moments = Moments { rows: 0, ..moments };
        let Coefficients { a, b, c, .. } = coefficients(&sums, &moments, &branch.scale, EPS, false)?;
        assert!(bits(&a) == bits(&factor));
        assert!([b, c].iter().all(|zeros| wide(zeros) == [0.0; 16]));
    }
    Ok(())
}

/// In f32 the passes and the operation on the tape do the same roundings; in bf16 the tape's output has the same bits.
#[test]
fn passes_and_the_operation_on_the_tape_agree() -> Result<()> {
    for device in gpus() {
        for dtype in activations(&device) {
            let shape = [2 * 128 + 5, 72];
            let branches =
                [Branch::new("first", shape, *dtype, &device)?, Branch::new("second", shape, *dtype, &device)?];
            let grad = normal(3, "grad", shape, &device).cast(*dtype)?;
            let expected = passes(&branches, Added::Value, true, &grad)?;
            let mut tape = Tape::new();
            let [first, residual] = &branches;
            let [x, scale, shift, residual] =
                [("0", &first.input), ("1", &first.scale), ("2", &first.shift), ("3", &residual.input)]
                    .map(|(name, value)| tape.leaf(name, value.clone()));
            let moments = Moments::of(&first.input)?;
            let fused = Fused { residual: Some(&residual), relu: true };
            let y = batchnorm(&mut tape, &x, Affine { scale: &scale, shift: &shift }, &moments, true, EPS, fused)?;
            let output = bits(y.value());
            let grads = tape.backward_from(&y, grad)?;
            assert!(output == bits(&expected[0]), "{dtype:?}");
            for (at, expected) in expected[1..].iter().enumerate() {
                assert!(bits(&grads[at.to_string().as_str()]) == bits(expected), "gradient {at} of {dtype:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn all_running_statistics_move_as_each_alone() -> Result<()> {
    for device in devices() {
        let layers: Vec<(Moments, [Tensor; 2])> = [3, 300, 16]
            .into_iter()
            .map(|c| {
                let running = ["mean", "variance"].map(|name| normal(c, name, [c as usize], &device));
                Ok((Moments::of(&normal(c, "x", [9, c as usize], &device))?, running))
            })
            .collect::<Result<_>>()?;
        let momentum = |at: usize| 0.1 * (at + 1) as f32;
        let mut expected: Vec<[Tensor; 2]> = layers.iter().map(|(_, running)| running.clone()).collect();
        let mut actual = expected.clone();
        let mut table = Table::default();
        for _ in 0..2 {
            for (at, ((moments, _), [mean, variance])) in layers.iter().zip(&mut expected).enumerate() {
                moments.update_running(momentum(at), mean, variance)?;
            }
            let updates = layers.iter().zip(&mut actual).enumerate();
            let mut updates: Vec<RunningUpdate> = updates
                .map(|(at, ((moments, _), [mean, variance]))| RunningUpdate {
                    moments,
                    momentum: momentum(at),
                    mean,
                    variance,
                })
                .collect();
            update_running(&mut updates, &mut table)?;
        }
        assert!(actual.iter().flatten().map(bits).eq(expected.iter().flatten().map(bits)), "{device}");
        assert!(layers.iter().zip(&actual).all(|((_, before), after)| bits(&before[0]) != bits(&after[0])));
        update_running(&mut [], &mut table)?;
        let [mean, variance] = &mut actual[1];
        let wrong = RunningUpdate { moments: &layers[0].0, momentum: 0.1, mean, variance };
        assert!(update_running(&mut [wrong], &mut table).is_err());
    }
    Ok(())
}

#[test]
fn a_nan_passes_and_is_not_positive() -> Result<()> {
    for device in gpus() {
        for dtype in activations(&device) {
            let x = Tensor::full([3, 8], f32::NAN, &device)?.cast(*dtype)?;
            let ones = Tensor::full([8], 1.0, &device)?;
            let (y, mask) = apply_masked(&x, &ones, &ones, None, true)?;
            assert!(wide(&y).iter().all(|y| y.is_nan()));
            assert!(mask.is_some_and(|mask| mask.to_vec::<u8>().unwrap() == [0; 3]));
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    for device in gpus() {
        let [x, y] = [[6, 8], [5, 8]].map(|shape| Tensor::zeros(shape, &device).unwrap());
        let [c, d] = [[8], [16]].map(|shape| Tensor::full(shape, 1.0, &device).unwrap());
        let half = x.cast(DType::BF16)?;
        let error = apply_masked(&Tensor::zeros([6, 12], &device)?, &c, &c, None, true).expect_err("12 channels");
        assert!(error.to_string().contains("a multiple of 8 channels, got [6, 12]"), "{error}");
        assert!(apply_masked(&x, &c, &c, None, true).is_ok());
        assert!(apply_masked(&x, &d, &c, None, true).is_err() && apply_masked(&x, &c, &d, None, true).is_err());
        let normed = |input, factor, offset| Some(Addend::Normed { input, factor, offset });
        for addend in [
            Some(Addend::Value(&y)),
            Some(Addend::Value(&half)),
            normed(&y, &c, &c),
            normed(&x, &d, &c),
            normed(&x, &c, &d),
            normed(&half, &c, &c),
        ] {
            assert!(apply_masked(&x, &c, &c, addend, true).is_err(), "{addend:?}");
        }
        assert!(apply_masked(&x.cast(DType::F16)?, &c, &c, None, false).is_err());
        let mask = Tensor::new(vec![0u8; 6], [6, 1], &device)?;
        let sink =
            |mask: Option<&Tensor>, mean: &Tensor| Sink { mask: mask.cloned(), input: x.clone(), mean: mean.clone() };
        assert!(reduce(&x, &sink(Some(&mask), &c)).is_ok());
        assert!(reduce(&y, &sink(Some(&mask), &c)).is_err() && reduce(&half, &sink(None, &c)).is_err());
        assert!(reduce(&x, &sink(None, &d)).is_err() && reduce(&x, &sink(Some(&c), &c)).is_err());
        assert!(reduce_again(&y, &x, &c).is_err() && reduce_again(&x, &x, &d).is_err());
        let (_, sums) = reduce(&x, &sink(None, &c))?;
        let moments =
            |mean: &Tensor, variance: &Tensor| Moments { mean: mean.clone(), variance: variance.clone(), rows: 6 };
        let of = coefficients(&sums, &moments(&c, &c), &c, EPS, true)?;
        assert!(coefficients(&sums, &moments(&d, &c), &c, EPS, true).is_err());
        assert!(coefficients(&sums, &moments(&c, &d), &c, EPS, true).is_err());
        assert!(coefficients(&sums, &moments(&c, &c), &d, EPS, true).is_err());
        assert!(input_grad(&y, &x, &of).is_err() && input_grad(&x, &half, &of).is_err());
        assert!(input_grad_pair(&x, [(&x, &of), (&y, &of)]).is_err());
        let tiles = |rows| TileMoments { rows, rows_per_tile: 1, mean: x.clone(), m2: x.clone() };
        assert!(finalize(&tiles(6), &c, &c, EPS).is_ok() && finalize(&tiles(1), &c, &c, EPS).is_err());
        assert!(finalize(&tiles(6), &d, &c, EPS).is_err() && finalize(&tiles(6), &c, &d, EPS).is_err());
    }
    let cpu = Device::cpu(1)?;
    let (x, c) = (Tensor::zeros([6, 8], &cpu)?, Tensor::zeros([8], &cpu)?);
    let error = apply_masked(&x, &c, &c, None, true).expect_err("a processor").to_string();
    assert!(error.contains("for GPUs alone"), "{error}");
    Ok(())
}
