//! Cross entropy on the processor; sums are taken in f64.

use super::{CrossEntropy, Target, check_labels};
use crate::{
    Result, Tensor,
    device::CpuDevice,
    ops::{CHUNK, vectorised},
};

pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let mut result = logits.to_vec::<f32>()?;
    for row in result.chunks_exact_mut(logits.shape().last().max(1)) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        row.iter_mut().for_each(|logit| *logit = (f64::from(*logit) - log_sum) as f32);
    }
    Tensor::new(result, logits.shape(), logits.device())
}

pub fn exp(log_probabilities: &Tensor) -> Result<Tensor> {
    let result = log_probabilities.as_slice::<f32>()?.iter().map(|value| value.exp()).collect();
    Tensor::new(result, log_probabilities.shape(), log_probabilities.device())
}

/// `grad − softmax · Σ grad` of each row.
pub fn log_softmax_grad(grad: &Tensor, output: &Tensor) -> Result<Tensor> {
    let mut result = grad.to_vec::<f32>()?;
    let classes = grad.shape().last().max(1);
    for (grad, output) in result.chunks_exact_mut(classes).zip(output.as_slice::<f32>()?.chunks_exact(classes)) {
        let sum: f32 = grad.iter().sum();
        grad.iter_mut().zip(output).for_each(|(grad, output)| *grad -= output.exp() * sum);
    }
    Tensor::new(result, grad.shape(), grad.device())
}

/// The target of each row: what [`Target`] and [`CrossEntropy`] say, on the processor.
pub struct Targets<'a> {
    rows: Rows<'a>,
    weights: Option<&'a [f32]>,
    smoothing: f64,
}

