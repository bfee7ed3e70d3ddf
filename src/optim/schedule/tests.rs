use super::*;

/// That rates, and momenta where there are some, are `expected` to within rounding to `digits`.
fn check(schedule: Schedule, lrs: &[f64], momenta: &[f64], within: f64) {
    for (step, expected) in lrs.iter().enumerate() {
        assert!(
            (schedule.at(step).lr - expected).abs() < within,
            "step {step}: {:?}, not {expected}",
            schedule.at(step)
        );
    }
    for (step, expected) in momenta.iter().enumerate() {
        let found = schedule.at(step).momentum.unwrap();
        assert!((found - expected).abs() < 6e-5, "step {step}: momentum {found}, not {expected}");
    }
}

/// Rates that fastai 0.7's `CosAnneal` put in force, printed with five decimals.
#[test]
fn restarts_equal_fastai() {
    let twenty = [
        0.01, 0.99384, 0.97553, 0.9455, 0.90451, 0.85355, 0.79389, 0.727, 0.65451, 0.57822, 0.5, 0.42178, 0.34549,
        0.273, 0.20611, 0.14645, 0.09549, 0.0545, 0.02447, 0.00616, 1.0, 0.99384,
    ];
    check(Schedule::Restarts { cycle_steps: 20, cycle_mult: 1, cycles: 2 }, &twenty, &[], 6e-6);
    let mut doubled = twenty;
    doubled[21] = 0.99846;
    check(Schedule::Restarts { cycle_steps: 20, cycle_mult: 2, cycles: 2 }, &doubled, &[], 6e-6);
    let hundred = [0.01, 0.01, 0.01, 0.01, 0.01, 0.99384, 0.99114, 0.98796, 0.98429];
    check(Schedule::Restarts { cycle_steps: 100, cycle_mult: 1, cycles: 1 }, &hundred, &[], 6e-6);
}

/// What fastai 0.7's `use_clr` put in force in a cycle of 20 batches. There the momentum of a batch is the next one's;
/// here it is moved to its own.
#[test]
fn triangles_equal_fastai() {
    let lrs = [
        0.25, 0.625, 1.0, 0.95833, 0.91667, 0.875, 0.83333, 0.79167, 0.75, 0.70833, 0.66667, 0.625, 0.58333, 0.54167,
        0.5, 0.45833, 0.41667, 0.375, 0.33333, 0.29167,
    ];
    let momenta = [
        0.95, 0.9, 0.85, 0.8556, 0.8611, 0.8667, 0.8722, 0.8778, 0.8833, 0.8889, 0.8944, 0.9, 0.9056, 0.9111, 0.9167,
        0.9222, 0.9278, 0.9333, 0.9389, 0.9444,
    ];
    let shape = Triangle { momentum: Some([0.95, 0.85]), ..Triangle::default() };
    let schedule = Schedule::Triangular { cycle_steps: 20, cycles: 2, shape };
    check(schedule, &[lrs, lrs].concat(), &[momenta, momenta].concat(), 6e-6);
}

/// As above, of `use_clr_beta`.
#[test]
fn triangles_with_a_tail_equal_fastai() {
    let lrs = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0505];
    let momenta = [
        0.95, 0.9389, 0.9278, 0.9167, 0.9056, 0.8944, 0.8833, 0.8722, 0.8611, 0.85, 0.8611, 0.8722, 0.8833, 0.8944,
        0.9056, 0.9167, 0.9278, 0.9389, 0.95, 0.95,
    ];
    let shape = TriangleTail { momentum: Some([0.95, 0.85]), ..TriangleTail::default() };
    check(Schedule::TriangularTail { cycle_steps: 20, cycles: 1, shape }, &lrs, &momenta, 6e-6);
}

/// Computed apart from fastai 2's definition (`combined_cos`).
#[test]
fn cosines_equal_those_of_fastai_2() {
    let lrs = [
        0.04, 0.13167, 0.37167, 0.66833, 0.90833, 1.0, 0.98907, 0.95677, 0.90451, 0.83457, 0.75, 0.65451, 0.55227,
        0.44774, 0.3455, 0.25001, 0.16544, 0.0955, 0.04324, 0.01094,
    ];
    let momenta = [
        0.95, 0.94045, 0.91545, 0.88455, 0.85955, 0.85, 0.85109, 0.85432, 0.85955, 0.86654, 0.875, 0.88455, 0.89477,
        0.90523, 0.91545, 0.925, 0.93346, 0.94045, 0.94568, 0.94891,
    ];
    check(Schedule::OneCycle { steps: 20, shape: OneCycle::default() }, &lrs, &momenta, 6e-6);
    let plain = OneCycle { momentum: None, ..OneCycle::default() };
    assert!(Schedule::OneCycle { steps: 20, shape: plain }.at(3).momentum.is_none());
    let flat = [&[1.0; 16][..], &[0.90451, 0.65451, 0.3455, 0.0955]].concat();
    check(Schedule::FlatCosine { steps: 20, flat: 0.75, div_final: 1e5 }, &flat, &[], 6e-6);
}

