//! The convolutions on tensor cores, for GPUs of compute capability 8.0 or more: bf16 activations and weights, or f32
//! ones that are multiplied as TF32 (the weight's element type says which); sums, statistics and weight gradients are
//! f32.
//!
//! Activations `[N, H, W, C]` as everywhere. Channels that are read are multiples of 4 (images have a fourth one of
//! zeros), channels that are written multiples of 8. Weights are [`Packed`]: see there.

mod cuda;
pub(super) mod finish;
mod pack;
pub(super) mod table;
#[cfg(test)]
mod tests;

use cuda::Master;
pub(in crate::ops) use cuda::{FORWARD_SOURCE, INPUT_GRAD_SOURCE, PATCH_SOURCE, WEIGHT_GRAD_SOURCE};
pub(in crate::ops) use pack::SOURCE as PACK_SOURCE;
pub use pack::pack;
use table::{Gpu, Problem, Product};

use std::sync::Arc;

use half::bf16;

use super::{Epilogue, Extents, Geometry, TileMoments, hopper};
use crate::{
    Device, Error, Result, Shape, Tensor,
    autograd::Packed,
    device::CudaDevice,
    ops::{
        batchnorm::{Sink, TileSums},
        expect_shape,
    },
    tensor::DType,
};

/// Taps that a window may have a side: what the kernels' masks hold.
const MOST_TAPS: usize = 15;

/// Channels or filters that joined groups have at most.
const JOINED: usize = 64;

/// What becomes of the gradient of an input before it is stored: `g = dx + partial` where the sink's mask allows, else
/// 0.
#[derive(Clone, Copy, Default)]
pub struct GradFinish<'a> {
    /// A gradient from elsewhere, added.
    pub partial: Option<Partial<'a>>,
    /// The batchnorm that made the input: its mask, and the sums that it asks for.
    pub sink: Option<&'a Sink>,
}

/// A gradient that is added to another, of the same channels.
#[derive(Clone, Copy)]
pub enum Partial<'a> {
    /// Of every pixel: the same shape.
    Dense(&'a Tensor),
    /// Of the pixels whose coordinates are multiples of `stride`, as [`input_grad_strided`] makes it.
    Strided {
        /// `[N, ceil(H / stride), ceil(W / stride), C]`.
        grad: &'a Tensor,
        /// Pixels from one to the next.
        stride: usize,
    },
}

/// What tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Factors {
    Bf16,
    Tf32,
}

impl Factors {
    pub fn of(tensor: &Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::BF16 => Ok(Factors::Bf16),
            DType::F32 => Ok(Factors::Tf32),
            other => Err(Error::shape("conv", format!("tensor cores multiply bf16 or f32, not {other:?}"))),
        }
    }

    /// A tensor of such elements, which a kernel is about to write.
    pub fn uninit(self, shape: impl Into<Shape>, cuda: &Arc<CudaDevice>) -> Result<Tensor> {
        match self {
            Factors::Bf16 => Tensor::uninit::<bf16>(shape, cuda),
            Factors::Tf32 => Tensor::uninit::<f32>(shape, cuda),
        }
    }

    /// The address of the elements of a tensor that should be such.
    pub fn pointer(self, cuda: &CudaDevice, tensor: &Tensor) -> Result<u64> {
        match self {
            Factors::Bf16 => tensor.pointer::<bf16>(cuda),
            Factors::Tf32 => tensor.pointer::<f32>(cuda),
        }
    }

    /// The same of a tensor that may not be there: 0 then.
    pub fn optional(self, cuda: &CudaDevice, tensor: Option<&Tensor>) -> Result<u64> {
        tensor.map_or(Ok(0), |tensor| self.pointer(cuda, tensor))
    }
}

/// How many narrow groups are made one: the most that divide their number and stay within [`JOINED`] channels and
/// filters.
pub(in crate::ops) fn joined(groups: usize, group_c: usize, group_k: usize) -> usize {
    let fits = |count: &usize| groups.is_multiple_of(*count) && count * group_c.max(group_k) <= JOINED;
    (1..=groups.min(JOINED)).rev().find(fits).unwrap_or(1)
}

