//! The operations in the emulator, at tiny sizes: that they run, and what they move is what they are said to.

use std::{cell::RefCell, collections::BTreeMap};

use super::*;
use crate::cli::bench::emulator::{Emulator, Settings, emulated};
use unfreeze::nn::Arch;

/// What a kernel moved so far: launches, and bytes.
type Moved = BTreeMap<String, [f64; 2]>;

fn moved_so_far(device: &Device, driver: &Emulator) -> Moved {
    let launched = launches(device).unwrap_or_default();
    let bytes = driver.counters().into_iter().map(|(kernel, counters)| {
        let sectors = counters.global_load_sectors + counters.global_store_sectors;
        let bytes = 32 * sectors + counters.bulk_load_bytes + counters.bulk_store_bytes;
        let launches = launched[kernel.as_str()];
        (kernel, [launches as f64, bytes as f64])
    });
    bytes.collect()
}

/// The operations of `which` at the shapes of a network's first convolutions, each with the bytes that one launch of
/// its kernels moved; `None` where nothing compiles them.
fn measured(
    (arch, first): (Arch, usize),
    precision: Precision,
    capability: (u32, u32),
    which: impl Fn(&Bench, &[Convolution]) -> Result<()>,
) -> Option<Vec<(Row, f64)>> {
    let (device, driver) = emulated(Settings { capability, ..Settings::default() })?;
    let size = if arch.published_size() > 32 { 32 } else { 8 };
    let network = Network { arch, size, batch: 2, classes: CLASSES, precision };
    let rows = RefCell::new(Vec::new());
    let before = RefCell::new(Moved::new());
    let show = &|row: Row| {
        let after = moved_so_far(&device, &driver);
        let before = before.replace(after.clone());
        let bytes = row.kernels.iter().map(|kernel| {
            let [launches, bytes] = after[*kernel];
            let [launches_before, bytes_before] = before.get(*kernel).copied().unwrap_or_default();
            (bytes - bytes_before) / (launches - launches_before)
        });
        let bytes = bytes.sum();
        rows.borrow_mut().push((row, bytes));
    };
    let timing = Timing { rounds: 1, seconds: 0.0, warm_up: 0.0 };
    let bench = Bench { device: &device, network, timing, roof: None, seed: 0, show };
    let mut convolutions = network.convolutions();
    convolutions.truncate(first);
    which(&bench, &convolutions).unwrap();
    Some(rows.into_inner())
}

/// How often a network has an operation, by the rows.
fn count(rows: &[(Row, f64)], op: &str) -> usize {
    rows.iter().filter(|(row, _)| row.op == op).map(|(row, _)| row.count).sum()
}

/// What is said to be moved is a floor, and where each element moves once, hardly less than what is counted.
fn assert_moved(rows: &[(Row, f64)]) {
    for (row, bytes) in rows {
        let Row { op, shape, work, kernels, .. } = row;
        let moved = bytes / work.bytes;
        assert!(!kernels.is_empty() && moved >= 1.0, "{op} {shape}: {moved} of the bytes, by {kernels:?}");
        // Enough of them for a channel's numbers not to matter; windows of a pool overlap.
        let passes = op.starts_with("batchnorm") && !op.contains("pool") && work.bytes > 16384.0;
        assert!(!passes || moved < 1.4, "{op} {shape}: {moved} times the bytes, by {kernels:?}");
    }
}

#[test]
fn plain_operations_move_what_is_said() {
    let Some(rows) = measured((Arch::ResNet20, 19), Precision::F32, (7, 5), |bench, all| bench.all(all)) else {
        return;
    };
    assert_moved(&rows);
    assert_eq!(["conv forward", "batchnorm apply", "head, one launch"].map(|op| count(&rows, op)), [19, 19, 1]);
}

#[test]
fn tensor_cores_move_what_is_said() {
    let Some(rows) = measured((Arch::ResNet20, 19), Precision::Tf32, (8, 0), |bench, all| bench.all(all)) else {
        return;
    };
    assert_moved(&rows);
    let convolutions = ["conv forward", "conv forward + moments", "conv weight gradient", "conv input gradient"];
    assert_eq!(convolutions.map(|op| count(&rows, op)), [19, 19, 19, 18]);
    let norms = ["batchnorm apply", "batchnorm apply + add", "batchnorm gradient", "batchnorm sums"];
    assert_eq!(norms.map(|op| count(&rows, op)), [10, 9, 19, 1]);
}

/// The stem with its pool, and a block with a projection whose convolutions Hopper has kernels for.
#[test]
fn hopper_moves_what_is_said() {
    // Without the head, whose thousand classes take long.
    let which = |bench: &Bench, convolutions: &[Convolution]| {
        bench.tensor_cores(convolutions)?;
        bench.pools(convolutions)
    };
    let Some(rows) = measured((Arch::ResNet50, 5), Precision::Bf16, (9, 0), which) else { return };
    assert_moved(&rows);
    let norms = [
        "batchnorm apply",
        "batchnorm apply + pool",
        "batchnorm sums, pool",
        "batchnorm gradient, pool",
        "batchnorm apply + projection",
        "batchnorm sums again",
        "batchnorm gradient, two",
        "batchnorm apply + add",
    ];
    assert_eq!(norms.map(|op| count(&rows, op)), [2, 1, 1, 1, 1, 1, 1, 0]);
    let by_hopper = |(row, _): &&(Row, f64)| row.kernels.iter().all(|kernel| kernel.starts_with("conv_1x1_"));
    let hopper: Vec<_> = rows.iter().filter(by_hopper).map(|(row, _)| (row.op, row.shape.as_str())).collect();
    let products = ["conv forward", "conv forward + moments", "conv input gradient"];
    let shapes = ["64->256 1x1/1 8x8", "64->64 1x1/1 8x8"];
    assert_eq!(hopper, shapes.map(|shape| products.map(|op| (op, shape))).concat());
}
