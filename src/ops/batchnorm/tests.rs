mod fused;
mod pooled;

use proptest::prelude::*;

use super::{Affine, FixedNorm, Fused, Moments, batchnorm};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    ops::testing::{
        F32, KnownNorm, assert_bits, assert_close, assert_close_to, bits, cases, check_op, cpu, devices, norm, normal,
        on, wide,
    },
};

const EPS: f32 = 1e-5;

/// Mean and biased variance of each channel.
fn reference_moments(x: &[f64], channels: usize) -> [Vec<f64>; 2] {
    let rows = (x.len() / channels) as f64;
    let column = |channel: usize| x.iter().skip(channel).step_by(channels);
    let mean: Vec<f64> = (0..channels).map(|channel| column(channel).sum::<f64>() / rows).collect();
    let square = |channel: usize| column(channel).map(|x| (x - mean[channel]).powi(2)).sum::<f64>();
    let variance = (0..channels).map(|channel| square(channel) / rows).collect();
    [mean, variance]
}

/// `inputs` are x, scale, shift and perhaps a residual; without `moments` those of x are used.
fn reference(inputs: &[Vec<f64>], moments: Option<&[Vec<f64>; 2]>, relu: bool) -> Vec<f64> {
    let [x, scale, shift] = [&inputs[0], &inputs[1], &inputs[2]];
    let channels = scale.len();
    let own = reference_moments(x, channels);
    let [mean, variance] = moments.unwrap_or(&own);
    let normalise = |(at, x): (usize, &f64)| {
        let channel = at % channels;
        let y = (x - mean[channel]) / (variance[channel] + f64::from(EPS)).sqrt() * scale[channel] + shift[channel];
        let sum = y + inputs.get(3).map_or(0.0, |residual| residual[at]);
        if relu { sum.max(0.0) } else { sum }
    };
    x.iter().enumerate().map(normalise).collect()
}

/// Scale, shift and residual that follow `x` in the inputs, and running moments.
fn others(x: &Tensor) -> Result<(Vec<Tensor>, Moments)> {
    let (channels, device) = ([x.shape().last()], x.device());
    let [scale, shift, mean] = ["scale", "shift", "mean"].map(|name| normal(1, name, channels, device));
    let variance = normal(1, "variance", channels, device).to_vec::<f32>()?.iter().map(|v| 0.5 + v * v).collect();
    let residual = normal(1, "residual", x.shape(), device);
    let running = Moments { mean, variance: Tensor::new(variance, channels, device)?, rows: 10 };
    Ok((vec![scale, shift, residual], running))
}

fn fixed<'a>(others: &'a [Tensor], running: &'a Moments) -> FixedNorm<'a> {
    let Moments { mean, variance, .. } = running;
    FixedNorm { scale: &others[0], shift: &others[1], mean, variance, eps: EPS }
}

fn on_tape(tape: &mut Tape, vars: &[Var], running: Option<&Moments>, relu: bool) -> Result<Var> {
    let own;
    let moments = match running {
        Some(running) => running,
        None => {
            own = Moments::of(vars[0].value())?;
            &own
        }
    };
    let fused = Fused { residual: vars.get(3), relu };
    let affine = Affine { scale: &vars[1], shift: &vars[2] };
    batchnorm(tape, &vars[0], affine, moments, running.is_none(), EPS, fused)
}

/// Output and gradients in every combination of batch or running statistics, residual and ReLU.
fn check(x: &Tensor) -> Result<()> {
    let (others, running) = others(x)?;
    let exact_running = [wide(&running.mean), wide(&running.variance)];
    for (batch, residual, relu) in (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)) {
        let inputs = [std::slice::from_ref(x), &others[..2 + usize::from(residual)]].concat();
        let what = format!("batchnorm of {}, batch {batch}, residual {residual}, relu {relu}", x.shape());
        check_op(
            &what,
            &inputs,
            |tape, vars| on_tape(tape, vars, (!batch).then_some(&running), relu),
            |inputs| reference(inputs, (!batch).then_some(&exact_running), relu),
        )?;
    }
    Ok(())
}

