//! Batchnorm's passes over memory one by one, for a network whose convolutions take part in them: what a convolution
//! leaves of its output's tiles becomes a factor and an offset ([`finalize`]), one pass normalises, adds and rectifies
//! ([`apply_masked`]), and backwards whoever computes a gradient takes the sums that batchnorm needs ([`reduce`] where
//! nobody did), which become the coefficients of the input's gradient ([`coefficients`], [`input_grad`]).
//!
//! For GPUs alone, on maps `[.., C]` of f32 or bf16 with a multiple of 8 channels; all else is f32.

use super::{Moments, Sink, TileSums, cpu, cuda, enough, gpu};
use crate::{
    Device, Error, Result, Shape, Tensor,
    ops::{conv::TileMoments, expect_shape, nhwc, optimizer::Table, pool::Window},
};

/// Moments of a batch, and what normalises by them.
#[derive(Clone, Debug)]
pub struct Normaliser {
    /// Mean and variance.
    pub moments: Moments,
    /// `scale / √(variance + eps)`, `[C]`.
    pub factor: Tensor,
    /// `shift − mean · factor`, `[C]`.
    pub offset: Tensor,
}

/// What is added to a normalised map.
#[derive(Clone, Copy, Debug)]
pub enum Addend<'a> {
    /// A map as it is.
    Value(&'a Tensor),
    /// `input · factor + offset`: the batchnorm of a projecting shortcut, whose output is never stored.
    Normed {
        /// What the shortcut's batchnorm normalises.
        input: &'a Tensor,
        /// Its factor, `[C]`.
        factor: &'a Tensor,
        /// Its offset, `[C]`.
        offset: &'a Tensor,
    },
}

/// What the gradient of a batchnorm's input is made of, and the gradients of scale and shift; `[C]` each.
#[derive(Clone, Debug)]
pub struct Coefficients {
    /// Of the scale.
    pub scale_grad: Tensor,
    /// Of the shift.
    pub shift_grad: Tensor,
    /// Factor of the gradient of the output: `dx = a · g + b · x + c`.
    pub a: Tensor,
    /// Factor of the input.
    pub b: Tensor,
    /// Offset.
    pub c: Tensor,
}

/// One batchnorm's running statistics, and what they move towards.
pub struct RunningUpdate<'a> {
    /// Of the batch.
    pub moments: &'a Moments,
    /// Weight of the batch.
    pub momentum: f32,
    /// Running mean, `[C]`.
    pub mean: &'a mut Tensor,
    /// Running variance, `[C]`.
    pub variance: &'a mut Tensor,
}

/// `C`, if `map` is one that these passes take.
fn channels(map: &Tensor) -> Result<usize> {
    match map.shape().last() {
        channels if channels > 0 && channels.is_multiple_of(8) && map.shape().rank() > 0 => Ok(channels),
        _ => Err(Error::shape("batchnorm", format!("expected a multiple of 8 channels, got {}", map.shape()))),
    }
}

fn expect(what: &str, tensor: &Tensor, expected: impl Into<Shape>) -> Result<()> {
    expect_shape("batchnorm", what, tensor, expected)
}

impl Coefficients {
    fn expect(&self, channels: usize) -> Result<()> {
        [&self.a, &self.b, &self.c].into_iter().try_for_each(|tensor| expect("coefficients", tensor, [channels]))
    }
}

