mod gpu;

use proptest::prelude::*;

use super::{Epilogue, Geometry, conv, forward, input_grad, weight_grad};
use crate::{
    Device, Result, Tensor,
    ops::testing::{
        F32, KnownNorm, assert_close, assert_close_to, bits, cases, check_op, cpu, devices, norm, normal, wide,
    },
};

/// A convolution on random data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) n: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) group_c: usize,
    pub(super) group_k: usize,
    pub(super) r: usize,
    pub(super) s: usize,
    pub(super) geometry: Geometry,
}

/// `[n, h, w, c, k, r, s, stride, padding, groups]`, as a short way to write a case.
pub(super) fn case([n, h, w, c, k, r, s, stride, padding, groups]: [usize; 10]) -> Case {
    let geometry = Geometry { stride, padding, groups };
    Case { n, h, w, group_c: c / groups, group_k: k / groups, r, s, geometry }
}

/// Ragged shapes with kernels up to `kernel` and up to `channels` channels in each of up to three groups.
fn any_case(kernel: usize, channels: usize, extra: usize) -> impl Strategy<Value = Case> {
    let map = (1..4usize, 0..extra, 0..extra, 1..=kernel, 1..=kernel);
    (map, 1..=channels, 1..=channels, 1..4usize, 0..4usize, 1..4usize).prop_map(
        |((n, h, w, r, s), group_c, group_k, stride, padding, groups)| {
            let fit = |kernel: usize| kernel.saturating_sub(2 * padding).max(1);
            let geometry = Geometry { stride, padding, groups };
            Case { n, h: h + fit(r), w: w + fit(s), group_c, group_k, r, s, geometry }
        },
    )
}

impl Case {
    pub(super) fn input_dims(&self) -> [usize; 4] {
        [self.n, self.h, self.w, self.group_c * self.geometry.groups]
    }

    pub(super) fn weight_dims(&self) -> [usize; 4] {
        [self.group_k * self.geometry.groups, self.r, self.s, self.group_c]
    }

    pub(super) fn output_dims(&self) -> [usize; 4] {
        let Geometry { stride, padding, .. } = self.geometry;
        let extent = |extent, kernel| (extent + 2 * padding - kernel) / stride + 1;
        [self.n, extent(self.h, self.r), extent(self.w, self.s), self.weight_dims()[0]]
    }

    fn tensors(&self, device: &Device) -> [Tensor; 3] {
        let dims = [("input", self.input_dims()), ("weight", self.weight_dims()), ("grad", self.output_dims())];
        dims.map(|(name, dims)| normal(self.h as u64, name, dims, device))
    }

