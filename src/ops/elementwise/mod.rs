//! ReLU and addition on their own, where no convolution or batchnorm precedes them to fuse with; and scaling by a
//! number on the device. Tensors are f32, on a GPU also bf16.

pub(super) mod cuda;

use super::{CHUNK, expect_shape, vectorised};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    device::CpuDevice,
};

/// `max(input, 0)`. The gradient is recovered from the output.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `input` is of another type.
pub fn relu(tape: &mut Tape, input: &Var) -> Result<Var> {
    let output = match input.value().device() {
        Device::Cuda(device) => cuda::relu(device, input.value())?,
        // A NaN stays, so that a diverged run is seen.
        Device::Cpu(device) => zip(device, input.value(), input.value(), |x, _| if x < 0.0 { 0.0 } else { x })?,
    };
    let (slot, saved) = (input.slot(), output.clone());
    Ok(tape.record(&[input], output, move |grad, gradients| {
        let Some(slot) = slot else { return Ok(()) };
        let input_grad = match grad.device() {
            Device::Cuda(device) => cuda::relu_grad(device, &grad, &saved)?,
            Device::Cpu(device) => zip(device, &grad, &saved, |grad, y| if y > 0.0 { grad } else { 0.0 })?,
        };
        gradients.add(slot, input_grad)
    }))
}

/// `left + right`, of equal shapes.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes or types differ.
pub fn add(tape: &mut Tape, left: &Var, right: &Var) -> Result<Var> {
    expect_shape("add", "right side", right.value(), left.value().shape())?;
    let output = match left.value().device() {
        Device::Cuda(device) => cuda::add(device, left.value(), right.value())?,
        Device::Cpu(device) => zip(device, left.value(), right.value(), |left, right| left + right)?,
    };
    let slots = [left.slot(), right.slot()];
    Ok(tape.record(&[left, right], output, move |grad, gradients| {
        slots.into_iter().flatten().try_for_each(|slot| gradients.add(slot, grad.clone()))
    }))
}

/// `input` times the one number in `factor`, f32, which never leaves the device.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `factor` is not one number.
pub fn scale(input: &Tensor, factor: &Tensor) -> Result<Tensor> {
    expect_shape("scale", "factor", factor, [])?;
    match input.device() {
        Device::Cuda(device) => cuda::scale(device, input, factor),
        Device::Cpu(device) => {
            let factor = factor.scalar()?;
            zip(device, input, input, |x, _| x * factor)
        }
    }
}