/// The moments of a map from those of its tiles, and what normalises by them: one launch.
///
/// # Errors
/// [`Error::Shape`] if there are fewer than two rows, or channel counts differ.
pub fn finalize(tiles: &TileMoments, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Normaliser> {
    enough(tiles.rows, &tiles.mean)?;
    let channels = tiles.mean.shape().last();
    expect("scale", scale, [channels])?;
    expect("shift", shift, [channels])?;
    let (moments, [factor, offset]) = cuda::merge(gpu(&tiles.mean)?, tiles, Some((scale, shift, eps)))?;
    Ok(Normaliser { moments, factor, offset })
}

/// `relu(input · factor + offset + addend)`, the last two optional, and with a ReLU where it is positive: u8
/// `[rows, C / 8]`, as [`Sink::mask`]. Reads each map once and writes one.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn apply_masked(
    input: &Tensor,
    factor: &Tensor,
    offset: &Tensor,
    addend: Option<Addend>,
    relu: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let channels = channels(input)?;
    expect("factor", factor, [channels])?;
    expect("offset", offset, [channels])?;
    match addend {
        None => {}
        Some(Addend::Value(value)) => expect("addend", value, input.shape())?,
        Some(Addend::Normed { input: other, factor, offset }) => {
            expect("addend", other, input.shape())?;
            expect("factor of the addend", factor, [channels])?;
            expect("offset of the addend", offset, [channels])?;
        }
    }
    cuda::apply(gpu(input)?, input, [factor, offset], addend, relu, relu)
}

/// The gradient where `sink` lets it pass, and its sums; for gradients whose producer took none. Reads the gradient,
/// the mask and the batchnorm's input, and writes what passes. Without a mask that is the gradient itself.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn reduce(grad: &Tensor, sink: &Sink) -> Result<(Tensor, TileSums)> {
    let Sink { mask, input, mean } = sink;
    let (channels, gpu) = (channels(input)?, gpu(input)?);
    expect("gradient", grad, input.shape())?;
    expect("mean", mean, [channels])?;
    let Some(mask) = mask else {
        return Ok((grad.clone(), cuda::reduce(gpu, grad, input, mean, cuda::Gate::Open)?));
    };
    expect("mask", mask, [input.shape().rows(), channels / 8])?;
    let masked = Tensor::uninit_of(grad.dtype(), grad.shape(), gpu)?;
    let sums = cuda::reduce(gpu, grad, input, mean, cuda::Gate::Mask { mask, masked: &masked })?;
    Ok((masked, sums))
}

/// The sums of a masked gradient against another batchnorm's `input`: that of a projecting shortcut.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn reduce_again(masked: &Tensor, input: &Tensor, mean: &Tensor) -> Result<TileSums> {
    expect("mean", mean, [channels(input)?])?;
    expect("gradient", masked, input.shape())?;
    cuda::reduce(gpu(input)?, masked, input, mean, cuda::Gate::Open)
}

/// Gradients of scale and shift, and the coefficients of the input's gradient. With `batch` the moments are those of
/// the input, else constants: `a = scale / σ`, `b = −a · P / (σ² · M)`, `c = −a · S / M − b · mean` or both 0, with `σ
/// = √(variance + eps)` and the sums S of g and P of g · (x − mean) over M rows.
///
/// # Errors
/// [`Error::Shape`] if channel counts differ.
pub fn coefficients(sums: &TileSums, moments: &Moments, scale: &Tensor, eps: f32, batch: bool) -> Result<Coefficients> {
    let channels = scale.shape().elements();
    expect("scale", scale, [channels])?;
    expect("mean", &moments.mean, [channels])?;
    expect("variance", &moments.variance, [channels])?;
    expect("sums", &sums.sum, [sums.sum.shape().rows(), channels])?;
    expect("products", &sums.product, sums.sum.shape())?;
    cuda::coefficients(gpu(scale)?, sums, moments, scale, eps, batch)
}

/// The gradient of a batchnorm's `input`: `a · masked + b · input + c`.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn input_grad(masked: &Tensor, input: &Tensor, of: &Coefficients) -> Result<Tensor> {
    of.expect(channels(input)?)?;
    expect("gradient", masked, input.shape())?;
    cuda::input_grad(gpu(input)?, masked, input, of)
}

/// As [`input_grad`], for the two batchnorms whose outputs a projecting block adds: the gradient is read once.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn input_grad_pair(masked: &Tensor, branches: [(&Tensor, &Coefficients); 2]) -> Result<[Tensor; 2]> {
    let channels = channels(masked)?;
    for (input, of) in branches {
        expect("input", input, masked.shape())?;
        of.expect(channels)?;
    }
    cuda::input_grad_pair(gpu(masked)?, masked, branches)
}