/// Normal values times `deviation` plus `mean`.
fn spread(rows: usize, channels: usize, mean: f32, deviation: f32, device: &Device) -> Result<Tensor> {
    let values = normal(rows as u64, "x", [rows, channels], &cpu(1)).to_vec::<f32>()?;
    Tensor::new(values.iter().map(|value| value * deviation + mean).collect(), [rows, channels], device)
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn maps_match_the_reference_and_its_numeric_gradient(n in 1..4usize, h in 1..4usize, w in 3..5usize, c in 1..5usize) {
        for device in devices() {
            check(&normal(n as u64, "x", [n, h, w, c], &device))?;
        }
    }

    #[test]
    fn vectors_match_the_reference_and_its_numeric_gradient(rows in 3..20usize, c in 1..6usize) {
        for device in devices() {
            check(&normal(rows as u64, "x", [rows, c], &device))?;
        }
    }

    #[test]
    fn moments_are_accurate_far_from_zero(
        rows in 2..3000usize,
        c in 1..5usize,
        (mean, deviation) in prop_oneof![Just((0.0, 1.0)), Just((1e3, 1.0)), Just((-30.0, 0.01)), Just((1e4, 100.0))],
    ) {
        for device in devices() {
            let x = spread(rows, c, mean, deviation, &device)?;
            let moments = Moments::of(&x)?;
            let [exact_mean, exact_variance] = reference_moments(&wide(&x), c);
            for channel in 0..c {
                let (mean, variance) = (wide(&moments.mean)[channel], wide(&moments.variance)[channel]);
                let (exact, sigma) = (exact_mean[channel], exact_variance[channel].sqrt());
                // Half a unit in the last place is lost in storing the mean.
                let bound = 1e-5 * sigma + exact.abs() * f64::from(f32::EPSILON) / 2.0;
                prop_assert!((mean - exact).abs() <= bound, "{device}: mean {mean}, exact {exact}, bound {bound:e}");
                let error = (variance / exact_variance[channel] - 1.0).abs();
                prop_assert!(error <= 1e-5, "{device}: variance {variance}, relative error {error:e}");
            }
        }
    }

    #[test]
    fn running_statistics_move_by_the_unbiased_variance(rows in 2..9usize, c in 1..5usize, momentum in 0f32..1.0) {
        for device in devices() {
            let x = spread(rows, c, 3.0, 2.0, &device)?;
            let (_, running) = others(&x)?;
            let moments = Moments::of(&x)?;
            let (mut mean, mut variance) = (running.mean.clone(), running.variance.clone());
            moments.update_running(momentum, &mut mean, &mut variance)?;
            let [exact_mean, exact_variance] = reference_moments(&wide(&x), c);
            let unbiased: Vec<f64> =
                exact_variance.iter().map(|variance| variance * rows as f64 / (rows as f64 - 1.0)).collect();
            let momentum = f64::from(momentum);
            for (what, after, before, new) in [
                ("mean", &mean, &running.mean, &exact_mean),
                ("variance", &variance, &running.variance, &unbiased),
            ] {
                let blend = |(before, new): (f64, &f64)| (1.0 - momentum) * before + momentum * new;
                let expected: Vec<f64> = wide(before).into_iter().zip(new).map(blend).collect();
                // The two terms may cancel.
                let scale = norm(&wide(before)).max(norm(new));
                assert_close_to(what, after, &expected, scale, F32);
            }
        }
    }
}

#[test]
fn many_rows_match_the_reference_and_its_numeric_gradient() -> Result<()> {
    devices().iter().try_for_each(|device| check(&spread(3 * 256 + 17, 2, 0.5, 1.5, device)?))
}

