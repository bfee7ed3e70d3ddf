mod grads;
mod outputs;
mod traffic;

use std::sync::Arc;

use half::bf16;
use proptest::prelude::*;

use super::{
    Factors, extents, joined, pack,
    table::{Problem, Product, Tile},
};
use crate::{
    Device, Result, Shape, Tensor,
    autograd::Packed,
    device::CudaDevice,
    ops::{
        conv::{Extents, Geometry, tests::Case},
        testing::{norm, normal},
    },
    tensor::{DType, Precision},
};

const PRECISIONS: [Precision; 2] = [Precision::Bf16, Precision::Tf32];

/// The GPU under test, or none.
fn gpu() -> Option<(Device, Arc<CudaDevice>)> {
    match crate::ops::testing::emulator::gpu()? {
        Device::Cuda(cuda) => Some((Device::Cuda(cuda.clone()), cuda)),
        Device::Cpu(_) => None,
    }
}

/// Elements of either type as f64.
fn wide(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::BF16 => tensor.to_vec::<bf16>().expect("bf16").into_iter().map(f64::from).collect(),
        _ => tensor.to_vec::<f32>().expect("f32").into_iter().map(f64::from).collect(),
    }
}

/// Their bits.
fn bits(tensor: &Tensor) -> Vec<u64> {
    wide(tensor).into_iter().map(f64::to_bits).collect()
}

/// Values as activations of this precision are stored.
fn stored(values: &[f64], shape: impl Into<Shape>, precision: Precision, device: &Device) -> Tensor {
    let values = values.iter().map(|value| *value as f32);
    match precision {
        Precision::Bf16 => Tensor::new(values.map(bf16::from_f32).collect(), shape, device),
        _ => Tensor::new(values.collect(), shape, device),
    }
    .expect("as many values as the shape has elements")
}

/// Standard normal values.
fn activation(seed: u64, name: &str, shape: impl Into<Shape>, precision: Precision, device: &Device) -> Tensor {
    let values = normal(seed, name, shape, device);
    stored(&wide(&values), values.shape(), precision, device)
}

/// A convolution's operands: input, f32 weight (of bf16 values where activations are) and output gradient.
struct Operands {
    input: Tensor,
    weight: Tensor,
    grad: Tensor,
    packed: Packed,
    extents: Extents,
}

impl Operands {
    fn new(case: &Case, precision: Precision, device: &Device) -> Result<Self> {
        let seed = (case.h * 31 + case.w) as u64;
        let input = activation(seed, "input", case.input_dims(), precision, device);
        let weight = activation(seed, "weight", case.weight_dims(), precision, device);
        let weight = stored(&wide(&weight), weight.shape(), Precision::F32, device);
        let grad = activation(seed, "grad", case.output_dims(), precision, device);
        let packed = pack(&weight, case.geometry.groups, precision, true)?;
        let extents = extents(input.shape(), packed.forward.shape(), case.geometry)?;
        Ok(Self { input, weight, grad, packed, extents })
    }

    /// Tiles that the forward kernels have for it.
    fn tiles(&self) -> Vec<Tile> {
        let problem = Problem::new(Product::Forward, self.factors(), &self.extents);
        let mut tiles = if problem.patches { vec![Tile::Patches] } else { Vec::new() };
        if self.extents.group_c().is_multiple_of(8) || self.factors() == Factors::Tf32 {
            tiles.extend(TILES);
        }
        if self.factors() == Factors::Bf16 {
            tiles.push(Tile::TallBy4);
        }
        tiles
    }

    fn factors(&self) -> Factors {
        Factors::of(&self.input).expect("a type that is multiplied")
    }
}

const TILES: [Tile; 3] = [Tile::Large, Tile::Tall, Tile::Small];

/// Ragged shapes of what tensor cores take: any image, window, stride and padding; groups that are joined and groups
/// that are not.
fn any_case(extra: usize) -> impl Strategy<Value = Case> {
    let groups = prop::sample::select(vec![
        (1, 4, 8),
        (1, 8, 24),
        (1, 16, 8),
        (1, 40, 64),
        (1, 64, 72),
        (1, 12, 136),
        (2, 4, 4),
        (2, 72, 40),
        (3, 24, 16),
        (6, 16, 8),
        (8, 4, 4),
        (32, 4, 4),
        (16, 8, 4),
    ]);
    let extents = (1..4usize, 0..extra, 0..extra, 1..5usize, 1..5usize);
    (extents, groups, 1..4usize, 0..4usize).prop_map(
        |((n, h, w, r, s), (groups, group_c, group_k), stride, padding)| {
            let fit = |kernel: usize| kernel.saturating_sub(2 * padding).max(1);
            let geometry = Geometry { stride, padding, groups };
            Case { n, h: h + fit(r), w: w + fit(s), group_c, group_k, r, s, geometry }
        },
    )
}

