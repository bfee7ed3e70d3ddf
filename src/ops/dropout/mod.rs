//! Dropout (Srivastava et al. 2014), inverted: what stays is divided by the probability of staying. The mask is a
//! function of a [`Random`] stream and the element's index, so it is recomputed in the backward pass, not stored.

pub(super) mod cuda;

use super::{CHUNK, vectorised};
use crate::{
    Device, Error, Result, Tensor,
    autograd::{Tape, Var},
    random::Random,
};

/// The numbers that decide what is dropped.
#[derive(Clone, Debug)]
pub struct Stream {
    random: Random,
    step: Option<Tensor>,
}

impl From<&Random> for Stream {
    fn from(random: &Random) -> Self {
        Self { random: random.clone(), step: None }
    }
}

impl Stream {
    /// That of `random`'s name and one more number, which lies in `step`, u32 `[2]`, its lower half first: where a step
    /// that was captured finds it.
    pub(crate) fn of_step(random: Random, step: Tensor) -> Self {
        Self { random, step: Some(step) }
    }

    fn resolve(&self) -> Result<Random> {
        let Some(step) = &self.step else { return Ok(self.random.clone()) };
        match step.as_slice::<u32>()? {
            &[low, high] => Ok(self.random.numbered(u64::from(low) | u64::from(high) << 32)),
            _ => Err(Error::shape("dropout", format!("a step's number should be [2], is {}", step.shape()))),
        }
    }
}

/// Zeroes each element with probability `p` and divides the others by `1 − p`.
///
/// # Errors
/// [`Error::Setting`] unless `0 ≤ p < 1`.
pub fn dropout(tape: &mut Tape, input: &Var, p: f32, stream: impl Into<Stream>) -> Result<Var> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::setting("dropout", format!("the probability {p} is not in [0, 1)")));
    }
    if p == 0.0 {
        return Ok(input.clone());
    }
    let stream = stream.into();
    let output = apply_mask(input.value(), p, &stream)?;
    let slot = input.slot();
    Ok(tape.record(&[input], output, move |grad, gradients| match slot {
        Some(slot) => gradients.add(slot, apply_mask(&grad, p, &stream)?),
        None => Ok(()),
    }))
}

fn apply_mask(input: &Tensor, p: f32, stream: &Stream) -> Result<Tensor> {
    match input.device() {
        Device::Cuda(device) => cuda::apply_mask(device, input, p, stream),
        Device::Cpu(cpu) => {
            let (x, random) = (input.as_slice::<f32>()?, stream.resolve()?);
            let mut output = cpu.buffer(x.len());
            let factor = 1.0 / (1.0 - p);
            cpu.each_chunk(&mut output, CHUNK, |chunk, output| {
                let first = chunk * CHUNK;
                vectorised(|| {
                    for ((to, x), index) in output.iter_mut().zip(&x[first..]).zip(first as u64..) {
                        *to = if random.at(index) >= p { x * factor } else { 0.0 };
                    }
                });
            });
            Tensor::new(output, input.shape(), input.device())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, check_op, cpu, devices, normal, on};

    #[test]
    fn drops_the_stated_share_and_masks_the_gradient_alike() -> Result<()> {
        for device in devices() {
            let random = Random::stream(5, "dropout", &[7]);
            let mut tape = Tape::new();
            let x = tape.leaf("x", Tensor::full([100, 1000], 2.0, &device).unwrap());
            let y = dropout(&mut tape, &x, 0.25, &random)?;
            let output = y.value().to_vec::<f32>()?;
            let dropped = output.iter().filter(|y| **y == 0.0).count() as f64 / output.len() as f64;
            assert!((dropped - 0.25).abs() < 0.01, "{dropped}");
            assert!(output.iter().all(|y| *y == 0.0 || (y - 2.0 / 0.75).abs() < 1e-6));
            let grads = tape.backward(&y)?;
            for (grad, y) in grads["x"].to_vec::<f32>()?.iter().zip(&output) {
                assert_eq!(*grad, y / 2.0);
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradient_is_the_numeric_one() -> Result<()> {
        let (random, p) = (Random::stream(5, "dropout", &[7]), 0.3);
        let kept = |at: usize| random.at(at as u64) >= p;
        devices().iter().try_for_each(|device| {
            // More than one chunk would take the numeric gradient too long; the test above has several.
            let x = normal(1, "x", [13, 7], device);
            check_op(
                "dropout",
                &[x],
                |tape, vars| dropout(tape, &vars[0], p, &random),
                |inputs| {
                    let scale = |(at, x): (usize, &f64)| if kept(at) { x / (1.0 - f64::from(p)) } else { 0.0 };
                    inputs[0].iter().enumerate().map(scale).collect()
                },
            )
        })
    }

    #[test]
    fn masks_are_the_same_bits_everywhere() -> Result<()> {
        for len in [0, 1, 3, 1024, 1027, 2 * CHUNK + 1] {
            let (x, random) = (normal(1, "x", [len], &cpu(1)), Random::stream(9, "dropout", &[len as u64]));
            let expected = bits(&apply_mask(&x, 0.4, &(&random).into())?);
            for device in devices() {
                assert!(bits(&apply_mask(&on(&device, &x), 0.4, &(&random).into())?) == expected, "{len} on {device}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_step_may_lie_on_the_device() -> Result<()> {
        for step in [0, 7, u64::from(u32::MAX) + 5] {
            let expected = Stream::from(&Random::stream(9, "dropout", &[3, step]));
            let x = normal(1, "x", [1027], &cpu(1));
            let expected = bits(&apply_mask(&x, 0.4, &expected)?);
            for device in devices() {
                let number = Tensor::new(vec![step as u32, (step >> 32) as u32], [2], &device)?;
                let stream = Stream::of_step(Random::stream(9, "dropout", &[3]), number);
                assert!(bits(&apply_mask(&on(&device, &x), 0.4, &stream)?) == expected, "{step} on {device}");
            }
        }
        Ok(())
    }

    #[test]
    fn another_stream_drops_others_and_bad_probabilities_are_errors() -> Result<()> {
        for device in devices() {
            let x = Var::constant(Tensor::full([64], 1.0, &device).unwrap());
            let mask = |number| -> Result<Vec<f32>> {
                dropout(&mut Tape::new(), &x, 0.5, &Random::stream(1, "d", &[number]))?.value().to_vec()
            };
            assert_eq!(mask(0)?, mask(0)?);
            assert_ne!(mask(0)?, mask(1)?);
            for p in [-0.1, 1.0, f32::NAN] {
                assert!(dropout(&mut Tape::new(), &x, p, &Random::stream(1, "d", &[])).is_err());
            }
        }
        Ok(())
    }
}
