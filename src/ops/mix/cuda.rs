//! Mixing samples on the GPU: `kernels/mix.cu`.

use std::sync::Arc;

use super::{Mix, Pixels};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Params, Source, kernel_params},
    },
    ops::{MOST_IMAGES, optional, small},
    tensor::cuda::ByType,
};

/// Threads of a block.
const THREADS: u32 = 256;

kernel_params! {
    struct MixParams {
        input: u64,
        partners: u64,
        shares: u64,
        output: u64,
        n: u32,
        length: u32,
        row: u32,
        channels: u32,
        top: u32,
        bottom: u32,
        left: u32,
        right: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "mix",
    text: include_str!("../../../kernels/mix.cu"),
    archs: F32_ARCHS,
    entries: &["mix", "mix_bf16"],
    layouts: &[MixParams::LAYOUT],
};

static MIX: ByType<MixParams> = ByType::new(&SOURCE, "mix", "mix_bf16", THREADS);

pub fn mix(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    partners: &[u32],
    mix: &Mix,
    [n, length]: [usize; 2],
    pixels: Pixels,
) -> Result<Tensor> {
    let (dtype, device) = (input.dtype(), input.device());
    let output = Tensor::uninit_of(dtype, input.shape(), cuda)?;
    let partners = Tensor::new(partners.to_vec(), [n], device)?;
    let none = [0..0, 0..0];
    let (shares, [rows, columns]) = match mix {
        Mix::Shares(shares) => (Some(Tensor::new(shares.clone(), [n], device)?), &none),
        Mix::Box(sides) => (None, sides),
    };
    let extent = |extent: usize| small("mix", extent);
    let params = MixParams {
        input: input.address(dtype, cuda)?,
        partners: partners.pointer::<u32>(cuda)?,
        shares: optional::<f32>(cuda, shares.as_ref())?,
        output: output.address(dtype, cuda)?,
        n: extent(n)?,
        length: extent(length)?,
        row: extent(pixels.row)?,
        channels: extent(pixels.channels)?,
        top: extent(rows.start)?,
        bottom: extent(rows.end)?,
        left: extent(columns.start)?,
        right: extent(columns.end)?,
    };
    cuda.launch(MIX.of(dtype)?, [length.div_ceil(THREADS as usize), n.min(MOST_IMAGES), 1], 0, &params)?;
    Ok(output)
}
