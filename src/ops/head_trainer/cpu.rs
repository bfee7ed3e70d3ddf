//! The same on the processor: no operation of a step makes a tensor, and the gradient of the weight moves it as it comes
//! into being.

use super::{Head, Steps};
use crate::{
    Result,
    device::CpuDevice,
    ops::{
        linear::{add_bias, column_sums},
        loss::{CrossEntropy, Targets, check_labels, loss_and_grad},
        optimizer::{Moves, Rate, parts, slices},
        products::{outputs, rows_per_task, take_weight_grad, transposed},
    },
};

/// Makes the steps, which [fit](super::fit), up to one whose loss is not finite, which moves nothing; the losses.
/// `sample` gives the features and the class of each.
pub fn train<'a>(
    cpu: &CpuDevice,
    head: &mut Head,
    sample: impl Fn(u32) -> (&'a [f32], u32),
    steps: &Steps,
    options: &CrossEntropy,
) -> Result<Vec<f32>> {
    let (classes, width) = (head.bias.shape().elements(), head.weight.shape().last());
    let labels: Vec<u32> = steps.batches.iter().flatten().map(|number| sample(*number).1).collect();
    check_labels(&labels, classes)?;
    let weight = head.weight.as_slice_mut::<f32>()?;
    let bias = head.bias.as_slice_mut::<f32>()?;
    let (mut weight_buffers, mut bias_buffers) = (slices(head.weight_buffers)?, slices(head.bias_buffers)?);
    let mut losses = Vec::with_capacity(steps.batches.len());
    for ((batch, &lr), &rule) in steps.batches.iter().zip(steps.lrs).zip(steps.rules) {
        let (rows, labels): (Vec<&[f32]>, Vec<u32>) = batch.iter().map(|number| sample(*number)).unzip();
        let (n, sample) = (rows.len(), |index: usize| rows[index]);
        let mut logits = outputs(cpu, n, width, sample, weight);
        add_bias(&mut logits, bias);
        let (loss, grad) = loss_and_grad(cpu, &logits, classes, &Targets::of_labels(&labels, options)?);
        losses.push(loss);
        if !loss.is_finite() {
            break;
        }
        let [weight_moves, bias_moves] =
            steps.weight_decays.map(|weight_decay| Moves::new(rule, Rate { lr, weight_decay }, 1.0));
        let turned = transposed(cpu, n, classes, |sample| &grad[sample * classes..][..classes]);
        let own = rows_per_task(cpu, classes, n * width);
        let mut tasks = parts(weight, weight_buffers.each_mut().map(|buffer| &mut **buffer), own * width);
        cpu.each_chunk(&mut tasks, 1, |task, parts| {
            for part in parts {
                let rows = task * own..task * own + part.values.len() / width;
                take_weight_grad(&turned, rows, [n, width], sample, |row, column, grad| {
                    let first = (row - task * own) * width + column;
                    weight_moves.update(part.range(first, grad.len()), grad);
                });
            }
        });
        let bias_grad = column_sums(&grad, classes);
        for part in parts(bias, bias_buffers.each_mut().map(|buffer| &mut **buffer), classes) {
            bias_moves.update(part, &bias_grad);
        }
    }
    Ok(losses)
}
