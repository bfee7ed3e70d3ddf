//! Schedules: pure functions of the step, so that they can be plotted, tested and resumed.

mod decay;
mod freeze_out;
mod warm_up;

pub use decay::Decay;
pub use freeze_out::FreezeOut;
pub use warm_up::WarmUp;

use std::f64::consts::PI;

/// What a schedule says about one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Factor on every group's learning rate.
    pub lr: f64,
    /// Momentum, or AdamW's β₁; `None` for the optimizer's own.
    pub momentum: Option<f64>,
    /// Cycle, from 0.
    pub cycle: usize,
    /// Whether this is a cycle's last step.
    pub ends_cycle: bool,
}

/// How learning rate and momentum move over a fit.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Cycles of straight lines as fastai 0.7's `use_clr` (slanted triangles; Howard & Ruder 2018).
    Triangular {
        /// Steps of a cycle.
        cycle_steps: usize,
        /// Number of cycles.
        cycles: usize,
        /// Their shape.
        shape: Triangle,
    },
    /// Cycles as fastai 0.7's `use_clr_beta`: up, down and a tail to almost nothing (Smith & Topin 2017).
    TriangularTail {
        /// Steps of a cycle.
        cycle_steps: usize,
        /// Number of cycles.
        cycles: usize,
        /// Their shape.
        shape: TriangleTail,
    },
    /// One cycle of half cosines as fastai 2's `fit_one_cycle`.
    OneCycle {
        /// Steps in all.
        steps: usize,
        /// Its shape.
        shape: OneCycle,
    },
    /// Constant, then a half cosine down, as fastai 2's `fit_flat_cos`.
    FlatCosine {
        /// Steps in all.
        steps: usize,
        /// Share of the steps before the rate falls. Default there 0.75.
        flat: f64,
        /// What the rate is divided by at the end. Default there 1e5.
        div_final: f64,
    },
    /// A phase of fastai 0.7's `fit_opt_sched`.
    Decaying {
        /// Steps in all.
        steps: usize,
        /// The way of the rate, and the factor on it that it leads to.
        lr: (Decay, f64),
        /// The way of the momentum, with its first and its last value. `None` for the optimizer's own.
        momentum: Option<(Decay, [f64; 2])>,
    },
}

/// Shape of [`Schedule::Triangular`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triangle {
    /// What the rate is divided by at the ends of a cycle. Default 4.
    pub div: f64,
    /// The rate rises for one in so many steps of the cycle. Default 8.
    pub cut_div: usize,
    /// Momentum at the ends of a cycle and at its peak. Default none: the optimizer's own.
    pub momentum: Option<[f64; 2]>,
}

impl Default for Triangle {
    fn default() -> Self {
        Self { div: 4.0, cut_div: 8, momentum: None }
    }
}

/// Shape of [`Schedule::TriangularTail`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TriangleTail {
    /// What the rate is divided by at the ends of the triangle; 100 times that at the end of the tail. Default 10.
    pub div: f64,
    /// The tail's share of a cycle, in percent. Default 10.
    pub tail_percent: f64,
    /// Momentum at the ends of the triangle and at its peak. Default none: the optimizer's own.
    pub momentum: Option<[f64; 2]>,
}

impl Default for TriangleTail {
    fn default() -> Self {
        Self { div: 10.0, tail_percent: 10.0, momentum: None }
    }
}

/// Shape of [`Schedule::OneCycle`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneCycle {
    /// What the rate is divided by at the start. Default 25.
    pub div: f64,
    /// What the rate is divided by at the end. Default 1e5.
    pub div_final: f64,
    /// Share of the steps in which the rate rises. Default 0.25.
    pub rising: f64,
    /// Momentum at the start, at the peak and at the end. Default .95, .85, .95; `None` for the optimizer's own.
    pub momentum: Option<[f64; 3]>,
}

impl Default for OneCycle {
    fn default() -> Self {
        Self { div: 25.0, div_final: 1e5, rising: 0.25, momentum: Some([0.95, 0.85, 0.95]) }
    }
}

impl Schedule {
    /// Steps in all.
    pub fn steps(&self) -> usize {
        match *self {
            Schedule::Constant { steps }
            | Schedule::OneCycle { steps, .. }
            | Schedule::FlatCosine { steps, .. }
            | Schedule::Decaying { steps, .. } => steps,
            Schedule::Restarts { cycle_steps, cycle_mult, cycles } => {
                let lengths = std::iter::successors(Some(cycle_steps), |steps| steps.checked_mul(cycle_mult));
                lengths.take(cycles).sum()
            }
            Schedule::Triangular { cycle_steps, cycles, .. } | Schedule::TriangularTail { cycle_steps, cycles, .. } => {
                cycle_steps * cycles
            }
        }
    }

