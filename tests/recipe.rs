//! What stands around the fits of a recipe: warm-ups, phases, sizes, unfreezing, what is watched.

mod common;

use common::learning::{Told, cats_and_dogs, data, learner, listened};
use unfreeze::{learner::Fit, optim::WarmUp};

/// The last group's rate in each step.
fn rates(told: &[Told]) -> Vec<f32> {
    let rate = |told: &Told| match told {
        Told::Step { lrs, .. } => lrs.last().copied(),
        _ => None,
    };
    told.iter().filter_map(rate).collect()
}

fn assert_near(found: &[f32], expected: &[f64]) {
    let near = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() <= 1e-6 * expected.abs();
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?}, not {expected:?}");
}

#[test]
fn a_warm_up_leads_into_any_schedule_and_ends_before_the_fit() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    // Three steps to an epoch; the second cycle is as without a warm-up.
    learner.fit(Fit::cycles(2).lr(0.1).warm_up(WarmUp::steps(3))).unwrap();
    let half = |share: f64| 0.1 * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0;
    let expected = [0.001 * 0.25, half(1.0 / 3.0) * 0.5, half(2.0 / 3.0) * 0.75, 0.1, half(1.0 / 3.0), half(2.0 / 3.0)];
    assert_near(&rates(&told.lock().unwrap()), &expected);
    let message = learner.fit(Fit::epochs(1).warm_up(WarmUp::steps(4))).unwrap_err().to_string();
    assert!(message.starts_with("warm_up: 4 steps, but the fit has 1 epochs"), "{message}");
}
