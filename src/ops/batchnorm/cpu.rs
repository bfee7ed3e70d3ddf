//! Batchnorm on the processor. Sums over rows are taken in fixed blocks and merged in order.

use rayon::prelude::*;

use super::{
    FixedNorm,
    grad::{Backward, Saved},
};
use crate::{
    Result, Tensor,
    device::CpuDevice,
    ops::{CHUNK, vectorised},
};

/// Rows whose sums are taken together, in a task.
const ROWS: usize = 256;

/// Centred sums of a block of rows, and of blocks merged.
struct Partial {
    rows: f64,
    mean: Vec<f64>,
    /// Σ (x − mean)².
    m2: Vec<f64>,
}

impl Partial {
    /// Sums around a first estimate of the mean, which is then corrected: the first sum loses digits where the mean is
    /// far from zero, the centred ones do not.
    #[inline(always)]
    fn of(block: &[f32], channels: usize) -> Self {
        let rows = (block.len() / channels) as f32;
        let mut centre = vec![0f32; channels];
        for row in block.chunks_exact(channels) {
            centre.iter_mut().zip(row).for_each(|(centre, x)| *centre += x);
        }
        centre.iter_mut().for_each(|centre| *centre /= rows);
        let (mut sum, mut square) = (vec![0f32; channels], vec![0f32; channels]);
        for row in block.chunks_exact(channels) {
            let sums = sum.iter_mut().zip(&mut square);
            for ((sum, square), (x, centre)) in sums.zip(row.iter().zip(&centre)) {
                let x = x - centre;
                *sum += x;
                *square += x * x;
            }
        }
        let rows = f64::from(rows);
        let shift: Vec<f64> = sum.iter().map(|sum| f64::from(*sum) / rows).collect();
        let mean = centre.iter().zip(&shift).map(|(centre, shift)| f64::from(*centre) + shift).collect();
        let m2 = square.iter().zip(&shift).map(|(square, shift)| f64::from(*square) - shift * shift * rows).collect();
        Self { rows, mean, m2 }
    }

    fn merge(mut self, other: &Self) -> Self {
        let rows = self.rows + other.rows;
        for channel in 0..self.mean.len() {
            let delta = other.mean[channel] - self.mean[channel];
            self.mean[channel] += delta * other.rows / rows;
            self.m2[channel] += other.m2[channel] + delta * delta * self.rows * other.rows / rows;
        }
        self.rows = rows;
        self
    }
}

pub fn moments(cpu: &CpuDevice, input: &Tensor) -> Result<(Tensor, Tensor)> {
    let (channels, elements) = (input.shape().last(), input.as_slice::<f32>()?);
    let partials: Vec<Partial> = cpu.install(|| {
        elements.par_chunks(ROWS * channels).map(|block| vectorised(|| Partial::of(block, channels))).collect()
    });
    let empty = Partial { rows: 0.0, mean: vec![0.0; channels], m2: vec![0.0; channels] };
    let all = partials.iter().fold(empty, Partial::merge);
    let mean = all.mean.iter().map(|mean| *mean as f32).collect();
    let variance = all.m2.iter().map(|m2| (m2 / all.rows) as f32).collect();
    Ok((Tensor::new(mean, [channels], input.device())?, Tensor::new(variance, [channels], input.device())?))
}

/// `running = (1 − momentum) · running + momentum · factor · new`.
pub fn blend(running: &mut Tensor, new: &Tensor, momentum: f32, factor: f32) -> Result<()> {
    let new = new.as_slice::<f32>()?;
    for (running, new) in running.as_slice_mut::<f32>()?.iter_mut().zip(new) {
        *running = (1.0 - momentum) * *running + momentum * factor * new;
    }
    Ok(())
}

