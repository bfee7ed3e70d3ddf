//! Convolution on the processor. 3×3 with stride 1 is computed by Winograd's method, what sees few channels from rows of
//! the image as they lie; everything else as implicit GEMM: a task takes a tile of output pixels, gathers their windows
//! into a scratch matrix that stays in cache, and multiplies it with the weights. 1×1 windows are read in place.

mod finish;
mod pointwise;
mod rows;
mod winograd;

use std::borrow::Cow;

use rayon::prelude::*;

use finish::Finish;
use winograd::Method;

use super::{Epilogue, Extents};
use crate::{
    Result, Tensor,
    device::{CpuDevice, Matrix, gemm},
    ops::{products::transpose, vectorised},
};

/// Output pixels per task.
const TILE: usize = 128;
/// Elements of a weight that a core's cache holds, beside what it is multiplied with.
const LARGE: usize = 1 << 18;
/// Columns of the weight gradient per task …
const COLUMNS: usize = 288;
/// … and at least so many tasks, by splitting the batch where the weight is small.
const TASKS: usize = 16;

pub fn forward(
    cpu: &CpuDevice,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    epilogue: Epilogue,
) -> Result<Tensor> {
    let input = input.as_slice::<f32>()?;
    let folded = epilogue.norm.map(|norm| norm.fold()).transpose()?;
    let scale_shift = match &folded {
        Some((factor, offset)) => Some((factor.as_slice::<f32>()?, offset.as_slice::<f32>()?)),
        None => None,
    };
    let residual = epilogue.residual.map(|residual| residual.as_slice::<f32>()).transpose()?;
    let finish = Finish { scale_shift, residual, relu: epilogue.relu };
    let mut output = cpu.buffer(extents.output().elements());
    let way = Way::of(extents, epilogue.norm.is_some());
    let pack = |weight: &[f32]| {
        let mut packed = cpu.buffer(way.packed_elements(extents));
        cpu.install(|| match way {
            Way::Winograd(method) => method.pack(weight, extents, &mut packed),
            Way::Rows => rows::pack(weight, extents, &mut packed),
            Way::Gathered => transpose_weight(cpu, weight, extents, &mut packed),
        });
        packed
    };
    // A convolution with its batchnorm fixed is not in training: its weights stay what they are, for a while.
    let kept = match epilogue.norm {
        Some(_) => Some(weight.derived(way.key(extents.groups), pack)?),
        None => None,
    };
    let packed = match &kept {
        Some(kept) => Cow::Borrowed(kept.as_slice::<f32>()?),
        None => Cow::Owned(pack(weight.as_slice::<f32>()?)),
    };
    cpu.install(|| match way {
        Way::Winograd(method) => method.forward(input, &packed, extents, finish, &mut output),
        Way::Rows => rows::forward(input, &packed, extents, finish, &mut output),
        Way::Gathered => multiply(input, &packed, extents, finish, &mut output),
    });
    if let Cow::Owned(packed) = packed {
        cpu.recycle(packed);
    }
    Tensor::new(output, extents.output(), weight.device())
}

/// How a convolution is computed.
#[derive(Clone, Copy)]
enum Way {
    Winograd(Method),
    Rows,
    Gathered,
}

impl Way {
    /// The way for some extents; `fixed` if its weights are.
    fn of(extents: &Extents, fixed: bool) -> Self {
        let method = if fixed { Method::of_fixed(extents) } else { Method::of_trained(extents) };
        match method {
            Some(method) => Way::Winograd(method),
            None if rows::serves(extents) => Way::Rows,
            None => Way::Gathered,
        }
    }

    /// Elements of a buffer for packed weights.
    fn packed_elements(self, extents: &Extents) -> usize {
        match self {
            Way::Winograd(method) => method.packed_elements(extents),
            Way::Rows => rows::packed_elements(extents),
            Way::Gathered => extents.k * extents.window(),
        }
    }

    /// Tells apart what weights are packed for; `groups` is 1 but where windows are gathered.
    fn key(self, groups: usize) -> usize {
        match self {
            Way::Winograd(method) => method as usize,
            Way::Rows => 2,
            Way::Gathered => 2 + groups,
        }
    }
}

/// Implicit GEMM with weights as [`transpose_weight`] leaves them.
fn multiply(input: &[f32], weight: &[f32], extents: &Extents, finish: Finish, output: &mut [f32]) {
    let k = extents.k;
    // Fewer where there are not enough for all threads; more where the weight, which each task reads, is large.
    let tile = TILE * (weight.len() / LARGE).clamp(1, 4);
    let pixels = tile.min((output.len() / k).div_ceil(rayon::current_num_threads())).max(1);
    output.par_chunks_mut(pixels * k).enumerate().for_each_init(Vec::new, |scratch, (index, tile)| {
        let first = index * pixels;
        multiply_tile(input, weight, extents, first, tile, scratch);
        vectorised(|| finish.apply(tile, first * k));
    });
}

