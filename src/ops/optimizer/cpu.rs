//! Optimizer steps on the processor.

use rayon::prelude::*;

use super::{Item, Rate, Rule, Scaling};
use crate::{
    Result, Tensor,
    device::CpuDevice,
    ops::{CHUNK, vectorised},
};

/// What the gradients of `items` are multiplied by.
pub fn scale(cpu: &CpuDevice, scaling: Scaling, items: &[Item]) -> Result<f32> {
    let Scaling { factor, clip: Some(most) } = scaling else { return Ok(scaling.factor) };
    let mut squares = 0.0;
    for item in items {
        let grad = item.grad.as_slice::<f32>()?;
        let square = |grad: &f32| f64::from(*grad) * f64::from(*grad);
        let parts: Vec<f64> =
            cpu.install(|| grad.par_chunks(CHUNK).map(|grad| grad.iter().map(square).sum()).collect());
        squares += parts.iter().sum::<f64>();
    }
    let factor = f64::from(factor);
    Ok((factor * (f64::from(most) / (factor * squares.sqrt() + 1e-6)).min(1.0)) as f32)
}

/// Elements of a parameter with their buffers, of which the second is empty where the rule has but one.
pub struct Part<'a> {
    pub values: &'a mut [f32],
    pub buffers: [&'a mut [f32]; 2],
}

/// How elements move in a step.
#[derive(Clone, Copy)]
pub struct Moves {
    rule: Rule,
    rate: Rate,
    scale: f32,
    corrections: [f32; 2],
}

impl Part<'_> {
    /// So many elements from `first` on.
    #[inline(always)]
    pub fn range(&mut self, first: usize, len: usize) -> Part<'_> {
        let buffers = self.buffers.each_mut().map(|buffer| match buffer.is_empty() {
            true => &mut [],
            false => &mut buffer[first..first + len],
        });
        Part { values: &mut self.values[first..first + len], buffers }
    }
}

impl Moves {
    /// By `rule`, where gradients count times `scale`.
    pub fn new(rule: Rule, rate: Rate, scale: f32) -> Self {
        let corrections = match rule {
            Rule::Sgd { .. } => [1.0; 2],
            Rule::AdamW { beta1, beta2, step, .. } => Rule::corrections(beta1, beta2, step),
        };
        Self { rule, rate, scale, corrections }
    }

    /// Moves `part` by the gradient `grad`.
    #[inline(always)]
    pub fn update(self, part: Part, grad: &[f32]) {
        let Self { rule, rate: Rate { lr, weight_decay }, scale, corrections: [correction1, correction2] } = self;
        let Part { values, buffers: [first, second] } = part;
        match rule {
            Rule::Sgd { momentum, nesterov, decoupled } => {
                for ((p, b), g) in values.iter_mut().zip(first).zip(grad) {
                    let g = scale * g;
                    let g = if decoupled {
                        *p -= lr * weight_decay * *p;
                        g
                    } else {
                        g + weight_decay * *p
                    };
                    *b = momentum * *b + g;
                    *p -= lr * if nesterov { g + momentum * *b } else { *b };
                }
            }
            Rule::AdamW { beta1, beta2, eps, .. } => {
                for ((p, (m, v)), g) in values.iter_mut().zip(first.iter_mut().zip(second)).zip(grad) {
                    let g = scale * g;
                    *p -= lr * weight_decay * *p;
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *p -= lr / correction1 * *m / (v.sqrt() / correction2 + eps);
                }
            }
        }
    }
}

/// The buffers of a parameter, of which there are one or two.
pub fn slices(buffers: &mut [Tensor]) -> Result<[&mut [f32]; 2]> {
    let mut slices = [&mut [][..], &mut []];
    for (slice, buffer) in slices.iter_mut().zip(buffers) {
        *slice = buffer.as_slice_mut::<f32>()?;
    }
    Ok(slices)
}

/// `values` with their buffers, `len` at a time.
pub fn parts<'a>(values: &'a mut [f32], [first, second]: [&'a mut [f32]; 2], len: usize) -> Vec<Part<'a>> {
    let mut seconds = second.chunks_mut(len);
    let parts = values.chunks_mut(len).zip(first.chunks_mut(len));
    parts.map(|(values, first)| Part { values, buffers: [first, seconds.next().unwrap_or_default()] }).collect()
}

pub fn step(cpu: &CpuDevice, moves: Moves, item: &mut Item) -> Result<()> {
    let (values, grad) = (item.parameter.as_slice_mut::<f32>()?, item.grad.as_slice::<f32>()?);
    cpu.each_chunk(&mut parts(values, slices(item.buffers)?, CHUNK), 1, |chunk, parts| {
        for part in parts {
            vectorised(|| moves.update(part.range(0, part.values.len()), &grad[chunk * CHUNK..]));
        }
    });
    Ok(())
}