pub fn fold(norm: &FixedNorm) -> Result<(Tensor, Tensor)> {
    let FixedNorm { scale, shift, mean, variance, eps } = *norm;
    let (device, channels) = (scale.device(), scale.shape());
    let (scale, shift) = (scale.as_slice::<f32>()?, shift.as_slice::<f32>()?);
    let (mean, variance) = (mean.as_slice::<f32>()?, variance.as_slice::<f32>()?);
    let exact = |channel: usize| {
        let factor = f64::from(scale[channel]) / (f64::from(variance[channel]) + f64::from(eps)).sqrt();
        (factor, f64::from(shift[channel]) - f64::from(mean[channel]) * factor)
    };
    let (factor, offset) = (0..scale.len()).map(exact).map(|(factor, offset)| (factor as f32, offset as f32)).unzip();
    Ok((Tensor::new(factor, channels, device)?, Tensor::new(offset, channels, device)?))
}

pub fn apply(
    cpu: &CpuDevice,
    input: &Tensor,
    factor: &Tensor,
    offset: &Tensor,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let (x, factor, offset) = (input.as_slice::<f32>()?, factor.as_slice::<f32>()?, offset.as_slice::<f32>()?);
    let residual = residual.map(|residual| residual.as_slice::<f32>()).transpose()?;
    let channels = factor.len();
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let mut output = cpu.buffer(x.len());
    let rows = CHUNK.div_ceil(channels) * channels;
    cpu.each_chunk(&mut output, rows, |block, output| {
        let (x, residual) = (&x[block * rows..], residual.map(|residual| &residual[block * rows..]));
        vectorised(|| apply_block(x, factor, offset, residual, floor, output));
    });
    Tensor::new(output, input.shape(), input.device())
}

#[inline(always)]
fn apply_block(x: &[f32], factor: &[f32], offset: &[f32], residual: Option<&[f32]>, floor: f32, output: &mut [f32]) {
    let channels = factor.len();
    for (row, (output, x)) in output.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).enumerate() {
        let affine = x.iter().zip(factor).zip(offset).map(|((x, factor), offset)| x * factor + offset);
        match residual {
            Some(residual) => {
                let sums = affine.zip(&residual[row * channels..]).map(|(y, residual)| y + residual);
                output.iter_mut().zip(sums).for_each(|(output, y)| *output = at_least(y, floor));
            }
            None => output.iter_mut().zip(affine).for_each(|(output, y)| *output = at_least(y, floor)),
        }
    }
}

/// `max` that lets NaN through, so that a diverged run is seen.
#[inline(always)]
fn at_least(value: f32, floor: f32) -> f32 {
    if value < floor { floor } else { value }
}

/// Masks `grad` by the output, as the residual's gradient is, and finds the others.
pub(super) fn backward(cpu: &CpuDevice, grad: &mut Tensor, saved: &Saved, needs_input: bool) -> Result<Backward> {
    let Saved { input, scale, moments, output, batch, eps } = saved;
    let (sum, product) = mask_and_reduce(cpu, grad, output.as_ref(), input, &moments.mean)?;
    let (mean, variance) = (moments.mean.as_slice::<f32>()?, moments.variance.as_slice::<f32>()?);
    let scale = scale.as_slice::<f32>()?;
    let (channels, rows) = (mean.len(), input.shape().rows() as f64);
    let inverse = |channel: usize| (f64::from(variance[channel]) + f64::from(*eps)).sqrt().recip();
    let scale_grad = (0..channels).map(|channel| (product[channel] * inverse(channel)) as f32).collect();
    let shift_grad = sum.iter().map(|sum| *sum as f32).collect();
    let coefficients = |channel: usize| {
        let a = f64::from(scale[channel]) * inverse(channel);
        if !batch {
            return [a as f32, 0.0, 0.0];
        }
        let b = -a * inverse(channel).powi(2) * product[channel] / rows;
        let c = -a * sum[channel] / rows - b * f64::from(mean[channel]);
        [a as f32, b as f32, c as f32]
    };
    let input_grad = match needs_input {
        true => Some(combine(cpu, grad, input, &(0..channels).map(coefficients).collect::<Vec<_>>())?),
        false => None,
    };
    Ok(Backward {
        input: input_grad,
        scale: Tensor::new(scale_grad, [channels], input.device())?,
        shift: Tensor::new(shift_grad, [channels], input.device())?,
    })
}

