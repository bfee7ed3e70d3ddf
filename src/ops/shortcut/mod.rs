//! The parameter-free shortcut of the CIFAR ResNets (He et al. 2015, §4.2, option A): every `stride`-th pixel, and
//! zeros for the new channels, half of them on each side.

pub(super) mod cuda;

use crate::{
    Device, Error, Result, Tensor,
    autograd::{Tape, Var},
    ops::nhwc,
};

/// From `[N, H, W, C]` to `[N, ⌈H / stride⌉, ⌈W / stride⌉, channels]`; f32, on a GPU also bf16.
///
/// # Errors
/// [`Error::Shape`] if channels would be lost, or of bf16 are not multiples of 8.
pub fn shortcut(tape: &mut Tape, input: &Var, stride: usize, channels: usize) -> Result<Var> {
    let [n, h, w, c] = nhwc("shortcut", input.value())?;
    if channels < c || stride == 0 {
        return Err(Error::shape(
            "shortcut",
            format!("{} to {channels} channels, stride {stride}", input.value().shape()),
        ));
    }
    let output = [n, h.div_ceil(stride), w.div_ceil(stride), channels];
    let before = (channels - c) / 2;
    let (to_pixels, slot) = (output, input.slot());
    // Pairs of (offset in the input, offset in the output) of C channels each.
    let pairs = move || {
        let [n, p, q, _] = to_pixels;
        (0..n * p * q).map(move |pixel| {
            let (image, y, x) = (pixel / (p * q), pixel / q % p, pixel % q);
            (((image * h + y * stride) * w + x * stride) * c, pixel * channels + before)
        })
    };
    let value = match input.value().device() {
        Device::Cuda(device) => cuda::forward(device, input.value(), [n, h, w, c], output, stride)?,
        Device::Cpu(_) => {
            let x = input.value().as_slice::<f32>()?;
            let mut result = vec![0.0; output.iter().product()];
            pairs().for_each(|(from, to)| result[to..to + c].copy_from_slice(&x[from..from + c]));
            Tensor::new(result, output, input.value().device())?
        }
    };
    Ok(tape.record(&[input], value, move |grad, gradients| {
        let Some(slot) = slot else { return Ok(()) };
        let input_grad = match grad.device() {
            Device::Cuda(device) => cuda::grad(device, &grad, [n, h, w, c], output, stride)?,
            Device::Cpu(_) => {
                let from = grad.as_slice::<f32>()?;
                let mut result = vec![0.0; n * h * w * c];
                pairs().for_each(|(to, at)| result[to..to + c].copy_from_slice(&from[at..at + c]));
                Tensor::new(result, [n, h, w, c], grad.device())?
            }
        };
        gradients.add(slot, input_grad)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::testing::{activations, check_op, devices, gpus, normal},
        tensor::DType,
    };

    #[test]
    fn bf16_wants_eight_channels() -> Result<()> {
        for device in gpus() {
            let x = Var::constant(Tensor::zeros([1, 2, 2, 8], &device)?.cast(DType::BF16)?);
            assert!(shortcut(&mut Tape::inference(), &x, 1, 16).is_ok());
            let error = shortcut(&mut Tape::inference(), &x, 1, 12).expect_err("twelve channels").to_string();
            assert!(error.contains("8 to 12 channels"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn the_gradient_is_the_numeric_one() -> Result<()> {
        let shapes = [([2usize, 5, 4, 3], 2, 6), ([3, 4, 7, 2], 3, 5), ([1, 2, 3, 4], 1, 4), ([1, 9, 9, 7], 2, 20)];
        // Of bf16 with 4, 8 and no new channels before the old ones.
        let halves = [([2, 5, 4, 8], 2, 16), ([1, 3, 3, 16], 3, 32), ([1, 2, 3, 8], 1, 8)];
        let all = shapes.into_iter().map(|shape| (shape, DType::F32));
        for (([n, h, w, c], stride, channels), dtype) in all.chain(halves.map(|shape| (shape, DType::BF16))) {
            let (p, q, before) = (h.div_ceil(stride), w.div_ceil(stride), (channels - c) / 2);
            let reference = |x: &[f64]| {
                let mut y = vec![0.0; n * p * q * channels];
                for (at, x) in x.iter().enumerate() {
                    let (image, row, col, channel) = (at / (h * w * c), at / (w * c) % h, at / c % w, at % c);
                    if row % stride == 0 && col % stride == 0 {
                        y[((image * p + row / stride) * q + col / stride) * channels + before + channel] = *x;
                    }
                }
                y
            };
            for device in devices().iter().filter(|device| activations(device).contains(&dtype)) {
                let x = normal(1, "x", [n, h, w, c], device).cast(dtype)?;
                check_op(
                    "shortcut",
                    &[x],
                    |tape, vars| shortcut(tape, &vars[0], stride, channels),
                    |inputs| reference(&inputs[0]),
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn takes_every_second_pixel_and_pads_channels() -> Result<()> {
        for device in devices() {
            let mut tape = Tape::new();
            let x = tape.leaf("x", Tensor::new((1..=9).map(|v| v as f32).collect(), [1, 3, 3, 1], &device)?);
            let y = shortcut(&mut tape, &x, 2, 3)?;
            assert_eq!(y.value().dims(), [1, 2, 2, 3]);
            assert_eq!(y.value().to_vec::<f32>()?, [0., 1., 0., 0., 3., 0., 0., 7., 0., 0., 9., 0.]);
            let seed = Tensor::new((0..12).map(|v| v as f32).collect(), [1, 2, 2, 3], &device)?;
            let grads = tape.backward_from(&y, seed)?;
            assert_eq!(grads["x"].to_vec::<f32>()?, [1., 0., 4., 0., 0., 0., 7., 0., 10.]);
        }
        Ok(())
    }

    #[test]
    fn more_images_than_a_grid_has_blocks() -> Result<()> {
        let n = crate::ops::MOST_IMAGES + 70;
        for device in devices() {
            let mut tape = Tape::new();
            let values: Vec<f32> = (0..n).map(|image| image as f32).collect();
            let x = tape.leaf("x", Tensor::new(values.clone(), [n, 1, 1, 1], &device)?);
            let y = shortcut(&mut tape, &x, 1, 2)?;
            assert!(y.value().to_vec::<f32>()?.chunks(2).zip(&values).all(|(y, x)| y == [*x, 0.0]), "{device}");
            let seed = Tensor::new((0..2 * n).map(|at| at as f32).collect(), [n, 1, 1, 2], &device)?;
            let grad = tape.backward_from(&y, seed)?["x"].to_vec::<f32>()?;
            assert!(grad.iter().zip(&values).all(|(grad, image)| *grad == 2.0 * image), "{device}");
        }
        Ok(())
    }
}