/// Asserts the bounds on results of this precision: the error's Frobenius norm, and each element's.
fn assert_close(what: &str, actual: &Tensor, expected: &[f64], precision: Precision) {
    let actual = wide(actual);
    assert_eq!(actual.len(), expected.len(), "{what}: number of elements");
    let errors: Vec<f64> = actual.iter().zip(expected).map(|(actual, expected)| actual - expected).collect();
    let (whole, rms) = (norm(expected), norm(expected) / (expected.len().max(1) as f64).sqrt());
    let (frobenius, own, typical) = match precision {
        // The bound on the norm is for many elements: one alone may be off by half a unit in the last place, 2⁻⁸.
        Precision::Bf16 if expected.len() < 256 => (2f64.powi(-8), 2f64.powi(-8), 1e-3),
        Precision::Bf16 => (2.5e-3, 2f64.powi(-8), 1e-3),
        _ => (1e-3, 1e-2, 1e-2),
    };
    assert!(norm(&errors) <= frobenius * whole, "{what}: relative error {:e}", norm(&errors) / whole);
    for (at, (error, expected)) in errors.iter().zip(expected).enumerate() {
        let bound = own * expected.abs() + typical * rms;
        assert!(error.abs() <= bound, "{what}: element {at} should be {expected}, is off by {error:e} > {bound:e}");
    }
}

#[test]
fn groups_are_joined_up_to_64_channels() {
    for ((groups, group_c, group_k), expected) in [
        ((1, 512, 512), 1),
        ((32, 4, 4), 16),
        ((32, 8, 8), 8),
        ((32, 4, 8), 8),
        ((32, 32, 32), 2),
        ((32, 64, 64), 1),
        ((32, 128, 8), 1),
        ((6, 24, 8), 2),
        ((7, 4, 4), 7),
    ] {
        assert_eq!(joined(groups, group_c, group_k), expected, "{groups} of {group_c} to {group_k}");
    }
}

#[test]
fn packed_weights_are_the_master_rearranged() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    for (groups, group_c, group_k, r, s) in
        [(1, 3, 8, 7, 7), (1, 64, 40, 1, 1), (1, 36, 72, 3, 2), (8, 4, 8, 3, 3), (2, 70, 9, 1, 3), (32, 4, 4, 3, 3)]
    {
        let dims @ [k, ..] = [groups * group_k, r, s, group_c];
        let master = normal(1, "master", dims, &device);
        let (values, count) = (master.to_vec::<f32>()?, joined(groups, group_c, group_k));
        let (width_c, width_k) = ((count * group_c).next_multiple_of(4), (count * group_k).next_multiple_of(4));
        for precision in PRECISIONS {
            let rounded = |value: f32| if precision == Precision::Bf16 { bf16::from_f32(value).into() } else { value };
            let packed = pack(&master, groups, precision, true)?;
            let flipped = packed.flipped.expect("asked for");
            assert_eq!(packed.forward.dims(), [k, r, s, width_c]);
            assert_eq!(flipped.dims(), [groups / count * width_c, r, s, width_k]);
            assert_eq!((packed.groups, packed.forward.dtype()), (groups, precision.storage()));
            let [mut forward, mut turned] = [vec![0.0; k * r * s * width_c], vec![0.0; flipped.shape().elements()]];
            for (at, value) in values.iter().enumerate() {
                let (filter, tap, channel) = (at / (r * s * group_c), at / group_c % (r * s), at % group_c);
                let (group, whole) = (filter / group_k, filter / group_k / count);
                let (c, k) = (group % count * group_c + channel, filter - whole * count * group_k);
                forward[(filter * r * s + tap) * width_c + c] = f64::from(rounded(*value));
                let row = (whole * width_c + c) * r * s + r * s - 1 - tap;
                turned[row * width_k + k] = f64::from(rounded(*value));
            }
            assert!(wide(&packed.forward) == forward, "{dims:?} in {groups}, {precision}");
            assert!(wide(&flipped) == turned, "{dims:?} in {groups}, {precision}, flipped");
            let alone = pack(&master, groups, precision, false)?;
            assert!(alone.flipped.is_none() && bits(&alone.forward) == bits(&packed.forward));
        }
    }
    Ok(())
}