#[test]
fn cycles_end_where_they_should() {
    let ends = |schedule: Schedule| -> Vec<usize> {
        (0..schedule.steps()).filter(|&step| schedule.at(step).ends_cycle).collect()
    };
    let restarts = Schedule::Restarts { cycle_steps: 3, cycle_mult: 2, cycles: 3 };
    assert_eq!(restarts.steps(), 3 + 6 + 12);
    assert_eq!((ends(restarts), restarts.at(9).cycle), (vec![2, 8, 20], 2));
    let triangles = Schedule::Triangular { cycle_steps: 4, cycles: 3, shape: Triangle::default() };
    assert_eq!((ends(triangles), triangles.at(9).cycle), (vec![3, 7, 11], 2));
    let tails = Schedule::TriangularTail { cycle_steps: 4, cycles: 2, shape: TriangleTail::default() };
    assert_eq!(ends(tails), [3, 7]);
    assert_eq!(ends(Schedule::OneCycle { steps: 5, shape: OneCycle::default() }), [4]);
    assert_eq!(ends(Schedule::FlatCosine { steps: 5, flat: 0.75, div_final: 1e5 }), [4]);
    assert_eq!(ends(Schedule::Constant { steps: 5 }), [4]);
}

/// Whatever the number of steps, and beyond the last: positive rates and momenta below one.
#[test]
fn few_steps_and_odd_shapes_give_numbers() {
    for steps in 0..9 {
        for cut_div in [0, 1, 100] {
            let momentum = Some([0.95, 0.85]);
            let (triangle, tail_percent) = (Triangle { cut_div, momentum, ..Triangle::default() }, cut_div as f64);
            let tail = TriangleTail { tail_percent, momentum, ..TriangleTail::default() };
            let one = OneCycle { rising: cut_div.min(1) as f64, ..OneCycle::default() };
            for schedule in [
                Schedule::Triangular { cycle_steps: steps, cycles: 1, shape: triangle },
                Schedule::TriangularTail { cycle_steps: steps, cycles: 1, shape: tail },
                Schedule::OneCycle { steps, shape: one },
                Schedule::FlatCosine { steps, flat: cut_div.min(1) as f64, div_final: 1e5 },
                Schedule::Restarts { cycle_steps: steps, cycle_mult: cut_div, cycles: 1 },
            ] {
                for step in 0..=steps {
                    let Point { lr, momentum, .. } = schedule.at(step);
                    assert!(lr > 0.0 && lr <= 1.0 || step == steps && lr >= 0.0, "{schedule:?} at {step}: {lr}");
                    assert!(momentum.is_none_or(|m| (0.0..1.0).contains(&m)), "{schedule:?} at {step}: {momentum:?}");
                }
            }
        }
    }
}

/// torch's `LinearLR(start_factor=1/4, total_iters=5)`, computed apart: `f + (1 − f)·min(k, 5) / 5`.
#[test]
fn a_warm_up_equals_torch() {
    let expected = [0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.0];
    for warm_up in [WarmUp::steps(5), WarmUp::epochs(0.5), WarmUp::epochs(0.46)] {
        for (step, expected) in expected.iter().enumerate() {
            assert!((warm_up.at(step, 10) - expected).abs() < 1e-12, "{warm_up:?} at {step}");
        }
    }
    assert_eq!((WarmUp::steps(0).at(0, 10), WarmUp::epochs(0.0).at(0, 10)), (1.0, 1.0));
    assert!((WarmUp::steps(2).start_div(10.0).at(1, 10) - 0.55).abs() < 1e-12);
    assert!(WarmUp::steps(20).check(2, Some(10)).is_ok() && WarmUp::steps(21).check(2, None).is_ok());
    let error = WarmUp::steps(21).check(2, Some(10)).unwrap_err().to_string();
    assert!(error.contains("21 steps, but the fit has 2 epochs"), "{error}");
}