/// Zeroes `grad` where the ReLU before `output` was closed, and sums: `(Σ grad, Σ grad · (x − mean))` of each channel.
fn mask_and_reduce(
    cpu: &CpuDevice,
    grad: &mut Tensor,
    output: Option<&Tensor>,
    input: &Tensor,
    mean: &Tensor,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let (grad, x, mean) = (grad.as_slice_mut::<f32>()?, input.as_slice::<f32>()?, mean.as_slice::<f32>()?);
    let output = output.map(|output| output.as_slice::<f32>()).transpose()?;
    let channels = mean.len();
    let rows = ROWS * channels;
    let partials: Vec<(Vec<f32>, Vec<f32>)> = cpu.install(|| {
        let blocks = grad.par_chunks_mut(rows).zip(x.par_chunks(rows)).enumerate();
        let sums = blocks.map(|(block, (grad, x))| {
            let output = output.map(|output| &output[block * rows..][..grad.len()]);
            vectorised(|| {
                if let Some(output) = output {
                    mask_block(grad, output);
                }
                reduce_block(grad, x, mean)
            })
        });
        sums.collect()
    });
    let mut sums = (vec![0f64; channels], vec![0f64; channels]);
    for (sum, product) in &partials {
        for channel in 0..channels {
            sums.0[channel] += f64::from(sum[channel]);
            sums.1[channel] += f64::from(product[channel]);
        }
    }
    Ok(sums)
}

#[inline(always)]
fn mask_block(grad: &mut [f32], output: &[f32]) {
    for (grad, output) in grad.iter_mut().zip(output) {
        *grad = if *output > 0.0 { *grad } else { 0.0 };
    }
}

#[inline(always)]
fn reduce_block(grad: &[f32], x: &[f32], mean: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let channels = mean.len();
    let (mut sum, mut product) = (vec![0f32; channels], vec![0f32; channels]);
    for (grad, x) in grad.chunks_exact(channels).zip(x.chunks_exact(channels)) {
        let sums = sum.iter_mut().zip(&mut product);
        for ((sum, product), (grad, (x, mean))) in sums.zip(grad.iter().zip(x.iter().zip(mean))) {
            *sum += grad;
            *product += grad * (x - mean);
        }
    }
    (sum, product)
}

/// `grad · a + x · b + c` per channel: the gradient of the input.
fn combine(cpu: &CpuDevice, grad: &Tensor, input: &Tensor, coefficients: &[[f32; 3]]) -> Result<Tensor> {
    let (grad, x) = (grad.as_slice::<f32>()?, input.as_slice::<f32>()?);
    let channels = coefficients.len();
    let [a, b, c] = [0, 1, 2].map(|i| coefficients.iter().map(|row| row[i]).collect::<Vec<f32>>());
    let mut result = cpu.buffer(x.len());
    let rows = CHUNK.div_ceil(channels) * channels;
    cpu.each_chunk(&mut result, rows, |block, result| {
        let (grad, x) = (&grad[block * rows..], &x[block * rows..]);
        vectorised(|| combine_block(grad, x, [&a, &b, &c], result));
    });
    Tensor::new(result, input.shape(), input.device())
}

#[inline(always)]
fn combine_block(grad: &[f32], x: &[f32], [a, b, c]: [&[f32]; 3], result: &mut [f32]) {
    let channels = a.len();
    let inputs = grad.chunks_exact(channels).zip(x.chunks_exact(channels));
    for (result, (grad, x)) in result.chunks_exact_mut(channels).zip(inputs) {
        let (inputs, coefficients) = (grad.iter().zip(x), a.iter().zip(b).zip(c));
        for (result, ((grad, x), ((a, b), c))) in result.iter_mut().zip(inputs.zip(coefficients)) {
            *result = grad * a + (x * b + c);
        }
    }
}
