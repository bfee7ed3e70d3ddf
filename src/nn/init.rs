//! Initial weights (He et al. 2015, "Delving Deep into Rectifiers"), each tensor from its own random streams.

use rayon::prelude::*;

use crate::{Device, Result, Shape, Tensor, random::Random};

/// Values per random stream: streams are independent, so that they fill in parallel.
const CHUNK: usize = 4096;

/// `[K, R, S, C]`: normal with standard deviation √(2 / (K·R·S)), as torchvision's ResNets.
pub fn conv(name: &str, shape: [usize; 4], seed: u64, device: &Device) -> Result<Tensor> {
    let [k, r, s, _] = shape;
    normal(name, shape.into(), (2.0 / (k * r * s) as f32).sqrt(), seed, device)
}

/// `[out, in]`: normal with standard deviation √(2 / in), as fastai's heads.
pub fn linear(name: &str, shape: [usize; 2], seed: u64, device: &Device) -> Result<Tensor> {
    normal(name, shape.into(), (2.0 / shape[1] as f32).sqrt(), seed, device)
}

fn normal(name: &str, shape: Shape, std: f32, seed: u64, device: &Device) -> Result<Tensor> {
    let mut values = vec![0.0; shape.elements()];
    device.install(|| {
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            let mut random = Random::stream(seed, name, &[chunk as u64]);
            for pair in values.chunks_mut(2) {
                random.normal_pair().into_iter().zip(pair).for_each(|(normal, value)| *value = std * normal);
            }
        });
    });
    Tensor::new(values, shape, device)
}
