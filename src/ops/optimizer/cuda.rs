//! Optimizer steps on the GPU: `kernels/optimizer.cu`, one launch for all parameters and their copies for tensor cores.

use std::sync::Arc;

use half::bf16;

use super::{Item, Rates, Rule, Table};
use crate::{
    Error, Result, Tensor,
    autograd::Packed,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{conv::mma::joined, expect_shape, small},
    tensor::DType,
};

/// Threads of a block, and the elements that it moves: `BLOCK`.
const THREADS: u32 = 256;
const BLOCK: usize = 4096;
/// Filters and channels of a block of a weight with copies: `SIDE`.
const SIDE: usize = 32;

kernel_params! {
    /// A parameter in the table.
    struct Segment {
        value: u64,
        grad: u64,
        first: u64,
        second: u64,
        forward: u64,
        flipped: u64,
        count: u64,
        first_block: u32,
        group: u32,
        taps: u32,
        group_c: u32,
        group_k: u32,
        joined: u32,
        width_c: u32,
        width_k: u32,
        bf16: u32,
        unused: u32,
    }
}

kernel_params! {
    struct SgdParams {
        segments: u64,
        moving: u64,
        rates: u64,
        scale: u64,
        count: u32,
        nesterov: u32,
        decoupled: u32,
    }
}

kernel_params! {
    struct AdamWParams {
        segments: u64,
        moving: u64,
        rates: u64,
        scale: u64,
        count: u32,
        beta2: f32,
        eps: f32,
    }
}

kernel_params! {
    struct SquaresParams {
        segments: u64,
        parts: u64,
        count: u32,
    }
}

kernel_params! {
    struct ClipParams {
        parts: u64,
        factor: u64,
        scale: u64,
        count: u32,
        most: f32,
    }
}

pub static SOURCE: Source = Source {
    name: "optimizer",
    text: include_str!("../../../kernels/optimizer.cu"),
    archs: F32_ARCHS,
    entries: &["sgd", "adamw", "gradient_squares", "clip_scale"],
    layouts: &[Segment::LAYOUT, SgdParams::LAYOUT, AdamWParams::LAYOUT, SquaresParams::LAYOUT, ClipParams::LAYOUT],
};

static SGD: Kernel<SgdParams> = Kernel::new(&SOURCE, "sgd", THREADS);
static ADAMW: Kernel<AdamWParams> = Kernel::new(&SOURCE, "adamw", THREADS);
static SQUARES: Kernel<SquaresParams> = Kernel::new(&SOURCE, "gradient_squares", THREADS);
static CLIP: Kernel<ClipParams> = Kernel::new(&SOURCE, "clip_scale", THREADS);

pub fn step(cuda: &Arc<CudaDevice>, rates: &Rates, items: &mut [Item], table: &mut Table) -> Result<()> {
    let (mut bytes, mut blocks) = (Vec::new(), 0);
    for item in &mut *items {
        let elements = item.parameter.shape().elements();
        let copies = item.packed.as_deref_mut().map(|packed| Copies::of(cuda, item.parameter, packed)).transpose()?;
        let [first, second] = match &mut *item.buffers {
            [first, second] => [first.pointer_mut::<f32>(cuda)?, second.pointer_mut::<f32>(cuda)?],
            buffers => [buffers[0].pointer_mut::<f32>(cuda)?, 0],
        };
        let first_block = small("optimizer", blocks)?;
        blocks += copies.as_ref().map_or(elements.div_ceil(BLOCK), Copies::blocks);
        let copies = copies.unwrap_or_default();
        let segment = Segment {
            value: item.parameter.pointer_mut::<f32>(cuda)?,
            grad: item.grad.pointer::<f32>(cuda)?,
            first,
            second,
            forward: copies.forward,
            flipped: copies.flipped,
            count: elements as u64,
            first_block,
            group: small("optimizer", item.group)?,
            taps: small("optimizer", copies.taps)?,
            group_c: small("optimizer", copies.group_c)?,
            group_k: small("optimizer", copies.group_k)?,
            joined: small("optimizer", copies.joined)?,
            width_c: small("optimizer", copies.width_c)?,
            width_k: small("optimizer", copies.width_k)?,
            bf16: copies.bf16.into(),
            unused: 0,
        };
        bytes.extend(segment.to_bytes());
    }
    let segments = table.address(cuda, bytes)?;
    let count = small("optimizer", items.len())?;
    let resident = rates.resident().ok_or_else(|| cuda.error("the rates of this step are not on the GPU"))?;
    let moving = resident.pointer::<f32>(cuda)?;
    let factor = moving + size_of::<[f32; 3]>() as u64;
    let rates_of_groups = moving + size_of::<[f32; 4]>() as u64;
    let grid = [blocks, 1, 1];
    let clipped = rates.scaling.clip.map(|most| clip(cuda, segments, count, blocks, factor, most)).transpose()?;
    let scale = clipped.as_ref().map_or(Ok(factor), |scale| scale.pointer::<f32>(cuda))?;
    match rates.rule {
        Rule::Sgd { nesterov, decoupled, .. } => {
            let [nesterov, decoupled] = [nesterov, decoupled].map(u32::from);
            let rates = rates_of_groups;
            let params = SgdParams { segments, moving, rates, scale, count, nesterov, decoupled };
            cuda.launch(&SGD, grid, 0, &params)
        }
        Rule::AdamW { beta2, eps, .. } => {
            let params = AdamWParams { segments, moving, rates: rates_of_groups, scale, count, beta2, eps };
            cuda.launch(&ADAMW, grid, 0, &params)
        }
    }
}