#[test]
fn a_fold_is_the_batchnorm_with_running_statistics() -> Result<()> {
    for device in devices() {
        let x = spread(30, 5, 0.0, 1.0, &device)?;
        let (others, running) = others(&x)?;
        let (factor, offset) = fixed(&others, &running).fold()?;
        let (x, factor, offset) = (wide(&x), wide(&factor), wide(&offset));
        let folded: Vec<f64> = x.iter().enumerate().map(|(at, x)| x * factor[at % 5] + offset[at % 5]).collect();
        let inputs = [x, wide(&others[0]), wide(&others[1])];
        let expected = reference(&inputs, Some(&[wide(&running.mean), wide(&running.variance)]), false);
        let folded = Tensor::new(folded.iter().map(|value| *value as f32).collect(), [30, 5], &cpu(1))?;
        assert_close("fold", &folded, &expected, F32);
    }
    Ok(())
}

#[test]
fn a_fold_is_rounded_once_whatever_the_numbers() -> Result<()> {
    for (device, eps) in devices().iter().flat_map(|device| [1e-5, 1e-30, 0.0].map(|eps| (device, eps))) {
        let norm = KnownNorm::awkward(300, eps, device);
        let (factor, offset) = norm.fixed().fold()?;
        let expected = |which: usize| (0..300).map(|channel| norm.folded(channel)[which]).collect::<Vec<f32>>();
        assert_bits(&format!("factor with {eps:e} on {device}"), &factor, &expected(0));
        assert_bits(&format!("offset with {eps:e} on {device}"), &offset, &expected(1));
    }
    Ok(())
}

