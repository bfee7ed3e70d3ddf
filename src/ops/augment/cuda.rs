//! The launcher of `kernels/augment.cu`.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Levels, Patch, Placement};
use crate::{
    Precision, Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    tensor::cuda::ByType,
};

pub(in crate::ops) static SOURCE: Source = Source {
    name: "augment",
    text: include_str!("../../../kernels/augment.cu"),
    archs: F32_ARCHS,
    entries: &["augment", "augment_x4", "augment_bf16", "pack_images_x4", "pack_images_bf16"],
    layouts: &[AugmentParams::LAYOUT, Picture::LAYOUT, PackImagesParams::LAYOUT],
};

/// Threads of a block.
const THREADS: u32 = 256;

static AUGMENT: Kernel<AugmentParams> = Kernel::new(&SOURCE, "augment", THREADS);
static AUGMENT_PACKED: ByType<AugmentParams> = ByType::new(&SOURCE, "augment_x4", "augment_bf16", THREADS);
static PACK_IMAGES: ByType<PackImagesParams> = ByType::new(&SOURCE, "pack_images_x4", "pack_images_bf16", THREADS);

/// Pixels that a block makes.
const TILE: usize = 1024;

kernel_params! {
    struct AugmentParams {
        pixels: u64,
        pictures: u64,
        output: u64,
        height: u32,
        width: u32,
        tiles: u32,
        mean: [f32; 3],
        std: [f32; 3],
    }
}

kernel_params! {
    /// One entry of the table that tells the kernel of each picture.
    struct Picture {
        start: [i64; 2],
        across: [i64; 2],
        down: [i64; 2],
        offset: u64,
        width: u32,
        pad: u32,
        origin: [u32; 2],
        image: [u32; 2],
        gain: f32,
        lift: f32,
    }
}

kernel_params! {
    struct PackImagesParams {
        images: u64,
        output: u64,
        pixels: u64,
    }
}

impl Picture {
    const BYTES: usize = Self::LAYOUT.size;

    fn new(patch: &Patch, offset: usize, [gain, lift]: [f32; 2]) -> Self {
        let Placement { origin, image, pad, start, across, down, .. } = *patch.placement();
        Self { start, across, down, offset: offset as u64, width: patch.width(), pad, origin, image, gain, lift }
    }
}

pub(super) fn augment(
    patches: &[Patch],
    levels: Levels,
    shape: [usize; 4],
    precision: Precision,
    cuda: &Arc<CudaDevice>,
) -> Result<Tensor> {
    let ([n, height, width, _], dtype) = (shape, precision.storage());
    let kernel = match precision {
        Precision::F32 => &AUGMENT,
        Precision::Tf32 | Precision::Bf16 => AUGMENT_PACKED.of(dtype)?,
    };
    // Crosses beside the kernels of the step before.
    let block = cuda.stage(&pack(patches, levels, cuda))?;
    let output = Tensor::uninit_of(dtype, shape, cuda)?;
    let tiles = (height * width).div_ceil(TILE);
    let params = AugmentParams {
        pixels: block.address() + (n * Picture::BYTES) as u64,
        pictures: block.address(),
        output: output.address(dtype, cuda)?,
        height: height as u32,
        width: width as u32,
        tiles: tiles as u32,
        mean: levels.mean,
        std: levels.std,
    };
    cuda.launch(kernel, [n * tiles, 1, 1], 0, &params)?;
    Ok(output)
}

/// `[N, H, W, 3]` to `shape`, `[N, H, W, 4]`, for a precision other than f32.
pub(super) fn pack_images(
    images: &Tensor,
    shape: [usize; 4],
    precision: Precision,
    cuda: &Arc<CudaDevice>,
) -> Result<Tensor> {
    let (dtype, pixels) = (precision.storage(), images.shape().rows());
    let output = Tensor::uninit_of(dtype, shape, cuda)?;
    let params = PackImagesParams {
        images: images.pointer::<f32>(cuda)?,
        output: output.address(dtype, cuda)?,
        pixels: pixels as u64,
    };
    cuda.launch(PACK_IMAGES.of(dtype)?, [pixels.div_ceil(THREADS as usize), 1, 1], 0, &params)?;
    Ok(output)
}

/// The table of pictures, and after it the bytes of all patches: one block, one copy.
fn pack(patches: &[Patch], levels: Levels, cuda: &CudaDevice) -> Vec<u8> {
    let table = patches.len() * Picture::BYTES;
    let mut block = vec![0; table + patches.iter().map(|patch| patch.pixels().len()).sum::<usize>()];
    let (entries, mut pixels) = block.split_at_mut(table);
    let mut offset = 0;
    let mut copies = Vec::with_capacity(patches.len());
    for ((patch, lighting), entry) in patches.iter().zip(levels.lighting).zip(entries.chunks_exact_mut(Picture::BYTES))
    {
        Picture::new(patch, offset, *lighting).write(entry);
        let (to, rest) = pixels.split_at_mut(patch.pixels().len());
        copies.push((to, patch.pixels()));
        (pixels, offset) = (rest, offset + patch.pixels().len());
    }
    cuda.host().install(|| copies.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from)));
    block
}