/// What the gradients of `count` segments are multiplied by, where their norm after `factor` may be `most`.
fn clip(cuda: &Arc<CudaDevice>, segments: u64, count: u32, blocks: usize, factor: u64, most: f32) -> Result<Tensor> {
    let (parts, scale) = (Tensor::uninit::<f32>([blocks], cuda)?, Tensor::uninit::<f32>([], cuda)?);
    let addresses = [parts.pointer::<f32>(cuda)?, scale.pointer::<f32>(cuda)?];
    let [parts, scale_at] = addresses;
    cuda.launch(&SQUARES, [blocks, 1, 1], 0, &SquaresParams { segments, parts, count })?;
    let params = ClipParams { parts, factor, scale: scale_at, count: small("optimizer", blocks)?, most };
    cuda.launch(&CLIP, [1, 1, 1], 0, &params)?;
    Ok(scale)
}

/// Where the copies of a weight lie, and its extents, as kernels take them (see `kernels/conv_pack.cu`).
#[derive(Default)]
struct Copies {
    forward: u64,
    flipped: u64,
    taps: usize,
    groups: usize,
    group_c: usize,
    group_k: usize,
    joined: usize,
    width_c: usize,
    width_k: usize,
    bf16: bool,
}

impl Copies {
    fn of(cuda: &CudaDevice, weight: &Tensor, packed: &mut Packed) -> Result<Self> {
        let Packed { forward, flipped, groups } = packed;
        let &[k, r, s, group_c] = weight.dims() else {
            let message = format!("a weight with copies should be [K, R, S, C], is {}", weight.shape());
            return Err(Error::shape("optimizer", message));
        };
        let (width_c, group_k) = (forward.shape().last(), k / *groups);
        let joined = joined(*groups, group_c, group_k);
        let width_k = (joined * group_k).next_multiple_of(4);
        expect_shape("optimizer", "copy of the weight", forward, [k, r, s, width_c])?;
        if let Some(flipped) = flipped {
            expect_shape("optimizer", "flipped copy", flipped, [*groups / joined * width_c, r, s, width_k])?;
        }
        let bf16 = forward.dtype() == DType::BF16;
        let address = |copy: &mut Tensor| match bf16 {
            true => copy.pointer_mut::<bf16>(cuda),
            false => copy.pointer_mut::<f32>(cuda),
        };
        Ok(Self {
            forward: address(forward)?,
            flipped: flipped.as_mut().map_or(Ok(0), address)?,
            taps: r * s,
            groups: *groups,
            group_c,
            group_k,
            joined,
            width_c,
            width_k,
            bf16,
        })
    }

    fn blocks(&self) -> usize {
        let Self { taps, groups, group_c, group_k, joined, .. } = *self;
        (joined * group_c).div_ceil(SIDE) * (joined * group_k).div_ceil(SIDE) * taps * (groups / joined)
    }
}
