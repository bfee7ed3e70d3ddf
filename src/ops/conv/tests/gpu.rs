//! What only a GPU has: tiles and slices that change no bit, naive kernels, moments of tiles, plans.

use std::sync::Arc;

use super::{
    super::{
        Extents, Geometry,
        cuda::{self, Finish},
        forward, forward_with_moments, naive,
        plan::{Plan, Problem, Tile},
    },
    Case, case,
};
use crate::{
    Device, Result,
    device::CudaDevice,
    ops::{
        batchnorm::Moments,
        testing::{F32, assert_close_to, bits, cpu, devices, norm, normal, wide},
    },
};

const TILES: [Tile; 4] = [Tile::Large, Tile::Middle, Tile::Narrow, Tile::Flat];

fn gpus() -> impl Iterator<Item = (Device, Arc<CudaDevice>)> {
    devices().into_iter().filter_map(|device| match &device {
        Device::Cuda(cuda) => Some((device.clone(), cuda.clone())),
        Device::Cpu(_) => None,
    })
}

impl Case {
    fn extents(&self) -> Result<Extents> {
        Extents::new(self.input_dims().into(), self.weight_dims().into(), self.geometry)
    }
}

/// Every tile, with vector loads and without, ragged at every edge; windows of one segment, exactly two, and a few;
/// strides with and without remainders, groups, maps smaller than their kernels.
fn shapes() -> Vec<Case> {
    [
        [2, 9, 8, 8, 12, 3, 3, 1, 1, 1],
        [3, 7, 9, 3, 5, 7, 7, 2, 3, 1],
        [2, 3, 3, 64, 33, 2, 4, 1, 2, 1],
        [1, 4, 5, 68, 70, 3, 3, 1, 1, 1],
        [2, 8, 7, 20, 24, 3, 3, 2, 1, 1],
        [2, 5, 6, 12, 20, 2, 2, 3, 0, 2],
        [2, 6, 7, 9, 6, 1, 3, 2, 1, 3],
        [3, 1, 1, 600, 20, 1, 1, 1, 0, 1],
        [1, 2, 1, 4, 4, 5, 3, 1, 2, 1],
        [2, 12, 12, 4, 8, 1, 1, 1, 0, 2],
    ]
    .map(case)
    .to_vec()
}

/// All plans under which the bits of a sum must not change.
fn plans(problem: Problem) -> impl Iterator<Item = Plan> {
    let slices = if problem.segments() > 1 { vec![1, problem.segments()] } else { vec![1] };
    TILES.into_iter().flat_map(move |tile| slices.clone().into_iter().map(move |slices| Plan { tile, slices }))
}

#[test]
fn outputs_are_the_same_under_every_plan() -> Result<()> {
    for ((device, cuda), case) in gpus().flat_map(|gpu| shapes().into_iter().map(move |case| (gpu.clone(), case))) {
        let [input, weight, residual] = case.tensors(&device);
        let extents = case.extents()?;
        let naive = bits(&naive::forward(&input, &weight, case.geometry)?);
        let [scale, shift] = ["scale", "shift"].map(|name| normal(1, name, [extents.k], &device));
        let finish = Finish { scale: Some(&scale), shift: Some(&shift), residual: Some(&residual), relu: true };
        let mut finished = None;
        for plan in plans(Problem::forward(&extents)) {
            let plain = cuda::forward(&cuda, &input, &weight, &extents, Finish::default(), plan)?;
            assert!(bits(&plain) == naive, "{plan:?} differs from the naive kernel: {case:?}");
            let with_epilogue = bits(&cuda::forward(&cuda, &input, &weight, &extents, finish, plan)?);
            let first = finished.get_or_insert_with(|| with_epilogue.clone());
            assert!(with_epilogue == *first, "the epilogue of {plan:?}: {case:?}");
        }
    }
    Ok(())
}

#[test]
fn input_gradients_are_the_same_under_every_plan() -> Result<()> {
    for ((device, cuda), case) in gpus().flat_map(|gpu| shapes().into_iter().map(move |case| (gpu.clone(), case))) {
        let [input, weight, grad] = case.tensors(&device);
        let extents = case.extents()?;
        let naive = naive::input_grad(&grad, &weight, input.shape(), case.geometry)?;
        let mut first = None;
        for plan in plans(Problem::input_grad(&extents)) {
            let actual = cuda::input_grad(&cuda, &grad, &weight, &extents, plan)?;
            let first = first.get_or_insert_with(|| bits(&actual));
            assert!(bits(&actual) == *first, "{plan:?}: {case:?}");
            assert_close_to(&format!("{plan:?}: {case:?}"), &actual, &wide(&naive), norm(&wide(&naive)), F32);
        }
    }
    Ok(())
}