#[test]
fn tiles_and_vectors_of_any_raggedness_agree_with_the_processor() -> Result<()> {
    // Rows around the GPU's tiles of 128, channels around its groups of 16 and of 64.
    for (rows, c) in [(127, 64), (128, 60), (129, 68), (256, 4), (257, 17), (33 * 128 + 1, 16), (2, 130)] {
        let results = |device: &Device| -> Result<Vec<Tensor>> {
            let x = spread(rows, c, -2.0, 1.5, device)?;
            let (others, _) = others(&x)?;
            let mut tape = Tape::new();
            let leaves = [&[x.clone()][..], &others].concat();
            let vars: Vec<Var> =
                leaves.into_iter().enumerate().map(|(at, value)| tape.leaf(&at.to_string(), value)).collect();
            let output = on_tape(&mut tape, &vars, None, true)?;
            let seed = normal(2, "seed", x.shape(), device);
            let moments = Moments::of(&x)?;
            let grads = tape.backward_from(&output, seed)?.into_values();
            Ok([output.into_value(), moments.mean, moments.variance].into_iter().chain(grads).collect())
        };
        let expected = results(&cpu(1))?;
        for device in devices() {
            for (at, (actual, expected)) in results(&device)?.iter().zip(&expected).enumerate() {
                // The gradients' sums over thousands of rows may cancel.
                let expected = wide(expected);
                let scale = norm(&expected).max((rows as f64).sqrt());
                assert_close_to(&format!("{rows} x {c} on {device}, tensor {at}"), actual, &expected, scale, F32);
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_folded_and_what_runs_along_are_the_same_bits_everywhere() -> Result<()> {
    let results = |device: &Device| -> Result<Vec<Vec<u32>>> {
        // Moments of the processor, so that these two operations alone are compared.
        let x = spread(9, 300, 1.0, 2.0, &cpu(1))?;
        let moments = Moments::of(&x)?;
        let moments =
            Moments { mean: on(device, &moments.mean), variance: on(device, &moments.variance), rows: moments.rows };
        let (others, running) = others(&on(device, &x))?;
        let (factor, offset) = fixed(&others, &running).fold()?;
        let (mut mean, mut variance) = (running.mean.clone(), running.variance.clone());
        moments.update_running(0.3, &mut mean, &mut variance)?;
        Ok([factor, offset, mean, variance].iter().map(bits).collect())
    };
    let expected = results(&cpu(1))?;
    for device in devices() {
        assert!(results(&device)? == expected, "{device}");
    }
    Ok(())
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let results = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let x = normal(1, "x", [9, 11, 13, 7], &cpu(threads));
        let mut tape = Tape::new();
        let inputs = [vec![x.clone()], others(&x)?.0].concat();
        let vars: Vec<Var> =
            inputs.into_iter().enumerate().map(|(index, input)| tape.leaf(&index.to_string(), input)).collect();
        let output = on_tape(&mut tape, &vars, None, true)?;
        let seed = normal(1, "seed", x.shape(), x.device());
        let output_bits = bits(output.value());
        let grads = tape.backward_from(&output, seed)?;
        Ok([vec![output_bits], grads.values().map(bits).collect()].concat())
    };
    let one = results(1)?;
    assert!(one == results(2)? && one == results(3)?);
    Ok(())
}

#[test]
fn a_residual_that_is_the_input_itself_gets_both_gradients() -> Result<()> {
    devices().iter().try_for_each(|device| {
        let x = normal(4, "x", [6, 3], device);
        let others = others(&x)?.0;
        check_op(
            "batchnorm + identity",
            &[x, others[0].clone(), others[1].clone()],
            |tape, vars| on_tape(tape, &[vars, &vars[..1]].concat(), None, true),
            |inputs| reference(&[inputs, &inputs[..1]].concat(), None, true),
        )
    })
}

#[test]
fn a_nan_passes_the_relu() -> Result<()> {
    for device in devices() {
        for channels in [1, 4] {
            let x = Tensor::full([2, channels], f32::NAN, &device)?;
            let (others, running) = others(&x)?;
            let vars: Vec<Var> = [x, others[0].clone(), others[1].clone()].map(Var::constant).to_vec();
            let output = on_tape(&mut Tape::new(), &vars, Some(&running), true)?;
            assert!(output.value().to_vec::<f32>()?.iter().all(|y| y.is_nan()), "{device}");
        }
    }
    Ok(())
}

#[test]
fn an_empty_batch_with_running_statistics_stays_empty() -> Result<()> {
    for device in devices() {
        let x = Tensor::zeros([0, 3], &device)?;
        let (others, running) = others(&x)?;
        let mut tape = Tape::new();
        let vars = [tape.leaf("x", x), Var::constant(others[0].clone()), Var::constant(others[1].clone())];
        let output = on_tape(&mut tape, &vars, Some(&running), true)?;
        assert_eq!(output.value().dims(), [0, 3]);
        assert_eq!(tape.backward(&output)?["x"].dims(), [0, 3]);
    }
    Ok(())
}

#[test]
fn too_few_rows_and_extents_that_do_not_fit_are_errors() -> Result<()> {
    for device in devices() {
        for dims in [[1, 4], [0, 4]] {
            let error = Moments::of(&Tensor::zeros(dims, &device).unwrap()).expect_err("no variance").to_string();
            assert!(error.contains("more than one value per channel"), "{error}");
        }
        assert!(Moments::of(&Tensor::zeros([1, 1, 1, 8], &device).unwrap()).is_err());
        assert!(Moments::of(&Tensor::zeros([4, 0], &device).unwrap()).is_err());
        let x = spread(4, 3, 0.0, 1.0, &device)?;
        let wrong = spread(4, 2, 0.0, 1.0, &device)?;
        let ((fitting, running), (not, not_running)) = (others(&x)?, others(&wrong)?);
        let attempt = |scale: &Tensor, shift: &Tensor, residual: &Tensor, running: &Moments| {
            let vars = [&x, scale, shift, residual].map(|tensor| Var::constant(tensor.clone()));
            on_tape(&mut Tape::new(), &vars, Some(running), false).is_ok()
        };
        assert!(attempt(&fitting[0], &fitting[1], &fitting[2], &running));
        assert!(!attempt(&not[0], &fitting[1], &fitting[2], &running));
        assert!(!attempt(&fitting[0], &not[1], &fitting[2], &running));
        assert!(!attempt(&fitting[0], &fitting[1], &not[2], &running));
        assert!(!attempt(&fitting[0], &fitting[1], &fitting[2], &not_running));
        assert!(!attempt(&not[0], &not[1], &fitting[2], &not_running));
        let moments = Moments::of(&x)?;
        let (mut mean, mut variance) = (not_running.mean.clone(), running.variance.clone());
        assert!(moments.update_running(0.1, &mut mean, &mut variance).is_err());
    }
    Ok(())
}
