//! The launches of `kernels/conv_mma_*.cu`.

use std::sync::Arc;

use super::{
    Factors, GradFinish,
    finish::{self, ForwardFinish},
    table::{Problem, Product, Tile},
};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{Field, Kernel, Params, Source, kernel_params},
    },
    ops::{
        batchnorm::TileSums,
        conv::{
            Epilogue, Extents, TileMoments,
            cuda::{ConvExtents, Finish, in_slices},
        },
        nhwc, small,
    },
};

/// GPUs with tensor cores for bf16, and asynchronous copies.
pub const ARCHS: &[&str] = &["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// Threads of every block.
const THREADS: u32 = 128;

kernel_params! {
    struct ConvMmaForwardParams {
        input: u64,
        weight: u64,
        finish: ForwardFinish,
        extents: ConvExtents,
        rows: u32,
    }
}

kernel_params! {
    struct ConvMmaInputGradParams {
        grad: u64,
        weight: u64,
        finish: finish::GradFinish,
        extents: ConvExtents,
        rows: u32,
    }
}

kernel_params! {
    struct ConvMmaWeightGradParams {
        grad: u64,
        input: u64,
        output: u64,
        extents: ConvExtents,
        master_c: u32,
        master_k: u32,
        pixels: u32,
        slice_pixels: u32,
    }
}

kernel_params! {
    struct PatchProblem {
        images: u64,
        weight: u64,
        h: u32,
        w: u32,
        pixel: u32,
        tiles: u32,
        filters: u32,
    }
}

impl Field for PatchProblem {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct ConvMmaPatchForwardParams {
        problem: PatchProblem,
        finish: ForwardFinish,
    }
}

kernel_params! {
    struct ConvMmaPatchInputGradParams {
        problem: PatchProblem,
        finish: finish::GradFinish,
    }
}

pub static FORWARD_SOURCE: Source = Source {
    name: "conv_mma_forward",
    text: include_str!("../../../../kernels/conv_mma_forward.cu"),
    archs: ARCHS,
    entries: &[
        "conv_mma_forward_bf16_128x128",
        "conv_mma_forward_bf16_128x64",
        "conv_mma_forward_bf16_64x64",
        "conv_mma_forward_bf16_128x64_by4",
        "conv_mma_forward_tf32_128x128",
        "conv_mma_forward_tf32_128x64",
        "conv_mma_forward_tf32_64x64",
    ],
    layouts: &[ConvExtents::LAYOUT, finish::FixedNorm::LAYOUT, ForwardFinish::LAYOUT, ConvMmaForwardParams::LAYOUT],
};

pub static INPUT_GRAD_SOURCE: Source = Source {
    name: "conv_mma_input_grad",
    text: include_str!("../../../../kernels/conv_mma_input_grad.cu"),
    archs: ARCHS,
    entries: &[
        "conv_mma_input_grad_bf16_128x128",
        "conv_mma_input_grad_bf16_128x64",
        "conv_mma_input_grad_bf16_64x64",
        "conv_mma_input_grad_tf32_128x128",
        "conv_mma_input_grad_tf32_128x64",
        "conv_mma_input_grad_tf32_64x64",
    ],
    layouts: &[
        ConvExtents::LAYOUT,
        finish::Partial::LAYOUT,
        finish::GradFinish::LAYOUT,
        ConvMmaInputGradParams::LAYOUT,
    ],
};

pub static WEIGHT_GRAD_SOURCE: Source = Source {
    name: "conv_mma_weight_grad",
    text: include_str!("../../../../kernels/conv_mma_weight_grad.cu"),
    archs: ARCHS,
    entries: &[
        "conv_mma_weight_grad_bf16_128x128",
        "conv_mma_weight_grad_bf16_64x64",
        "conv_mma_weight_grad_bf16_64x64_by4",
        "conv_mma_weight_grad_tf32_128x128",
        "conv_mma_weight_grad_tf32_64x64",
    ],
    layouts: &[ConvExtents::LAYOUT, ConvMmaWeightGradParams::LAYOUT],
};

pub static PATCH_SOURCE: Source = Source {
    name: "conv_mma_patch",
    text: include_str!("../../../../kernels/conv_mma_patch.cu"),
    archs: ARCHS,
    entries: &["conv_mma_patch_forward_bf16", "conv_mma_patch_input_grad_bf16"],
    layouts: &[
        finish::FixedNorm::LAYOUT,
        ForwardFinish::LAYOUT,
        finish::Partial::LAYOUT,
        finish::GradFinish::LAYOUT,
        PatchProblem::LAYOUT,
        ConvMmaPatchForwardParams::LAYOUT,
        ConvMmaPatchInputGradParams::LAYOUT,
    ],
};
static PATCH_FORWARD: Kernel<ConvMmaPatchForwardParams> =
    Kernel::new(&PATCH_SOURCE, "conv_mma_patch_forward_bf16", THREADS);
static PATCH_INPUT_GRAD: Kernel<ConvMmaPatchInputGradParams> =
    Kernel::new(&PATCH_SOURCE, "conv_mma_patch_input_grad_bf16", THREADS);

/// Channels and filters of a group before groups are joined.
#[derive(Clone, Copy, Debug)]
pub struct Master {
    pub c: usize,
    pub k: usize,
}

/// The kernel of a source for these factors and this tile.
fn kernel<P: Params>(cuda: &CudaDevice, source: &'static Source, factors: Factors, tile: Tile) -> Result<Kernel<P>> {
    let factors = match factors {
        Factors::Bf16 => "bf16",
        Factors::Tf32 => "tf32",
    };
    let name = format!("{}_{factors}_{}", source.name, tile.name());
    let entry = source.entries.iter().find(|entry| **entry == name);
    entry
        .map(|entry| Kernel::new(source, entry, THREADS))
        .ok_or_else(|| cuda.error(format!("there is no kernel {name}")))
}

/// A check that kernels can count the elements of these tensors with 32 bits.
fn countable(cuda: &CudaDevice, tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|tensor| u32::try_from(tensor.shape().elements()).is_err()) {
        None => Ok(()),
        Some(tensor) => Err(cuda.error(format!("{} has too many elements; use a smaller batch", tensor.shape()))),
    }
}

