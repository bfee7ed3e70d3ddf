//! Initial weights (He et al. 2015, "Delving Deep into Rectifiers"), each tensor from its own random stream.

use crate::{Device, Shape, Tensor, random::Random};

/// `[K, R, S, C]`: normal with standard deviation √(2 / (K·R·S)), as torchvision's ResNets.
pub fn conv(name: &str, shape: [usize; 4], seed: u64, device: &Device) -> Tensor {
    let [k, r, s, _] = shape;
    normal(name, shape.into(), (2.0 / (k * r * s) as f32).sqrt(), seed, device)
}

/// `[out, in]`: normal with standard deviation √(2 / in), as fastai's heads.
pub fn linear(name: &str, shape: [usize; 2], seed: u64, device: &Device) -> Tensor {
    normal(name, shape.into(), (2.0 / shape[1] as f32).sqrt(), seed, device)
}

fn normal(name: &str, shape: Shape, std: f32, seed: u64, device: &Device) -> Tensor {
    let mut random = Random::stream(seed, name, &[]);
    let mut tensor = Tensor::zeros(shape, device);
    if let Ok(values) = tensor.as_slice_mut::<f32>() {
        values.iter_mut().for_each(|value| *value = std * random.normal());
    }
    tensor
}
