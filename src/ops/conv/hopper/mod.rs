//! The 1×1 convolution of Hopper GPUs: the launches of `kernels/conv_1x1_sm90.cu`.

mod table;
#[cfg(test)]
mod tests;

pub use table::Tile;

use std::sync::Arc;

use half::bf16;

use super::{
    Epilogue, Extents, TileMoments,
    mma::{
        Factors,
        finish::{self, ForwardFinish, GradFinish},
    },
};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{EncodedMap, Field, Kernel, Params, Source, Swizzle, TensorMap, TensorMode, TensorType, kernel_params},
    },
    ops::{batchnorm::TileSums, conv::mma, small},
};

kernel_params! {
    /// A product of matrices: `input` `[N, H, W, C]`, or every so-many-th of its pixels, by `weight` `[K, 1, 1, C]`.
    pub struct Conv1x1Product {
        input: EncodedMap,
        weight: EncodedMap,
        pixels: u32,
        depth: u32,
        cols: u32,
        stride: u32,
        p: u32,
        q: u32,
    }
}

impl Field for Conv1x1Product {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct Conv1x1ForwardParams {
        product: Conv1x1Product,
        finish: ForwardFinish,
    }
}

kernel_params! {
    struct Conv1x1InputGradParams {
        product: Conv1x1Product,
        finish: GradFinish,
    }
}

pub static SOURCE: Source = Source {
    name: "conv_1x1_sm90",
    text: include_str!("../../../../kernels/conv_1x1_sm90.cu"),
    archs: &["sm_90a"],
    entries: &[
        "conv_1x1_forward_128x256",
        "conv_1x1_forward_128x128",
        "conv_1x1_input_grad_128x256",
        "conv_1x1_input_grad_128x128",
    ],
    layouts: &[
        Conv1x1Product::LAYOUT,
        finish::Partial::LAYOUT,
        finish::FixedNorm::LAYOUT,
        ForwardFinish::LAYOUT,
        GradFinish::LAYOUT,
        Conv1x1ForwardParams::LAYOUT,
        Conv1x1InputGradParams::LAYOUT,
    ],
};

/// The kernels, in the order of [`Tile`].
static FORWARD: [Kernel<Conv1x1ForwardParams>; 2] = [
    Kernel::new(&SOURCE, "conv_1x1_forward_128x256", THREADS).clustered(BLOCKS as u32),
    Kernel::new(&SOURCE, "conv_1x1_forward_128x128", THREADS).clustered(BLOCKS as u32),
];
static INPUT_GRAD: [Kernel<Conv1x1InputGradParams>; 2] = [
    Kernel::new(&SOURCE, "conv_1x1_input_grad_128x256", THREADS).clustered(BLOCKS as u32),
    Kernel::new(&SOURCE, "conv_1x1_input_grad_128x128", THREADS).clustered(BLOCKS as u32),
];

/// Blocks of a cluster, and threads of each.
const BLOCKS: usize = 2;
const THREADS: u32 = 384;
/// Pixels of a block's tile, and of the parts of it that sums are taken of.
const ROWS: usize = 128;
pub const ROWS_PER_SUM: usize = 64;
/// Channels of a stage: 128 bytes, which is also the span of the swizzle.
const DEPTH: usize = 64;

impl Conv1x1Product {
    fn new(cuda: &CudaDevice, input: &Tensor, weight: &Tensor, extents: &Extents, tile: Tile) -> Result<Self> {
        let Extents { n, h, w, c, k, p, q, stride, .. } = *extents;
        let pixels = n * p * q;
        let rows = |rows: usize| TensorMode::Tiled { extents: vec![DEPTH as u32, rows as u32] };
        let windows = TensorMode::Im2col { lower: [0; 2], upper: [0; 2], channels: DEPTH as u32, pixels: ROWS as u32 };
        Ok(Self {
            input: match stride {
                1 => map(cuda, input, &[c, pixels], &[1; 2], rows(ROWS))?,
                _ => map(cuda, input, &[c, w, h, n], &[1, stride, stride, 1], windows)?,
            },
            weight: map(cuda, weight, &[c, k], &[1; 2], rows(tile.cols() / BLOCKS))?,
            // A tile may reach beyond the last row.
            pixels: small("conv", pixels + BLOCKS * ROWS)? - (BLOCKS * ROWS) as u32,
            depth: small("conv", c)?,
            cols: small("conv", k)?,
            stride: small("conv", stride)?,
            p: small("conv", p)?,
            q: small("conv", q)?,
        })
    }
}

