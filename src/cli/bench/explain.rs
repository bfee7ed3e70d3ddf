//! `unfreeze bench train --explain`: what a step consists of, by the model of its cost and as the device counts it.

use std::collections::BTreeMap;

use serde_json::json;
use unfreeze::{
    Device, Result,
    nn::{
        Arch,
        cost::{Family, Work},
    },
};

use super::{
    cell::{self, Cell},
    measure::size,
    task::Task,
};

/// What a whole step in bf16 at batch 256 should take by the analysis that the fused design comes from: kernels, and
/// gigabytes of activations kept for the backward pass.
const REFERENCE: [(Arch, u64, f64); 3] =
    [(Arch::ResNet18, 100, 2.2), (Arch::ResNet34, 180, 3.4), (Arch::ResNet50, 263, 10.3)];

/// Explains a step of `task`.
///
/// # Errors
/// [`Error::OutOfMemory`](unfreeze::Error::OutOfMemory); [`Error::Device`](unfreeze::Error::Device).
pub fn run(mut task: Task, json: bool) -> Result<()> {
    let cell = *task.cell();
    // The first step compiles kernels and makes the optimizer's buffers.
    task.step(1)?;
    let saved = task.measure_saved()?;
    let before = launches(task.device());
    task.step(1)?;
    let launched: Option<BTreeMap<&str, u64>> = launches(task.device()).zip(before).map(|(after, before)| {
        let new = after.into_iter().map(|(name, count)| (name, count - before.get(name).copied().unwrap_or(0)));
        new.filter(|(_, count)| *count > 0).collect()
    });
    let kernels = cell.kernels();
    let mut families: BTreeMap<Family, (usize, Work)> = BTreeMap::new();
    for kernel in &kernels {
        let (count, work) = families.entry(kernel.family).or_default();
        *count += 1;
        work.flops += kernel.work.flops;
        work.bytes += kernel.work.bytes;
    }
    let network = cell.network();
    let model_saved = network.saved(cell.frozen_units());
    let reference = reference(&cell);
    let total = launched.as_ref().map(|launched| launched.values().sum::<u64>());
    if json {
        let families: Vec<_> = families
            .iter()
            .map(|(family, (count, work))| {
                json!({ "family": family.name(), "kernels": count, "flops": work.flops, "bytes": work.bytes })
            })
            .collect();
        let reference = reference.map(|(kernels, saved)| json!({ "kernels": kernels, "saved": saved }));
        outln!(
            "{}",
            json!({ "cell": cell, "model": families, "model_kernels": kernels.len(), "model_saved": model_saved,
                    "saved": saved, "launches": total, "launched": launched, "reference": reference })
        );
        return Ok(());
    }
    outln!("{cell}");
    outln!("{:<18} {:>8} {:>12} {:>12}", "by the model", "kernels", "GFLOP", "bytes");
    for (family, (count, work)) in &families {
        outln!("{:<18} {count:>8} {:>12.1} {:>12}", family.name(), work.flops / 1e9, size(work.bytes));
    }
    let flops: f64 = kernels.iter().map(|kernel| kernel.work.flops).sum();
    let bytes: f64 = kernels.iter().map(|kernel| kernel.work.bytes).sum();
    outln!("{:<18} {:>8} {:>12.1} {:>12}", "total", kernels.len(), flops / 1e9, size(bytes));
    let beside = |value: Option<String>| value.map_or_else(String::new, |value| format!("; reference: {value}"));
    outln!(
        "activations kept: {} measured, {} by the model{}",
        size(saved as f64),
        size(model_saved),
        beside(reference.map(|(_, saved)| size(saved)))
    );
    match (launched, total) {
        (Some(launched), Some(total)) => {
            let reference = beside(reference.map(|(kernels, _)| kernels.to_string()));
            outln!("kernels launched in a step: {total}, by the model {}{reference}", kernels.len());
            let mut launched: Vec<_> = launched.into_iter().collect();
            launched.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
            launched.iter().for_each(|(name, count)| outln!("  {name:<40} {count:>6}"));
        }
        _ => outln!("kernels launched in a step: none, the processor has none"),
    }
    Ok(())
}

/// Kernels and bytes kept by the reference, where it has the cell; its bytes are proportional to the batch.
fn reference(cell: &Cell) -> Option<(u64, f64)> {
    let whole = cell.work == cell::Work::Full && cell.size == 224 && cell.dtype == unfreeze::Precision::Bf16;
    let found = REFERENCE.iter().find(|(arch, ..)| *arch == cell.arch && whole);
    found.map(|(_, kernels, gigabytes)| (*kernels, gigabytes * 1e9 * cell.batch_size as f64 / 256.0))
}

/// How often each kernel was launched, on a device that has some.
pub fn launches(device: &Device) -> Option<BTreeMap<&'static str, u64>> {
    match device {
        Device::Cuda(cuda) => Some(cuda.launches()),
        _ => None,
    }
}
