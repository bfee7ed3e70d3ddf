//! The engine on a GPU (`UNFREEZE_TEST_DEVICE`, or an emulated one): the same networks, the same learner, the same
//! numbers as on the processor.

mod common;

use common::{
    emulator::{Settings, emulated, gpu},
    formula,
    learning::{Told, bits, changed, data, folders, learner_of, listened, picture},
};
use unfreeze::{
    Device, Error, Precision, Result, Tensor,
    autograd::{ParameterGradients, Parameters, Var},
    data::{Augment, ImageData, Split, Transforms},
    learner::{Fit, Learner, LrFind},
    nn::{
        Arch, HeadSpec, Layer, Model, Pass,
        cost::{Family, Network},
    },
    ops::loss::{CrossEntropy, Target, cross_entropy},
    optim::{Optimizer, OptimizerKind},
    random::Random,
};

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Norm of the difference, relative to the norm of `b`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

/// A network with the weights that the golden values were computed with.
fn network(arch: Arch, freeze_norms: bool, device: &Device) -> Result<Model> {
    let mut model = Model::new(arch, HeadSpec::Linear, 1000, 0, device)?;
    formula::fill(&mut model, device);
    model.norms_mut().for_each(|norm| norm.batch_statistics = !freeze_norms);
    Ok(model)
}

/// Loss and gradients of one training pass.
fn pass(model: &Model, images: &Tensor, device: &Device) -> Result<(f64, ParameterGradients)> {
    let mut pass = Pass::training(0, 0);
    let logits = model.forward(&mut pass, &Var::constant(images.clone()))?;
    let target = Target::Labels(formula::labels(images.dims()[0], 1000, device)?);
    let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
    let value = f64::from(loss.value().scalar()?);
    Ok((value, pass.tape.backward(&loss)?))
}

fn networks_agree(arch: Arch, images: usize, size: usize, freeze_norms: bool) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let [(logits, loss, gradients), (expected_logits, expected_loss, expected)] =
        [gpu, Device::cpu(2)?].map(|device| {
            let model = network(arch, freeze_norms, &device).unwrap();
            let images = formula::images(images, size, &device).unwrap();
            let logits = f64s(&model.logits(&images).unwrap());
            let (loss, gradients) = pass(&model, &images, &device).unwrap();
            (logits, loss, gradients)
        });
    let error = distance(&logits, &expected_logits);
    assert!(error < 2e-6, "{arch}: logits differ by {error:e} of their norm");
    assert!((loss / expected_loss - 1.0).abs() < 1e-5, "{arch}: loss {loss}, not {expected_loss}");
    assert!(gradients.keys().eq(expected.keys()));
    // A pre-activation that rounds to the other side of zero moves every gradient before its ReLU.
    let (mut close, mut worst) = (0, 0f64);
    for (name, gradient) in &gradients {
        let error = distance(&f64s(gradient), &f64s(&expected[name]));
        assert!(error < 5e-3, "{arch} {name}: gradient off by {error:e} of its norm");
        close += usize::from(error < 2e-5);
        worst = worst.max(error);
    }
    println!("{arch}: {close} of {} gradients within 2e-5, worst {worst:.1e}", gradients.len());
    assert!(3 * close >= 2 * gradients.len(), "{arch}: only {close} of {} gradients are close", gradients.len());
    Ok(())
}

#[test]
fn resnet18_agrees_with_the_processor() -> Result<()> {
    networks_agree(Arch::ResNet18, 2, 64, false)
}

#[test]
fn resnet50_agrees_with_the_processor() -> Result<()> {
    networks_agree(Arch::ResNet50, 2, 32, true)
}

#[test]
fn grouped_networks_agree_with_the_processor() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let logits = [gpu, Device::cpu(2)?].map(|device| {
        let model = network(Arch::ResNext50_32x4d, true, &device).unwrap();
        f64s(&model.logits(&formula::images(1, 32, &device).unwrap()).unwrap())
    });
    let error = distance(&logits[0], &logits[1]);
    assert!(error < 2e-6, "logits differ by {error:e} of their norm");
    Ok(())
}