    /// Calls `visit` with the offsets of input, weight and output of every product in the convolution.
    pub(super) fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let [n, p, q, k] = self.output_dims();
        let ([_, h, w, c], Geometry { stride, padding, .. }) = (self.input_dims(), self.geometry);
        for (image, y, x, filter) in
            (0..n * p * q * k).map(|at| (at / (p * q * k), at / (q * k) % p, at / k % q, at % k))
        {
            for (r, s, channel) in (0..self.r * self.s * self.group_c)
                .map(|at| (at / (self.s * self.group_c), at / self.group_c % self.s, at % self.group_c))
            {
                let (Some(from_y), Some(from_x)) =
                    ((y * stride + r).checked_sub(padding), (x * stride + s).checked_sub(padding))
                else {
                    continue;
                };
                if from_y < h && from_x < w {
                    visit(
                        ((image * h + from_y) * w + from_x) * c + filter / self.group_k * self.group_c + channel,
                        ((filter * self.r + r) * self.s + s) * self.group_c + channel,
                        ((image * p + y) * q + x) * k + filter,
                    );
                }
            }
        }
    }

    fn reference(&self, input: &[f64], weight: &[f64]) -> Vec<f64> {
        let mut output = vec![0.0; self.output_dims().iter().product()];
        self.products(|x, w, y| output[y] += input[x] * weight[w]);
        output
    }

    /// Forward and both gradients, compared with f64. The errors are measured against what each sum would be if the
    /// signs of its terms were random: a few outputs may cancel.
    fn check(&self, device: &Device) -> Result<()> {
        let [input, weight, grad] = self.tensors(device);
        let (x, w, dy) = (wide(&input), wide(&weight), wide(&grad));
        let [mut dx, mut dw] = [vec![0.0; x.len()], vec![0.0; w.len()]];
        let mut squares = [0f64; 3];
        self.products(|at_x, at_w, at_y| {
            dx[at_x] += dy[at_y] * w[at_w];
            dw[at_w] += dy[at_y] * x[at_x];
            squares[0] += (x[at_x] * w[at_w]).powi(2);
            squares[1] += (dy[at_y] * w[at_w]).powi(2);
            squares[2] += (dy[at_y] * x[at_x]).powi(2);
        });
        let y = self.reference(&x, &w);
        let output = forward(&input, &weight, self.geometry, Epilogue::default())?;
        assert_eq!(output.dims(), self.output_dims());
        let input_grad = input_grad(&grad, &weight, input.shape(), self.geometry)?;
        assert_eq!(input_grad.dims(), self.input_dims());
        let weight_grad = weight_grad(&grad, &input, weight.shape(), self.geometry)?;
        assert_eq!(weight_grad.dims(), self.weight_dims());
        for (what, actual, expected, squares) in [
            ("output", &output, &y, squares[0]),
            ("input gradient", &input_grad, &dx, squares[1]),
            ("weight gradient", &weight_grad, &dw, squares[2]),
        ] {
            assert_close_to(
                &format!("{what} of {self:?} on {device}"),
                actual,
                expected,
                squares.sqrt().max(norm(expected)),
                F32,
            );
        }
        Ok(())
    }

    /// Every combination of what may follow a convolution.
    fn check_epilogues(&self, device: &Device) -> Result<()> {
        let [input, weight, residual] = self.tensors(device);
        let channels = self.weight_dims()[0];
        let norm_after = KnownNorm::new(1, channels, device);
        let plain = self.reference(&wide(&input), &wide(&weight));
        let added = wide(&residual);
        for (with_norm, with_residual, relu) in (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)) {
            let epilogue = Epilogue {
                norm: with_norm.then(|| norm_after.fixed()),
                residual: with_residual.then_some(&residual),
                relu,
            };
            let finish = |(at, y): (usize, &f64)| {
                let normed = if with_norm { norm_after.exact(at % channels, *y) } else { *y };
                let sum = if with_residual { normed + added[at] } else { normed };
                if relu { sum.max(0.0) } else { sum }
            };
            let expected: Vec<f64> = plain.iter().enumerate().map(finish).collect();
            let what = format!("norm {with_norm}, residual {with_residual}, relu {relu}: {self:?} on {device}");
            let actual = forward(&input, &weight, self.geometry, epilogue)?;
            assert_close_to(&what, &actual, &expected, norm(&plain).max(norm(&expected)), F32);
        }
        Ok(())
    }

    /// Forward and both gradients, bit for bit.
    fn results(&self, device: &Device) -> Result<[Vec<u32>; 3]> {
        let [input, weight, grad] = self.tensors(device);
        Ok([
            bits(&forward(&input, &weight, self.geometry, Epilogue::default())?),
            bits(&input_grad(&grad, &weight, input.shape(), self.geometry)?),
            bits(&weight_grad(&grad, &input, weight.shape(), self.geometry)?),
        ])
    }
}

/// Shapes past every block size of the implementation: pixels per tile, columns and parts of the weight gradient, and
/// the limits of the matrix product's paths.
fn large() -> Vec<Case> {
    [
        [2, 15, 17, 3, 16, 7, 7, 2, 3, 1],
        [3, 13, 11, 64, 24, 3, 3, 1, 1, 1],
        [2, 9, 10, 100, 70, 3, 3, 2, 1, 1],
        [3, 6, 5, 300, 10, 2, 1, 1, 0, 1],
        [2, 19, 23, 40, 65, 1, 1, 1, 0, 1],
        [2, 19, 23, 8, 12, 1, 1, 2, 0, 4],
        [37, 3, 3, 6, 9, 3, 3, 1, 1, 3],
        [5, 12, 12, 7, 7, 3, 3, 1, 1, 7],
        [40, 1, 1, 600, 33, 1, 1, 1, 0, 1],
        [3, 14, 13, 64, 64, 3, 3, 1, 1, 1], // Winograd's method on the processor, ragged tiles
        [1, 12, 9, 16, 128, 3, 3, 1, 0, 1], // filters shared out among threads
        [2, 7, 5, 320, 64, 3, 3, 1, 1, 1],  // channels in more than one go
        [13, 3, 2, 64, 64, 3, 3, 1, 2, 1],
        [21, 7, 8, 9, 80, 1, 1, 1, 0, 1], // gradients of 1×1 on small maps: pixels of two sums, …
        [3, 13, 15, 130, 20, 1, 1, 2, 0, 1], // … and more channels than a panel
    ]
    .map(case)
    .to_vec()
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn ragged_shapes_match_the_reference(case in any_case(7, 6, 8)) {
        devices().iter().try_for_each(|device| case.check(device))?;
    }

    #[test]
    fn every_epilogue_matches_the_reference(case in any_case(4, 5, 6)) {
        devices().iter().try_for_each(|device| case.check_epilogues(device))?;
    }
}