/// The window of a stem's pool, `P` and `Q`, checked.
fn pooled(input: &Tensor, window: Window) -> Result<([usize; 4], [usize; 2])> {
    channels(input)?;
    let extents = nhwc("batchnorm", input)?;
    if window.size != 3 || window.stride < 2 {
        let message = format!("it is fused with pools of 3 × 3 at a stride of 2 or more, not {window:?}");
        return Err(Error::shape("batchnorm", message));
    }
    Ok((extents, [window.output(extents[1])?, window.output(extents[2])?]))
}

/// A stem's `relu(input · factor + offset)` and the maximum of each `window`, of size 3 and a stride of at least 2, in
/// one pass: `[N, P, Q, C]`, and where in its window each maximum lies, u8 `3 · row + column` (the first of equals; a
/// NaN wins).
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit.
pub fn apply_pooled(input: &Tensor, factor: &Tensor, offset: &Tensor, window: Window) -> Result<(Tensor, Tensor)> {
    let (extents, output) = pooled(input, window)?;
    expect("factor", factor, [extents[3]])?;
    expect("offset", offset, [extents[3]])?;
    cuda::apply_pooled(gpu(input)?, input, [factor, offset], extents, output, window)
}

/// The sums of the gradient that reaches the batchnorm through pool and ReLU of [`apply_pooled`], of whose output
/// `grad` is the gradient.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn reduce_pooled(
    grad: &Tensor,
    input: &Tensor,
    positions: &Tensor,
    factor: &Tensor,
    offset: &Tensor,
    mean: &Tensor,
    window: Window,
) -> Result<TileSums> {
    expect("mean", mean, [channels(input)?])?;
    let saved = [grad, input, positions, factor, offset];
    expect_pooled(saved, window)?;
    cuda::reduce_pooled(gpu(input)?, saved, mean, window)
}

/// The gradient of [`apply_pooled`]'s input, `a · g + b · input + c` with g as [`reduce_pooled`] sums it.
///
/// # Errors
/// [`Error::Shape`] if shapes or types do not fit.
pub fn input_grad_pooled(
    grad: &Tensor,
    input: &Tensor,
    positions: &Tensor,
    factor: &Tensor,
    offset: &Tensor,
    window: Window,
    of: &Coefficients,
) -> Result<Tensor> {
    of.expect(channels(input)?)?;
    let saved = [grad, input, positions, factor, offset];
    expect_pooled(saved, window)?;
    cuda::input_grad_pooled(gpu(input)?, saved, of, window)
}

fn expect_pooled([grad, input, positions, factor, offset]: [&Tensor; 5], window: Window) -> Result<()> {
    let ([n, _, _, c], [p, q]) = pooled(input, window)?;
    expect("gradient", grad, [n, p, q, c])?;
    expect("positions", positions, [n, p, q, c])?;
    expect("factor", factor, [c])?;
    expect("offset", offset, [c])
}

impl RunningUpdate<'_> {
    fn check(&self) -> Result<()> {
        expect("running mean", self.mean, self.moments.mean.shape())?;
        expect("running variance", self.variance, self.moments.variance.shape())
    }

    fn on_cpu(&mut self) -> Result<()> {
        cpu::blend(self.mean, &self.moments.mean, self.momentum, 1.0)?;
        cpu::blend(self.variance, &self.moments.variance, self.momentum, self.moments.unbiased())
    }
}

/// As [`Moments::update_running`], for all batchnorms of a step, on any device: on a GPU one launch over `table`, which
/// is to be kept from step to step.
///
/// # Errors
/// [`Error::Shape`] if channel counts differ; then nothing has moved.
pub fn update_running(updates: &mut [RunningUpdate], table: &mut Table) -> Result<()> {
    updates.iter().try_for_each(RunningUpdate::check)?;
    match updates.first().map(|update| update.moments.mean.device().clone()) {
        None => Ok(()),
        Some(Device::Cuda(device)) => cuda::update_running(&device, updates, table),
        Some(Device::Cpu(_)) => updates.iter_mut().try_for_each(RunningUpdate::on_cpu),
    }
}
