//! Schedules: pure functions of the step, so that they can be plotted, tested and resumed.

use std::f64::consts::PI;

/// What a schedule says about one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Factor on every group's learning rate.
    pub lr: f64,
    /// Cycle, from 0.
    pub cycle: usize,
    /// Whether this is a cycle's last step.
    pub ends_cycle: bool,
}

/// How the learning rate moves over a fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// Constant, for so many steps.
    Constant {
        /// Steps in all.
        steps: usize,
    },
    /// SGD with restarts as fastai 0.7 (`CosAnneal`; Loshchilov & Hutter 2016): a half cosine from 1 towards 0 in each
    /// cycle; the first twentieth of the first cycle runs at one hundredth.
    Restarts {
        /// Steps of the first cycle.
        cycle_steps: usize,
        /// Growth of the cycle length.
        cycle_mult: usize,
        /// Number of cycles.
        cycles: usize,
    },
}

impl Schedule {
    /// Steps in all.
    pub fn steps(&self) -> usize {
        match *self {
            Schedule::Constant { steps } => steps,
            Schedule::Restarts { cycle_steps, cycle_mult, cycles } => {
                let lengths = std::iter::successors(Some(cycle_steps), |steps| steps.checked_mul(cycle_mult));
                lengths.take(cycles).sum()
            }
        }
    }

    /// The point at `step`, counted from 0.
    pub fn at(&self, step: usize) -> Point {
        match *self {
            Schedule::Constant { steps } => Point { lr: 1.0, cycle: 0, ends_cycle: step + 1 == steps },
            Schedule::Restarts { cycle_steps, cycle_mult, .. } => {
                let (mut cycle, mut length, mut within) = (0, cycle_steps.max(1), step);
                while within >= length {
                    within -= length;
                    length *= cycle_mult.max(1);
                    cycle += 1;
                }
                let lr = if cycle == 0 && (within as f64) < length as f64 / 20.0 {
                    0.01
                } else {
                    (1.0 + (PI * within as f64 / length as f64).cos()) / 2.0
                };
                Point { lr, cycle, ends_cycle: within + 1 == length }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates that fastai 0.7's `CosAnneal` put in force, printed with five decimals.
    #[test]
    fn restarts_equal_fastai() {
        let check = |schedule: Schedule, expected: &[f64]| {
            for (step, expected) in expected.iter().enumerate() {
                assert!((schedule.at(step).lr - expected).abs() < 6e-6, "step {step}: {:?}", schedule.at(step));
            }
        };
        let twenty = [
            0.01, 0.99384, 0.97553, 0.9455, 0.90451, 0.85355, 0.79389, 0.727, 0.65451, 0.57822, 0.5, 0.42178, 0.34549,
            0.273, 0.20611, 0.14645, 0.09549, 0.0545, 0.02447, 0.00616, 1.0, 0.99384,
        ];
        check(Schedule::Restarts { cycle_steps: 20, cycle_mult: 1, cycles: 2 }, &twenty);
        let mut doubled = twenty;
        doubled[21] = 0.99846;
        check(Schedule::Restarts { cycle_steps: 20, cycle_mult: 2, cycles: 2 }, &doubled);
        let hundred = [0.01, 0.01, 0.01, 0.01, 0.01, 0.99384, 0.99114, 0.98796, 0.98429];
        check(Schedule::Restarts { cycle_steps: 100, cycle_mult: 1, cycles: 1 }, &hundred);
    }

    #[test]
    fn cycles_end_where_they_should() {
        let schedule = Schedule::Restarts { cycle_steps: 3, cycle_mult: 2, cycles: 3 };
        assert_eq!(schedule.steps(), 3 + 6 + 12);
        let ends: Vec<usize> = (0..schedule.steps()).filter(|&step| schedule.at(step).ends_cycle).collect();
        assert_eq!(ends, [2, 8, 20]);
        assert_eq!(schedule.at(9).cycle, 2);
    }
}