prop_compose! {
    /// What the processor computes by Winograd's method, whatever the width of its vectors.
    fn any_winograd_case()(n in 1..4usize, h in 1..20usize, w in 1..20usize, c in 1..6usize, k in 1..3usize, padding in 0..3usize)
        -> Case
    {
        let fit = |extent: usize| extent.max(3usize.saturating_sub(2 * padding));
        case([n, fit(h), fit(w), 16 * c, 64 * k, 3, 3, 1, padding, 1])
    }
}

prop_compose! {
    /// What the processor computes from rows of the image, whatever the width of its vectors.
    fn any_stem()(
        n in 1..3usize, h in 1..20usize, w in 8..30usize, c in 1..5usize, k in 1..3usize, r in 1..8usize, s in 2..8usize,
        stride in 1..4usize, padding in 0..9usize,
    ) -> Case {
        case([n, h.max(r), w.max(s), c, 64 * k, r, s, stride, padding, 1])
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn rows_of_the_image_match_the_reference(case in any_stem(), threads in 1..4usize) {
        case.check_epilogues(&cpu(threads))?;
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn winograds_method_matches_the_reference(case in any_winograd_case(), threads in 1..4usize) {
        case.check_epilogues(&cpu(threads))?;
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn the_tape_computes_the_numeric_gradient(case in any_case(3, 2, 3)) {
        for device in devices() {
            let [input, weight, _] = case.tensors(&device);
            check_op("conv", &[input, weight],
                |tape, vars| conv(tape, &vars[0], &vars[1], case.geometry),
                |inputs| case.reference(&inputs[0], &inputs[1]))?;
        }
    }
}

#[test]
fn shapes_past_every_block_size_match_the_reference() -> Result<()> {
    devices().iter().try_for_each(|device| large().iter().try_for_each(|case| case.check(device)))
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let devices = [1, 2, 3].map(cpu);
    for case in large() {
        let [one, two, three] = devices.each_ref().map(|device| case.results(device));
        let one = one?;
        assert!(one == two? && one == three?, "{case:?}");
    }
    Ok(())
}

#[test]
fn kept_weights_follow_what_is_written_to_them() -> Result<()> {
    let device = cpu(2);
    for shape in [[2, 6, 6, 64, 64, 3, 3, 1, 1, 1], [2, 6, 6, 5, 7, 1, 1, 1, 0, 1], [1, 9, 14, 3, 64, 3, 3, 2, 1, 1]] {
        let case = case(shape);
        let [input, mut weight, _] = case.tensors(&device);
        let norm_after = KnownNorm::new(1, case.weight_dims()[0], &device);
        let run = |weight: &Tensor| {
            let epilogue = Epilogue { norm: Some(norm_after.fixed()), ..Epilogue::default() };
            forward(&input, weight, case.geometry, epilogue).map(|output| bits(&output))
        };
        let (before, copy) = (run(&weight)?, weight.clone());
        let other = normal(99, "other weight", case.weight_dims(), &device);
        weight.overwrite(&other.to_vec::<f32>()?)?;
        assert_eq!(run(&weight)?, run(&other)?, "{case:?}");
        assert_eq!(run(&copy)?, before, "{case:?}");
    }
    Ok(())
}

#[test]
fn an_image_does_not_depend_on_its_batch() -> Result<()> {
    let all = [
        [9, 14, 14, 64, 64, 3, 3, 1, 1, 1],  // Winograd's method on the processor …
        [30, 5, 7, 16, 64, 3, 3, 1, 1, 1],   // … and on small maps
        [300, 1, 1, 600, 64, 1, 1, 1, 0, 1], // 1×1 maps, narrow product with a long inner dimension
        [70, 1, 1, 20, 3, 1, 1, 1, 0, 1],
        [9, 1, 1, 128, 40, 3, 3, 1, 1, 1],
        [9, 7, 7, 64, 64, 3, 3, 1, 1, 1], // window 576, K = 64
        [5, 7, 5, 120, 8, 3, 3, 2, 1, 1],
        [5, 9, 9, 30, 2, 5, 5, 1, 2, 1],
        [7, 5, 5, 90, 1, 3, 3, 1, 1, 1], // one output channel
        [7, 9, 5, 5, 5, 3, 3, 2, 1, 5],  // one channel per group
        [6, 3, 3, 1400, 2, 1, 1, 1, 0, 2],
        [40, 2, 1, 70, 130, 1, 1, 2, 0, 1],
        [3, 31, 29, 3, 64, 7, 7, 2, 3, 1],
        [150, 3, 3, 8, 70, 3, 3, 1, 1, 1],
    ]
    .map(case);
    for (device, case) in devices().iter().flat_map(|device| all.iter().map(move |case| (device, case))) {
        let [input, weight, _] = case.tensors(device);
        let norm_after = KnownNorm::new(1, case.weight_dims()[0], device);
        // The processor takes F(4×4) where batchnorm is fixed.
        let forward = |input: &Tensor, fixed: bool| {
            let epilogue = Epilogue { norm: fixed.then(|| norm_after.fixed()), ..Epilogue::default() };
            forward(input, &weight, case.geometry, epilogue).map(|output| bits(&output))
        };
        let (whole, fixed) = (forward(&input, false)?, forward(&input, true)?);
        let (input_image, output_image) = (input.shape().elements() / case.n, whole.len() / case.n);
        let elements = input.to_vec::<f32>()?;
        for (first, count) in [(0, 1), (case.n / 2, 1), (case.n - 1, 1), (0, 2), (1, case.n - 1)] {
            let part = elements[first * input_image..][..count * input_image].to_vec();
            let part = Tensor::new(part, [count, case.h, case.w, input.shape().last()], device)?;
            let outputs = first * output_image..(first + count) * output_image;
            assert!(forward(&part, false)? == whole[outputs.clone()], "{first} {count} {case:?} {device}");
            assert!(forward(&part, true)? == fixed[outputs], "{first} {count} {case:?}, batchnorm fixed, {device}");
        }
    }
    Ok(())
}

#[test]
fn an_empty_batch_and_a_single_window_work() -> Result<()> {
    for device in devices() {
        let empty = case([0, 5, 5, 3, 4, 3, 3, 2, 1, 1]);
        let [input, weight, grad] = empty.tensors(&device);
        assert_eq!(forward(&input, &weight, empty.geometry, Epilogue::default())?.dims(), [0, 3, 3, 4]);
        assert_eq!(input_grad(&grad, &weight, input.shape(), empty.geometry)?.dims(), [0, 5, 5, 3]);
        assert_close("no images", &weight_grad(&grad, &input, weight.shape(), empty.geometry)?, &[0.0; 108], F32);
        case([1, 7, 7, 2, 1, 7, 7, 3, 0, 1]).check(&device)?;
    }
    Ok(())
}

#[test]
fn a_nan_passes_the_relu() -> Result<()> {
    for device in devices() {
        let input = Tensor::full([1, 1, 1, 1], f32::NAN, &device)?;
        let weight = Tensor::full([1, 1, 1, 1], 1.0, &device)?;
        let epilogue = Epilogue { relu: true, ..Epilogue::default() };
        assert!(forward(&input, &weight, Geometry::default(), epilogue)?.scalar()?.is_nan(), "{device}");
    }
    Ok(())
}

/// What a kernel reads beyond a window, a slice or a tile must be a zero, not a neighbour times a zero: nothing tells
/// them apart until the neighbour is not finite.
#[test]
fn a_nan_spoils_its_own_products_alone() -> Result<()> {
    let all = [
        [1, 5, 4, 3, 5, 3, 3, 1, 1, 1],  // windows that end within a step, one value at a time
        [1, 5, 4, 4, 8, 3, 3, 1, 1, 1],  // four at a time
        [1, 7, 6, 4, 6, 3, 2, 2, 1, 2],  // groups
        [1, 3, 4, 36, 6, 3, 3, 1, 1, 1], // slices of a segment, the last one shorter
    ]
    .map(case);
    for (device, case) in devices().iter().flat_map(|device| all.iter().map(move |case| (device, case))) {
        let tensors = case.tensors(device);
        let spoiled = |which: usize, at: usize| {
            let mut values = tensors[which].to_vec::<f32>()?;
            values[at] = f32::NAN;
            Tensor::new(values, tensors[which].shape(), device)
        };
        let check = |what: &str, tensor: &Tensor, spoiled: &dyn Fn(usize) -> bool| {
            for (at, value) in tensor.to_vec::<f32>()?.iter().enumerate() {
                assert_eq!(value.is_nan(), spoiled(at), "element {at} of the {what} of {case:?} on {device}");
            }
            Result::Ok(())
        };
        let [input, weight, grad] = &tensors;
        let touched = |found: &dyn Fn(usize, usize, usize) -> Option<usize>| {
            let mut touched = std::collections::HashSet::new();
            case.products(|x, w, y| touched.extend(found(x, w, y)));
            touched
        };
        // The first and the last channel of every pixel, and filter of every output.
        let channels = input.shape().last();
        for at in (0..input.shape().elements()).filter(|at| matches!((at + 1) % channels, 0 | 1)) {
            let (nan, geometry) = (spoiled(0, at)?, case.geometry);
            let outputs = touched(&|x, _, y| (x == at).then_some(y));
            let output = forward(&nan, weight, geometry, Epilogue::default())?;
            check("output", &output, &|at| outputs.contains(&at))?;
            let weights = touched(&|x, w, _| (x == at).then_some(w));
            check("weight gradient", &weight_grad(grad, &nan, weight.shape(), geometry)?, &|at| weights.contains(&at))?;
        }
        let filters = grad.shape().last();
        for at in (0..grad.shape().elements()).filter(|at| matches!((at + 1) % filters, 0 | 1)) {
            let nan = spoiled(2, at)?;
            let inputs = touched(&|x, _, y| (y == at).then_some(x));
            let actual = input_grad(&nan, weight, input.shape(), case.geometry)?;
            check("input gradient", &actual, &|at| inputs.contains(&at))?;
        }
        // A weight is multiplied by the zeros around the image too.
        for at in (0..weight.shape().elements()).step_by(weight.shape().elements() / 7) {
            let output = forward(input, &spoiled(1, at)?, case.geometry, Epilogue::default())?;
            let filter = at / (weight.shape().elements() / filters);
            for (at, value) in output.to_vec::<f32>()?.iter().enumerate() {
                assert!(at % filters == filter || value.is_finite(), "output {at} of {case:?} on {device}");
            }
        }
    }
    Ok(())
}

#[test]
fn extents_that_do_not_fit_are_errors() {
    let device = cpu(1);
    let geometry = |stride, padding, groups| Geometry { stride, padding, groups };
    for (input, weight, geometry, part) in [
        ([1, 4, 4, 3], [2, 3, 3, 2], geometry(1, 0, 1), "do not fit"),
        ([1, 4, 4, 4], [3, 3, 3, 2], geometry(1, 0, 2), "do not fit"),
        ([1, 4, 4, 3], [2, 3, 3, 3], geometry(0, 0, 1), "do not fit"),
        ([1, 4, 4, 3], [2, 3, 3, 3], geometry(1, 0, 0), "do not fit"),
        ([1, 4, 4, 0], [2, 3, 3, 0], geometry(1, 0, 1), "may be empty"),
        ([1, 4, 4, 3], [0, 3, 3, 3], geometry(1, 0, 1), "may be empty"),
        ([1, 4, 4, 3], [2, 0, 3, 3], geometry(1, 0, 1), "may be empty"),
        ([1, 0, 4, 3], [2, 1, 1, 3], geometry(1, 1, 1), "may be empty"),
        ([1, 2, 4, 3], [2, 3, 3, 3], geometry(1, 0, 1), "larger images"),
    ] {
        let (input, weight) = (Tensor::zeros(input, &device).unwrap(), Tensor::zeros(weight, &device).unwrap());
        let error = forward(&input, &weight, geometry, Epilogue::default()).expect_err("shapes do not fit").to_string();
        assert!(error.contains(part), "{error}");
    }
    let (input, weight) =
        (Tensor::zeros([1, 4, 4, 3], &device).unwrap(), Tensor::zeros([2, 3, 3, 3], &device).unwrap());
    let wrong = Tensor::zeros([1, 3, 3, 2], &device).unwrap();
    assert!(input_grad(&wrong, &weight, input.shape(), Geometry::default()).is_err());
    assert!(weight_grad(&wrong, &input, weight.shape(), Geometry::default()).is_err());
    let epilogue = Epilogue { residual: Some(&wrong), ..Epilogue::default() };
    assert!(forward(&input, &weight, Geometry::default(), epilogue).is_err());
    let other = KnownNorm::new(1, 3, &device);
    let epilogue = Epilogue { norm: Some(other.fixed()), ..Epilogue::default() };
    let error = forward(&input, &weight, Geometry::default(), epilogue).expect_err("three channels").to_string();
    assert!(error.contains("scale should be [2], is [3]"), "{error}");
}
