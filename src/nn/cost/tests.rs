//! The model against published figures: floors of the three ResNets on an H200, computed apart from this code.

use super::*;
use crate::{
    Device, Result, Tensor,
    autograd::Var,
    nn::{Pass, ResNet},
};

/// 0.8 of the 790 TFLOP/s that bf16 matrix products reach on an H200, and its copy bandwidth.
const H200: Roof = Roof { flops: 632e12, bytes: 4.3e12 };
/// The same of TF32 products, 412 TFLOP/s.
const H200_TF32: Roof = Roof { flops: 0.8 * 412e12, bytes: 4.3e12 };

fn network(arch: Arch, batch: usize, precision: Precision) -> Network {
    Network { arch, size: 224, batch, classes: 1000, precision }
}

/// Images per second at the floor.
fn rate(network: &Network, kernels: &[Kernel], roof: Roof) -> f64 {
    network.batch as f64 / roof.floor(kernels)
}

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found / expected - 1.0).abs() < tolerance, "{found} for {expected}");
}

/// Units before a stage, counted from 1, of the networks of four stages.
fn units_before(arch: Arch, stage: usize) -> usize {
    1 + arch.spec().blocks[..stage - 1].iter().sum::<usize>()
}

#[test]
fn floors_are_the_published_ones() {
    use Arch::{ResNet18, ResNet34, ResNet50};
    // Images per second: forward, forward with the pool in the stem, whole step, layer4 and later, layer3 and later.
    for (arch, batch, expected) in [
        (ResNet18, 64, [156.7e3, 171.8e3, 40.9e3, 108e3, 79e3]),
        (ResNet18, 256, [156.8e3, 171.9e3, 42.1e3, 115e3, 84e3]),
        (ResNet34, 64, [81.7e3, 85.7e3, 21.7e3, 59e3, 36e3]),
        (ResNet34, 256, [81.8e3, 85.7e3, 22.3e3, 62e3, 38e3]),
        (ResNet50, 64, [54.3e3, 56.0e3, 12.3e3, 39.5e3, 24.3e3]),
        (ResNet50, 256, [54.3e3, 56.0e3, 12.5e3, 41.3e3, 25.2e3]),
    ] {
        let network = network(arch, batch, Precision::Bf16);
        let [layer4, layer3] = [4, 3].map(|stage| network.training_step(units_before(arch, stage)));
        let found = [network.forward(false), network.forward(true), network.training_step(0), layer4, layer3];
        for (kernels, expected) in found.iter().zip(expected) {
            close(rate(&network, kernels, H200), expected, 0.02);
        }
    }
    for (arch, forward, step) in [(ResNet18, 89e3, 21.6e3), (ResNet34, 44e3, 11.5e3), (ResNet50, 28.6e3, 6.3e3)] {
        let network = network(arch, 256, Precision::Tf32);
        close(rate(&network, &network.forward(true), H200_TF32), forward, 0.02);
        close(rate(&network, &network.training_step(0), H200_TF32), step, 0.02);
    }
}

#[test]
fn the_largest_activations_are_told() {
    // 112² × 64 and 56² × 64 of ResNet-18; 112² × 64 and 56² × 256 are as large.
    let floats = |arch, precision| network(arch, 2, precision).largest_activations();
    assert_eq!(
        floats(Arch::ResNet18, Precision::F32),
        [2.0 * 112.0 * 112.0 * 64.0 * 4.0, 2.0 * 56.0 * 56.0 * 64.0 * 4.0]
    );
    assert_eq!(floats(Arch::ResNet50, Precision::Bf16), [2.0 * 112.0 * 112.0 * 64.0 * 2.0; 2]);
}

