//! The launch of `kernels/head_trainer.cu`.

use std::sync::Arc;

use super::{Head, Samples, Steps};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Launch, Params, Source, kernel_params},
    },
    ops::{
        conv::plan::SEGMENT,
        loss::CrossEntropy,
        matrix,
        optimizer::Rule,
        {optional, small},
    },
};

/// Classes that the kernel for few takes in one tile.
const FEW: usize = 16;
/// Sides of the tiles of both kernels: of rows and classes, and of classes and features.
const TILES: [[[usize; 2]; 2]; 2] = [[[64, 16], [16, 64]], [[64, 64], [64, 64]]];

kernel_params! {
    struct HeadTrainerParams {
        features: u64,
        labels: u64,
        order: u64,
        starts: u64,
        lrs: u64,
        moving: u64,
        class_weights: u64,
        weight: u64,
        bias: u64,
        weight_first: u64,
        weight_second: u64,
        bias_first: u64,
        bias_second: u64,
        parts: u64,
        grads: u64,
        row_losses: u64,
        losses: u64,
        barrier: u64,
        count: u32,
        width: u32,
        classes: u32,
        steps: u32,
        weight_decay: f32,
        bias_decay: f32,
        smoothing: f32,
        beta2: f32,
        eps: f32,
        nesterov: u32,
        decoupled: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "head_trainer",
    text: include_str!("../../../kernels/head_trainer.cu"),
    archs: F32_ARCHS,
    entries: &["head_trainer_few", "head_trainer_many"],
    layouts: &[HeadTrainerParams::LAYOUT],
};
static KERNELS: [Kernel<HeadTrainerParams>; 2] =
    [Kernel::new(&SOURCE, "head_trainer_few", 64), Kernel::new(&SOURCE, "head_trainer_many", 256)];

/// Makes the steps, which [fit](super::fit).
pub fn train(
    cuda: &Arc<CudaDevice>,
    head: &mut Head,
    samples: Samples,
    steps: Steps,
    options: &CrossEntropy,
) -> Result<Tensor> {
    let [count, width] = matrix("head trainer", samples.features)?;
    let [classes, _] = matrix("head trainer", head.weight)?;
    let Steps { batches, lrs, weight_decays: [weight_decay, bias_decay], rules } = steps;
    let losses = Tensor::uninit::<f32>([batches.len()], cuda)?;
    let most = batches.iter().map(Vec::len).max().unwrap_or(0);
    let Some(&rule) = rules.first().filter(|_| most > 0) else { return Ok(losses) };

    let device = samples.features.device();
    let upload = |values: Vec<u32>| {
        let shape = [values.len()];
        Tensor::new(values, shape, device)
    };
    let starts = batches.iter().scan(0, |sum, batch| {
        *sum += batch.len() as u32;
        Some(*sum)
    });
    let starts = upload(std::iter::once(0).chain(starts).collect())?;
    let order = upload(batches.concat())?;
    let lrs = Tensor::new(lrs.to_vec(), [lrs.len()], device)?;
    let moving: Vec<f32> = rules.iter().flat_map(|rule| rule.moving()).collect();
    let moving = Tensor::new(moving, [batches.len(), 4], device)?;
    let (beta2, eps, nesterov, decoupled) = match rule {
        Rule::Sgd { nesterov, decoupled, .. } => (0.0, 0.0, nesterov, decoupled),
        Rule::AdamW { beta2, eps, .. } => (beta2, eps, false, true),
    };
    let segments = width.div_ceil(SEGMENT);
    let parts = Tensor::uninit::<f32>([segments, most, classes], cuda)?;
    let grads = Tensor::uninit::<f32>([most, classes], cuda)?;
    let row_losses = Tensor::uninit::<f32>([most], cuda)?;
    let barrier = upload(vec![0])?;
    let [weight_first, weight_second] = buffers(cuda, head.weight_buffers)?;
    let [bias_first, bias_second] = buffers(cuda, head.bias_buffers)?;
    let params = HeadTrainerParams {
        features: samples.features.pointer::<f32>(cuda)?,
        labels: samples.labels.pointer::<u32>(cuda)?,
        order: order.pointer::<u32>(cuda)?,
        starts: starts.pointer::<u32>(cuda)?,
        lrs: lrs.pointer::<f32>(cuda)?,
        moving: moving.pointer::<f32>(cuda)?,
        class_weights: optional::<f32>(cuda, options.class_weights.as_ref())?,
        weight: head.weight.pointer_mut::<f32>(cuda)?,
        bias: head.bias.pointer_mut::<f32>(cuda)?,
        weight_first,
        weight_second,
        bias_first,
        bias_second,
        parts: parts.pointer::<f32>(cuda)?,
        grads: grads.pointer::<f32>(cuda)?,
        row_losses: row_losses.pointer::<f32>(cuda)?,
        losses: losses.pointer::<f32>(cuda)?,
        barrier: barrier.pointer::<u32>(cuda)?,
        count: small("head trainer", count)?,
        width: small("head trainer", width)?,
        classes: small("head trainer", classes)?,
        steps: small("head trainer", batches.len())?,
        weight_decay,
        bias_decay,
        smoothing: options.label_smoothing,
        beta2,
        eps,
        nesterov: nesterov.into(),
        decoupled: decoupled.into(),
    };
    let kernel = usize::from(classes > FEW);
    let [[rows, cols], [of_classes, of_features]] = TILES[kernel];
    let forward = most.div_ceil(rows) * classes.div_ceil(cols) * segments;
    let backward = classes.div_ceil(of_classes) * width.div_ceil(of_features);
    // More blocks than multiprocessors need not fit at once, and would only wait for one another.
    let blocks = forward.max(backward).min(cuda.properties().multiprocessors as usize);
    let kernel = &KERNELS[kernel];
    let launch =
        Launch { grid: [blocks as u32, 1, 1], block: kernel.block, shared: 0, cooperative: true, cluster: [1, 1, 1] };
    cuda.run(kernel.source, kernel.entry, &launch, &params.to_bytes())?;
    Ok(losses)
}

/// The addresses of a parameter's buffers, 0 for one that its rule does not keep.
fn buffers(cuda: &CudaDevice, buffers: &mut [Tensor]) -> Result<[u64; 2]> {
    let mut addresses = [0; 2];
    for (address, buffer) in addresses.iter_mut().zip(buffers) {
        *address = buffer.pointer_mut::<f32>(cuda)?;
    }
    Ok(addresses)
}
