//! Whole networks against PyTorch: weights and inputs from the formula of `common::formula`.

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{emulator::gpu, formula};
use serde_json::Value;
use unfreeze::{
    Device, Precision, Result, Tensor,
    autograd::{ParameterGradients, Parameters, Var},
    nn::{Arch, HeadSpec, Layer, Model, Pass},
    ops::loss::{CrossEntropy, Target, cross_entropy},
    optim::{Optimizer, OptimizerKind},
};

fn network(arch: &str, device: &Device) -> Result<Model> {
    let mut model = Model::new(arch.parse()?, HeadSpec::Linear, 1000, 0, device)?;
    formula::fill(&mut model, device);
    Ok(model)
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn f64s(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_vec::<f32>()?.into_iter().map(f64::from).collect())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// ResNet-18 on one 64-pixel image, with the values that PyTorch 2.15 gives; needs no file.
#[test]
fn resnet18_equals_pytorch() -> Result<()> {
    [Device::cpu(2)?].into_iter().chain(gpu()).try_for_each(|device| check_resnet18(&device))
}

fn check_resnet18(device: &Device) -> Result<()> {
    let model = network("resnet18", device)?;
    let logits = f64s(&model.logits(&formula::images(1, 64, device)?)?)?;
    let expected = [
        -10.76278018951416,
        -3.8912994861602783,
        35.78171920776367,
        11.471956253051758,
        -8.59265422821045,
        -3.7008659839630127,
        28.307106018066406,
        9.479037284851074,
    ];
    let scale = norm(logits.iter().copied());
    for (ours, theirs) in logits.iter().zip(expected) {
        assert!((ours - theirs).abs() < 1e-6 * scale, "{ours} {theirs}");
    }
    Ok(())
}

/// Two SGD steps of ResNet-18 in train mode on four 96-pixel images, with PyTorch's losses in float64 and the norms of
/// some of its first gradients; needs no file.
#[test]
fn resnet18_trains_as_pytorch() -> Result<()> {
    let device = Device::cpu(2)?;
    let mut model = network("resnet18", &device)?;
    let images = Var::constant(formula::images(4, 96, &device)?);
    let target = Target::Labels(formula::labels(4, 1000, &device)?);
    let mut optimizer = Optimizer::new(OptimizerKind::Sgd { momentum: 0.9, nesterov: false, decoupled: false });
    for (step, expected) in [7.282968652244335, 6.234089581741353].into_iter().enumerate() {
        let mut pass = Pass::training(0, step as u64);
        let logits = model.forward(&mut pass, &images)?;
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
        let value = f64::from(loss.value().scalar()?);
        assert!((value / expected - 1.0).abs() < 1e-5, "step {step}: loss {value} {expected}");
        let statistics = pass.take_statistics();
        let gradients = pass.tape.backward(&loss)?;
        if step == 0 {
            // Wider for the gradients: see `check_gradients`.
            for (name, expected) in [("conv1.weight", 10.831739161408139), ("layer1.1.conv2.weight", 6.887256127369346)]
            {
                let norm = norm(f64s(&gradients[name])?);
                assert!((norm / expected - 1.0).abs() < 2e-3, "{name}: {norm} {expected}");
            }
        }
        optimizer.step(&mut model, &gradients, &[1e-3; 3], &[1e-4; 3])?;
        model.update_statistics(statistics)?;
    }
    Ok(())
}

#[test]
fn all_golden_networks() -> Result<()> {
    let Some(path) = common::shared("golden/networks.json") else { return Ok(()) };
    let text = std::fs::read_to_string(path).expect("readable");
    let golden: serde_json::Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    for device in [Device::cpu(0)?].into_iter().chain(gpu()) {
        check_networks(&golden, &device)?;
    }
    Ok(())
}

fn check_networks(golden: &serde_json::Map<String, Value>, device: &Device) -> Result<()> {
    // An emulator takes its time: two networks, and of the larger one the logits alone.
    let emulated = device.to_string() == "emulated";
    for (name, golden) in golden {
        if emulated && !["resnet18_2x64", "resnet50_2x64"].contains(&name.as_str()) {
            continue;
        }
        let arch = &name[..name.rfind('_').expect("ARCH_NxSIZE")];
        let dims = numbers(&golden["input"]);
        let (n, size) = (dims[0] as usize, dims[2] as usize);
        let mut model = network(arch, device)?;
        let images = formula::images(n, size, device)?;
        logits(name, &model, &images, golden)?;
        if !emulated || arch == "resnet18" {
            features(name, &model, &images, golden)?;
        }
        if !emulated && golden.get("train").is_some() {
            training(name, &mut model, &golden["train"], device)?;
        }
    }
    Ok(())
}

/// Logits relative to their norm.
fn logits(name: &str, model: &Model, images: &Tensor, golden: &Value) -> Result<()> {
    let logits = model.logits(images)?;
    let (values, scale) = (f64s(&logits)?, golden["eval_logits_l2"].as_f64().expect("a number"));
    assert!((norm(values.iter().copied()) / scale - 1.0).abs() < 1e-6, "{name}: norm of the logits");
    let mut worst = 0f64;
    for (row, expected) in values.chunks(1000).zip(golden["eval_logits_first16"].as_array().expect("rows")) {
        for (ours, theirs) in row.iter().zip(numbers(expected)) {
            worst = worst.max((ours - theirs).abs() / scale);
        }
    }
    println!("{name}: worst logit error / norm {worst:.1e}");
    assert!(worst < 1e-6, "{name}: logits differ by {worst} of their norm");
    Ok(())
}

/// Each stage's norm and mean.
fn features(name: &str, model: &Model, images: &Tensor, golden: &Value) -> Result<()> {
    let units = model.backbone.units();
    for (feature, golden) in golden["eval_features"].as_object().expect("features") {
        let mut pass = Pass::evaluation();
        let images = Var::constant(images.clone());
        let value = match feature.as_str() {
            "avgpool" => model.features(&mut pass, &images)?,
            _ => {
                let layer: Layer = feature.replace("maxpool", "stem").parse()?;
                let through = model.backbone.units_through(layer).expect("a layer of the backbone");
                assert!(through <= units);
                model.backbone.forward_units(&mut pass, &images, 0..through)?
            }
        };
        let values = f64s(value.value())?;
        let shape = numbers(&golden["shape"]);
        assert_eq!(values.len(), shape.iter().product::<f64>() as usize, "{name} {feature}");
        let l2 = golden["l2"].as_f64().expect("a number");
        let mean = golden["mean"].as_f64().expect("a number");
        assert!((norm(values.iter().copied()) / l2 - 1.0).abs() < 2e-6, "{name} {feature}: norm");
        let ours = values.iter().sum::<f64>() / values.len() as f64;
        assert!((ours / mean - 1.0).abs() < 1e-5, "{name} {feature}: mean {ours} {mean}");
    }
    Ok(())
}

/// Four SGD steps in train mode: losses, gradients of the first step, running statistics, all within four times the
/// error that PyTorch's own float32 run has against float64 (and at least 1e-5).
fn training(name: &str, model: &mut Model, golden: &Value, device: &Device) -> Result<()> {
    let dims = numbers(&golden["input"]);
    let (n, size) = (dims[0] as usize, dims[2] as usize);
    let images = Var::constant(formula::images(n, size, device)?);
    let target = Target::Labels(formula::labels(n, 1000, device)?);
    let mut optimizer = Optimizer::new(OptimizerKind::Sgd { momentum: 0.9, nesterov: false, decoupled: false });
    let (exact, single) = (numbers(&golden["losses"]), numbers(&golden["losses_f32"]));
    for (step, (exact, single)) in exact.iter().zip(&single).enumerate() {
        let mut pass = Pass::training(0, step as u64);
        let logits = model.forward(&mut pass, &images)?;
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
        let value = f64::from(loss.value().scalar()?);
        // From step 2 on pre-activations that rounded to the other side of zero show: PyTorch's own float32 runs of
        // ResNet-18 then differ from float64 by 3e-7 (contiguous) or 3.6e-5 (channels_last).
        let floor = if step < 2 { 1e-5 } else { 5e-4 };
        let allowed = (4.0 * (single - exact).abs() / exact).max(floor);
        println!("{name} step {step}: loss error {:.1e}", value / exact - 1.0);
        assert!((value / exact - 1.0).abs() < allowed, "{name} step {step}: loss {value} {exact}");
        let statistics = pass.take_statistics();
        let gradients = pass.tape.backward(&loss)?;
        if step == 0 {
            check_gradients(name, &gradients, &golden["grads_step0"])?;
        }
        optimizer.step(model, &gradients, &[1e-3; 3], &[1e-4; 3])?;
        model.update_statistics(statistics)?;
    }
    // The statistics follow the weights, which have drifted as the losses have.
    let drift = exact.iter().zip(&single).map(|(exact, single)| (single / exact - 1.0).abs()).fold(0.0, f64::max);
    let allowed = (4.0 * drift).max(1e-5);
    for (key, parameter) in [("running_mean_bn1", "bn1.running_mean"), ("running_var_bn1", "bn1.running_var")] {
        let mut found = Vec::new();
        model.visit(&mut |p| {
            if &**p.name() == parameter {
                found = f64s(&p.value).expect("f32");
            }
        });
        let expected = numbers(&golden[key]);
        let scale = norm(expected.iter().copied());
        for (ours, theirs) in found.iter().zip(&expected) {
            assert!((ours - theirs).abs() < allowed * scale, "{name} {parameter}: {ours} {theirs}");
        }
    }
    Ok(())
}

/// Each gradient's norm and first elements, relative to the norm. A pre-activation that rounds to the other side of zero
/// (in this ResNet-18 one after `layer2.0.bn1` is 1.5e-6 in float64) moves every gradient before its ReLU by up to 1e-3,
/// in float32 here as in PyTorch; so all must be within twice that (or four times the error of PyTorch's own float32
/// run), and two thirds within four times the error of PyTorch's own float32 run.
fn check_gradients(name: &str, gradients: &ParameterGradients, golden: &Value) -> Result<()> {
    let golden = golden.as_object().expect("gradients");
    assert_eq!(gradients.len(), golden.len(), "{name}: number of gradients");
    let (mut within, mut worst) = (0, 0f64);
    for (parameter, golden) in golden {
        let gradient = &gradients[parameter.as_str()];
        let mut values = f64s(gradient)?;
        if let &[k, r, s, c] = gradient.dims() {
            values = formula::channels_first(&values, [k, r, s, c]);
        }
        let l2 = golden["l2"].as_f64().expect("a number");
        let first = values.iter().zip(numbers(&golden["first4"])).map(|(ours, theirs)| (ours - theirs).abs() / l2);
        let error = first.fold((norm(values.iter().copied()) / l2 - 1.0).abs(), f64::max);
        let single = golden["f32_error"].as_f64().expect("a number");
        let allowed = (4.0 * single).max(2e-3);
        assert!(error < allowed, "{name} {parameter}: gradient off by {error} of its norm, allowed {allowed}");
        within += usize::from(error < (4.0 * single).max(1e-5));
        worst = worst.max(error);
    }
    println!("{name}: {within} of {} gradients within 4x of PyTorch's own error; worst {worst:.1e}", golden.len());
    assert!(3 * within >= 2 * golden.len(), "{name}: only {within} of {} gradients are close", golden.len());
    Ok(())
}

/// The gradients of ResNet-18 in train mode on four 64-pixel images.
fn gradients(device: &Device, precision: Precision) -> Result<ParameterGradients> {
    let mut model = network("resnet18", device)?;
    model.set_precision(precision)?;
    let images = Var::constant(formula::images(4, 64, device)?);
    let mut pass = Pass::training(0, 0);
    let logits = model.forward(&mut pass, &images)?;
    let target = Target::Labels(formula::labels(4, 1000, device)?);
    let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
    pass.tape.backward(&loss)
}

/// How far they are from those in f32, relative to these, by parameter.
fn gradient_errors(gradients: &ParameterGradients, exact: &ParameterGradients) -> Result<BTreeMap<String, f64>> {
    assert_eq!(gradients.len(), exact.len());
    let error = |(name, exact): (&Arc<str>, &Tensor)| {
        let (ours, exact) = (f64s(&gradients[name])?, f64s(exact)?);
        let difference = norm(ours.iter().zip(&exact).map(|(ours, exact)| ours - exact));
        Ok((name.to_string(), difference / norm(exact)))
    };
    exact.iter().map(error).collect()
}

/// The gradients of each layer on tensor cores, against f32: in bf16 no worse than one and a half times those of
/// PyTorch's bf16 (`bf16/pytorch.json`). They are large in both: in this network, with its random weights and few images,
/// a rounding that turns a ReLU on or off moves all that lies before it.
#[test]
fn gradients_on_tensor_cores_are_as_good_as_pytorchs() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let theirs: Value = serde_json::from_str(include_str!("bf16/pytorch.json")).expect("JSON");
    let exact = gradients(&Device::cpu(2)?, Precision::F32)?;
    for (precision, allowed) in [(Precision::Bf16, 1.5), (Precision::Tf32, 0.5)] {
        let errors = gradient_errors(&gradients(&device, precision)?, &exact)?;
        let ratio = |(name, error): (&String, &f64)| error / theirs["errors"][name].as_f64().expect("a number");
        let mut ratios: Vec<f64> = errors.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (median, worst) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        println!("{precision}: gradients' errors are {median:.2} of PyTorch's in bf16, at worst {worst:.2}");
        assert!(worst <= allowed, "{precision}: {errors:?}");
    }
    Ok(())
}

#[test]
fn architectures_have_torchvisions_parameter_counts() -> Result<()> {
    // https://pytorch.org/vision/stable/models.html; CIFAR: He et al. 2015, table 6 (0.27, 0.46, 0.66, 0.85 M).
    let device = Device::cpu(1)?;
    let counts = [
        (Arch::ResNet18, 11_689_512),
        (Arch::ResNet34, 21_797_672),
        (Arch::ResNet50, 25_557_032),
        (Arch::ResNet101, 44_549_160),
        (Arch::ResNet152, 60_192_808),
        (Arch::ResNext50_32x4d, 25_028_904),
        (Arch::ResNext101_32x8d, 88_791_336),
        (Arch::ResNext101_64x4d, 83_455_272),
        (Arch::WideResNet50_2, 68_883_240),
        (Arch::WideResNet101_2, 126_886_696),
        (Arch::ResNet20, 269_722),
        (Arch::ResNet32, 464_154),
        (Arch::ResNet44, 658_586),
        (Arch::ResNet56, 853_018),
    ];
    for (arch, count) in counts {
        let model = Model::new(arch, HeadSpec::Linear, arch.published_classes(), 0, &device)?;
        assert_eq!(model.parameter_count().0, count, "{arch}");
    }
    Ok(())
}
