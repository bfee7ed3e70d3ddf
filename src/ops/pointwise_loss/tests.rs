use proptest::prelude::*;

use super::{Pointwise, pointwise_loss, sigmoid};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    ops::testing::{F32, assert_close_to, cases, check_op, cpu, devices, norm, normal, on, wide},
    random::Random,
};

const LOSSES: [Pointwise; 3] = [Pointwise::Binary, Pointwise::Absolute, Pointwise::Squared];

/// As PyTorch documents them, without a thought for large numbers.
fn reference(loss: Pointwise, outputs: &[f64], targets: &[f64], weights: Option<&[f64]>) -> f64 {
    let one = |(at, (x, t)): (usize, (&f64, &f64))| {
        let p = 1.0 / (1.0 + (-x).exp());
        let value = match loss {
            Pointwise::Binary => -t * p.ln() - (1.0 - t) * (1.0 - p).ln(),
            Pointwise::Absolute => (x - t).abs(),
            Pointwise::Squared => (x - t).powi(2),
        };
        value * weights.map_or(1.0, |weights| weights[at % weights.len()])
    };
    outputs.iter().zip(targets).enumerate().map(one).sum::<f64>() / outputs.len() as f64
}

/// Some, none and all labels of a row, and shares of one.
fn targets(n: usize, columns: usize, device: &Device) -> Result<Tensor> {
    let random = Random::stream(n as u64, "targets", &[columns as u64]);
    let value = |at: usize| match random.at(at as u64) {
        share if share < 0.4 => 0.0,
        share if share < 0.8 => 1.0,
        share => share,
    };
    Tensor::new((0..n * columns).map(value).collect(), [n, columns], device)
}

fn weights(columns: usize, device: &Device) -> Result<Tensor> {
    Tensor::new((1..=columns).map(|column| 0.3 * column as f32).collect(), [columns], device)
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn every_loss_matches_the_reference(n in 1..9usize, columns in 1..40usize, weighted: bool) {
        for device in devices() {
            let outputs = normal(columns as u64, "outputs", [n, columns], &device);
            let targets = targets(n, columns, &device)?;
            let weights = weighted.then(|| weights(columns, &device)).transpose()?;
            let [exact_targets, exact_weights] = [Some(&targets), weights.as_ref()].map(|tensor| tensor.map(wide));
            for loss in LOSSES {
                check_op(
                    &format!("{loss:?} of {n} x {columns}, weighted {weighted}"),
                    std::slice::from_ref(&outputs),
                    |tape, vars| pointwise_loss(tape, &vars[0], &targets, loss, weights.as_ref()),
                    |inputs| vec![reference(loss, &inputs[0], exact_targets.as_deref().unwrap(), exact_weights.as_deref())],
                )?;
            }
        }
    }
}

#[test]
fn many_rows_agree_with_the_processor() -> Result<()> {
    for (n, columns) in [(1, 33), (300, 3), (17, 1), (9, 70)] {
        let results = |loss: Pointwise, device: &Device| -> Result<[Tensor; 2]> {
            let outputs = on(device, &normal(1, "outputs", [n, columns], &cpu(1)));
            let mut tape = Tape::new();
            let x = tape.leaf("x", outputs);
            let value =
                pointwise_loss(&mut tape, &x, &targets(n, columns, device)?, loss, Some(&weights(columns, device)?))?;
            Ok([value.value().clone(), tape.backward(&value)?["x"].clone()])
        };
        for loss in LOSSES {
            let expected = results(loss, &cpu(1))?;
            for device in devices() {
                for (actual, expected) in results(loss, &device)?.iter().zip(&expected) {
                    let expected = wide(expected);
                    assert_close_to(&format!("{loss:?} {n} x {columns}"), actual, &expected, norm(&expected), F32);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn extreme_outputs_stay_finite_and_exact() -> Result<()> {
    for device in devices() {
        // The smallest that are told from 0 and 1, and what overflows any exponential.
        let (x, t) = (vec![1e4, -1e4, 1e4, -1e4, 0.0, -0.0, 88.0, -104.0], vec![1., 0., 0., 1., 1., 0., 1., 1.]);
        let outputs = Tensor::new(x, [4, 2], &device)?;
        let targets = Tensor::new(t, [4, 2], &device)?;
        let mut tape = Tape::new();
        let x = tape.leaf("x", outputs);
        let loss = pointwise_loss(&mut tape, &x, &targets, Pointwise::Binary, None)?;
        let expected = (1e4 + 1e4 + 2.0 * 2f64.ln() + (-88f64).exp() + 104.0) / 8.0;
        assert_close_to("loss", loss.value(), &[expected], expected, F32);
        let slopes = [0.0, 0.0, 1.0, -1.0, -0.5, 0.5, -(-88f64).exp(), -1.0].map(|slope| slope / 8.0);
        assert_close_to("gradient", &tape.backward(&loss)?["x"], &slopes, 1.0, F32);
        // Where both are the same nothing pulls.
        let mut tape = Tape::new();
        let x = tape.leaf("x", targets.clone());
        let loss = pointwise_loss(&mut tape, &x, &targets, Pointwise::Absolute, None)?;
        assert_eq!(loss.value().scalar()?, 0.0);
        assert_eq!(tape.backward(&loss)?["x"].to_vec::<f32>()?, [0.0; 8]);
    }
    Ok(())
}

#[test]
fn what_is_not_a_number_shows() -> Result<()> {
    for device in devices() {
        for loss in LOSSES {
            let mut tape = Tape::new();
            let x = tape.leaf("x", Tensor::new(vec![0.0, f32::NAN], [1, 2], &device)?);
            let value = pointwise_loss(&mut tape, &x, &Tensor::zeros([1, 2], &device)?, loss, None)?;
            assert!(value.value().scalar()?.is_nan(), "{loss:?} on {device}");
            let grad = tape.backward(&value)?["x"].to_vec::<f32>()?;
            assert!(!grad[0].is_nan() && grad[1].is_nan(), "{loss:?} on {device}: {grad:?}");
        }
    }
    Ok(())
}

#[test]
fn extents_that_do_not_fit_are_errors() -> Result<()> {
    for device in devices() {
        let x = Var::constant(Tensor::zeros([2, 3], &device)?);
        for (targets, weights) in [([2, 4], 3), ([3, 2], 3), ([2, 3], 2)] {
            let (targets, weights) = (Tensor::zeros(targets, &device)?, Tensor::zeros([weights], &device)?);
            let outcome = pointwise_loss(&mut Tape::new(), &x, &targets, Pointwise::Squared, Some(&weights));
            assert!(outcome.is_err());
        }
    }
    Ok(())
}

#[test]
fn the_sigmoid_is_one_everywhere() {
    for x in [-200f32, -90.0, -3.0, -1e-9, 0.0, 0.5, 17.0, 200.0] {
        let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
        assert!((f64::from(sigmoid(x)) - exact).abs() <= 1e-7 * exact.max(1e-38), "{x}");
    }
    assert_eq!([sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)], [1.0, 0.0]);
    assert!(sigmoid(f32::NAN).is_nan());
}
