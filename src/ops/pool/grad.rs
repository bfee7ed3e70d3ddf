//! Pooling on the tape.

use super::{Window, average_forward, concat_forward, cpu, cuda, max_forward, max_values, nhwc};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
};

/// The maximum of each window; see [`max_forward`].
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the window does not fit.
pub fn max_pool(tape: &mut Tape, input: &Var, window: Window) -> Result<Var> {
    if !input.needs_grad() {
        return Ok(Var::constant(max_values(input.value(), window)?));
    }
    let (output, at) = max_forward(input.value(), window)?;
    let (slot, extents) = (input.slot(), nhwc("max pool", input.value())?);
    Ok(tape.record(&[input], output, move |grad, gradients| {
        let Some(slot) = slot else { return Ok(()) };
        let input_grad = match grad.device() {
            Device::Cuda(device) => cuda::max_grad(device, &grad, &at, extents, window)?,
            Device::Cpu(cpu) => {
                let mut input_grad = Tensor::zeros(extents, grad.device())?;
                let stride = grad.shape().elements() / extents[0].max(1);
                cpu::scatter_max(cpu, grad.as_slice()?, stride, &at, input_grad.as_slice_mut()?, extents)?;
                input_grad
            }
        };
        gradients.add(slot, input_grad)
    }))
}

/// The average over all positions; see [`average_forward`].
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `input` is no activation.
pub fn average_pool(tape: &mut Tape, input: &Var) -> Result<Var> {
    let output = average_forward(input.value())?;
    let (slot, extents) = (input.slot(), nhwc("average pool", input.value())?);
    let dtype = input.value().dtype();
    Ok(tape.record(&[input], output, move |grad, gradients| {
        let Some(slot) = slot else { return Ok(()) };
        let input_grad = match grad.device() {
            Device::Cuda(device) => cuda::global_grad(device, &grad, None, dtype, extents)?,
            Device::Cpu(cpu) => {
                let mut input_grad = Tensor::zeros(extents, grad.device())?;
                cpu::spread_average(cpu, grad.as_slice()?, extents[3], input_grad.as_slice_mut()?, extents);
                input_grad
            }
        };
        gradients.add(slot, input_grad)
    }))
}

/// Maximum and average over all positions; see [`concat_forward`].
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `input` is no activation.
pub fn concat_pool(tape: &mut Tape, input: &Var) -> Result<Var> {
    let (output, at) = concat_forward(input.value())?;
    let (slot, extents) = (input.slot(), nhwc("concat pool", input.value())?);
    let dtype = input.value().dtype();
    Ok(tape.record(&[input], output, move |grad, gradients| {
        let Some(slot) = slot else { return Ok(()) };
        let input_grad = match grad.device() {
            Device::Cuda(device) => cuda::global_grad(device, &grad, Some(&at), dtype, extents)?,
            Device::Cpu(cpu) => {
                let mut input_grad = Tensor::zeros(extents, grad.device())?;
                let (grad, channels) = (grad.as_slice::<f32>()?, extents[3]);
                let to = input_grad.as_slice_mut()?;
                cpu::scatter_max(cpu, grad, 2 * channels, &at, to, extents)?;
                cpu::spread_average(cpu, grad.get(channels..).unwrap_or_default(), 2 * channels, to, extents);
                input_grad
            }
        };
        gradients.add(slot, input_grad)
    }))
}