/// The extents of a convolution with its groups joined. `weight` is [`Packed::forward`]'s shape.
fn extents(input: Shape, weight: Shape, geometry: Geometry) -> Result<Extents> {
    let fail = |why: &str| {
        Error::shape("conv", format!("{why}: input {input}, packed weight {weight}, {geometry:?}, on tensor cores"))
    };
    let (c, k, groups) = (input.last(), weight.dims().first().copied().unwrap_or(0), geometry.groups);
    if groups == 0 || !c.is_multiple_of(groups) || !k.is_multiple_of(groups) {
        return Err(fail("channels and groups do not fit"));
    }
    let geometry = Geometry { groups: groups / joined(groups, c / groups, k / groups), ..geometry };
    let extents = Extents::new(input, weight, geometry)?;
    if !extents.group_c().is_multiple_of(4) || !extents.group_k().is_multiple_of(8) {
        return Err(fail("channels of a group should be multiples of 4, filters of 8"));
    }
    if extents.r.max(extents.s) > MOST_TAPS {
        return Err(fail("windows are of at most 15 by 15"));
    }
    Ok(extents)
}

/// The GPU that holds a tensor.
fn gpu(tensor: &Tensor) -> Result<&Arc<CudaDevice>> {
    match tensor.device() {
        Device::Cuda(cuda) => Ok(cuda),
        device @ Device::Cpu(_) => {
            let message = "tensor cores are a GPU's; use conv::forward and its gradients".into();
            Err(Error::Device { device: device.to_string(), message })
        }
    }
}

/// The convolution of `input` `[N, H, W, C]`, with `epilogue` applied to each output, in one launch; its batchnorm is
/// f32, a residual is stored as the input. Output `[N, P, Q, K]`.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit; [`Error::Device`] on a device without tensor cores.
pub fn forward(input: &Tensor, packed: &Packed, geometry: Geometry, epilogue: Epilogue) -> Result<Tensor> {
    let extents = extents(input.shape(), packed.forward.shape(), geometry)?;
    epilogue.expect(extents.output())?;
    let (cuda, factors) = (gpu(input)?, Factors::of(&packed.forward)?);
    if let Some(tile) = hopper::Tile::choose(Gpu::of(cuda), Product::Forward, factors, &extents) {
        return hopper::forward(cuda, tile, input, &packed.forward, &extents, epilogue);
    }
    let tile = Problem::new(Product::Forward, factors, &extents).tile(Gpu::of(cuda));
    cuda::forward(cuda, tile, input, &packed.forward, &extents, epilogue)
}

/// The convolution, and the moments of its output as it is stored.
///
/// # Errors
/// As of [`forward`].
pub fn forward_with_moments(input: &Tensor, packed: &Packed, geometry: Geometry) -> Result<(Tensor, TileMoments)> {
    let extents = extents(input.shape(), packed.forward.shape(), geometry)?;
    let (cuda, factors) = (gpu(input)?, Factors::of(&packed.forward)?);
    if let Some(tile) = hopper::Tile::choose(Gpu::of(cuda), Product::Forward, factors, &extents) {
        return hopper::forward_with_moments(cuda, tile, input, &packed.forward, &extents);
    }
    let tile = Problem::new(Product::Forward, factors, &extents).tile(Gpu::of(cuda));
    cuda::forward_with_moments(cuda, tile, input, &packed.forward, &extents)
}