/// The convolution of `input` with `weight`; `tile` changes none of its bits.
pub fn forward(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    epilogue: Epilogue,
) -> Result<Tensor> {
    launch_forward(cuda, tile, input, weight, extents, |factors, output| {
        ForwardFinish::new(cuda, factors, output, epilogue)
    })
}

/// The convolution, and the moments of each tile of its output.
pub fn forward_with_moments(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
) -> Result<(Tensor, TileMoments)> {
    let (rows, rows_per_tile) = (extents.n * extents.p * extents.q, tile.sum_rows());
    let tiles = [rows.div_ceil(rows_per_tile), extents.k];
    let [mean, m2] = [Tensor::uninit::<f32>(tiles, cuda)?, Tensor::uninit::<f32>(tiles, cuda)?];
    let moments = TileMoments { rows, rows_per_tile, mean, m2 };
    let output = launch_forward(cuda, tile, input, weight, extents, |factors, output| {
        ForwardFinish::with_moments(cuda, factors, output, &moments)
    })?;
    Ok((output, moments))
}

fn launch_forward(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    finish: impl FnOnce(Factors, &Tensor) -> Result<ForwardFinish>,
) -> Result<Tensor> {
    let factors = Factors::of(weight)?;
    let output = factors.uninit(extents.output(), cuda)?;
    countable(cuda, &[input, weight, &output])?;
    let finish = finish(factors, &output)?;
    let blocks = Problem::new(Product::Forward, factors, extents).tiles(tile);
    if tile == Tile::Patches {
        let problem = PatchProblem::new(cuda, input, weight, extents.group_k())?;
        let params = ConvMmaPatchForwardParams { problem, finish };
        cuda.launch(&PATCH_FORWARD, [blocks, 1, 1], tile.shared(), &params)?;
        return Ok(output);
    }
    let params = ConvMmaForwardParams {
        input: factors.pointer(cuda, input)?,
        weight: factors.pointer(cuda, weight)?,
        finish,
        extents: extents.for_kernels(cuda)?,
        rows: small("conv", extents.n * extents.p * extents.q)?,
    };
    let kernel = kernel(cuda, &FORWARD_SOURCE, factors, tile)?;
    cuda.launch(&kernel, [blocks, 1, 1], tile.shared(), &params)?;
    Ok(output)
}