/// The whole recipe on a small network: head on cached activations, rates found, augmentation with restarts, everything
/// with a rate per group. Returns what each step told.
fn recipe(learner: Learner) -> (Learner, Vec<Told>) {
    let (mut learner, told) = listened(learner);
    learner.lr_find(LrFind::default().steps(10)).unwrap();
    learner.precompute(true);
    assert!(learner.fit(Fit::epochs(2).lr(1e-2)).unwrap().iter().all(|record| record.cached));
    learner.precompute(false);
    learner.fit(Fit::cycles(2).cycle_len(1).lr(1e-2).wd(1e-3)).unwrap();
    learner.unfreeze();
    learner.bn_freeze(true);
    learner.fit(Fit::cycles(1).cycle_len(1).lr([1e-4, 1e-3, 1e-2])).unwrap();
    learner.bn_freeze(false);
    learner.fit(Fit::epochs(1).lr([1e-4, 1e-3, 1e-2]).optimizer(OptimizerKind::adamw())).unwrap();
    learner.freeze_to(1).unwrap();
    learner.fit(Fit::cycles(2).cycle_len(1).cycle_mult(2).lr([1e-4, 1e-3, 1e-2])).unwrap();
    let told = told.lock().unwrap().clone();
    (learner, told)
}

fn tiny(data: ImageData, device: &Device) -> Learner {
    let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.1);
    learner_of(Arch::ResNet8, data.transforms(transforms), device)
}

#[test]
fn the_recipe_agrees_step_by_step() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    // Batches of eight: the variance of two or four values that are nearly equal would magnify rounding.
    let folder = folders(&["cat", "dog"], 8, 4, 0);
    let data = || data(folder.path()).batch_size(8);
    let [(mut on_gpu, steps), (mut on_cpu, expected)] =
        [gpu, Device::cpu(2)?].map(|device| recipe(tiny(data(), &device)));
    let losses = |told: &[Told]| -> Vec<(usize, usize, f32)> {
        let step = |told: &Told| match told {
            Told::Step { epoch, step, loss, .. } => Some((*epoch, *step, *loss)),
            _ => None,
        };
        told.iter().filter_map(step).collect()
    };
    let (steps, expected) = (losses(&steps), losses(&expected));
    assert_eq!(steps.len(), expected.len());
    assert!(steps.len() > 15);
    for (step, expected) in steps.iter().zip(&expected) {
        assert_eq!((step.0, step.1), (expected.0, expected.1));
        let error = (step.2 / expected.2 - 1.0).abs();
        println!("epoch {} step {}: loss {}, off by {error:.1e}", step.0, step.1, step.2);
        assert!(error < 2e-5, "epoch {} step {}: loss {}, not {}", step.0, step.1, step.2, expected.2);
    }
    on_cpu.model().visit(&mut |parameter| {
        let mut found = None;
        on_gpu.model().visit(&mut |other| {
            if other.name() == parameter.name() {
                found = Some(f64s(&other.value));
            }
        });
        let error = distance(&found.unwrap(), &f64s(&parameter.value));
        assert!(error < 2e-4, "{} differs by {error:e} of its norm", parameter.name());
    });
    let [evaluation, expected] = [&mut on_gpu, &mut on_cpu].map(|learner| learner.evaluate(Split::Valid).unwrap());
    assert_eq!((evaluation.accuracy, &evaluation.labels), (expected.accuracy, &expected.labels));
    assert!((evaluation.loss / expected.loss - 1.0).abs() < 1e-4);
    let image = picture(20, 0, 7);
    // Of one class the map may be zero everywhere.
    let [found, expected] = [&on_gpu, &on_cpu].map(|learner| {
        let map = |class| learner.grad_cam(&image, Some(class), Some(Layer::Stage(2))).unwrap().values().to_vec();
        [map(0), map(1)].concat().into_iter().map(f64::from).collect::<Vec<_>>()
    });
    let error = distance(&found, &expected);
    assert!(expected.iter().any(|value| *value > 0.0) && error < 1e-3, "Grad-CAM differs by {error:e} of its norm");
    Ok(())
}

#[test]
fn what_is_frozen_stays_and_the_cache_does_not_show() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let folder = folders(&["cat", "dog"], 3, 2, 0);
    let mut learner = tiny(data(folder.path()), &gpu);
    for first in [2, 1, 0] {
        learner.freeze_to(first)?;
        let before = bits(learner.model());
        learner.fit(Fit::epochs(1).lr(1e-2))?;
        let after = bits(learner.model());
        let expected: Vec<&String> =
            before.keys().filter(|name| learner.model().group_of(name) >= first as usize).collect();
        assert_eq!(changed(&before, &after).iter().collect::<Vec<_>>(), expected);
    }
    learner.freeze();
    let [cached, anew] = [true, false].map(|on| {
        learner.precompute(on);
        learner.evaluate(Split::Valid).unwrap()
    });
    assert_eq!((cached.loss.to_bits(), cached.probabilities), (anew.loss.to_bits(), anew.probabilities));
    Ok(())
}