#[test]
fn work_per_image_is_the_published_one() {
    // GFLOP forward, GB saved and kernels of a step at batch 256.
    for (arch, gflop, saved, kernels) in
        [(Arch::ResNet18, 3.63, 2.2e9, 100), (Arch::ResNet34, 7.33, 3.4e9, 180), (Arch::ResNet50, 8.18, 10.3e9, 263)]
    {
        let network = network(arch, 256, Precision::Bf16);
        let flops: f64 = network.forward(false).iter().map(|kernel| kernel.work.flops).sum();
        close(flops / 256e9, gflop, 0.005);
        // Published without masks and places of maxima.
        close(network.saved(0), saved, 0.04);
        assert_eq!(network.training_step(0).len(), kernels);
    }
}

#[test]
fn parameters_are_those_of_the_model() {
    let device = crate::Device::cpu(1).unwrap();
    for arch in [Arch::ResNet20, Arch::ResNet18, Arch::ResNet50, Arch::ResNext50_32x4d] {
        let model = crate::nn::Model::new(arch, crate::nn::HeadSpec::Linear, 10, 0, &device).unwrap();
        let network = Network { arch, size: 32, batch: 2, classes: 10, precision: Precision::F32 };
        let steps = network.training_step(0);
        let sgd = steps.last().map(|kernel| kernel.work.bytes / 20.0);
        assert_eq!(sgd, Some(model.parameter_count().0 as f64), "{arch}");
        assert_eq!(network.units(), model.units().len());
    }
}

/// Every network and boundary, down to a pixel: each unit that is frozen takes work away, and the head alone is left
/// without a gradient of any convolution.
#[test]
fn freezing_only_takes_work_away() {
    for arch in Arch::ALL {
        for size in [1, 33, arch.published_size()] {
            let network = Network { arch, size, batch: 2, classes: 10, precision: Precision::Bf16 };
            let cost = |frozen| {
                let kernels = network.training_step(frozen);
                (H200.floor(&kernels), kernels.len(), network.saved(frozen))
            };
            let costs: Vec<_> = (0..network.units()).map(cost).collect();
            for pair in costs.windows(2) {
                let ((time, kernels, saved), (less_time, fewer, less_saved)) = (pair[0], pair[1]);
                assert!(less_time < time && fewer < kernels && less_saved < saved, "{arch} at {size}: {pair:?}");
            }
            let head = network.training_step(network.units() - 1);
            let gradients = [Family::InputGrad, Family::WeightGrad, Family::NormGrad];
            assert!(head.iter().all(|kernel| !gradients.contains(&kernel.family)));
            assert_eq!(network.training_step(network.units()).len(), head.len());
        }
    }
}

#[test]
fn extents_are_those_of_the_network() -> Result<()> {
    let device = Device::cpu(1)?;
    for (arch, size) in [(Arch::ResNet8, 17), (Arch::ResNet18, 37), (Arch::ResNet50, 33)] {
        let backbone = ResNet::new(arch, 0, &device)?;
        let mut x = Var::constant(Tensor::zeros([1, size, size, 3], &device)?);
        for units in 1..=backbone.units() {
            x = backbone.forward_units(&mut Pass::evaluation(), &x, units - 1..units)?;
            let found = Network { size, ..network(arch, 1, Precision::F32) }.output(units);
            assert_eq!(x.value().dims()[1..], found, "{arch} after {units}");
        }
    }
    Ok(())
}

/// Three products to each of the two layers, and the parameters five times: read, their gradients, momentum.
#[test]
fn a_step_of_fastais_head_is_its_products() {
    let network = Network { classes: 10, ..network(Arch::ResNet18, 64, Precision::F32) };
    let kernels = network.cached_fastai_step(512);
    let flops: f64 = kernels.iter().map(|kernel| kernel.work.flops).sum();
    assert_eq!(flops, 3.0 * 2.0 * 64.0 * (1024.0 * 512.0 + 512.0 * 10.0));
    let sgd = kernels.iter().find(|kernel| kernel.family == Family::Optimizer).unwrap();
    let parameters = 2 * 1024 + 1024 * 512 + 512 + 2 * 512 + 512 * 10 + 10;
    assert_eq!(sgd.work.bytes, 20.0 * f64::from(parameters));
}
