//! What the tests of the operations share: random tensors, comparisons with f64 references, numeric gradients.

#[path = "../../tests/common/emulator.rs"]
#[allow(dead_code)] // the tests beside the library use more of it
pub mod emulator;

use proptest::test_runner::{Config, RngSeed};

use crate::{
    Device, Result, Shape, Tensor,
    autograd::{Tape, Var},
    ops::batchnorm::FixedNorm,
    random::Random,
    tensor::DType,
};

/// The bound on f32 results, relative.
pub const F32: f64 = 1e-5;
/// The bound on many results that are rounded to bf16 once, relative to their norm.
pub const BF16: f64 = 2.5e-3;
/// The bound on a single one: half a unit in the last place.
const ONE_BF16: f64 = 1.0 / 256.0;

/// The bound on many results of this type.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::BF16 { BF16 } else { F32 }
}

/// Types of activations on a device.
pub fn activations(device: &Device) -> &'static [DType] {
    match device {
        Device::Cpu(_) => &[DType::F32],
        Device::Cuda(_) => &[DType::F32, DType::BF16],
    }
}

/// Moderate numbers of cases, the same on every run. `PROPTEST_CASES` (256 stands for the usual number) and
/// `PROPTEST_RNG_SEED` search further.
pub fn cases(usual: u32) -> Config {
    let config = Config::default();
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(0),
        fixed => fixed,
    };
    Config { cases: (usual * config.cases).div_ceil(256), failure_persistence: None, rng_seed, ..config }
}

/// A device with `threads` threads.
pub fn cpu(threads: usize) -> Device {
    Device::cpu(threads).expect("threads")
}

/// Every device that operations are tested on: the processor, and a GPU or an emulated one.
pub fn devices() -> Vec<Device> {
    [cpu(2)].into_iter().chain(emulator::gpu()).collect()
}

/// The GPU of [`devices`], if there is one.
pub fn gpus() -> Vec<Device> {
    emulator::gpu().into_iter().collect()
}

/// Standard normal values, a function of `seed` and `name` alone.
pub fn normal(seed: u64, name: &str, shape: impl Into<Shape>, device: &Device) -> Tensor {
    let shape = shape.into();
    let mut random = Random::stream(seed, name, &[]);
    let values = (0..shape.elements()).map(|_| random.normal_pair()[0]).collect::<Vec<f32>>();
    Tensor::new(values, shape, device).expect("as many values as the shape has elements")
}

/// The same elements on another device.
pub fn on(device: &Device, tensor: &Tensor) -> Tensor {
    Tensor::new(tensor.to_vec::<f32>().expect("f32"), tensor.shape(), device).expect("the same shape")
}

/// A batchnorm with fixed statistics whose numbers are known here.
pub struct KnownNorm {
    /// Scale, shift, mean and variance of each channel.
    channels: Vec<[f32; 4]>,
    tensors: [Tensor; 4],
    eps: f32,
}

impl KnownNorm {
    fn of(channels: Vec<[f32; 4]>, eps: f32, device: &Device) -> Self {
        let tensor = |which: usize| {
            let values: Vec<f32> = channels.iter().map(|channel| channel[which]).collect();
            Tensor::new(values, [channels.len()], device).expect("as many values as channels")
        };
        let tensors = [0, 1, 2, 3].map(tensor);
        Self { channels, tensors, eps }
    }

    /// One as training leaves it.
    pub fn new(seed: u64, channels: usize, device: &Device) -> Self {
        let drawn = ["scale", "shift", "mean", "variance"].map(|name| floats(&normal(seed, name, [channels], device)));
        let channel = |at: usize| [drawn[0][at], drawn[1][at], drawn[2][at], 0.5 + drawn[3][at] * drawn[3][at]];
        Self::of((0..channels).map(channel).collect(), 1e-5, device)
    }

    /// One of awkward numbers, in turn.
    pub fn awkward(channels: usize, eps: f32, device: &Device) -> Self {
        const CHANNELS: [[f32; 4]; 10] = [
            [0.7, -0.1, 0.3, 1.1],
            [0.7, -0.1, 0.3, 0.0],
            [-1.3, 0.2, 1e4, 1e-6],
            [0.0, 3.0, -7.0, 2.0],
            [1.0, 0.0, 0.0, 1e-40],
            [1e-40, 1e-40, 1.0, 1.0],
            [1.0, 1e30, -1e30, 1e38],
            [1e30, 0.0, 1e30, 1e-30],
            [1.0, 0.0, 0.0, -2.0],
            [1.0, f32::NAN, 0.0, 1.0],
        ];
        Self::of(CHANNELS.into_iter().cycle().take(channels).collect(), eps, device)
    }

    pub fn fixed(&self) -> FixedNorm<'_> {
        let [scale, shift, mean, variance] = &self.tensors;
        FixedNorm { scale, shift, mean, variance, eps: self.eps }
    }

    /// What it makes of a value.
    pub fn exact(&self, channel: usize, x: f64) -> f64 {
        let [scale, shift, mean, variance] = self.channels[channel].map(f64::from);
        (x - mean) / (variance + f64::from(self.eps)).sqrt() * scale + shift
    }

    /// Factor and offset, rounded once.
    pub fn folded(&self, channel: usize) -> [f32; 2] {
        let [scale, shift, mean, variance] = self.channels[channel].map(f64::from);
        let factor = scale / (variance + f64::from(self.eps)).sqrt();
        [factor as f32, (shift - mean * factor) as f32]
    }
}

