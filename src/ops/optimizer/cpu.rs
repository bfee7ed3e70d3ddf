//! Optimizer steps on the processor.

use rayon::prelude::*;

use super::{Item, Rate, Rule, Scaling};
use crate::{
    Error, Result,
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

pub fn step(cpu: &CpuDevice, rule: Rule, rate: Rate, scale: f32, item: &mut Item) -> Result<()> {
    let Rate { lr, weight_decay } = rate;
    let Item { parameter, grad, buffers, .. } = item;
    let (p, g) = (parameter.as_slice_mut::<f32>()?, grad.as_slice::<f32>()?);
    match (rule, &mut **buffers) {
        (Rule::Sgd { momentum, nesterov, decoupled }, [buffer]) => {
            let b = buffer.as_slice_mut::<f32>()?;
            cpu.install(|| {
                let chunks = p.par_chunks_mut(CHUNK).zip(b.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
                let sgd = |((p, b), g): ((&mut [f32], &mut [f32]), &[f32])| {
                    for ((p, b), g) in p.iter_mut().zip(b).zip(g) {
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
                };
                chunks.for_each(|chunk| vectorised(|| sgd(chunk)));
            });
        }
        (Rule::AdamW { beta1, beta2, eps, step }, [mean, square]) => {
            let [correction1, correction2] = Rule::corrections(beta1, beta2, step);
            let (m, v) = (mean.as_slice_mut::<f32>()?, square.as_slice_mut::<f32>()?);
            cpu.install(|| {
                let state = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
                p.par_chunks_mut(CHUNK).zip(state).zip(g.par_chunks(CHUNK)).for_each(|((p, (m, v)), g)| {
                    for ((p, (m, v)), g) in p.iter_mut().zip(m.iter_mut().zip(v)).zip(g) {
                        let g = scale * g;
                        *p -= lr * weight_decay * *p;
                        *m = beta1 * *m + (1.0 - beta1) * g;
                        *v = beta2 * *v + (1.0 - beta2) * g * g;
                        *p -= lr / correction1 * *m / (v.sqrt() / correction2 + eps);
                    }
                });
            });
        }
        (_, buffers) => return Err(Error::shape("optimizer", format!("{} buffers for {rule:?}", buffers.len()))),
    }
    Ok(())
}