    /// The point at `step`, counted from 0.
    pub fn at(&self, step: usize) -> Point {
        match *self {
            Schedule::Constant { steps } => Point { lr: 1.0, momentum: None, cycle: 0, ends_cycle: step + 1 == steps },
            Schedule::Restarts { cycle_steps, cycle_mult, .. } => {
                let (cycle, length, within) = cycle_of(step, cycle_steps, cycle_mult);
                let lr = if cycle == 0 && (within as f64) < length as f64 / 20.0 {
                    0.01
                } else {
                    cosine(1.0, 0.0, within as f64 / length as f64)
                };
                Point { lr, momentum: None, cycle, ends_cycle: within + 1 == length }
            }
            Schedule::Triangular { cycle_steps, shape, .. } => {
                let (cycle, length, within) = cycle_of(step, cycle_steps, 1);
                let (lr, momentum) = shape.at(within, length);
                Point { lr, momentum, cycle, ends_cycle: within + 1 == length }
            }
            Schedule::TriangularTail { cycle_steps, shape, .. } => {
                let (cycle, length, within) = cycle_of(step, cycle_steps, 1);
                let (lr, momentum) = shape.at(within, length);
                Point { lr, momentum, cycle, ends_cycle: within + 1 == length }
            }
            Schedule::OneCycle { steps, shape } => {
                let (lr, momentum) = shape.at(step as f64 / steps.max(1) as f64);
                Point { lr, momentum, cycle: 0, ends_cycle: step + 1 == steps }
            }
            Schedule::FlatCosine { steps, flat, div_final } => {
                let (_, falling) = parts(step as f64 / steps.max(1) as f64, flat);
                let lr = falling.map_or(1.0, |at| cosine(1.0, 1.0 / div_final, at));
                Point { lr, momentum: None, cycle: 0, ends_cycle: step + 1 == steps }
            }
            Schedule::Decaying { steps, lr: (decay, end), momentum } => {
                let at = step as f64 / steps.max(1) as f64;
                let momentum = momentum.map(|(decay, [from, to])| decay.between(from, to, at));
                Point { lr: decay.between(1.0, end, at), momentum, cycle: 0, ends_cycle: step + 1 == steps }
            }
        }
    }
}

/// Number of the cycle of `step`, its length, and the step within it.
fn cycle_of(step: usize, cycle_steps: usize, cycle_mult: usize) -> (usize, usize, usize) {
    let (mut cycle, mut length, mut within) = (0, cycle_steps.max(1), step);
    if cycle_mult <= 1 {
        return (within / length, length, within % length);
    }
    while within >= length {
        within -= length;
        length *= cycle_mult;
        cycle += 1;
    }
    (cycle, length, within)
}

/// From `from` to `to` along half a cosine, `at` from 0 to 1.
fn cosine(from: f64, to: f64, at: f64) -> f64 {
    from + (1.0 - (PI * at).cos()) * (to - from) / 2.0
}

fn linear(from: f64, to: f64, at: f64) -> f64 {
    from + (to - from) * at
}

/// Where `at`, from 0 to 1, lies in the first `share`, and where beyond.
fn parts(at: f64, share: f64) -> (Option<f64>, Option<f64>) {
    if at < share {
        (Some(at / share), None)
    } else {
        (None, Some((at - share) / (1.0 - share).max(f64::MIN_POSITIVE)))
    }
}

impl Triangle {
    fn at(&self, step: usize, length: usize) -> (f64, Option<f64>) {
        // On few batches fastai divides by zero here.
        let cut = (length / self.cut_div.max(1)).clamp(1, length.max(1));
        let height = match step <= cut {
            true => step as f64 / cut as f64,
            false => 1.0 - (step - cut) as f64 / (length - cut) as f64,
        };
        (linear(1.0 / self.div, 1.0, height), self.momentum.map(|[ends, peak]| linear(ends, peak, height)))
    }
}

impl TriangleTail {
    fn at(&self, step: usize, length: usize) -> (f64, Option<f64>) {
        let half = ((length as f64 * (1.0 - self.tail_percent / 100.0) / 2.0) as usize).max(1);
        let ends = self.momentum.map(|[ends, _]| ends);
        if step > 2 * half {
            let at = (step - 2 * half) as f64 / length.saturating_sub(2 * half).max(1) as f64;
            return (linear(1.0, 0.01, at) / self.div, ends);
        }
        let height = if step <= half { step } else { 2 * half - step } as f64 / half as f64;
        (linear(1.0 / self.div, 1.0, height), self.momentum.map(|[ends, peak]| linear(ends, peak, height)))
    }
}

impl OneCycle {
    fn at(&self, at: f64) -> (f64, Option<f64>) {
        let [start, peak, end] = self.momentum.map_or([None; 3], |momentum| momentum.map(Some));
        let along = |from: Option<f64>, to: Option<f64>, at| from.zip(to).map(|(from, to)| cosine(from, to, at));
        match parts(at, self.rising) {
            (Some(at), _) => (cosine(1.0 / self.div, 1.0, at), along(start, peak, at)),
            (None, at) => {
                let at = at.unwrap_or(1.0);
                (cosine(1.0, 1.0 / self.div_final, at), along(peak, end, at))
            }
        }
    }
}

#[cfg(test)]
mod tests;
