//! What holds for all operations on a GPU: the same bits under every order of blocks and warps, and from the code of
//! every architecture.

use super::{
    batchnorm::{
        self, Affine, Fused, Moments, Sink, batchnorm,
        fused::{self, Addend},
    },
    dropout::dropout,
    elementwise::{add, relu, scale},
    loss::{CrossEntropy, Target, cross_entropy},
    optimizer::{Item, Rate, Rates, Rule, Table, step},
    pool::{Window, concat_pool, max_pool},
    reduce::Summary,
    shortcut::shortcut,
    testing::{
        bits,
        emulator::{Emulator, Settings, emulated},
        normal,
    },
};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    random::Random,
    tensor::DType,
};

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
    let rates = Rates::new(rule, &[Rate { lr: 0.1, weight_decay: 0.01 }], device)?;
    let item = Item { parameter: &mut parameter, grad: &grads["x"], buffers: &mut buffers, packed: None, group: 0 };
    step(&rates, &mut [item], &mut Table::default())?;
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
    for (kernel, reads, writes) in [
        ("batchnorm_moments_x4", 1, 0),
        ("batchnorm_apply_x4", 1, 1),
        ("add", 2, 1),
        ("tensor_add_assign", 2, 1),
        ("batchnorm_reduce_x4", 3, 1),
        ("batchnorm_input_grad_x4", 2, 1),
    ] {
        moves(&emulator, kernel, map, [reads, writes], 0);
    }
    Ok(())
}

/// Asserts that a kernel reads and writes so many maps of `map` sectors, and no more than a quarter of one beside them
/// and the `cached` sectors that every warp reads anew.
fn moves(emulator: &Emulator, kernel: &str, map: u64, [reads, writes]: [u64; 2], cached: u64) {
    let counters = emulator.counters()[kernel];
    let (loads, stores) = (counters.global_load_sectors, counters.global_store_sectors);
    let most = reads * map + map / 4 + cached;
    assert!((reads * map..=most).contains(&loads), "{kernel} reads {loads} sectors of {map}");
    assert!((writes * map..=writes * map + map / 4).contains(&stores), "{kernel} writes {stores} sectors of {map}");
    assert_eq!(counters.bank_conflicts(), 0, "{kernel}: {counters:?}");
}

/// A residual block's batchnorms and a stem's, forwards and backwards, with the bits of all that comes out.
fn fused_passes([n, h, w, c]: [usize; 4], dtype: DType, device: &Device) -> Result<Vec<Vec<u32>>> {
    let named = |name: &str, shape: &[usize]| match *shape {
        [c] => normal(1, name, [c], device),
        _ => normal(1, name, [n, h, w, c], device).cast(dtype).expect("an activation"),
    };
    let [x, y, grad] = ["x", "y", "grad"].map(|name| named(name, &[n, h, w, c]));
    let [scale, shift] = ["scale", "shift"].map(|name| named(name, &[c]));
    let norm = |x: &Tensor| -> Result<fused::Normaliser> {
        let Device::Cuda(cuda) = device else { unreachable!("a GPU") };
        fused::finalize(&batchnorm::cuda::moments(cuda, x)?, &scale, &shift, 1e-5)
    };
    let (one, two) = (norm(&x)?, norm(&y)?);
    let normed = Addend::Normed { input: &y, factor: &two.factor, offset: &two.offset };
    let (z, mask) = fused::apply_masked(&x, &one.factor, &one.offset, Some(normed), true)?;
    let sink = Sink { mask, input: x.clone(), mean: one.moments.mean.clone() };
    let (masked, sums) = fused::reduce(&grad, &sink)?;
    let again = fused::reduce_again(&masked, &y, &two.moments.mean)?;
    let of = [
        fused::coefficients(&sums, &one.moments, &scale, 1e-5, true)?,
        fused::coefficients(&again, &two.moments, &scale, 1e-5, true)?,
    ];
    let [dx, dy] = fused::input_grad_pair(&masked, [(&x, &of[0]), (&y, &of[1])])?;

    let (pooled, at) = fused::apply_pooled(&x, &one.factor, &one.offset, Window::STEM)?;
    let saved = [&pooled, &x, &at, &one.factor, &one.offset];
    let [grad, input, at, factor, offset] = saved;
    let sums = fused::reduce_pooled(grad, input, at, factor, offset, &one.moments.mean, Window::STEM)?;
    let stem = fused::coefficients(&sums, &one.moments, &scale, 1e-5, true)?;
    let dstem = fused::input_grad_pooled(grad, input, at, factor, offset, Window::STEM, &stem)?;
    let features = concat_pool(&mut Tape::inference(), &Var::constant(z.clone()))?.into_value();
    let tensors = [&z, &masked, &dx, &dy, &pooled, &dstem, &features, &of[0].scale_grad, &of[1].b, &stem.scale_grad];
    Ok(tensors.map(bits).to_vec())
}

#[test]
fn fused_passes_depend_neither_on_the_schedule_nor_on_the_architecture() -> Result<()> {
    let settings = |schedule, capability| Settings { schedule, capability, ..Settings::default() };
    for dtype in [DType::F32, DType::BF16] {
        let mut expected = None;
        for (schedule, capability) in [(0, (8, 0)), (1, (8, 0)), (2, (7, 5)), (3, (9, 0)), (4, (12, 0))] {
            let Some((device, _)) = emulated(settings(schedule, capability)) else { return Ok(()) };
            let actual = fused_passes([2, 9, 11, 72], dtype, &device)?;
            assert!(*expected.get_or_insert_with(|| actual.clone()) == actual, "schedule {schedule}, {capability:?}");
        }
    }
    Ok(())
}

