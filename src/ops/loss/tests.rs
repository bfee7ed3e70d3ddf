use proptest::prelude::*;

use super::{CrossEntropy, Target, correct, cross_entropy, log_softmax, log_softmax_forward, softmax};
use crate::{
    Device, Error, Result, Tensor,
    autograd::{Tape, Var},
    ops::testing::{F32, assert_close, assert_close_to, bits, cases, check_op, cpu, devices, normal, on, wide},
    random::Random,
};

fn reference_log_softmax(logits: &[f64], classes: usize) -> Vec<f64> {
    let row = |row: &[f64]| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - max).exp()).sum();
        row.iter().map(|logit| logit - max - sum.ln()).collect::<Vec<_>>()
    };
    logits.chunks(classes).flat_map(row).collect()
}

/// As PyTorch documents it: the loss of the target itself and that of the even spread are averaged apart, with labels
/// both over the summed weights of the labels, else over the batch.
fn reference(logits: &[f64], target: &Given, smoothing: f64, weights: Option<&[f64]>, classes: usize) -> f64 {
    let log_p = reference_log_softmax(logits, classes);
    let weight = |class: usize| weights.map_or(1.0, |weights| weights[class]);
    let (mut own, mut even, mut norm) = (0.0, 0.0, 0.0);
    for (row, log_p) in log_p.chunks(classes).enumerate() {
        match target {
            Given::Labels(labels) => {
                let label = labels[row] as usize;
                own -= weight(label) * log_p[label];
                norm += weight(label);
            }
            Given::Soft(soft) => {
                own -=
                    (0..classes).map(|class| weight(class) * soft[row * classes + class] * log_p[class]).sum::<f64>();
                norm += 1.0;
            }
        }
        even -= (0..classes).map(|class| weight(class) * log_p[class]).sum::<f64>() / classes as f64;
    }
    ((1.0 - smoothing) * own + smoothing * even) / norm
}

enum Given {
    Labels(Vec<u32>),
    Soft(Vec<f64>),
}

fn labels(n: usize, classes: usize, device: &Device) -> Result<Tensor> {
    let random = Random::stream(n as u64, "labels", &[]);
    let labels = (0..n).map(|row| (random.at(row as u64) * classes as f32) as u32).collect();
    Tensor::new(labels, [n], device)
}

fn check(logits: &Tensor, smoothing: f32, soft: bool, weighted: bool) -> Result<()> {
    let (dims, device) = (logits.dims(), logits.device());
    let [n, classes] = [dims[0], dims[1]];
    let (target, given) = match soft {
        true => {
            let soft = softmax(&normal(n as u64, "targets", [n, classes], device))?;
            (Target::Soft(soft.clone()), Given::Soft(wide(&soft)))
        }
        false => {
            let labels = labels(n, classes, device)?;
            (Target::Labels(labels.clone()), Given::Labels(labels.to_vec()?))
        }
    };
    let weights: Vec<f32> = (1..=classes).map(|class| 0.3 * class as f32).collect();
    let class_weights = weighted.then(|| Tensor::new(weights, [classes], device)).transpose()?;
    let exact_weights = class_weights.as_ref().map(wide);
    let options = CrossEntropy { label_smoothing: smoothing, class_weights };
    check_op(
        &format!("cross entropy {n} x {classes}, smoothing {smoothing}, soft {soft}, weighted {weighted}"),
        std::slice::from_ref(logits),
        |tape, vars| cross_entropy(tape, &vars[0], &target, &options),
        |inputs| vec![reference(&inputs[0], &given, f64::from(smoothing), exact_weights.as_deref(), classes)],
    )
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn every_combination_of_options_matches_the_reference(n in 1..9usize, classes in 1..8usize, smoothing in 0f32..=1.0) {
        for device in devices() {
            let logits = normal(classes as u64, "logits", [n, classes], &device);
            for (smooth, soft, weighted) in (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)) {
                check(&logits, if smooth { smoothing } else { 0.0 }, soft, weighted)?;
            }
        }
    }

    #[test]
    fn log_softmax_matches_the_reference(n in 1..9usize, classes in 1..12usize) {
        for device in devices() {
            let logits = normal(classes as u64, "logits", [n, classes], &device);
            check_op("log softmax", std::slice::from_ref(&logits), |tape, vars| log_softmax(tape, &vars[0]),
                |inputs| reference_log_softmax(&inputs[0], classes))?;
            let probabilities: Vec<f64> =
                reference_log_softmax(&wide(&logits), classes).iter().map(|v| v.exp()).collect();
            assert_close("softmax", &softmax(&logits)?, &probabilities, F32);
        }
    }
}

