//! Two-dimensional convolution (cross-correlation, as everywhere in the field) and its two gradients.
//!
//! Activations `[N, H, W, C]`, weights `[K, R, S, C / groups]`, outputs `[N, P, Q, K]` with
//! `P = (H + 2·padding − R) / stride + 1`.

mod cpu;
pub(super) mod cuda;
mod grad;
pub(super) mod hopper;
pub mod mma;
#[doc(hidden)]
pub mod naive;
pub(super) mod plan;
#[cfg(test)]
mod tests;

pub use grad::{conv, conv_packed, conv_with_moments};

use super::{batchnorm::FixedNorm, expect_shape, nhwc};
use crate::{Device, Error, Result, Shape, Tensor};
use plan::Problem;

/// How the window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Step of the window, both ways. Default 1.
    pub stride: usize,
    /// Zeros added on each side. Default 0.
    pub padding: usize,
    /// Independent groups of channels. Default 1.
    pub groups: usize,
}

impl Default for Geometry {
    fn default() -> Self {
        Self { stride: 1, padding: 0, groups: 1 }
    }
}

/// What is done to each output before it is stored: `relu(norm(y) + residual)`.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// A batchnorm over the filters, `[K]`.
    pub norm: Option<FixedNorm<'a>>,
    /// Added to the output, `[N, P, Q, K]`.
    pub residual: Option<&'a Tensor>,
    /// Whether negative results become zero.
    pub relu: bool,
}

/// Moments of a convolution's output `[rows, K]` per tile of rows and channel, as its kernel leaves them behind: what
/// batchnorm merges into the batch's. Tile `i` holds the rows from `i · rows_per_tile` on.
#[derive(Clone, Debug)]
pub struct TileMoments {
    /// Rows in all.
    pub rows: usize,
    /// Rows of each tile but the last, which may have fewer.
    pub rows_per_tile: usize,
    /// Means, `[tiles, K]`.
    pub mean: Tensor,
    /// Sums of squared distances from the tile's mean, `[tiles, K]`.
    pub m2: Tensor,
}

impl Epilogue<'_> {
    /// That it fits an output `[N, P, Q, K]`.
    fn expect(&self, output: Shape) -> Result<()> {
        if let Some(norm) = self.norm {
            norm.expect("conv", output.last())?;
        }
        match self.residual {
            Some(residual) => expect_shape("conv", "residual", residual, output),
            None => Ok(()),
        }
    }
}

/// All extents of a convolution, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    r: usize,
    s: usize,
    p: usize,
    q: usize,
    stride: usize,
    padding: usize,
    groups: usize,
}

impl Extents {
    fn new(input: Shape, weight: Shape, geometry: Geometry) -> Result<Self> {
        let Geometry { stride, padding, groups } = geometry;
        let fail = |why: &str| Error::shape("conv", format!("{why}: input {input}, weight {weight}, {geometry:?}"));
        let (&[n, h, w, c], &[k, r, s, channels]) = (input.dims(), weight.dims()) else {
            return Err(fail("expected input [N, H, W, C] and weight [K, R, S, C]"));
        };
        if stride == 0 || groups == 0 || channels * groups != c || !k.is_multiple_of(groups) {
            return Err(fail("channels, groups and stride do not fit"));
        }
        if [h, w, c, k, r, s].contains(&0) {
            return Err(fail("only the batch may be empty"));
        }
        if h + 2 * padding < r || w + 2 * padding < s {
            return Err(fail("the window is larger than the padded input; use larger images"));
        }
        let (p, q) = ((h + 2 * padding - r) / stride + 1, (w + 2 * padding - s) / stride + 1);
        Ok(Self { n, h, w, c, k, r, s, p, q, stride, padding, groups })
    }

    /// Input channels of one group.
    fn group_c(&self) -> usize {
        self.c / self.groups
    }

    /// Output channels of one group.
    fn group_k(&self) -> usize {
        self.k / self.groups
    }

    /// Length of one window of one group.
    fn window(&self) -> usize {
        self.r * self.s * self.group_c()
    }

    fn output(&self) -> Shape {
        [self.n, self.p, self.q, self.k].into()
    }
}

/// The convolution, with `epilogue` applied to each output. Output `[N, P, Q, K]`.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit.
pub fn forward(input: &Tensor, weight: &Tensor, geometry: Geometry, epilogue: Epilogue) -> Result<Tensor> {
    let extents = Extents::new(input.shape(), weight.shape(), geometry)?;
    epilogue.expect(extents.output())?;
    match input.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, input, weight, &extents, epilogue),
        Device::Cuda(cuda) => {
            // A launch of its own: where slices are merged a thread has one output, too little to fold a batchnorm for.
            let folded = epilogue.norm.map(|norm| norm.fold()).transpose()?;
            let [scale, shift] = folded.as_ref().map_or([None; 2], |(factor, offset)| [Some(factor), Some(offset)]);
            let finish = cuda::Finish { scale, shift, residual: epilogue.residual, relu: epilogue.relu };
            cuda::forward(cuda, input, weight, &extents, finish, Problem::forward(&extents).plan())
        }
    }
}

/// The convolution, and the moments of its output where the device takes them in the same pass: a GPU does, except
/// where there is so little to compute that blocks share the sums.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit.
pub fn forward_with_moments(
    input: &Tensor,
    weight: &Tensor,
    geometry: Geometry,
) -> Result<(Tensor, Option<TileMoments>)> {
    let extents = Extents::new(input.shape(), weight.shape(), geometry)?;
    let plan = Problem::forward(&extents).plan();
    match input.device() {
        Device::Cuda(cuda) if plan.slices == 1 && extents.n > 0 => {
            let (output, moments) = cuda::forward_with_moments(cuda, input, weight, &extents, plan.tile)?;
            Ok((output, Some(moments)))
        }
        Device::Cpu(_) | Device::Cuda(_) => Ok((forward(input, weight, geometry, Epilogue::default())?, None)),
    }
}

/// The gradient of the input, `[N, H, W, C]`, from that of the output, `[N, P, Q, K]`.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit.
pub fn input_grad(output_grad: &Tensor, weight: &Tensor, input: Shape, geometry: Geometry) -> Result<Tensor> {
    let extents = Extents::new(input, weight.shape(), geometry)?;
    expect_shape("conv input gradient", "output gradient", output_grad, extents.output())?;
    match output_grad.device() {
        Device::Cpu(cpu) => cpu::input_grad(cpu, output_grad, weight, &extents),
        Device::Cuda(cuda) => {
            cuda::input_grad(cuda, output_grad, weight, &extents, Problem::input_grad(&extents).plan())
        }
    }
}

/// The gradient of the weight, `[K, R, S, C / groups]`.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit.
pub fn weight_grad(output_grad: &Tensor, input: &Tensor, weight: Shape, geometry: Geometry) -> Result<Tensor> {
    let extents = Extents::new(input.shape(), weight, geometry)?;
    expect_shape("conv weight gradient", "output gradient", output_grad, extents.output())?;
    nhwc("conv weight gradient", input)?;
    match input.device() {
        Device::Cpu(cpu) => cpu::weight_grad(cpu, output_grad, input, &extents),
        Device::Cuda(cuda) => {
            cuda::weight_grad(cuda, output_grad, input, &extents, Problem::weight_grad(&extents).sliced_plan())
        }
    }
}
