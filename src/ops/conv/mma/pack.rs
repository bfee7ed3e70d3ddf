//! Weights as tensor cores read them: the launch of `kernels/conv_pack.cu`.

use super::{Factors, gpu, joined};
use crate::{
    Error, Result, Tensor,
    autograd::Packed,
    device::cuda::{Kernel, Params, Source, kernel_params},
    ops::small,
    tensor::Precision,
};

kernel_params! {
    struct ConvPackParams {
        weight: u64,
        forward: u64,
        flipped: u64,
        taps: u32,
        group_c: u32,
        group_k: u32,
        joined: u32,
        width_c: u32,
        width_k: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "conv_pack",
    text: include_str!("../../../../kernels/conv_pack.cu"),
    archs: super::cuda::ARCHS,
    entries: &["conv_pack_bf16", "conv_pack_tf32"],
    layouts: &[ConvPackParams::LAYOUT],
};
static BF16: Kernel<ConvPackParams> = Kernel::new(&SOURCE, "conv_pack_bf16", 256);
static TF32: Kernel<ConvPackParams> = Kernel::new(&SOURCE, "conv_pack_tf32", 256);

/// Filters and channels of a block.
const SIDE: usize = 32;

/// The copies of a weight `[K, R, S, C / groups]`, f32, that convolutions of this precision read; the flipped one where
/// a gradient of the input is wanted.
///
/// # Errors
/// [`Error::Shape`] if the extents do not fit or the precision has no tensor cores; [`Error::Device`] on a device
/// without.
pub fn pack(weight: &Tensor, groups: usize, precision: Precision, flipped: bool) -> Result<Packed> {
    let fail = |why: &str| Error::shape("conv weights", format!("{why}: weight {}, {groups} groups", weight.shape()));
    let &[k, r, s, group_c] = weight.dims() else { return Err(fail("expected a weight [K, R, S, C]")) };
    if groups == 0 || !k.is_multiple_of(groups) || weight.shape().elements() == 0 {
        return Err(fail("groups do not fit"));
    }
    let group_k = k / groups;
    let joined = joined(groups, group_c, group_k);
    let (width_c, width_k) = ((joined * group_c).next_multiple_of(4), (joined * group_k).next_multiple_of(4));
    let cuda = gpu(weight)?;
    let (factors, kernel) = match precision {
        Precision::Bf16 => (Factors::Bf16, &BF16),
        Precision::Tf32 => (Factors::Tf32, &TF32),
        Precision::F32 => return Err(fail("f32 convolutions read the weight itself")),
    };
    let forward = factors.uninit([k, r, s, width_c], cuda)?;
    let flipped = flipped.then(|| factors.uninit([groups / joined * width_c, r, s, width_k], cuda)).transpose()?;
    let small = |count| small("conv weights", count);
    let params = ConvPackParams {
        weight: weight.pointer::<f32>(cuda)?,
        forward: factors.pointer(cuda, &forward)?,
        flipped: factors.optional(cuda, flipped.as_ref())?,
        taps: small(r * s)?,
        group_c: small(group_c)?,
        group_k: small(group_k)?,
        joined: small(joined)?,
        width_c: small(width_c)?,
        width_k: small(width_k)?,
    };
    let blocks = width_c.div_ceil(SIDE) * width_k.div_ceil(SIDE) * r * s * (groups / joined);
    cuda.launch(kernel, [blocks, 1, 1], 0, &params)?;
    Ok(Packed { forward, flipped, groups })
}