#[test]
fn extreme_logits_stay_finite_and_exact() -> Result<()> {
    for device in devices() {
        let values = vec![1e4, -1e4, 0., -1e4, -1e4, -1e4, 1e4, 1e4 - 1., -1e4, 88., 89., -104.];
        let logits = Tensor::new(values, [4, 3], &device)?;
        let exact = reference_log_softmax(&wide(&logits), 3);
        assert_close("log softmax", &log_softmax_forward(&logits)?, &exact, F32);
        let labels = vec![1, 2, 0, 1];
        let losses: f64 = labels.iter().enumerate().map(|(row, label)| -exact[row * 3 + *label as usize]).sum();
        let target = Target::Labels(Tensor::new(labels.clone(), [4], &device)?);
        let mut tape = Tape::new();
        let x = tape.leaf("x", logits);
        let loss = cross_entropy(&mut tape, &x, &target, &CrossEntropy::default())?;
        assert_close("loss", loss.value(), &[losses / 4.0], F32);
        let grad: Vec<f64> = exact
            .iter()
            .enumerate()
            .map(|(at, log_p)| (log_p.exp() - f64::from(u8::from(labels[at / 3] == (at % 3) as u32))) / 4.0)
            .collect();
        assert_close_to("gradient", &tape.backward(&loss)?["x"], &grad, 1.0, F32);
    }
    Ok(())
}

#[test]
fn the_largest_logit_may_stand_anywhere() -> Result<()> {
    let classes = 70; // more than two per lane
    for device in devices() {
        // Row i has its maximum at class i, so large that nothing else contributes and no other centre would do.
        let values = (0..classes * classes).map(|at| if at / classes == at % classes { 2e4 } else { -2e4 }).collect();
        let logits = Tensor::new(values, [classes, classes], &device)?;
        let expected = |own: f32, other: f32| -> Vec<f32> {
            (0..classes * classes).map(|at| if at / classes == at % classes { own } else { other }).collect()
        };
        assert_eq!(log_softmax_forward(&logits)?.to_vec::<f32>()?, expected(0.0, -4e4), "{device}");
        assert_eq!(softmax(&logits)?.to_vec::<f32>()?, expected(1.0, 0.0), "{device}");
        let target = Target::labels((0..classes as u32).collect(), classes, &device)?;
        let mut tape = Tape::new();
        let x = tape.leaf("x", logits);
        let loss = cross_entropy(&mut tape, &x, &target, &CrossEntropy::default())?;
        assert_eq!(loss.value().scalar()?, 0.0, "{device}");
        assert_eq!(tape.backward(&loss)?["x"].to_vec::<f32>()?, expected(0.0, 0.0), "{device}");
    }
    Ok(())
}

#[test]
fn soft_targets_need_not_sum_to_one() -> Result<()> {
    let (n, classes) = (5, 6);
    for device in devices() {
        let logits = normal(1, "logits", [n, classes], &device);
        let soft: Vec<f32> = (0..n * classes).map(|at| 0.1 + (at % 4) as f32).collect();
        let given = Given::Soft(soft.iter().map(|t| f64::from(*t)).collect());
        let target = Target::Soft(Tensor::new(soft, [n, classes], &device)?);
        check_op(
            "cross entropy with unnormalised targets",
            &[logits],
            |tape, vars| cross_entropy(tape, &vars[0], &target, &CrossEntropy::default()),
            |inputs| vec![reference(&inputs[0], &given, 0.0, None, classes)],
        )?;
    }
    Ok(())
}

