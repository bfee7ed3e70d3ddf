//! Optimizer steps on the processor.

use rayon::prelude::*;

use super::{AdamWStep, SgdStep};
use crate::{Result, Tensor, device::CpuDevice, ops::CHUNK};

pub fn sgd(cpu: &CpuDevice, parameter: &mut Tensor, grad: &Tensor, buffer: &mut Tensor, step: SgdStep) -> Result<()> {
    let SgdStep { lr, momentum, weight_decay, nesterov } = step;
    let (p, g, b) = (parameter.as_slice_mut::<f32>()?, grad.as_slice::<f32>()?, buffer.as_slice_mut::<f32>()?);
    cpu.install(|| {
        let chunks = p.par_chunks_mut(CHUNK).zip(b.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
        chunks.for_each(|((p, b), g)| {
            for ((p, b), g) in p.iter_mut().zip(b).zip(g) {
                let g = g + weight_decay * *p;
                *b = momentum * *b + g;
                *p -= lr * if nesterov { g + momentum * *b } else { *b };
            }
        });
    });
    Ok(())
}

pub fn adamw(
    cpu: &CpuDevice,
    parameter: &mut Tensor,
    grad: &Tensor,
    mean: &mut Tensor,
    square: &mut Tensor,
    step: AdamWStep,
) -> Result<()> {
    let AdamWStep { lr, beta1, beta2, eps, weight_decay, step } = step;
    let exponent = i32::try_from(step).unwrap_or(i32::MAX);
    let correction1 = (1.0 - f64::from(beta1).powi(exponent)) as f32;
    let correction2 = (1.0 - f64::from(beta2).powi(exponent)).sqrt() as f32;
    let (p, g) = (parameter.as_slice_mut::<f32>()?, grad.as_slice::<f32>()?);
    let (m, v) = (mean.as_slice_mut::<f32>()?, square.as_slice_mut::<f32>()?);
    cpu.install(|| {
        let state = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        p.par_chunks_mut(CHUNK).zip(state).zip(g.par_chunks(CHUNK)).for_each(|((p, (m, v)), g)| {
            for ((p, (m, v)), g) in p.iter_mut().zip(m.iter_mut().zip(v)).zip(g) {
                *p -= lr * weight_decay * *p;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *p -= lr / correction1 * *m / (v.sqrt() / correction2 + eps);
            }
        });
    });
    Ok(())
}