/// Asserts equal bits; of a NaN only that it is one.
pub fn assert_bits(what: &str, actual: &Tensor, expected: &[f32]) {
    let actual = floats(actual);
    assert_eq!(actual.len(), expected.len(), "{what}: number of elements");
    for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let equal = actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan();
        assert!(equal, "{what}: element {at} is {actual:e}, not {expected:e}");
    }
}

/// The elements as f32, of f32 or bf16.
fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.cast(DType::F32).and_then(|tensor| tensor.to_vec()).expect("f32 or bf16")
}

/// The elements as f64.
pub fn wide(tensor: &Tensor) -> Vec<f64> {
    floats(tensor).into_iter().map(f64::from).collect()
}

/// The elements' bits, so that a comparison tells 0 from −0 and finds equal NaN equal.
pub fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}

/// The Frobenius norm.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Asserts that the error's Frobenius norm is at most `tolerance` of the expected one, and that no element stands out.
pub fn assert_close(what: &str, actual: &Tensor, expected: &[f64], tolerance: f64) {
    assert_close_to(what, actual, expected, norm(expected), tolerance);
}

/// As [`assert_close`], with the error measured against `scale`: for sums that may cancel to nearly nothing.
pub fn assert_close_to(what: &str, actual: &Tensor, expected: &[f64], scale: f64, tolerance: f64) {
    let actual = wide(actual);
    assert_eq!(actual.len(), expected.len(), "{what}: number of elements");
    assert!(expected.iter().all(|value| value.is_finite()), "{what}: the reference is not finite");
    let errors: Vec<f64> = actual.iter().zip(expected).map(|(actual, expected)| actual - expected).collect();
    let relative = norm(&errors) / scale.max(f64::MIN_POSITIVE);
    assert!(relative <= tolerance, "{what}: relative error {relative:e} exceeds {tolerance:e}");
    let typical = scale / (expected.len().max(1) as f64).sqrt();
    for (index, (error, expected)) in errors.iter().zip(expected).enumerate() {
        let bound = 10.0 * tolerance * (expected.abs() + typical);
        assert!(error.abs() <= bound, "{what}: element {index} should be {expected}, is off by {error:e} > {bound:e}");
    }
}

/// Central differences of `f` at `inputs`.
fn numeric_grads(inputs: &[Vec<f64>], f: impl Fn(&[Vec<f64>]) -> f64) -> Vec<Vec<f64>> {
    // Small, so that a step hardly ever crosses a kink; f64 leaves 1e-8 of accuracy.
    const STEP: f64 = 1e-7;
    let mut inputs = inputs.to_vec();
    let mut grads = Vec::new();
    for input in 0..inputs.len() {
        let mut grad = Vec::new();
        for element in 0..inputs[input].len() {
            let at = inputs[input][element];
            let (above, below) = (at + STEP, at - STEP);
            inputs[input][element] = above;
            let up = f(&inputs);
            inputs[input][element] = below;
            let down = f(&inputs);
            inputs[input][element] = at;
            grad.push((up - down) / (above - below));
        }
        grads.push(grad);
    }
    grads
}

/// Asserts that `op` computes `reference` and that its backward pass is the numeric gradient of `reference`, whichever
/// of its inputs are trainable. Gradients that may cancel are measured against the incoming gradient. With inputs of
/// bf16 their gradients are too.
pub fn check_op(
    what: &str,
    inputs: &[Tensor],
    op: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) -> Result<()> {
    let exact_inputs: Vec<_> = inputs.iter().map(wide).collect();
    let tolerance = if inputs.iter().any(|input| input.dtype() == DType::BF16) { ONE_BF16 } else { F32 };
    let exact = reference(&exact_inputs);
    let name = |index: usize| format!("{what}, input {index}");
    let mut grads = None; // one seed for all subsets, so that the numeric gradient is taken once
    for trainable in 1usize..1 << inputs.len() {
        let mut tape = Tape::new();
        let is_trainable = |index: usize| trainable >> index & 1 == 1;
        let vars: Vec<Var> = inputs
            .iter()
            .enumerate()
            .map(|(index, input)| match is_trainable(index) {
                true => tape.leaf(&name(index), input.clone()),
                false => Var::constant(input.clone()),
            })
            .collect();
        let output = op(&mut tape, &vars)?;
        assert_close_to(what, output.value(), &exact, norm(&exact).max((exact.len() as f64).sqrt()), tolerance);
        let (seed, expected) = grads.get_or_insert_with(|| {
            let shape = output.value().shape();
            let seed = match shape.rank() {
                0 => Tensor::full(shape, 1.5, output.value().device()).unwrap(),
                _ => normal(1, what, shape, output.value().device()),
            };
            let seed = seed.cast(output.value().dtype()).unwrap();
            let weights = wide(&seed);
            let dot = |output: Vec<f64>| output.iter().zip(&weights).map(|(output, weight)| output * weight).sum();
            let expected = numeric_grads(&exact_inputs, |inputs| dot(reference(inputs)));
            (seed, expected)
        });
        let actual = tape.backward_from(&output, seed.clone())?;
        let scale = 0.1 * norm(&wide(seed));
        for (index, expected) in expected.iter().enumerate() {
            let actual = actual.get(name(index).as_str());
            assert_eq!(actual.is_some(), is_trainable(index), "{}: has a gradient", name(index));
            if let Some(actual) = actual {
                assert_eq!(actual.shape(), inputs[index].shape(), "{}: shape of the gradient", name(index));
                assert_eq!(actual.dtype(), inputs[index].dtype(), "{}: type of the gradient", name(index));
                let scale = norm(expected).max(scale);
                assert_close_to(&format!("gradient of {}", name(index)), actual, expected, scale, tolerance);
            }
        }
    }
    Ok(())
}