#[test]
fn an_impossible_class_with_no_weight_adds_nothing() -> Result<()> {
    for device in devices() {
        let logits = Var::constant(Tensor::new(vec![0., f32::NEG_INFINITY], [1, 2], &device)?);
        let target = Target::Soft(Tensor::new(vec![1., 0.], [1, 2], &device)?);
        let loss = cross_entropy(&mut Tape::new(), &logits, &target, &CrossEntropy::default())?;
        assert_eq!(loss.value().scalar()?, 0.0);
        let nan = Var::constant(Tensor::new(vec![0., f32::NAN], [1, 2], &device)?);
        let loss = cross_entropy(&mut Tape::new(), &nan, &target, &CrossEntropy::default())?;
        assert!(loss.value().scalar()?.is_nan());
    }
    Ok(())
}

#[test]
fn many_rows_and_many_classes_agree_with_the_processor() -> Result<()> {
    for (n, classes) in [(1, 33), (7, 64), (9, 31), (300, 3), (17, 1), (3, 70)] {
        let results = |device: &Device| -> Result<[Tensor; 4]> {
            let logits = on(device, &normal(1, "logits", [n, classes], &cpu(1)));
            let weights = (1..=classes).map(|class| 0.3 * class as f32).collect();
            let class_weights = Some(Tensor::new(weights, [classes], device)?);
            let options = CrossEntropy { label_smoothing: 0.1, class_weights };
            let mut tape = Tape::new();
            let x = tape.leaf("x", logits.clone());
            let target = Target::Labels(labels(n, classes, device)?);
            let loss = cross_entropy(&mut tape, &x, &target, &options)?;
            let value = loss.value().clone();
            let grad = tape.backward(&loss)?["x"].clone();
            let mut tape = Tape::new();
            let x = tape.leaf("x", logits.clone());
            let log_p = log_softmax(&mut tape, &x)?;
            let seed = on(device, &normal(2, "seed", [n, classes], &cpu(1)));
            Ok([value, grad, log_p.value().clone(), tape.backward_from(&log_p, seed)?["x"].clone()])
        };
        let expected = results(&cpu(1))?;
        for device in devices() {
            for (at, (actual, expected)) in results(&device)?.iter().zip(&expected).enumerate() {
                let expected = wide(expected);
                let scale = crate::ops::testing::norm(&expected).max(1.0);
                assert_close_to(&format!("{n} x {classes} on {device}, tensor {at}"), actual, &expected, scale, F32);
            }
        }
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_its_batch() -> Result<()> {
    for device in devices() {
        let all = normal(1, "logits", [13, 37], &device);
        let alone = Tensor::new(all.to_vec::<f32>()?[11 * 37..12 * 37].to_vec(), [1, 37], &device)?;
        assert!(bits(&softmax(&all)?)[11 * 37..12 * 37] == bits(&softmax(&alone)?), "{device}");
    }
    Ok(())
}

#[test]
fn correct_rows_are_counted() -> Result<()> {
    for device in devices() {
        let nan = f32::NAN;
        let rows = [[3., 1., 2.], [1., 3., 3.], [1., 3., 3.], [0., nan, 1.], [0., nan, 1.], [-1., -2., -0.5]];
        let logits = Tensor::new(rows.concat(), [6, 3], &device)?;
        // Right; right, the first of equals; wrong, the second; wrong with a NaN, twice; no such class.
        let labels = Tensor::new(vec![0u32, 1, 2, 1, 2, 7], [6], &device)?;
        assert_eq!(correct(&logits, &labels)?.to_vec::<u32>()?, [2], "{device}");
        let many = normal(3, "logits", [29, 70], &device);
        let values = many.to_vec::<f32>()?;
        let largest = |row: &[f32]| (0..70).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("70 classes") as u32;
        let mut labels: Vec<u32> = values.chunks(70).map(largest).collect();
        labels[5] = (labels[5] + 1) % 70;
        assert_eq!(correct(&many, &Tensor::new(labels, [29], &device)?)?.to_vec::<u32>()?, [28], "{device}");
        let (empty, none) = (Tensor::zeros([0, 3], &device)?, Tensor::new(Vec::<u32>::new(), [0], &device)?);
        assert_eq!(correct(&empty, &none)?.to_vec::<u32>()?, [0]);
        assert!(correct(&logits, &none).is_err());
    }
    Ok(())
}

#[test]
fn an_empty_batch_has_no_mean() -> Result<()> {
    for device in devices() {
        let logits = Var::constant(Tensor::zeros([0, 3], &device)?);
        let target = Target::labels(Vec::new(), 3, &device)?;
        let loss = cross_entropy(&mut Tape::new(), &logits, &target, &CrossEntropy::default())?;
        assert!(loss.value().scalar()?.is_nan(), "{device}");
        assert_eq!(softmax(logits.value())?.dims(), [0, 3]);
    }
    Ok(())
}

#[test]
fn labels_and_options_out_of_range_are_errors() -> Result<()> {
    for device in devices() {
        let logits = Var::constant(Tensor::zeros([3, 4], &device).unwrap());
        let labels = |labels: Vec<u32>| -> Result<Target> {
            let n = labels.len();
            Ok(Target::Labels(Tensor::new(labels, [n], &device)?))
        };
        let attempt =
            |target: &Target, options: &CrossEntropy| cross_entropy(&mut Tape::new(), &logits, target, options);
        let plain = CrossEntropy::default();
        assert!(attempt(&labels(vec![0, 3, 1])?, &plain).is_ok());
        for label in [4, u32::MAX] {
            let found = Target::labels(vec![0, label, 1], 4, &device).expect_err("no such class").to_string();
            assert!(found.contains(&format!("label {label} of sample 1")), "{found}");
            let weighted =
                CrossEntropy { class_weights: Some(Tensor::full([4], 1.0, &device).unwrap()), ..plain.clone() };
            for options in [&plain, &weighted] {
                match (attempt(&labels(vec![0, label, 1])?, options), &device) {
                    (Err(error), Device::Cpu(_)) => assert_eq!(error.to_string(), found),
                    // To find it there would be to wait.
                    (Ok(loss), Device::Cuda(_)) => assert!(loss.value().scalar()?.is_nan()),
                    (outcome, device) => panic!("{outcome:?} on {device}"),
                }
            }
        }
        assert!(attempt(&labels(vec![0, 1])?, &plain).is_err());
        assert!(attempt(&Target::Soft(Tensor::zeros([3, 5], &device).unwrap()), &plain).is_err());
        assert!(
            attempt(&Target::Labels(Tensor::zeros([3], &device).unwrap()), &plain).is_err(),
            "labels that are floats"
        );
        for label_smoothing in [-0.1, 1.1, f32::NAN] {
            let options = CrossEntropy { label_smoothing, ..plain.clone() };
            assert!(matches!(attempt(&labels(vec![0, 3, 1])?, &options), Err(Error::Setting { .. })));
        }
        let options = CrossEntropy { class_weights: Some(Tensor::full([3], 1.0, &device).unwrap()), ..plain };
        assert!(attempt(&labels(vec![0, 3, 1])?, &options).is_err());
        assert!(log_softmax_forward(&Tensor::zeros([4], &device).unwrap()).is_err());
        assert!(softmax(&Tensor::zeros([4, 0], &device).unwrap()).is_err());
    }
    Ok(())
}