/// Fills the outputs of the pixels from `first` on, `[pixels, K]`.
fn multiply_tile(
    input: &[f32],
    weight: &[f32],
    extents: &Extents,
    first: usize,
    tile: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let pixels = tile.len() / extents.k;
    let (window, group_k) = (extents.window(), extents.group_k());
    for group in 0..extents.groups {
        let windows = if extents.is_pointwise() {
            Matrix::part(input, extents.c, first..first + pixels, extents.inputs(group))
        } else {
            scratch.resize(pixels * window, 0.0);
            for (pixel, row) in scratch.chunks_exact_mut(window).enumerate() {
                gather_window(input, extents, group, first + pixel, row);
            }
            Matrix::dense(scratch, pixels, window)
        };
        let weight = Matrix::dense(&weight[group * window * group_k..], window, group_k);
        gemm(windows, weight, &mut tile[group * group_k..], extents.k, false);
    }
}

impl Extents {
    /// Whether windows are single pixels that can be read in place.
    fn is_pointwise(&self) -> bool {
        self.r == 1 && self.s == 1 && self.stride == 1 && self.padding == 0
    }

    /// The input channels of a group.
    fn inputs(&self, group: usize) -> std::ops::Range<usize> {
        group * self.group_c()..(group + 1) * self.group_c()
    }

    /// The output channels of a group.
    fn outputs(&self, group: usize) -> std::ops::Range<usize> {
        group * self.group_k()..(group + 1) * self.group_k()
    }

    /// Image, and top left corner of the window (which may lie in the padding), of an output pixel.
    fn corner(&self, pixel: usize) -> (usize, isize, isize) {
        let (image, within) = (pixel / (self.p * self.q), pixel % (self.p * self.q));
        let at = |position: usize| (position * self.stride) as isize - self.padding as isize;
        (image, at(within / self.q), at(within % self.q))
    }

    /// The part of a window row starting at `left` that lies inside the image, as columns of the window.
    fn inside(&self, left: isize) -> std::ops::Range<usize> {
        let start = (-left).clamp(0, self.s as isize) as usize;
        let end = (self.w as isize - left).clamp(start as isize, self.s as isize) as usize;
        start..end
    }
}

/// Copies the window of an output pixel, zeros where it leaves the image: `[R, S, C / groups]`.
fn gather_window(input: &[f32], extents: &Extents, group: usize, pixel: usize, window: &mut [f32]) {
    let (image, top, left) = extents.corner(pixel);
    let (group_c, c) = (extents.group_c(), extents.c);
    let inside = extents.inside(left);
    for (r, row) in window.chunks_exact_mut(extents.s * group_c).enumerate() {
        let y = top + r as isize;
        if y < 0 || y >= extents.h as isize || inside.is_empty() {
            row.fill(0.0);
            continue;
        }
        row[..inside.start * group_c].fill(0.0);
        row[inside.end * group_c..].fill(0.0);
        let first = (image * extents.h + y as usize) * extents.w + (left + inside.start as isize) as usize;
        let row = &mut row[inside.start * group_c..inside.end * group_c];
        if group_c == c {
            row.copy_from_slice(&input[first * c..][..row.len()]);
        } else {
            for (x, to) in row.chunks_exact_mut(group_c).enumerate() {
                to.copy_from_slice(&input[(first + x) * c + group * group_c..][..group_c]);
            }
        }
    }
}

/// Weights as `[groups, R·S·C, K / groups]`, the order in which a product reads them without packing.
fn transpose_weight(cpu: &CpuDevice, weight: &[f32], extents: &Extents, to: &mut [f32]) {
    let (window, group_k) = (extents.window(), extents.group_k());
    for (from, to) in weight.chunks_exact(window * group_k).zip(to.chunks_exact_mut(window * group_k)) {
        transpose(cpu, group_k, window, |row| &from[row * window..][..window], to);
    }
}

