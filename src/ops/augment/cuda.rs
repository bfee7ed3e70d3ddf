//! The launcher of `kernels/augment.cu`.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Levels, Patch, Placement};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
};

pub(in crate::ops) static SOURCE: Source = Source {
    name: "augment",
    text: include_str!("../../../kernels/augment.cu"),
    archs: F32_ARCHS,
    entries: &["augment"],
    layouts: &[AugmentParams::LAYOUT, Picture::LAYOUT],
};

static AUGMENT: Kernel<AugmentParams> = Kernel::new(&SOURCE, "augment", 256);

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

impl Picture {
    const BYTES: usize = Self::LAYOUT.size;

    fn new(patch: &Patch, offset: usize, [gain, lift]: [f32; 2]) -> Self {
        let Placement { origin, image, pad, start, across, down, .. } = *patch.placement();
        Self { start, across, down, offset: offset as u64, width: patch.width(), pad, origin, image, gain, lift }
    }
}

pub(super) fn augment(patches: &[Patch], levels: Levels, shape: [usize; 4], cuda: &Arc<CudaDevice>) -> Result<Tensor> {
    let [n, height, width, _] = shape;
    // Crosses beside the kernels of the step before.
    let block = cuda.stage(&pack(patches, levels, cuda))?;
    let output = Tensor::uninit::<f32>(shape, cuda)?;
    let tiles = (height * width).div_ceil(TILE);
    let params = AugmentParams {
        pixels: block.address() + (n * Picture::BYTES) as u64,
        pictures: block.address(),
        output: output.pointer::<f32>(cuda)?,
        height: height as u32,
        width: width as u32,
        tiles: tiles as u32,
        mean: levels.mean,
        std: levels.std,
    };
    cuda.launch(&AUGMENT, [n * tiles, 1, 1], 0, &params)?;
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