fn zip(cpu: &CpuDevice, left: &Tensor, right: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<Tensor> {
    let (a, b) = (left.as_slice::<f32>()?, right.as_slice::<f32>()?);
    let mut output = cpu.buffer(a.len());
    cpu.each_chunk(&mut output, CHUNK, |chunk, to| {
        let inputs = a[chunk * CHUNK..].iter().zip(&b[chunk * CHUNK..]);
        vectorised(|| to.iter_mut().zip(inputs).for_each(|(to, (a, b))| *to = f(*a, *b)));
    });
    Tensor::new(output, left.shape(), left.device())
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{
        ops::testing::{activations, bits, check_op, cpu, devices, gpus, normal, on},
        tensor::DType,
    };

    #[test]
    fn relu_of_a_sum() -> Result<()> {
        for device in devices() {
            let mut tape = Tape::new();
            let a = tape.leaf("a", Tensor::new(vec![1., -2., 3.], [3], &device)?);
            let b = tape.leaf("b", Tensor::new(vec![1., 1., -4.], [3], &device)?);
            let sum = add(&mut tape, &a, &b)?;
            let y = relu(&mut tape, &sum)?;
            assert_eq!(y.value().to_vec::<f32>()?, [2., 0., 0.]);
            let grads = tape.backward(&y)?;
            assert_eq!(grads["a"].to_vec::<f32>()?, [1., 0., 0.]); // d relu(a + b) / da = 1 where a + b > 0
            assert_eq!(grads["b"].to_vec::<f32>()?, [1., 0., 0.]);
        }
        Ok(())
    }

    #[test]
    fn the_gradients_are_numeric_ones() -> Result<()> {
        let all =
            devices().into_iter().flat_map(|device| activations(&device).iter().map(move |t| (device.clone(), *t)));
        all.into_iter().try_for_each(|(device, dtype)| {
            let inputs = ["a", "b"].map(|name| normal(1, name, [5, 7, 3], &device).cast(dtype).unwrap());
            check_op(
                "relu",
                &inputs[..1],
                |tape, vars| relu(tape, &vars[0]),
                |inputs| inputs[0].iter().map(|x| x.max(0.0)).collect(),
            )?;
            let sum = |inputs: &[Vec<f64>]| inputs[0].iter().zip(&inputs[1]).map(|(a, b)| a + b).collect();
            check_op("add", &inputs, |tape, vars| add(tape, &vars[0], &vars[1]), sum)?;
            let double = |inputs: &[Vec<f64>]| inputs[0].iter().map(|a| a + a).collect();
            check_op("add to itself", &inputs[..1], |tape, vars| add(tape, &vars[0], &vars[0]), double)
        })
    }

    #[test]
    fn lengths_of_any_raggedness_give_the_same_bits_everywhere() -> Result<()> {
        let results = |len: usize, device: &Device| -> Result<Vec<Vec<u32>>> {
            let [a, b] = ["a", "b"].map(|name| on(device, &normal(1, name, [len], &cpu(1))));
            let mut tape = Tape::new();
            let (x, y) = (tape.leaf("x", a.clone()), tape.leaf("y", b));
            let sum = add(&mut tape, &x, &y)?;
            let output = relu(&mut tape, &sum)?;
            let scaled = scale(&a, &Tensor::full([], -1.7, device)?)?;
            let grads = tape.backward_from(&output, scaled.clone())?;
            Ok([output.value(), &scaled, &grads["x"], &grads["y"]].map(bits).to_vec())
        };
        for len in [0, 1, 2, 3, 4, 5, 1023, 1024, 1025, 4099] {
            let expected = results(len, &cpu(1))?;
            for device in devices() {
                assert!(results(len, &device)? == expected, "{len} on {device}");
            }
        }
        Ok(())
    }

    #[test]
    fn bf16_of_any_length_is_rounded_once() -> Result<()> {
        for device in gpus() {
            for len in [0, 1, 3, 4, 7, 1023, 1025, 4099] {
                let [a, b] = ["a", "b"].map(|name| normal(1, name, [len], &device).cast(DType::BF16).unwrap());
                let (x, y) = (Var::constant(a.clone()), Var::constant(b.clone()));
                let sum = add(&mut Tape::inference(), &x, &y)?;
                let rectified = relu(&mut Tape::inference(), &sum)?.into_value();
                let scaled = scale(&a, &Tensor::full([], -1.7, &device)?)?;
                let mut in_place = a.clone();
                in_place.add_assign(&b)?;
                let [a, b] = [&a, &b].map(|tensor| tensor.to_vec::<bf16>().unwrap());
                let sums: Vec<bf16> = a.iter().zip(&b).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32())).collect();
                assert!(sum.value().to_vec::<bf16>()? == sums && in_place.to_vec::<bf16>()? == sums, "{len}");
                let zero = bf16::from_f32(0.0);
                let expected: Vec<bf16> = sums.iter().map(|x| if *x < zero { zero } else { *x }).collect();
                assert!(rectified.to_vec::<bf16>()? == expected, "{len}");
                let expected: Vec<bf16> = a.iter().map(|a| bf16::from_f32(a.to_f32() * -1.7)).collect();
                assert!(scaled.to_vec::<bf16>()? == expected, "{len}");
            }
            let (half, whole) = (Tensor::zeros([4], &device)?.cast(DType::BF16)?, Tensor::zeros([4], &device)?);
            assert!(half.clone().add_assign(&whole).is_err() && whole.clone().add_assign(&half).is_err());
            let mut tape = Tape::inference();
            assert!(add(&mut tape, &Var::constant(half), &Var::constant(whole.clone())).is_err());
            assert!(relu(&mut tape, &Var::constant(whole.cast(DType::F16)?)).is_err());
        }
        Ok(())
    }

    #[test]
    fn relu_keeps_nan_and_what_is_not_one_number_scales_nothing() -> Result<()> {
        for device in devices() {
            let x = Var::constant(Tensor::new(vec![f32::NAN; 5], [5], &device)?);
            let y = relu(&mut Tape::new(), &x)?.into_value();
            assert!(y.to_vec::<f32>()?.iter().all(|y| y.is_nan()));
            assert!(scale(&y, &y).is_err());
        }
        Ok(())
    }
}