impl PatchProblem {
    /// Of `images` `[N, H, W, C]` with groups of `filters` filters.
    fn new(cuda: &CudaDevice, images: &Tensor, weight: &Tensor, filters: usize) -> Result<Self> {
        let [n, h, w, pixel] = nhwc("conv", images)?;
        Ok(Self {
            images: Factors::Bf16.pointer(cuda, images)?,
            weight: Factors::Bf16.pointer(cuda, weight)?,
            h: small("conv", h)?,
            w: small("conv", w)?,
            pixel: small("conv", pixel)?,
            tiles: small("conv", n * (h / 8) * (w / 8))?,
            filters: small("conv", filters)?,
        })
    }
}

/// The gradient of the input, `[N, H, W, C]`, and the sums that its sink asks for; `tile` changes none of its bits.
pub fn input_grad(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    output_grad: &Tensor,
    flipped: &Tensor,
    extents: &Extents,
    finish: GradFinish,
) -> Result<(Tensor, Option<TileSums>)> {
    let factors = Factors::of(flipped)?;
    let output = factors.uninit([extents.n, extents.h, extents.w, extents.c], cuda)?;
    countable(cuda, &[output_grad, flipped, &output])?;
    // Of the largest class of pixels; see the kernel.
    let classes = extents.stride * extents.stride;
    let rows = extents.n * extents.h.div_ceil(extents.stride) * extents.w.div_ceil(extents.stride);
    let tiles = classes * rows.div_ceil(tile.sum_rows());
    let uninit = || Tensor::uninit::<f32>([tiles, extents.c], cuda);
    let sums = finish.sink.map(|_| Ok(TileSums { sum: uninit()?, product: uninit()? })).transpose()?;
    let finish = finish::GradFinish::new(cuda, factors, &output, extents, finish, sums.as_ref())?;
    let [tile_rows, tile_cols] = tile.extents();
    let blocks = classes * rows.div_ceil(tile_rows) * extents.group_c().div_ceil(tile_cols) * extents.groups;
    if tile == Tile::Patches {
        let problem = PatchProblem::new(cuda, output_grad, flipped, extents.group_c())?;
        let params = ConvMmaPatchInputGradParams { problem, finish };
        cuda.launch(&PATCH_INPUT_GRAD, [blocks, 1, 1], tile.shared(), &params)?;
        return Ok((output, sums));
    }
    let params = ConvMmaInputGradParams {
        grad: factors.pointer(cuda, output_grad)?,
        weight: factors.pointer(cuda, flipped)?,
        finish,
        extents: extents.for_kernels(cuda)?,
        rows: small("conv", rows)?,
    };
    let kernel = kernel(cuda, &INPUT_GRAD_SOURCE, factors, tile)?;
    cuda.launch(&kernel, [blocks, 1, 1], tile.shared(), &params)?;
    Ok((output, sums))
}

/// The gradient of the weight, in the shape of the f32 master, `[K, R, S, master_c]`. `slices` is how many parts the
/// reduction has and how many pixels each but the last, as [`Problem::slices`] says; `tile` changes none of the bits.
pub fn weight_grad(
    cuda: &Arc<CudaDevice>,
    tile: Tile,
    (slices, slice_pixels): (usize, usize),
    output_grad: &Tensor,
    input: &Tensor,
    extents: &Extents,
    master: Master,
) -> Result<Tensor> {
    let factors = Factors::of(output_grad)?;
    countable(cuda, &[output_grad, input])?;
    let shape = [extents.k, extents.r, extents.s, master.c];
    in_slices(cuda, shape, slices, Finish::default(), |output| {
        let params = ConvMmaWeightGradParams {
            grad: factors.pointer(cuda, output_grad)?,
            input: factors.pointer(cuda, input)?,
            output: output.pointer::<f32>(cuda)?,
            extents: extents.for_kernels(cuda)?,
            master_c: small("conv", master.c)?,
            master_k: small("conv", master.k)?,
            pixels: small("conv", extents.n * extents.p * extents.q)?,
            slice_pixels: small("conv", slice_pixels)?,
        };
        let blocks = Problem::new(Product::WeightGrad, factors, extents).tiles(tile) * slices;
        let kernel = kernel(cuda, &WEIGHT_GRAD_SOURCE, factors, tile)?;
        cuda.launch(&kernel, [blocks, 1, 1], tile.shared(), &params)
    })
}