/// What the copy engine is told of a dense tensor of bf16.
fn map(cuda: &CudaDevice, tensor: &Tensor, extents: &[usize], steps: &[usize], mode: TensorMode) -> Result<EncodedMap> {
    let mut stride = size_of::<bf16>();
    let strides = extents[..extents.len() - 1].iter().map(|extent| {
        stride *= extent;
        stride as u64
    });
    cuda.driver().tensor_map(&TensorMap {
        element: TensorType::Bf16,
        address: tensor.pointer::<bf16>(cuda)?,
        extents: extents.iter().map(|extent| *extent as u64).collect(),
        strides: strides.collect(),
        steps: steps.iter().map(|step| *step as u32).collect(),
        mode,
        swizzle: Swizzle::B128,
    })
}

/// Launches one of the kernels of each tile: one block for each multiprocessor, or fewer for few tiles.
fn launch<P: Params>(
    cuda: &CudaDevice,
    kernels: &[Kernel<P>; 2],
    [input, weight]: [&Tensor; 2],
    extents: &Extents,
    tile: Tile,
    params: impl FnOnce(Conv1x1Product) -> P,
) -> Result<()> {
    let pairs = tile.pairs(extents.n * extents.p * extents.q, extents.k);
    if pairs == 0 {
        return Ok(());
    }
    let clusters = clusters(pairs, tile.across(extents.k), cuda.properties().multiprocessors as usize);
    let params = params(Conv1x1Product::new(cuda, input, weight, extents, tile)?);
    cuda.launch(&kernels[tile as usize], [clusters * BLOCKS, 1, 1], tile.shared(), &params)
}

/// Clusters for so many pairs of tiles, whose number lies `across` side by side: of the same columns for each cluster, where
/// that takes few from the others, so that it folds a batchnorm once.
fn clusters(pairs: usize, across: usize, multiprocessors: usize) -> usize {
    let most = (multiprocessors / BLOCKS).max(1);
    if pairs <= most {
        return pairs;
    }
    // An eighth at most is left idle.
    if most % across <= most / 8 { most - most % across } else { most }
}

/// The convolution of `input` `[N, H, W, C]` with `weight` `[K, 1, 1, C]`, both of bf16; `tile` changes none of its
/// bits.
pub fn forward(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    epilogue: Epilogue,
) -> Result<Tensor> {
    let output = Factors::Bf16.uninit(extents.output(), cuda)?;
    let finish = ForwardFinish::new(cuda, Factors::Bf16, &output, epilogue)?;
    let params = |product| Conv1x1ForwardParams { product, finish };
    launch(cuda, &FORWARD, [input, weight], extents, tile, params)?;
    Ok(output)
}

/// The convolution, and the moments of its output.
pub fn forward_with_moments(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
) -> Result<(Tensor, TileMoments)> {
    let (output, rows) = (Factors::Bf16.uninit(extents.output(), cuda)?, extents.n * extents.p * extents.q);
    let [mean, m2] = sums(cuda, rows, extents.k)?;
    let moments = TileMoments { rows, rows_per_tile: ROWS_PER_SUM, mean, m2 };
    let finish = ForwardFinish::with_moments(cuda, Factors::Bf16, &output, &moments)?;
    let params = |product| Conv1x1ForwardParams { product, finish };
    launch(cuda, &FORWARD, [input, weight], extents, tile, params)?;
    Ok((output, moments))
}

/// The gradient of the input of a convolution of stride 1, from that of its output, `[N, H, W, K]`, and the flipped
/// weight, `[C, 1, 1, K]`: a product like the forward one, with channels and filters exchanged. With the sums that its
/// sink asks for.
pub fn input_grad(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    output_grad: &Tensor,
    flipped: &Tensor,
    extents: &Extents,
    finish: mma::GradFinish,
) -> Result<(Tensor, Option<TileSums>)> {
    let Extents { n, h, w, c, k, .. } = *extents;
    let output = Factors::Bf16.uninit([n, h, w, c], cuda)?;
    let tile_sums = |[sum, product]: [Tensor; 2]| TileSums { sum, product };
    let sums = finish.sink.map(|_| sums(cuda, n * h * w, c).map(tile_sums)).transpose()?;
    let finish = GradFinish::new(cuda, Factors::Bf16, &output, extents, finish, sums.as_ref())?;
    let exchanged = Extents { c: k, k: c, ..*extents };
    let params = |product| Conv1x1InputGradParams { product, finish };
    launch(cuda, &INPUT_GRAD, [output_grad, flipped], &exchanged, tile, params)?;
    Ok((output, sums))
}

/// Memory for two sums of each part of the rows, per column.
fn sums(cuda: &Arc<CudaDevice>, rows: usize, cols: usize) -> Result<[Tensor; 2]> {
    let uninit = || Tensor::uninit::<f32>([rows.div_ceil(ROWS_PER_SUM), cols], cuda);
    Ok([uninit()?, uninit()?])
}
