//! The last step of the input pipeline, on the device: patches of images to pictures, and bytes to normalised floats,
//! with lighting.

mod cpu;
pub(super) mod cuda;
mod patch;
#[cfg(test)]
mod tests;

pub use patch::Patch;
#[cfg(test)]
pub(crate) use patch::on_image;
pub(crate) use patch::{Placement, Steps, reflect};

use crate::{Device, Error, Result, Tensor};

/// How bytes become floats: `(clip(gain · x + offset, 0, 1) − mean) / std` of `x` in `[0, 1]`.
#[derive(Clone, Copy)]
struct Levels<'a> {
    /// Gain and offset of each picture.
    lighting: &'a [[f32; 2]],
    /// Of each channel.
    mean: [f32; 3],
    std: [f32; 3],
}

/// The pictures of `patches`, all of equal extents, as floats `[N, H, W, 3]` on `device`:
/// `(clip(gain · x + offset, 0, 1) − mean) / std` of pixels `x` in `[0, 1]`, with one `[gain, offset]` per picture.
///
/// # Errors
/// [`Error::Shape`] if the pictures' extents differ, or their number is not that of `lighting`;
/// [`Error::OutOfMemory`].
pub fn augment(
    patches: &[Patch],
    lighting: &[[f32; 2]],
    mean: [f32; 3],
    std: [f32; 3],
    device: &Device,
) -> Result<Tensor> {
    let levels = Levels { lighting, mean, std };
    let [width, height] = patches.first().map_or([0, 0], Patch::extents);
    if patches.len() != lighting.len() || patches.iter().any(|patch| patch.extents() != [width, height]) {
        let message =
            format!("{} pictures for {} lightings, or not all {width}×{height}", patches.len(), lighting.len());
        return Err(Error::shape("augment", message));
    }
    let shape = [patches.len(), height, width, 3];
    match device {
        Device::Cpu(cpu) => Tensor::new(cpu::augment(patches, [width, height], levels, cpu), shape, device),
        Device::Cuda(cuda) => cuda::augment(patches, levels, shape, cuda),
    }
}

/// SHIM
pub fn pack_images(images: &Tensor, precision: crate::Precision) -> Result<Tensor> {
    let v = images.to_vec::<f32>()?;
    let d = images.dims();
    let w = v.chunks(3).flat_map(|p| [p[0], p[1], p[2], 0.0]).collect();
    Tensor::new(w, [d[0], d[1], d[2], 4], images.device())?.cast(precision.storage())
}
