//! The last step of the input pipeline, on the device: bytes to normalised floats, with lighting.

use rayon::prelude::*;

use crate::{Device, Error, Result, Tensor};

/// `(clip(gain · x + offset, 0, 1) − mean) / std` of pixels `x` in `[0, 1]`: from bytes `[N, H, W, 3]` to floats of
/// the same shape, with one `[gain, offset]` per image.
///
/// # Errors
/// [`Error::Shape`] if `pixels` are not RGB images, or their number is not that of `lighting`.
pub fn normalise(pixels: &Tensor, lighting: &[[f32; 2]], mean: [f32; 3], std: [f32; 3]) -> Result<Tensor> {
    let dims = pixels.dims();
    if dims.len() != 4 || dims[3] != 3 || dims[0] != lighting.len() {
        let message = format!("{} for {} RGB images [N, H, W, 3]", pixels.shape(), lighting.len());
        return Err(Error::shape("normalise", message));
    }
    match pixels.device() {
        Device::Cuda(cuda) => Err(cuda.error("this operation has no kernel yet")),
        Device::Cpu(cpu) => {
            let bytes = pixels.as_slice::<u8>()?;
            let per_image = (dims[1] * dims[2] * 3).max(1);
            let mut output = vec![0.0; bytes.len()];
            cpu.install(|| {
                let images = output.par_chunks_mut(per_image).zip(bytes.par_chunks(per_image)).zip(lighting);
                images.for_each(|((output, bytes), lighting)| {
                    let table = table(*lighting, mean, std);
                    for (to, from) in output.chunks_exact_mut(3).zip(bytes.chunks_exact(3)) {
                        for channel in 0..3 {
                            to[channel] = table[channel][usize::from(from[channel])];
                        }
                    }
                });
            });
            Tensor::new(output, pixels.shape(), pixels.device())
        }
    }
}

/// The result for each byte and channel.
fn table([gain, offset]: [f32; 2], mean: [f32; 3], std: [f32; 3]) -> [[f32; 256]; 3] {
    let lit: [f32; 256] = std::array::from_fn(|byte| (gain * (byte as f32 / 255.0) + offset).clamp(0.0, 1.0));
    [0, 1, 2].map(|channel| lit.map(|x| (x - mean[channel]) / std[channel]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lights_clips_and_normalises() -> Result<()> {
        let device = Device::cpu(1)?;
        let pixels = Tensor::new(vec![0u8, 51, 255, 255, 0, 102], [2, 1, 1, 3], &device)?;
        let output = normalise(&pixels, &[[1.0, 0.0], [2.0, -0.5]], [0.5, 0.2, 0.0], [0.5, 1.0, 2.0])?;
        let expected = [-1.0, 0.0, 0.5, 1.0, -0.2, 0.15];
        for (value, expected) in output.to_vec::<f32>()?.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!(normalise(&pixels, &[[1.0, 0.0]], [0.0; 3], [1.0; 3]).is_err());
        Ok(())
    }
}
