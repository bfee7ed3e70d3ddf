//! Weights and inputs computed from a formula, so that golden values need no weight files: element `i` (in PyTorch's
//! order) of the tensor `name` is `u(name, i)` in [-1, 1), scaled by what the tensor is for.
#![allow(dead_code)] // each test binary uses a part

use unfreeze::{
    Device, Result, Tensor,
    autograd::{Parameters, Role},
    nn::Model,
};

/// `count` values of the sequence called `name`: the top 53 bits of splitmix64(fnv1a64(name) + i), in [-1, 1).
pub fn sequence(name: &str, count: usize) -> Vec<f64> {
    let start = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let value = |i: u64| {
        let x = start.wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    (0..count as u64).map(value).collect()
}

/// From `[A, C, H, W]` to `[A, H, W, C]`.
pub fn channels_last<T: Copy>(values: &[T], [a, c, h, w]: [usize; 4]) -> Vec<T> {
    let mut result = Vec::with_capacity(values.len());
    for n in 0..a {
        for pixel in 0..h * w {
            result.extend((0..c).map(|channel| values[(n * c + channel) * h * w + pixel]));
        }
    }
    result
}

/// From `[A, H, W, C]` to `[A, C, H, W]`.
pub fn channels_first<T: Copy>(values: &[T], [a, h, w, c]: [usize; 4]) -> Vec<T> {
    let mut result = Vec::with_capacity(values.len());
    for n in 0..a {
        for channel in 0..c {
            result.extend((0..h * w).map(|pixel| values[(n * h * w + pixel) * c + channel]));
        }
    }
    result
}

/// Overwrites every parameter by the formula.
pub fn fill(model: &mut Model, device: &Device) {
    model.visit_mut(&mut |parameter| {
        let dims = parameter.value.dims().to_vec();
        let values = sequence(parameter.name(), dims.iter().product());
        let scaled =
            |offset: f64, factor: f64| values.iter().map(|u| (offset + factor * u) as f32).collect::<Vec<f32>>();
        let fan_in: usize = dims.iter().skip(1).product();
        let values: Vec<f32> = match parameter.role() {
            Role::ConvWeight => {
                let &[k, r, s, c] = dims.as_slice() else { panic!("a convolution's weight has four dimensions") };
                channels_last(&scaled(0.0, (6.0 / fan_in as f64).sqrt()), [k, c, r, s])
            }
            Role::LinearWeight => scaled(0.0, (3.0 / fan_in as f64).sqrt()),
            Role::NormScale => scaled(1.0, 0.1),
            Role::RunningVariance => scaled(1.0, 0.5),
            Role::LinearBias | Role::NormShift | Role::RunningMean => scaled(0.0, 0.1),
        };
        parameter.value = Tensor::new(values, parameter.value.shape(), device).expect("the same shape");
    });
}

/// The input images `[N, size, size, 3]`: twice the sequence called `input`.
pub fn images(n: usize, size: usize, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = sequence("input", n * 3 * size * size).iter().map(|u| (2.0 * u) as f32).collect();
    Tensor::new(channels_last(&values, [n, 3, size, size]), [n, size, size, 3], device)
}

/// The labels: `(7 · n + 3) mod classes`.
pub fn labels(n: usize, classes: usize, device: &Device) -> Result<Tensor> {
    Tensor::new((0..n).map(|i| ((7 * i + 3) % classes) as u32).collect::<Vec<u32>>(), [n], device)
}