/// What a kernel computes may depend neither on the order in which blocks and warps run, nor on whose machine code it
/// is compiled to as far as the language defines it.
#[test]
fn results_do_not_depend_on_the_schedule() {
    let folder = folders(&["cat", "dog"], 3, 2, 0);
    let run = |schedule| {
        let (gpu, _) = emulated(Settings { schedule, ..Settings::default() })?;
        let mut learner = tiny(data(folder.path()), &gpu);
        learner.unfreeze();
        learner.fit(Fit::epochs(1).lr(1e-2)).unwrap();
        Some(bits(learner.model()))
    };
    let Some(first) = run(1) else { return };
    assert!(run(2).is_some_and(|second| second == first));
}

#[test]
fn steps_leave_no_memory_behind() {
    use unfreeze::device::cuda::Driver;
    let Some((gpu, driver)) = emulated(Settings::default()) else { return };
    let folder = folders(&["cat", "dog"], 4, 1, 0);
    let live = {
        let mut learner = tiny(data(folder.path()), &gpu).graphs(false);
        learner.unfreeze();
        // Momentum and whatever else stays is there after the first steps.
        learner.fit(Fit::epochs(1).lr(1e-3)).unwrap();
        let (live, free) = (gpu.memory().live, driver.memory().unwrap().free);
        gpu.reset_peak();
        learner.fit(Fit::epochs(1).lr(1e-3)).unwrap();
        let peak = gpu.memory().peak;
        assert!(peak > live);
        learner.fit(Fit::epochs(10).lr(1e-3)).unwrap();
        assert_eq!(learner.steps(), 24);
        assert_eq!((gpu.memory().live, gpu.memory().peak), (live, peak));
        // Every epoch finds the same addresses, so that a step could be recorded and replayed.
        let [first, second] = [(); 2].map(|()| {
            driver.take_carved();
            learner.fit(Fit::epochs(1).lr(1e-3)).unwrap();
            driver.take_carved()
        });
        assert!(first.len() > 200 && first == second);
        assert_eq!(driver.memory().unwrap().free, free);
        live
    };
    assert!(live > 0 && gpu.memory().live == 0, "{} bytes are left", gpu.memory().live);
}

