//! Cross entropy on the processor. Rows are short (classes), so one thread is enough; sums are taken in f64.

use super::{CrossEntropy, Target, check_labels};
use crate::{Result, Tensor};

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

/// With `t` the smoothed and class-weighted target of a row, `loss = −Σ t · log p / norm` and
/// `d logits = (p · Σ t − t) / norm`; `norm` is the batch size, or the summed weights of the labels.
pub fn cross_entropy(logits: &Tensor, target: &Target, options: &CrossEntropy) -> Result<(Tensor, Tensor)> {
    let classes = logits.shape().last();
    let log_p = log_softmax(logits)?;
    let weights = options.class_weights.as_ref().map(|weights| weights.as_slice::<f32>()).transpose()?;
    let weight = |class: usize| weights.map_or(1.0, |weights| f64::from(weights[class]));
    let smooth = f64::from(options.label_smoothing);
    let rows = logits.shape().rows();

    let mut targets = vec![0f64; logits.shape().elements()];
    let mut norm = rows as f64;
    match target {
        Target::Labels(labels) => {
            let labels = labels.as_slice::<u32>()?;
            check_labels(labels, classes)?;
            labels.iter().enumerate().for_each(|(row, label)| targets[row * classes + *label as usize] = 1.0);
            if weights.is_some() {
                norm = labels.iter().map(|label| weight(*label as usize)).sum();
            }
        }
        Target::Soft(soft) => {
            targets.iter_mut().zip(soft.as_slice::<f32>()?).for_each(|(to, from)| *to = f64::from(*from));
        }
    }
    for (index, target) in targets.iter_mut().enumerate() {
        *target = (*target * (1.0 - smooth) + smooth / classes as f64) * weight(index % classes);
    }

    let mut loss = 0f64;
    let mut grad = Vec::with_capacity(targets.len());
    for (targets, log_p) in targets.chunks_exact(classes).zip(log_p.as_slice::<f32>()?.chunks_exact(classes)) {
        let total: f64 = targets.iter().sum();
        for (target, log_p) in targets.iter().zip(log_p) {
            let log_p = f64::from(*log_p);
            // A target of zero contributes nothing, even where log p is −∞.
            if *target != 0.0 {
                loss -= target * log_p;
            }
            grad.push(((log_p.exp() * total - target) / norm) as f32);
        }
    }
    let loss = Tensor::new(vec![(loss / norm) as f32], [], logits.device())?;
    Ok((loss, Tensor::new(grad, logits.shape(), logits.device())?))
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
