//! The 1×1 convolution of Hopper GPUs: the launches of `kernels/conv_1x1_sm90.cu`.

mod finish;
#[cfg(test)]
mod tests;

use finish::{ForwardFinish, GradFinish};
use half::bf16;

use super::Extents;
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{EncodedMap, Field, Kernel, Params, Source, Swizzle, TensorMap, TensorMode, TensorType, kernel_params},
    },
    ops::small,
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

/// Tiles of 128 pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// By 256 filters.
    Wide,
    /// By 128 filters.
    Narrow,
}

impl Tile {
    /// The tile for a product of so many columns.
    pub fn of(cols: usize) -> Self {
        if cols > Tile::Narrow.cols() { Tile::Wide } else { Tile::Narrow }
    }

    fn cols(self) -> usize {
        match self {
            Tile::Wide => 256,
            Tile::Narrow => 128,
        }
    }

    fn stages(self) -> usize {
        match self {
            Tile::Wide => 3,
            Tile::Narrow => 5,
        }
    }

    /// Bytes of a block's shared memory, as the kernel lays it out: stages, the sums of two consumers, barriers.
    fn shared(self) -> usize {
        let (stage, sums) = ((ROWS + self.cols()) * DEPTH * size_of::<bf16>(), 64 * (64 + 8) * size_of::<f32>());
        self.stages() * stage + 2 * sums + self.stages() * 2 * size_of::<u64>()
    }

    /// Pairs of tiles that a product of so many rows and columns takes: one for each cluster at a time.
    pub fn pairs(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(BLOCKS * ROWS) * cols.div_ceil(self.cols())
    }
}

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
    let clusters = pairs.min((cuda.properties().multiprocessors as usize / BLOCKS).max(1));
    let params = params(Conv1x1Product::new(cuda, input, weight, extents, tile)?);
    cuda.launch(&kernels[tile as usize], [clusters * BLOCKS, 1, 1], tile.shared(), &params)
}

/// The outputs of `input` `[N, H, W, C]` and `weight` `[K, 1, 1, C]`, in bf16, as `finish` has them stored.
pub fn forward(
    cuda: &CudaDevice,
    operands: [&Tensor; 2],
    extents: &Extents,
    finish: ForwardFinish,
    tile: Tile,
) -> Result<()> {
    launch(cuda, &FORWARD, operands, extents, tile, |product| Conv1x1ForwardParams { product, finish })
}

/// The gradients of an input, as `finish` has them stored: of the output's gradient `[N, P, Q, K]` and the flipped
/// weight `[C, 1, 1, K]`, convolved forward; `extents` are those of that convolution.
pub fn input_grad(
    cuda: &CudaDevice,
    operands: [&Tensor; 2],
    extents: &Extents,
    finish: GradFinish,
    tile: Tile,
) -> Result<()> {
    launch(cuda, &INPUT_GRAD, operands, extents, tile, |product| Conv1x1InputGradParams { product, finish })
}