#[test]
fn fused_passes_move_each_map_once() -> Result<()> {
    for (dtype, suffix) in [(DType::F32, "x4"), (DType::BF16, "bf16")] {
        let Some((device, emulator)) = emulated(Settings::default()) else { return Ok(()) };
        let dims = [2, 16, 32, 128];
        fused_passes(dims, dtype, &device)?;
        let map = (dims.iter().product::<usize>() * dtype.bytes() / 32) as u64;
        // Per-channel numbers, which a warp reads for 64 channels, sixteen bytes a thread at a time.
        let per_warp = if dtype == DType::BF16 { 16 } else { 8 };
        let numbers = (2 * 16 * 32 / 128 * 2) * 8 * per_warp;
        for (kernel, maps, per_channel) in [
            // Twice.
            ("batchnorm_moments", [2, 0], 0),
            ("batchnorm_apply", [2, 1], 4),
            // With a mask, then without.
            ("batchnorm_reduce", [4, 1], 2),
            ("batchnorm_input_grad_pair", [3, 2], 6),
        ] {
            moves(&emulator, &format!("{kernel}_{suffix}"), map, maps, per_channel * numbers);
        }
        // Stride 2: outputs are a quarter of a map, and winners are bytes. A warp asks for each pixel of a window, or
        // for the two rows of windows over every second row, whose columns its pixels share.
        let (quarter, winners) = (map / 4, (dims.iter().product::<usize>() / 4 / 32) as u64);
        let counters = emulator.counters();
        let counted = |kernel: &str| {
            let counters = counters[&format!("{kernel}_{suffix}")];
            assert_eq!(counters.bank_conflicts(), 0, "{kernel}: {counters:?}");
            [counters.global_load_sectors, counters.global_store_sectors]
        };
        // Less at the border, more for per-channel numbers. Forwards a block has 16 outputs of f32, 32 of bf16.
        let forwards = (2 * 8 * 16 / (2 * per_warp) * 2) * 8 * per_warp;
        let about = |actual: u64, expected: u64, cached: u64| (expected * 9 / 10..=expected + cached).contains(&actual);
        let [loads, stores] = counted("batchnorm_apply_pool");
        assert!(
            about(loads, 9 * quarter, 2 * forwards) && stores == quarter + winners,
            "apply {loads} {stores} of {map}"
        );
        let [loads, stores] = counted("batchnorm_reduce_pool");
        assert!(
            about(loads, map + 6 * (quarter + winners), 3 * numbers) && 4 * stores < map,
            "reduce {loads} {stores} of {map}"
        );
        let [loads, stores] = counted("batchnorm_input_grad_pool");
        assert!(
            about(loads, map + 6 * (quarter + winners), 5 * numbers) && stores == map,
            "gradient {loads} {stores} of {map}"
        );
    }
    Ok(())
}

#[test]
fn other_operations_move_each_bf16_map_once() -> Result<()> {
    let Some((device, emulator)) = emulated(Settings::default()) else { return Ok(()) };
    let dims = [4, 16, 16, 64];
    let x = normal(1, "x", dims, &device).cast(DType::BF16)?;
    let mut tape = Tape::new();
    let leaf = tape.leaf("x", x.clone());
    let sum = add(&mut tape, &leaf, &leaf)?;
    let y = relu(&mut tape, &sum)?;
    let y = shortcut(&mut tape, &y, 1, 64)?;
    tape.backward_from(&y, x.clone())?;
    scale(&x, &Tensor::full([], 0.5, &device)?)?;
    Summary::of(&x)?;
    let mut tape = Tape::new();
    let leaf = tape.leaf("x", x.clone());
    let features = concat_pool(&mut tape, &leaf)?;
    tape.backward_from(&features, Tensor::full([4, 128], 1.0, &device)?)?;
    let mut tape = Tape::new();
    let leaf = tape.leaf("x", x.clone());
    let pooled = max_pool(&mut tape, &leaf, Window { size: 1, stride: 1, padding: 0 })?;
    tape.backward_from(&pooled, x.clone())?;
    let map = (dims.iter().product::<usize>() / 16) as u64;
    for (kernel, maps) in [
        ("add_bf16", [2, 1]),
        ("relu_bf16", [1, 1]),
        ("relu_grad_bf16", [2, 1]),
        ("scale_bf16", [1, 1]),
        ("shortcut_bf16", [1, 1]),
        ("shortcut_grad_bf16", [1, 1]),
        ("tensor_add_assign_bf16", [2, 1]),
        ("summary_bf16", [1, 0]),
        ("concat_pool_bf16", [1, 0]),
        // Positions are twice as wide as bf16.
        ("max_pool_bf16", [1, 3]),
        ("max_pool_grad_bf16", [3, 1]),
    ] {
        moves(&emulator, kernel, map, maps, 0);
    }
    let counters = emulator.counters()["global_pool_grad_bf16"];
    assert_eq!(counters.global_store_sectors, map);
    Ok(())
}