#[test]
fn weight_gradients_are_right_under_every_plan() -> Result<()> {
    let long = case([3, 14, 15, 4, 6, 3, 3, 1, 1, 1]); // three segments of pixels
    for ((device, cuda), case) in
        gpus().flat_map(|gpu| shapes().into_iter().chain([long]).map(move |case| (gpu.clone(), case)))
    {
        let [input, weight, grad] = case.tensors(&device);
        let extents = case.extents()?;
        let naive = wide(&naive::weight_grad(&grad, &input, weight.shape(), case.geometry)?);
        let segments = Problem::weight_grad(&extents).segments();
        // Slices of one, two and all segments, the last of them shorter.
        for (tile, length) in TILES.into_iter().flat_map(|tile| [1, 2, segments].map(|length| (tile, length))) {
            let plan = Plan { tile, slices: segments.div_ceil(length) };
            let actual = cuda::weight_grad(&cuda, &grad, &input, &extents, plan)?;
            assert_close_to(&format!("{plan:?}: {case:?}"), &actual, &naive, norm(&naive), F32);
        }
    }
    Ok(())
}

#[test]
fn naive_kernels_match_the_reference() -> Result<()> {
    for ((device, _), case) in gpus().flat_map(|gpu| shapes().into_iter().map(move |case| (gpu.clone(), case))) {
        let [input, weight, grad] = case.tensors(&device);
        let (x, w, dy) = (wide(&input), wide(&weight), wide(&grad));
        let [mut y, mut dx, mut dw] = [vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]];
        case.products(|at_x, at_w, at_y| {
            y[at_y] += x[at_x] * w[at_w];
            dx[at_x] += dy[at_y] * w[at_w];
            dw[at_w] += dy[at_y] * x[at_x];
        });
        let geometry = case.geometry;
        for (actual, expected) in [
            (naive::forward(&input, &weight, geometry)?, y),
            (naive::input_grad(&grad, &weight, input.shape(), geometry)?, dx),
            (naive::weight_grad(&grad, &input, weight.shape(), geometry)?, dw),
        ] {
            assert_close_to(&format!("{case:?}"), &actual, &expected, norm(&expected), F32);
        }
    }
    let [input, weight, _] = shapes()[0].tensors(&cpu(1));
    let error = naive::forward(&input, &weight, shapes()[0].geometry).expect_err("no kernel there");
    assert!(error.to_string().contains("kernels of a GPU"), "{error}");
    Ok(())
}

#[test]
fn moments_of_tiles_are_those_of_the_output() -> Result<()> {
    for ((device, cuda), case) in gpus().flat_map(|gpu| shapes().into_iter().map(move |case| (gpu.clone(), case))) {
        let [input, weight, _] = case.tensors(&device);
        // Far from zero, where sums of squares would lose all digits.
        let shifted = wide(&input).iter().map(|x| *x as f32 + 100.0).collect();
        let input = crate::Tensor::new(shifted, input.shape(), &device)?;
        let extents = case.extents()?;
        for tile in TILES {
            let (output, moments) = cuda::forward_with_moments(&cuda, &input, &weight, &extents, tile)?;
            let plain = forward(&input, &weight, case.geometry, Default::default())?;
            assert!(bits(&output) == bits(&plain), "{tile:?}: {case:?}");
            assert_eq!((moments.rows, moments.rows_per_tile), (output.shape().rows(), tile.extents()[0]));
            let (mut mean, mut m2, mut deviation) = (Vec::new(), Vec::new(), 0.0);
            for rows in wide(&output).chunks(moments.rows_per_tile * extents.k) {
                let count = (rows.len() / extents.k) as f64;
                for channel in 0..extents.k {
                    let column = || rows.iter().skip(channel).step_by(extents.k);
                    mean.push(column().sum::<f64>() / count);
                    m2.push(column().map(|y| (y - mean[mean.len() - 1]).powi(2)).sum::<f64>());
                    deviation += m2[m2.len() - 1] / count;
                }
            }
            // A mean is stored as f32: its own rounding, and little against the values' spread.
            let scale = norm(&mean).min(deviation.sqrt() + 0.1 * norm(&mean));
            assert_close_to(&format!("means of {tile:?}: {case:?}"), &moments.mean, &mean, scale, F32);
            assert_close_to(&format!("M2 of {tile:?}: {case:?}"), &moments.m2, &m2, norm(&m2), F32);
            // Merged, they are the batch's.
            if moments.rows > 1 {
                let (merged, whole) = (Moments::of_tiles(&moments)?, Moments::of(&output)?);
                assert_eq!(merged.rows, whole.rows);
                let (mean, variance) = (wide(&whole.mean), wide(&whole.variance));
                assert_close_to(&format!("mean by {tile:?}: {case:?}"), &merged.mean, &mean, norm(&mean), F32);
                let scale = norm(&variance);
                assert_close_to(&format!("variance by {tile:?}: {case:?}"), &merged.variance, &variance, scale, F32);
            }
        }
    }
    Ok(())
}

