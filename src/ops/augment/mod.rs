//! The last step of the input pipeline, on the device: patches of images to pictures, and bytes to normalised floats,
//! with lighting, in the layout that a network of some precision takes.

mod cpu;
pub(super) mod cuda;
mod patch;
#[cfg(test)]
mod tests;

pub use patch::Patch;
#[cfg(test)]
pub(crate) use patch::on_image;
pub(crate) use patch::{Placement, Steps, reflect};

use crate::{Device, Error, Precision, Result, Tensor};

/// How bytes become floats: `(clip(gain · x + offset, 0, 1) − mean) / std` of `x` in `[0, 1]`.
#[derive(Clone, Copy)]
struct Levels<'a> {
    /// Gain and offset of each picture.
    lighting: &'a [[f32; 2]],
    /// Of each channel.
    mean: [f32; 3],
    std: [f32; 3],
}

/// Channels of a network's input: red, green and blue; on tensor cores one more, of zeros, since these read channels by
/// fours.
fn channels(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 3,
        Precision::Tf32 | Precision::Bf16 => 4,
    }
}

fn without_tensor_cores(precision: Precision) -> Error {
    Error::setting("precision", format!("a processor computes in f32, not {precision}; use a GPU"))
}

/// The pictures of `patches`, all of equal extents, as a network of this precision takes them on `device`, f32
/// `[N, H, W, 3]` or `[N, H, W, 4]` with a channel of zeros, f32 for TF32 and bf16:
/// `(clip(gain · x + offset, 0, 1) − mean) / std` of pixels `x` in `[0, 1]`, with one `[gain, offset]` per picture.
///
/// # Errors
/// [`Error::Shape`] if the pictures' extents differ, or their number is not that of `lighting`; [`Error::Setting`] for
/// another precision than f32 on a processor; [`Error::OutOfMemory`].
pub fn augment(
    patches: &[Patch],
    lighting: &[[f32; 2]],
    mean: [f32; 3],
    std: [f32; 3],
    precision: Precision,
    device: &Device,
) -> Result<Tensor> {
    let levels = Levels { lighting, mean, std };
    let [width, height] = patches.first().map_or([0, 0], Patch::extents);
    if patches.len() != lighting.len() || patches.iter().any(|patch| patch.extents() != [width, height]) {
        let message =
            format!("{} pictures for {} lightings, or not all {width}×{height}", patches.len(), lighting.len());
        return Err(Error::shape("augment", message));
    }
    let shape = [patches.len(), height, width, channels(precision)];
    match (device, precision) {
        (Device::Cuda(cuda), _) => cuda::augment(patches, levels, shape, precision, cuda),
        (Device::Cpu(cpu), Precision::F32) => {
            Tensor::new(cpu::augment(patches, [width, height], levels, cpu), shape, device)
        }
        (Device::Cpu(_), _) => Err(without_tensor_cores(precision)),
    }
}

/// Images `[N, H, W, 3]`, f32, as a network of this precision takes them: as they are, or `[N, H, W, 4]` with a channel
/// of zeros, f32 for TF32 and bf16. For images that no [`Batch`](crate::data::Batch) uploads.
///
/// # Errors
/// [`Error::Shape`] if they are other tensors; [`Error::Setting`] for another precision than f32 on a processor.
pub fn pack_images(images: &Tensor, precision: Precision) -> Result<Tensor> {
    let &[n, h, w, 3] = images.dims() else {
        return Err(Error::shape("images", format!("expected [N, H, W, 3], got {}", images.shape())));
    };
    match (images.device(), precision) {
        (_, Precision::F32) => Ok(images.clone()),
        (Device::Cuda(cuda), _) => cuda::pack_images(images, [n, h, w, channels(precision)], precision, cuda),
        (Device::Cpu(_), _) => Err(without_tensor_cores(precision)),
    }
}