#[test]
fn out_of_memory_is_an_error_that_names_what_fits() {
    let folder = folders(&["cat", "dog"], 40, 1, 0);
    let Some((gpu, _)) = emulated(Settings { capacity: 6 << 20, ..Settings::default() }) else { return };
    let transforms = Transforms::new(64);
    let mut learner = learner_of(Arch::ResNet8, data(folder.path()).transforms(transforms).batch_size(64), &gpu);
    learner.unfreeze();
    let error = learner.fit(Fit::epochs(1)).unwrap_err();
    assert!(matches!(error, Error::Setting { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("batch_size") && message.contains("would fit"), "{message}");
    let error = Tensor::zeros([64, 64, 64, 64], &gpu).unwrap_err().to_string();
    assert!(error.contains("out of memory: 64.0 MiB asked for"), "{error}");
    // Nothing is lost.
    assert!(Tensor::zeros([4], &gpu).and_then(|zeros| zeros.to_vec::<f32>()).unwrap() == [0.0; 4]);
}

/// Losses of 20 SGD steps of a small network on two batches in turn.
fn twenty_losses(device: &Device, precision: Precision) -> Result<Vec<f64>> {
    let mut model = Model::new(Arch::ResNet8, HeadSpec::Linear, 10, 3, device)?;
    model.set_precision(precision)?;
    let batches = [0u64, 1].map(|batch| {
        let mut random = Random::stream(7, "images", &[batch]);
        (0..8 * 16 * 16 * 3).map(|_| random.normal_pair()[0]).collect::<Vec<f32>>()
    });
    let mut optimizer = Optimizer::new(OptimizerKind::default());
    let mut losses = Vec::new();
    for step in 0..20 {
        let images = Tensor::new(batches[step % 2].clone(), [8, 16, 16, 3], device)?;
        let target = Target::labels((0..8).map(|i| (i + step as u32 % 2) % 10).collect(), 10, device)?;
        let mut pass = Pass::training(0, step as u64);
        let logits = model.forward(&mut pass, &Var::constant(images))?;
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
        losses.push(f64::from(loss.value().scalar()?));
        let statistics = pass.take_statistics();
        let gradients = pass.tape.backward(&loss)?;
        optimizer.step(&mut model, &gradients, &[0.02; 3], &[1e-4; 3])?;
        model.update_statistics(statistics)?;
    }
    Ok(losses)
}

#[test]
fn twenty_steps_in_bf16_and_tf32_follow_those_in_f32() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let exact = twenty_losses(&Device::cpu(2)?, Precision::F32)?;
    // Two batches are soon known by heart.
    assert!(exact[19] < 0.5 * exact[0], "{exact:?}");
    for (precision, allowed) in [(Precision::Tf32, 0.02), (Precision::Bf16, 0.05)] {
        let losses = twenty_losses(&device, precision)?;
        let worst = losses.iter().zip(&exact).map(|(loss, exact)| (loss - exact).abs()).fold(0.0, f64::max);
        println!("{precision}: losses differ by up to {worst:.1e}");
        assert!(worst < allowed, "{precision}: {losses:?}, not {exact:?}");
    }
    Ok(())
}

/// A frozen network on tensor cores is what its cost counts: a launch for each convolution, whose batchnorm none
/// prepares. Two more give the images their fourth channel and merge the linear layer's sums.
#[test]
fn a_frozen_network_launches_a_kernel_for_each_convolution() -> Result<()> {
    let arch = Arch::ResNet18;
    for (capability, precision) in [((9, 0), Precision::Bf16), ((8, 0), Precision::Tf32)] {
        let Some((device, _)) = emulated(Settings { capability, ..Settings::default() }) else { return Ok(()) };
        let Device::Cuda(cuda) = &device else { unreachable!("an emulated GPU") };
        let mut model = network(arch, true, &device)?;
        model.set_precision(precision)?;
        let images = formula::images(1, 32, &device)?;
        let before = cuda.launches();
        model.logits(&images)?;
        let mut launched = cuda.launches();
        launched.retain(|name, count| {
            *count -= before.get(name).copied().unwrap_or(0);
            *count > 0
        });
        let of =
            |prefix: &str| launched.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum::<u64>();
        let counted = Network { arch, size: 32, batch: 1, classes: 1000, precision };
        let what = format!("{capability:?} in {precision}: {launched:?}");
        assert_eq!(of("conv_mma") + of("conv_1x1"), counted.convolutions().len() as u64, "{what}");
        assert_eq!(of("batchnorm"), 0, "{what}");
        assert_eq!(of(""), counted.forward(false).len() as u64 + 2, "{what}");
    }
    Ok(())
}

/// A training step launches the kernels of the model of its cost, and of others no more than are listed here.
#[test]
fn a_training_step_launches_what_the_model_has() -> Result<()> {
    let (arch, precision) = (Arch::ResNet18, Precision::Bf16);
    let Some((device, _)) = emulated(Settings::default()) else { return Ok(()) };
    let Device::Cuda(cuda) = &device else { unreachable!("an emulated GPU") };
    let mut model = network(arch, false, &device)?;
    model.set_precision(precision)?;
    let images = formula::images(2, 32, &device)?;
    let mut optimizer = Optimizer::new(OptimizerKind::default());
    let mut launched = cuda.launches();
    for _ in 0..2 {
        let before = cuda.launches();
        let mut pass = Pass::training(0, 0);
        let logits = model.forward(&mut pass, &Var::constant(images.clone()))?;
        let target = Target::Labels(formula::labels(2, 1000, &device)?);
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
        let statistics = pass.take_statistics();
        let gradients = pass.tape.backward(&loss)?;
        optimizer.step(&mut model, &gradients, &[0.01; 3], &[0.0; 3])?;
        model.update_statistics(statistics)?;
        launched = cuda.launches();
        launched.retain(|name, count| {
            *count -= before.get(name).copied().unwrap_or(0);
            *count > 0
        });
    }
    let counted = Network { arch, size: 32, batch: 2, classes: 1000, precision }.training_step(0);
    let modelled = |family: Family| counted.iter().filter(|kernel| kernel.family == family).count() as u64;
    let of = |prefix: &str| launched.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum::<u64>();
    let (norms, projections) = (20, 3);
    assert_eq!(of("conv_mma_forward"), modelled(Family::Forward), "{launched:?}");
    assert_eq!(of("conv_mma_input_grad"), modelled(Family::InputGrad), "{launched:?}");
    assert_eq!(of("conv_mma_weight_grad"), modelled(Family::WeightGrad), "{launched:?}");
    assert_eq!(of("batchnorm_apply"), modelled(Family::Norm), "{launched:?}");
    // The stem's sums are the model's; no convolution takes those of the last block and of projections.
    let sums = 1 + projections;
    assert_eq!(of("batchnorm_input_grad") + of("batchnorm_reduce"), modelled(Family::NormGrad) + sums, "{launched:?}");
    // A value or two per channel: moments and factors, coefficients of the gradient; running statistics at once.
    assert_eq!((of("batchnorm_merge"), of("batchnorm_coefficients"), of("batchnorm_running")), (norms, norms, 1));
    // Images with a fourth channel; of the head, the bias's gradient, the loss's mean and scale, and sums of slices.
    let others = 8;
    assert_eq!(of(""), counted.len() as u64 + sums + 2 * norms + 1 + others, "{launched:?}");
    Ok(())
}