/// `[N, H, W, C]`: each task owns one image and scatters the windows' gradients into it.
pub fn input_grad(cpu: &CpuDevice, output_grad: &Tensor, weight: &Tensor, extents: &Extents) -> Result<Tensor> {
    if pointwise::serves(extents) && extents.stride == 1 {
        let input_grad = pointwise::input_grad(cpu, output_grad.as_slice()?, weight.as_slice()?, extents);
        return Tensor::new(input_grad, [extents.n, extents.h, extents.w, extents.c], weight.device());
    }
    if extents.stride == 1 && extents.padding < extents.r && extents.padding < extents.s && extents.r == extents.s {
        return input_grad_as_forward(cpu, output_grad, weight, extents);
    }
    let (grad, weight_slice) = (output_grad.as_slice::<f32>()?, weight.as_slice::<f32>()?);
    let mut input_grad = cpu.buffer(extents.n * extents.h * extents.w * extents.c);
    let image_pixels = extents.p * extents.q;
    cpu.install(|| {
        input_grad.par_chunks_mut(extents.h * extents.w * extents.c).enumerate().for_each_init(
            Vec::new,
            |scratch, (image, image_grad)| {
                image_grad.fill(0.0);
                for start in (0..image_pixels).step_by(TILE) {
                    let pixels = TILE.min(image_pixels - start);
                    scatter_tile(
                        grad,
                        weight_slice,
                        extents,
                        image * image_pixels + start,
                        pixels,
                        image_grad,
                        scratch,
                    );
                }
            },
        );
    });
    Tensor::new(input_grad, [extents.n, extents.h, extents.w, extents.c], weight.device())
}

fn scatter_tile(
    grad: &[f32],
    weight: &[f32],
    extents: &Extents,
    first: usize,
    pixels: usize,
    image_grad: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (window, group_k, group_c) = (extents.window(), extents.group_k(), extents.group_c());
    scratch.resize(pixels * window, 0.0);
    for group in 0..extents.groups {
        let grad = Matrix::part(grad, extents.k, first..first + pixels, extents.outputs(group));
        let weight = Matrix::dense(&weight[group * group_k * window..], group_k, window);
        gemm(grad, weight, scratch, window, false);
        for (pixel, window_grad) in scratch.chunks_exact(window).enumerate() {
            let (_, top, left) = extents.corner(first + pixel);
            let inside = extents.inside(left);
            for (r, row) in window_grad.chunks_exact(extents.s * group_c).enumerate() {
                let y = top + r as isize;
                if y < 0 || y >= extents.h as isize {
                    continue;
                }
                for s in inside.clone() {
                    let x = (left + s as isize) as usize;
                    let to = (y as usize * extents.w + x) * extents.c + group * group_c;
                    let to = &mut image_grad[to..][..group_c];
                    to.iter_mut().zip(&row[s * group_c..]).for_each(|(to, from)| *to += from);
                }
            }
        }
    }
}

/// With stride 1 the input gradient is itself a convolution: of the output gradient, with the weights turned by 180°
/// and their channels exchanged.
fn input_grad_as_forward(cpu: &CpuDevice, output_grad: &Tensor, weight: &Tensor, extents: &Extents) -> Result<Tensor> {
    let from = weight.as_slice::<f32>()?;
    let (positions, group_c, group_k) = (extents.r * extents.s, extents.group_c(), extents.group_k());
    let geometry = super::Geometry { stride: 1, padding: extents.r - 1 - extents.padding, groups: extents.groups };
    let turned_shape = [extents.c, extents.r, extents.s, group_k];
    let extents = Extents::new(output_grad.shape(), turned_shape.into(), geometry)?;
    if let Some(method @ Method::Two) = Method::of_trained(&extents) {
        let mut packed = cpu.buffer(method.packed_elements(&extents));
        let mut input_grad = cpu.buffer(extents.output().elements());
        let output_grad = output_grad.as_slice::<f32>()?;
        cpu.install(|| {
            Method::pack_turned(from, &extents, &mut packed);
            method.forward(output_grad, &packed, &extents, Finish::default(), &mut input_grad);
        });
        cpu.recycle(packed);
        return Tensor::new(input_grad, extents.output(), weight.device());
    }
    let mut turned = cpu.buffer(from.len());
    cpu.install(|| {
        turned.par_chunks_mut(positions * group_k).enumerate().for_each(|(channel, window)| {
            let (group, c) = (channel / group_c, channel % group_c);
            for (position, row) in window.chunks_exact_mut(group_k).enumerate() {
                for (k, to) in row.iter_mut().enumerate() {
                    let filter = group * group_k + k;
                    *to = from[(filter * positions + positions - 1 - position) * group_c + c];
                }
            }
        });
    });
    let turned = Tensor::new(turned, turned_shape, weight.device())?;
    forward(cpu, output_grad, &turned, &extents, Epilogue::default())
}