enum Rows<'a> {
    Labels(&'a [u32]),
    Soft(&'a [f32]),
}

impl<'a> Targets<'a> {
    /// Those of rows whose labels, each a class, are these.
    pub fn of_labels(labels: &'a [u32], options: &'a CrossEntropy) -> Result<Self> {
        Self::new(Rows::Labels(labels), options)
    }

    fn new(rows: Rows<'a>, options: &'a CrossEntropy) -> Result<Self> {
        let weights = options.class_weights.as_ref().map(|weights| weights.as_slice::<f32>()).transpose()?;
        Ok(Self { rows, weights, smoothing: f64::from(options.label_smoothing) })
    }

    fn weight(&self, class: usize) -> f64 {
        self.weights.map_or(1.0, |weights| f64::from(weights[class]))
    }

    /// What the losses of so many rows are divided by: their number, or the summed weights of the labels.
    fn norm(&self, rows: usize) -> f64 {
        match self.rows {
            Rows::Labels(labels) if self.weights.is_some() => {
                labels.iter().map(|label| self.weight(*label as usize)).sum()
            }
            _ => rows as f64,
        }
    }

    /// Writes the smoothed and weighted target of a row.
    #[inline(always)]
    fn write(&self, row: usize, target: &mut [f64]) {
        let (kept, spread) = (1.0 - self.smoothing, self.smoothing / target.len() as f64);
        match self.rows {
            Rows::Labels(labels) => {
                target.fill(spread);
                target[labels[row] as usize] += kept;
            }
            Rows::Soft(soft) => {
                let soft = &soft[row * target.len()..];
                target.iter_mut().zip(soft).for_each(|(to, from)| *to = f64::from(*from) * kept + spread);
            }
        }
        if let Some(weights) = self.weights {
            target.iter_mut().zip(weights).for_each(|(target, weight)| *target *= f64::from(*weight));
        }
    }
}

pub fn cross_entropy(
    cpu: &CpuDevice,
    logits: &Tensor,
    target: &Target,
    options: &CrossEntropy,
) -> Result<(Tensor, Tensor)> {
    let classes = logits.shape().last();
    let rows = match target {
        Target::Labels(labels) => {
            let labels = labels.as_slice::<u32>()?;
            check_labels(labels, classes)?;
            Rows::Labels(labels)
        }
        Target::Soft(soft) => Rows::Soft(soft.as_slice()?),
    };
    let (loss, grad) = loss_and_grad(cpu, logits.as_slice()?, classes, &Targets::new(rows, options)?);
    Ok((Tensor::new(vec![loss], [], logits.device())?, Tensor::new(grad, logits.shape(), logits.device())?))
}

/// With `t` the target of a row, `loss = −Σ t · log p / norm` and `d logits = (p · Σ t − t) / norm`.
pub fn loss_and_grad(cpu: &CpuDevice, logits: &[f32], classes: usize, targets: &Targets) -> (f32, Vec<f32>) {
    let norm = targets.norm(logits.len() / classes);
    let rows = CHUNK.div_ceil(classes);
    let mut grad = cpu.buffer(logits.len());
    let losses = cpu.each_chunk(&mut grad, rows * classes, |chunk, grad| {
        let first = chunk * rows;
        let mut target = vec![0.0; classes];
        vectorised(|| {
            let rows = grad.chunks_exact_mut(classes).zip(logits[first * classes..].chunks_exact(classes));
            let losses = rows.enumerate().map(|(row, (grad, logits))| {
                targets.write(first + row, &mut target);
                loss_and_grad_of_row(logits, &target, norm, grad)
            });
            losses.sum::<f64>()
        })
    });
    ((losses.iter().sum::<f64>() / norm) as f32, grad)
}

#[inline(always)]
fn loss_and_grad_of_row(logits: &[f32], target: &[f64], norm: f64, grad: &mut [f32]) -> f64 {
    let max = across(logits.len(), f32::NEG_INFINITY, |class| logits[class], |max, x| if x > max { x } else { max });
    grad.iter_mut().zip(logits).for_each(|(power, logit)| *power = exp_not_positive(logit - max));
    let add = |sum: f64, term: f64| sum + term;
    let sum = across(grad.len(), 0.0, |class| f64::from(grad[class]), add);
    let total = across(target.len(), 0.0, |class| target[class], add);
    let log_sum = f64::from(max) + sum.ln();
    // A target of zero contributes nothing, even where log p is −∞.
    let term = |class: usize| {
        let product = target[class] * (log_sum - f64::from(logits[class]));
        if target[class] == 0.0 { 0.0 } else { product }
    };
    let loss = across(target.len(), 0.0, term, add);
    let (scale, share) = (total / sum / norm, 1.0 / norm);
    grad.iter_mut().zip(target).for_each(|(grad, target)| *grad = (f64::from(*grad) * scale - target * share) as f32);
    loss
}

/// The terms of a row joined by `join`, which may be done in any order; in this one vectors can do it.
#[inline(always)]
fn across<T: Copy>(count: usize, start: T, term: impl Fn(usize) -> T, join: impl Fn(T, T) -> T) -> T {
    const LANES: usize = 16;
    let (mut joined, whole) = ([start; LANES], count - count % LANES);
    for first in (0..whole).step_by(LANES) {
        for (lane, joined) in joined.iter_mut().enumerate() {
            *joined = join(*joined, term(first + lane));
        }
    }
    let rest = (whole..count).map(term).fold(start, &join);
    joined.into_iter().fold(rest, join)
}

/// `exp` of a number that is not positive, within 3e-7 of it: a power of two times the series of the rest, in steps that
/// vectors can take. What is smaller than any normal number is zero; NaN stays.
#[inline(always)]
fn exp_not_positive(x: f32) -> f32 {
    // Added, it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2, the first part with so few bits that its multiples are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let rest = x - power * LN_2[0] - power * LN_2[1];
    let mut series = 1.0;
    for k in (1..8u8).rev() {
        series = series * rest * (1.0 / f32::from(k)) + 1.0;
    }
    // The exponent's bits.
    let scale = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { series * scale }
}

pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let rows = logits.as_slice::<f32>()?.chunks_exact(logits.shape().last()).zip(labels.as_slice::<u32>()?);
    let right = |(row, label): &(&[f32], &u32)| {
        let label = **label as usize;
        row.get(label).is_some_and(|own| {
            row.iter().enumerate().all(|(class, logit)| if class < label { logit < own } else { logit <= own })
        })
    };
    Tensor::new(vec![rows.filter(right).count() as u32], [], logits.device())
}

#[cfg(test)]
mod tests {
    use super::exp_not_positive;

    #[test]
    fn powers_are_as_near_as_stated() {
        for step in 0..=1_000_000 {
            let x = -87.0 * step as f32 / 1e6;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_not_positive(x)) / exact - 1.0).abs();
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(
            (exp_not_positive(0.0), exp_not_positive(-87.1), exp_not_positive(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert!(exp_not_positive(f32::NAN).is_nan());
    }
}
