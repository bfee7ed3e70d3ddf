//! Pooling on the processor: one image per task.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Window;
use crate::{Result, Tensor, device::CpuDevice};

/// The position of a maximum that has seen no value yet: even −∞ replaces it.
const NOWHERE: u32 = u32::MAX;

/// The maximum of each window, and with `WITH_POSITIONS` where it lies; without, the second tensor has no elements.
pub fn max_forward<const WITH_POSITIONS: bool>(
    cpu: &CpuDevice,
    input: &Tensor,
    [_, h, w, c]: [usize; 4],
    window: Window,
    output: [usize; 4],
) -> Result<(Tensor, Tensor)> {
    let image = input.as_slice::<f32>()?;
    let [n, p, q, _] = output;
    let mut best = cpu.buffer(n * p * q * c);
    let mut at = vec![0; if WITH_POSITIONS { best.len() } else { 0 }];
    cpu.install(|| {
        let row = |row: usize, best: &mut [f32], at: &mut [u32]| {
            let image = &image[row / p * h * w * c..][..h * w * c];
            Arch::new().dispatch(MaxRow::<WITH_POSITIONS> { image, extents: [h, w, c], y: row % p, window, best, at });
        };
        let rows = best.par_chunks_mut(q * c).enumerate();
        if WITH_POSITIONS {
            rows.zip(at.par_chunks_mut(q * c)).for_each(|((index, best), at)| row(index, best, at));
        } else {
            rows.for_each(|(index, best)| row(index, best, &mut []));
        }
    });
    let positions = if WITH_POSITIONS { output } else { [0; 4] };
    Ok((Tensor::new(best, output, input.device())?, Tensor::new(at, positions, input.device())?))
}

/// One row of outputs `[Q, C]` and their positions, from an image.
struct MaxRow<'a, const WITH_POSITIONS: bool> {
    image: &'a [f32],
    extents: [usize; 3],
    y: usize,
    window: Window,
    best: &'a mut [f32],
    at: &'a mut [u32],
}

impl<const WITH_POSITIONS: bool> WithSimd for MaxRow<'_, WITH_POSITIONS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { image, extents: [h, w, c], y, window, best, at } = self;
        let rows = window.inside(y, h);
        for (x, best) in best.chunks_exact_mut(c).enumerate() {
            let columns = window.inside(x, w);
            for (index, best) in best.chunks_mut(S::F32_LANES).enumerate() {
                let channel = index * S::F32_LANES;
                let load = |at: usize| simd.partial_load_f32s(&image[at * c + channel..][..best.len()]);
                let first = rows.start * w + columns.start;
                let (mut value, mut position) = (load(first), simd.splat_u32s(first as u32));
                for at in rows.clone().flat_map(|y| columns.clone().map(move |x| y * w + x)) {
                    let next = load(at);
                    // A NaN wins, so that a diverged run is seen.
                    let greater = simd.less_than_f32s(value, next);
                    let first_nan = simd.and_m32s(simd.equal_f32s(value, value), is_nan(simd, next));
                    let better = simd.or_m32s(greater, first_nan);
                    value = simd.select_f32s(better, next, value);
                    if WITH_POSITIONS {
                        position = simd.select_u32s(better, simd.splat_u32s(at as u32), position);
                    }
                }
                simd.partial_store_f32s(best, value);
                if WITH_POSITIONS {
                    simd.partial_store_u32s(&mut at[x * c + channel..][..best.len()], position);
                }
            }
        }
    }
}

#[inline(always)]
fn is_nan<S: Simd>(simd: S, value: S::f32s) -> S::m32s {
    simd.not_m32s(simd.equal_f32s(value, value))
}

impl Window {
    /// The positions of an input of `extent` that the window of output `at` covers.
    fn inside(&self, at: usize, extent: usize) -> Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(self.padding)..(start + self.size - self.padding).min(extent)
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
            for (grad, at) in grad.chunks_exact(c).zip(at.chunks_exact(c)) {
                for (channel, (grad, at)) in grad.iter().zip(at).enumerate() {
                    input_grad[*at as usize * c + channel] += grad;
                }
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