#[test]
fn moments_are_taken_where_blocks_do_not_share_sums() -> Result<()> {
    let (enough, shared) = (case([2, 12, 12, 4, 8, 1, 1, 1, 0, 1]), case([2, 3, 3, 64, 33, 3, 3, 1, 1, 1]));
    for (device, (case, expected)) in
        devices().iter().flat_map(|device| [(enough, true), (shared, false)].map(|pair| (device, pair)))
    {
        let [input, weight, _] = case.tensors(device);
        let (output, moments) = forward_with_moments(&input, &weight, case.geometry)?;
        assert!(bits(&output) == bits(&forward(&input, &weight, case.geometry, Default::default())?));
        assert_eq!(moments.is_some(), expected && matches!(device, Device::Cuda(_)), "{case:?} on {device}");
    }
    let empty = case([0, 5, 5, 3, 4, 3, 3, 2, 1, 1]);
    for device in devices() {
        let [input, weight, _] = empty.tensors(&device);
        assert!(forward_with_moments(&input, &weight, empty.geometry)?.1.is_none());
    }
    Ok(())
}

#[test]
fn plans_suit_the_layers_of_networks() -> Result<()> {
    let extents = |case: [usize; 10]| super::case(case).extents();
    // A stem, and a 3×3 of the last stage, for a batch of 64; the latter for one image; grouped; a head's two layers.
    let stem = extents([64, 224, 224, 3, 64, 7, 7, 2, 3, 1])?;
    let last = extents([64, 7, 7, 512, 512, 3, 3, 1, 1, 1])?;
    let single = extents([1, 7, 7, 512, 512, 3, 3, 1, 1, 1])?;
    let grouped = extents([64, 56, 56, 128, 128, 3, 3, 1, 1, 32])?;
    let (hidden, classes) = (Extents::linear(64, 1024, 512), Extents::linear(64, 512, 2));
    let sample = Extents::linear(1, 1024, 512);
    for (extents, tile, slices) in [
        (stem, Tile::Large, 1),
        (last, Tile::Middle, 1),
        (single, Tile::Middle, 18),
        (grouped, Tile::Narrow, 1),
        (hidden, Tile::Middle, 4),
        (classes, Tile::Narrow, 2),
        (sample, Tile::Flat, 4),
    ] {
        assert_eq!(Problem::forward(&extents).plan(), Plan { tile, slices }, "{extents:?}");
    }
    for extents in [stem, last, single, grouped, hidden, classes, sample] {
        let problem = Problem::weight_grad(&extents);
        let Plan { tile, slices } = problem.sliced_plan();
        let length = problem.segments().div_ceil(slices);
        assert!(length * (slices - 1) < problem.segments(), "no slice is empty: {extents:?}");
        assert!(slices == 1 || problem.tiles(tile) * slices < 1024, "parts that fit: {extents:?}");
        assert!(problem.tiles(tile) * slices >= 128 || length == 1, "enough blocks: {extents:?}");
    }
    Ok(())
}

#[test]
fn what_32_bits_cannot_count_is_an_error() {
    for (_, cuda) in gpus() {
        for large in [
            case([1 << 20, 64, 64, 1, 1, 1, 1, 2, 0, 1]),
            case([1, 1, 1, 1 << 16, 1 << 16, 1, 1, 1, 0, 1]),
            Case { geometry: Geometry { padding: 1 << 30, ..Geometry::default() }, ..shapes()[0] },
        ] {
            let error = large.extents().and_then(|extents| extents.for_kernels(&cuda)).expect_err("too large");
            assert!(error.to_string().contains("too large"), "{error}");
        }
    }
}