/// `[K, R, S, C / groups]`: each task sums one block of columns over one part of the batch; the parts are then added
/// in order, so that the result depends on the shape alone.
pub fn weight_grad(cpu: &CpuDevice, output_grad: &Tensor, input: &Tensor, extents: &Extents) -> Result<Tensor> {
    let (grad, input_slice) = (output_grad.as_slice::<f32>()?, input.as_slice::<f32>()?);
    if pointwise::serves(extents) {
        let weight_grad = pointwise::weight_grad(cpu, grad, input_slice, extents);
        return Tensor::new(weight_grad, [extents.k, 1, 1, extents.c], input.device());
    }
    if winograd::has_weight_grad(extents) {
        let weight_grad = cpu.install(|| winograd::weight_grad(cpu, grad, input_slice, extents));
        return Tensor::new(weight_grad, [extents.k, extents.r, extents.s, extents.c], input.device());
    }
    let (window, group_c, group_k) = (extents.window(), extents.group_c(), extents.group_k());
    // A block holds whole positions of the window, so that gathering copies whole runs of channels.
    let positions = extents.r * extents.s;
    let block = (COLUMNS / group_c).clamp(1, positions);
    let blocks: Vec<_> = (0..positions).step_by(block).map(|start| start..(start + block).min(positions)).collect();
    let parts = (TASKS.div_ceil(blocks.len() * extents.groups)).clamp(1, extents.n.max(1));
    let images = extents.n.div_ceil(parts);

    let tasks: Vec<(usize, usize, usize)> = (0..extents.groups)
        .flat_map(|group| (0..blocks.len()).flat_map(move |block| (0..parts).map(move |part| (group, block, part))))
        .collect();
    let mut weight_grad = cpu.zeros(extents.k * window);
    cpu.install(|| {
        let sums: Vec<Vec<f32>> = tasks
            .par_iter()
            .map_init(Vec::new, |scratch, &(group, block, part)| {
                let images = (part * images).min(extents.n)..((part + 1) * images).min(extents.n);
                sum_block(grad, input_slice, extents, group, blocks[block].clone(), images, scratch)
            })
            .collect();
        for (&(group, block, _), sum) in tasks.iter().zip(&sums) {
            let columns = blocks[block].start * group_c..blocks[block].end * group_c;
            for (k, row) in sum.chunks_exact(columns.len()).enumerate() {
                let to = &mut weight_grad[(group * group_k + k) * window..][columns.clone()];
                to.iter_mut().zip(row).for_each(|(to, from)| *to += from);
            }
        }
    });
    Tensor::new(weight_grad, [extents.k, extents.r, extents.s, group_c], input.device())
}

/// The weight gradient of one group, some window positions and some images: `[K / groups, positions · C / groups]`.
fn sum_block(
    grad: &[f32],
    input: &[f32],
    extents: &Extents,
    group: usize,
    positions: std::ops::Range<usize>,
    images: std::ops::Range<usize>,
    scratch: &mut Vec<f32>,
) -> Vec<f32> {
    let (group_c, group_k) = (extents.group_c(), extents.group_k());
    let columns = positions.len() * group_c;
    let mut sum = vec![0.0; group_k * columns];
    let pixels = images.start * extents.p * extents.q..images.end * extents.p * extents.q;
    for start in pixels.clone().step_by(4 * TILE) {
        let count = (4 * TILE).min(pixels.end - start);
        let windows = if extents.is_pointwise() {
            Matrix::part(input, extents.c, start..start + count, extents.inputs(group))
        } else {
            scratch.resize(count * columns, 0.0);
            for (pixel, row) in scratch.chunks_exact_mut(columns).enumerate() {
                if columns == extents.window() {
                    gather_window(input, extents, group, start + pixel, row);
                } else {
                    gather_positions(input, extents, group, start + pixel, positions.clone(), row);
                }
            }
            Matrix::dense(scratch, count, columns)
        };
        let grad = Matrix::part(grad, extents.k, start..start + count, extents.outputs(group));
        gemm(grad.transposed(), windows, &mut sum, columns, true);
    }
    sum
}

/// As [`gather_window`], for some of the window's positions only.
fn gather_positions(
    input: &[f32],
    extents: &Extents,
    group: usize,
    pixel: usize,
    positions: std::ops::Range<usize>,
    row: &mut [f32],
) {
    let (image, top, left) = extents.corner(pixel);
    let group_c = extents.group_c();
    for (position, to) in positions.zip(row.chunks_exact_mut(group_c)) {
        let (y, x) = (top + (position / extents.s) as isize, left + (position % extents.s) as isize);
        if y < 0 || x < 0 || y >= extents.h as isize || x >= extents.w as isize {
            to.fill(0.0);
        } else {
            let from = ((image * extents.h + y as usize) * extents.w + x as usize) * extents.c + group * group_c;
            to.copy_from_slice(&input[from..][..group_c]);
        }
    }
}
