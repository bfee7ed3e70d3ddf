//! Pictures and their normalisation on the processor, an image per task.

use rayon::prelude::*;

use super::{Levels, Patch};
use crate::device::CpuDevice;

/// Pictures of `width` × `height` pixels.
pub(super) fn augment(patches: &[Patch], [width, height]: [usize; 2], levels: Levels, cpu: &CpuDevice) -> Vec<f32> {
    let per_image = 3 * width * height;
    let mut output = vec![0.0; patches.len() * per_image];
    cpu.install(|| {
        let pictures = output.par_chunks_mut(per_image.max(1)).zip(patches).zip(levels.lighting);
        pictures.for_each(|((output, patch), lighting)| {
            let table = table(*lighting, levels);
            patch.draw(output, |channel, byte| table[channel][usize::from(byte)]);
        });
    });
    output
}

/// The result for each channel and byte. The GPU computes it by the same operations with the same roundings.
fn table([gain, offset]: [f32; 2], Levels { mean, std, .. }: Levels) -> [[f32; 256]; 3] {
    let lit: [f32; 256] = std::array::from_fn(|byte| (gain * (byte as f32 / 255.0) + offset).clamp(0.0, 1.0));
    [0, 1, 2].map(|channel| lit.map(|x| (x - mean[channel]) / std[channel]))
}