/// The gradient of an input of shape `input` from that of the output, `[N, P, Q, K]`, finished as `finish` says; with
/// the sums that its sink asks for.
///
/// # Errors
/// As of [`forward`]; [`Error::Shape`] too if the weight has no flipped copy.
pub fn input_grad(
    output_grad: &Tensor,
    packed: &Packed,
    input: Shape,
    geometry: Geometry,
    finish: GradFinish,
) -> Result<(Tensor, Option<TileSums>)> {
    const OP: &str = "conv input gradient";
    let extents = extents(input, packed.forward.shape(), geometry)?;
    let flipped = packed.flipped.as_ref();
    let flipped = flipped.ok_or_else(|| Error::shape(OP, "the weight was packed without its flipped copy"))?;
    if !extents.group_c().is_multiple_of(8) {
        return Err(Error::shape(OP, format!("{} channels of a group are no multiple of 8", extents.group_c())));
    }
    expect_shape(OP, "output gradient", output_grad, extents.output())?;
    expect_shape(OP, "flipped weight", flipped, [extents.c, extents.r, extents.s, extents.group_k()])?;
    let rows = extents.n * extents.h * extents.w;
    match finish.partial {
        Some(Partial::Dense(partial)) => expect_shape(OP, "partial gradient", partial, input)?,
        Some(Partial::Strided { stride: 0, .. }) => {
            return Err(Error::shape(OP, "a partial gradient has a stride of 0"));
        }
        Some(Partial::Strided { grad, stride }) => {
            let shape = [extents.n, extents.h.div_ceil(stride), extents.w.div_ceil(stride), extents.c];
            expect_shape(OP, "partial gradient", grad, shape)?;
        }
        None => {}
    }
    if let Some(sink) = finish.sink {
        if let Some(mask) = &sink.mask {
            expect_shape(OP, "mask", mask, [rows, extents.c / 8])?;
        }
        expect_shape(OP, "input of the batchnorm", &sink.input, input)?;
        expect_shape(OP, "mean", &sink.mean, [extents.c])?;
    }
    let (cuda, factors) = (gpu(output_grad)?, Factors::of(flipped)?);
    if let Some(tile) = hopper::Tile::choose(Gpu::of(cuda), Product::InputGrad, factors, &extents) {
        return hopper::input_grad(cuda, tile, output_grad, flipped, &extents, finish);
    }
    let tile = Problem::new(Product::InputGrad, factors, &extents).tile(Gpu::of(cuda));
    cuda::input_grad(cuda, tile, output_grad, flipped, &extents, finish)
}

/// The gradient of the pixels that a 1×1 convolution reads, those whose coordinates are multiples of its stride: what
/// [`Partial::Strided`] adds to another. `[N, P, Q, C]` from `[N, P, Q, K]`.
///
/// # Errors
/// As of [`input_grad`]; [`Error::Shape`] too if the window is not 1×1.
pub fn input_grad_strided(output_grad: &Tensor, packed: &Packed) -> Result<Tensor> {
    let (&[n, p, q, _], Some(flipped)) = (output_grad.dims(), &packed.flipped) else {
        let message = format!("expected gradients [N, P, Q, K] and a flipped weight, got {}", output_grad.shape());
        return Err(Error::shape("conv input gradient", message));
    };
    let input = [n, p, q, flipped.dims()[0]].into();
    let geometry = Geometry { groups: packed.groups, ..Geometry::default() };
    Ok(input_grad(output_grad, packed, input, geometry, GradFinish::default())?.0)
}

/// The gradient of the weight, f32, in the master's shape `weight` `[K, R, S, C / groups]`, which has three channels
/// for images of four.
///
/// # Errors
/// As of [`forward`].
pub fn weight_grad(output_grad: &Tensor, input: &Tensor, weight: Shape, geometry: Geometry) -> Result<Tensor> {
    const OP: &str = "conv weight gradient";
    let &[k, r, s, master_c] = weight.dims() else {
        return Err(Error::shape(OP, format!("expected a weight [K, R, S, C], got {weight}")));
    };
    if geometry.groups == 0 || !k.is_multiple_of(geometry.groups) {
        return Err(Error::shape(OP, format!("{} groups do not fit {weight}", geometry.groups)));
    }
    let master = Master { c: master_c, k: k / geometry.groups };
    let width_c = (joined(geometry.groups, master.c, master.k) * master.c).next_multiple_of(4);
    let extents = extents(input.shape(), [k, r, s, width_c].into(), geometry)?;
    expect_shape(OP, "output gradient", output_grad, extents.output())?;
    let cuda = gpu(output_grad)?;
    if extents.n == 0 {
        return Tensor::zeros(weight, output_grad.device());
    }
    let problem = Problem::new(Product::WeightGrad, Factors::of(output_grad)?, &extents);
    let tile = problem.tile(Gpu::of(cuda));
    let slices = problem.slices(tile, extents.n * extents.p * extents.q);
    cuda::weight_grad(cuda, tile, slices, output_grad, input, &extents, master)
}
