//! Samples of a batch that take in others of it: MixUp (Zhang et al. 2018,
//! [arXiv 1710.09412](https://arxiv.org/abs/1710.09412)) and CutMix (Yun et al. 2019,
//! [arXiv 1905.04899](https://arxiv.org/abs/1905.04899)).

pub(super) mod cuda;

use std::ops::Range;

use rayon::prelude::*;

use crate::{Device, Error, Result, Tensor};

/// How much of its partner each sample takes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Mix {
    /// Of sample `n`: `shares[n]` of its own values, and the rest of its partner's.
    Shares(Vec<f32>),
    /// These rows and columns of pixels, the same of every sample.
    Box([Range<usize>; 2]),
}

/// Elements of a row of pixels, and of a pixel.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    pub row: usize,
    pub channels: usize,
}

/// Sample `n` of `input` `[N, ..]` mixed with sample `partners[n]`; boxes are of images `[N, H, W, C]`. Elements are
/// f32, on a GPU also bf16.
///
/// # Errors
/// [`Error::Shape`] if there is not a partner and a share for each sample, a partner is no sample, or a box is not
/// within the images.
pub fn mix(input: &Tensor, partners: &[u32], mix: &Mix) -> Result<Tensor> {
    let (&n, sample) = input.dims().split_first().unwrap_or((&0, &[]));
    let length: usize = sample.iter().product();
    let fail = |message: String| Err(Error::shape("mix", message));
    if partners.len() != n || partners.iter().any(|partner| *partner as usize >= n) {
        return fail(format!("{} partners of {n} samples, or one of them is none", partners.len()));
    }
    let pixels = match (mix, sample) {
        (Mix::Shares(shares), _) if shares.len() != n => {
            return fail(format!("{} shares for {n} samples", shares.len()));
        }
        (Mix::Shares(_), _) => Pixels { row: length.max(1), channels: length.max(1) },
        (Mix::Box([rows, columns]), &[h, w, channels]) if rows.end <= h && columns.end <= w && channels > 0 => {
            Pixels { row: w * channels, channels }
        }
        (Mix::Box(sides), _) => return fail(format!("{} have no box of {sides:?}", input.shape())),
    };
    match input.device() {
        Device::Cuda(cuda) => cuda::mix(cuda, input, partners, mix, [n, length], pixels),
        Device::Cpu(cpu) => {
            let values = input.as_slice::<f32>()?;
            let mut output = values.to_vec();
            let sample = |number: usize| &values[number * length..][..length];
            cpu.install(|| {
                let samples = output.par_chunks_exact_mut(length.max(1)).zip(partners).enumerate();
                samples.for_each(|(n, (own, partner))| take_in(own, sample(*partner as usize), mix, n, pixels));
            });
            Tensor::new(output, input.shape(), input.device())
        }
    }
}

/// Mixes sample `n` with its partner.
fn take_in(own: &mut [f32], partner: &[f32], mix: &Mix, n: usize, pixels: Pixels) {
    match mix {
        Mix::Shares(shares) => {
            let share = shares[n];
            own.iter_mut().zip(partner).for_each(|(x, y)| *x = share * *x + (1.0 - share) * y);
        }
        Mix::Box([rows, columns]) => {
            let Pixels { row, channels } = pixels;
            for y in rows.clone() {
                let part = y * row + columns.start * channels..y * row + columns.end.max(columns.start) * channels;
                own[part.clone()].copy_from_slice(&partner[part]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        ops::testing::{bits, cpu, devices, gpus, normal, on},
    };

    const PARTNERS: [u32; 5] = [3, 0, 4, 4, 2];

    #[test]
    fn shares_and_boxes_are_those_of_plain_loops_to_the_bit() -> Result<()> {
        // Samples shorter than a block, longer, and of odd lengths.
        for [h, w, c] in [[1, 1, 1], [5, 7, 3], [16, 16, 4], [9, 31, 3]] {
            let x = normal(w as u64, "x", [5, h, w, c], &cpu(1));
            let values = x.to_vec::<f32>()?;
            let at = |n: usize, y: usize, x: usize, channel: usize| ((n * h + y) * w + x) * c + channel;
            let shares = vec![0.5, 0.75, 1.0, 0.9, 0.625];
            let sides = [h / 3..h, w / 2..w];
            let (mut summed, mut cut) = (values.clone(), values.clone());
            for (n, partner) in PARTNERS.iter().enumerate() {
                for (y, x, channel) in
                    (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..c).map(move |channel| (y, x, channel))))
                {
                    let (own, other) = (at(n, y, x, channel), at(*partner as usize, y, x, channel));
                    summed[own] = shares[n] * values[own] + (1.0 - shares[n]) * values[other];
                    if y >= h / 3 && x >= w / 2 {
                        cut[own] = values[other];
                    }
                }
            }
            for device in devices().into_iter().chain([cpu(3)]) {
                let x = on(&device, &x);
                let found = mix(&x, &PARTNERS, &Mix::Shares(shares.clone()))?;
                assert!(found.to_vec::<f32>()? == summed && found.dims() == [5, h, w, c], "{device}");
                assert!(mix(&x, &PARTNERS, &Mix::Box(sides.clone()))?.to_vec::<f32>()? == cut, "{device}");
                assert!(bits(&x) == bits(&on(&device, &Tensor::new(values.clone(), [5, h, w, c], &cpu(1))?)));
                let nothing = mix(&x, &PARTNERS, &Mix::Box([0..h, 1..1]))?;
                assert!(nothing.to_vec::<f32>()? == values);
            }
            for device in gpus() {
                let x = on(&device, &x).cast(DType::BF16)?;
                let wide = x.cast(DType::F32)?;
                let kinds = [Mix::Shares(shares.clone()), Mix::Box(sides.clone())];
                for kind in kinds {
                    let expected = mix(&wide, &PARTNERS, &kind)?.cast(DType::BF16)?.cast(DType::F32)?;
                    assert!(bits(&mix(&x, &PARTNERS, &kind)?.cast(DType::F32)?) == bits(&expected), "{kind:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_an_error() -> Result<()> {
        for device in devices() {
            let images = Tensor::zeros([2, 4, 3, 3], &device)?;
            let features = Tensor::zeros([2, 7], &device)?;
            let sides = |rows, columns| Mix::Box([rows, columns]);
            assert!(mix(&images, &[1, 0], &sides(0..4, 0..3)).is_ok());
            assert!(mix(&features, &[1, 0], &Mix::Shares(vec![1.0; 2])).is_ok());
            for (input, partners, kind) in [
                (&images, vec![1, 2], Mix::Shares(vec![1.0; 2])),
                (&images, vec![1], Mix::Shares(vec![1.0; 2])),
                (&images, vec![1, 0], Mix::Shares(vec![1.0; 3])),
                (&images, vec![1, 0], sides(0..5, 0..3)),
                (&images, vec![1, 0], sides(0..4, 0..4)),
                (&features, vec![1, 0], sides(0..1, 0..1)),
            ] {
                assert!(matches!(mix(input, &partners, &kind), Err(Error::Shape { .. })), "{kind:?}");
            }
            let none = Tensor::zeros([0, 4], &device)?;
            assert_eq!(mix(&none, &[], &Mix::Shares(vec![]))?.dims(), [0, 4]);
        }
        Ok(())
    }
}
