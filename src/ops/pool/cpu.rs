//! Pooling on the processor: one image per task.

use rayon::prelude::*;

use super::Window;
use crate::{Result, Tensor, device::CpuDevice};

/// The position of a maximum that has seen no value yet: even −∞ replaces it.
const NOWHERE: u32 = u32::MAX;

pub fn max_forward(
    cpu: &CpuDevice,
    input: &Tensor,
    [_, h, w, c]: [usize; 4],
    window: Window,
    output: [usize; 4],
) -> Result<(Tensor, Tensor)> {
    let x = input.as_slice::<f32>()?;
    let [n, p, q, _] = output;
    let mut best = cpu.buffer(n * p * q * c);
    let mut at = vec![NOWHERE; best.len()];
    cpu.install(|| {
        best.par_chunks_mut(q * c).zip(at.par_chunks_mut(q * c)).enumerate().for_each(|(row, (best, at))| {
            let image = &x[row / p * h * w * c..][..h * w * c];
            pulp::Arch::new().dispatch(|| max_row(image, [h, w, c], row % p, window, best, at));
        });
    });
    Ok((Tensor::new(best, output, input.device())?, Tensor::new(at, output, input.device())?))
}

/// One row of outputs and their positions, from an image.
#[inline(always)]
fn max_row(image: &[f32], [h, w, c]: [usize; 3], y: usize, window: Window, best: &mut [f32], at: &mut [u32]) {
    for (x, (best, at)) in best.chunks_exact_mut(c).zip(at.chunks_exact_mut(c)).enumerate() {
        best.fill(f32::NEG_INFINITY);
        at.fill(NOWHERE);
        for r in 0..window.size {
            let Some(y) = (y * window.stride + r).checked_sub(window.padding).filter(|y| *y < h) else { continue };
            for s in 0..window.size {
                let Some(x) = (x * window.stride + s).checked_sub(window.padding).filter(|x| *x < w) else { continue };
                let position = y * w + x;
                keep_best_of_pixel(best, at, &image[position * c..][..c], position as u32);
            }
        }
    }
}

/// Keeps in each channel the value of `pixel` if it is the first or exceeds the best so far; a NaN wins, so that a
/// diverged run is seen. Without branches, so that it becomes vector instructions.
#[inline(always)]
fn keep_best_of_pixel(best: &mut [f32], at: &mut [u32], pixel: &[f32], position: u32) {
    for ((best, at), &value) in best.iter_mut().zip(at).zip(pixel) {
        let better = (value > *best) | (*at == NOWHERE) | (value.is_nan() & !best.is_nan());
        *best = if better { value } else { *best };
        *at = if better { position } else { *at };
    }
}

pub fn average_forward(cpu: &CpuDevice, input: &Tensor, [n, h, w, c]: [usize; 4]) -> Result<Tensor> {
    let x = input.as_slice::<f32>()?;
    let mut output = vec![0.0; n * c];
    cpu.install(|| {
        output.par_chunks_mut(c).enumerate().for_each(|(image, output)| {
            average_image(&x[image * h * w * c..][..h * w * c], output);
        });
    });
    Tensor::new(output, [n, c], input.device())
}

fn average_image(image: &[f32], output: &mut [f32]) {
    let channels = output.len();
    for pixel in image.chunks_exact(channels) {
        output.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
    }
    let count = (image.len() / channels) as f32;
    output.iter_mut().for_each(|sum| *sum /= count);
}

pub fn concat_forward(cpu: &CpuDevice, input: &Tensor, [n, h, w, c]: [usize; 4]) -> Result<(Tensor, Tensor)> {
    let x = input.as_slice::<f32>()?;
    let mut output = vec![0.0; n * 2 * c];
    let mut at = vec![NOWHERE; n * c];
    cpu.install(|| {
        output.par_chunks_mut(2 * c).zip(at.par_chunks_mut(c)).enumerate().for_each(|(image, (output, at))| {
            let image = &x[image * h * w * c..][..h * w * c];
            let (best, average) = output.split_at_mut(c);
            best.fill(f32::NEG_INFINITY);
            for (position, pixel) in image.chunks_exact(c).enumerate() {
                keep_best_of_pixel(best, at, pixel, position as u32);
            }
            average_image(image, average);
        });
    });
    Ok((Tensor::new(output, [n, 2 * c], input.device())?, Tensor::new(at, [n, c], input.device())?))
}

/// Sends each gradient `[N, .., C]` to the position that won. `grad_stride` is the distance between two images'
/// gradients, which the concat pool's halves share.
pub fn scatter_max(
    cpu: &CpuDevice,
    grad: &[f32],
    grad_stride: usize,
    at: &Tensor,
    input_grad: &mut [f32],
    [n, h, w, c]: [usize; 4],
) -> Result<()> {
    let at = at.as_slice::<u32>()?;
    let per_image = at.len() / n.max(1);
    cpu.install(|| {
        input_grad.par_chunks_mut(h * w * c).enumerate().for_each(|(image, input_grad)| {
            let grad = &grad[image * grad_stride..][..per_image];
            let at = &at[image * per_image..][..per_image];
            for (index, (grad, at)) in grad.iter().zip(at).enumerate() {
                input_grad[*at as usize * c + index % c] += grad;
            }
        });
    });
    Ok(())
}

/// Spreads each gradient evenly over all positions.
pub fn spread_average(
    cpu: &CpuDevice,
    grad: &[f32],
    grad_stride: usize,
    input_grad: &mut [f32],
    [_, h, w, c]: [usize; 4],
) {
    let share = 1.0 / (h * w) as f32;
    cpu.install(|| {
        input_grad.par_chunks_mut(h * w * c).enumerate().for_each(|(image, input_grad)| {
            let grad = &grad[image * grad_stride..][..c];
            for pixel in input_grad.chunks_exact_mut(c) {
                pixel.iter_mut().zip(grad).for_each(|(to, grad)| *to += grad * share);
            }
        });
    });
}
