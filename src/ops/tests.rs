//! What holds for all operations on a GPU: the same bits under every order of blocks and warps, and from the code of
//! every architecture.

use super::{
    batchnorm::{Affine, Fused, Moments, batchnorm},
    dropout::dropout,
    elementwise::add,
    loss::{CrossEntropy, Target, cross_entropy},
    optimizer::{Item, Rule, Table, step},
    pool::{Window, concat_pool, max_pool},
    reduce::Summary,
    shortcut::shortcut,
    testing::{
        bits,
        emulator::{Settings, emulated},
        normal,
    },
};
use crate::{Device, Result, Tensor, autograd::Tape, random::Random};

/// A network of everything but matrix products, one step of its training, and the bits of all that comes out.
fn network(device: &Device) -> Result<Vec<Vec<u32>>> {
    let c = 20;
    let mut tape = Tape::new();
    let x = tape.leaf("x", normal(1, "x", [3, 13, 11, 12], device));
    let x = max_pool(&mut tape, &x, Window::STEM)?;
    let residual = shortcut(&mut tape, &x, 1, c)?;
    let x = shortcut(&mut tape, &x, 1, c)?;
    let (scale, shift) =
        (tape.leaf("scale", normal(2, "scale", [c], device)), tape.leaf("shift", normal(2, "shift", [c], device)));
    let moments = Moments::of(x.value())?;
    let fused = Fused { residual: Some(&residual), relu: true };
    let x = batchnorm(&mut tape, &x, Affine { scale: &scale, shift: &shift }, &moments, true, 1e-5, fused)?;
    let x = concat_pool(&mut tape, &x)?;
    let x = dropout(&mut tape, &x, 0.25, &Random::stream(1, "dropout", &[]))?;
    let logits = x.value().clone();
    let target = Target::labels(vec![5, 0, 39], 2 * c, device)?;
    let weights = Tensor::full([2 * c], 0.7, device)?;
    let options = CrossEntropy { label_smoothing: 0.1, class_weights: Some(weights) };
    let loss = cross_entropy(&mut tape, &x, &target, &options)?;
    let mut results = vec![bits(&logits), bits(loss.value()), bits(&moments.mean), bits(&moments.variance)];

    let grads = tape.backward(&loss)?;
    let mut parameter = normal(1, "x", [3, 13, 11, 12], device);
    let mut buffers = [Tensor::zeros(parameter.shape(), device)?, Tensor::zeros(parameter.shape(), device)?];
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-5, step: 1 };
    let item =
        Item { parameter: &mut parameter, grad: &grads["x"], buffers: &mut buffers, lr: 0.1, weight_decay: 0.01 };
    step(rule, &mut [item], &mut Table::default())?;
    results.push(vec![Summary::of(&parameter)?.sum.to_bits() as u32]);
    results.extend(grads.values().chain([&parameter]).map(bits));
    Ok(results)
}

#[test]
fn results_depend_neither_on_the_schedule_nor_on_the_architecture() -> Result<()> {
    let settings = |schedule, capability| Settings { schedule, capability, ..Settings::default() };
    let Some((device, _)) = emulated(settings(0, (8, 0))) else { return Ok(()) };
    let expected = network(&device)?;
    for (schedule, capability) in [(1, (8, 0)), (2, (8, 0)), (3, (7, 5)), (4, (9, 0)), (5, (12, 0))] {
        let (device, _) = emulated(settings(schedule, capability)).expect("a compiler, as before");
        for (at, (actual, expected)) in network(&device)?.iter().zip(&expected).enumerate() {
            assert!(actual == expected, "tensor {at}, schedule {schedule}, {capability:?}");
        }
    }
    Ok(())
}

#[test]
fn memory_is_read_and_written_in_whole_sectors_and_banks_do_not_clash() -> Result<()> {
    let Some((device, emulator)) = emulated(Settings::default()) else { return Ok(()) };
    network(&device)?;
    for (kernel, counters) in emulator.counters() {
        assert_eq!(counters.bank_conflicts(), 0, "{kernel}: {counters:?}");
    }

    let Some((device, emulator)) = emulated(Settings::default()) else { return Ok(()) };
    let (rows, c) = (640, 128);
    let mut tape = Tape::new();
    let x = tape.leaf("x", normal(1, "x", [rows, c], &device));
    let (scale, shift) =
        (tape.leaf("scale", Tensor::full([c], 1.0, &device)?), tape.leaf("shift", Tensor::zeros([c], &device)?));
    let moments = Moments::of(x.value())?;
    let fused = Fused { residual: None, relu: true };
    let y = batchnorm(&mut tape, &x, Affine { scale: &scale, shift: &shift }, &moments, true, 1e-5, fused)?;
    let sum = add(&mut tape, &y, &y)?;
    tape.backward_from(&sum, normal(1, "seed", [rows, c], &device))?;
    // 32 bytes each.
    let map = (rows * c / 8) as u64;
    // Maps read and written by each kernel; beside them it moves no more than a quarter of one.
    for (kernel, reads, writes) in [
        ("batchnorm_moments_x4", 1, 0),
        ("batchnorm_apply_x4", 1, 1),
        ("add", 2, 1),
        ("tensor_add_assign", 2, 1),
        ("batchnorm_reduce_x4", 3, 1),
        ("batchnorm_input_grad_x4", 2, 1),
    ] {
        let counters = emulator.counters()[kernel];
        let (loads, stores) = (counters.global_load_sectors, counters.global_store_sectors);
        assert!((reads * map..=reads * map + map / 4).contains(&loads), "{kernel} reads {loads} sectors of {map}");
        assert!((writes * map..=writes * map + map / 4).contains(&stores), "{kernel} writes {stores} sectors of {map}");
    }
    Ok(())
}
