//! The kernels against f64, in an emulated Hopper: both tiles, ragged everywhere, strides, all that a finish can do;
//! what they move and multiply; and that the emulator finds each barrier, wait and fence that is taken away.

mod planted;

use std::sync::Arc;

use half::bf16;
use simt::{AsyncCopies, Counters};

use super::{
    super::{Extents, Geometry},
    *,
};
use crate::{
    Device, Result, Shape,
    ops::testing::{
        emulator::{Emulator, Settings, emulated},
        norm, normal,
    },
};

/// What runs the kernels in one test, under one schedule.
struct Hopper {
    device: Device,
    driver: Arc<Emulator>,
}

impl Hopper {
    fn new(schedule: u64, copies: AsyncCopies) -> Option<Self> {
        let settings = Settings { schedule, capability: (9, 0), copies, ..Settings::default() };
        let (device, driver) = emulated(settings)?;
        Some(Self { device, driver })
    }

    /// Schedules in order, reversed and shuffled, each with copies and products that happen late and early.
    fn all() -> impl Iterator<Item = Self> {
        let timings = [AsyncCopies::Late, AsyncCopies::Early];
        (0..3).flat_map(move |schedule| timings.map(|copies| Self::new(schedule, copies))).flatten()
    }

    fn cuda(&self) -> &Arc<CudaDevice> {
        match &self.device {
            Device::Cuda(cuda) => cuda,
            Device::Cpu(_) => unreachable!("an emulated GPU"),
        }
    }

    /// Normal values, rounded to bf16.
    fn values(&self, name: &str, shape: impl Into<Shape>) -> Tensor {
        let values = normal(0, name, shape, &self.device);
        let rounded = values.to_vec::<f32>().unwrap().into_iter().map(bf16::from_f32).collect();
        Tensor::new::<bf16>(rounded, values.shape(), &self.device).unwrap()
    }

    fn counters(&self, entry: &str) -> Counters {
        self.driver.counters().remove(entry).expect("a kernel that ran")
    }
}

/// The elements, of bf16.
fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_vec::<bf16>().expect("bf16").into_iter().map(f64::from).collect()
}

/// `[n, h, w, c, k, stride]`, as a short way to write a case.
fn case([n, h, w, c, k, stride]: [usize; 6]) -> Extents {
    let geometry = Geometry { stride, ..Geometry::default() };
    Extents::new([n, h, w, c].into(), [k, 1, 1, c].into(), geometry).expect("extents")
}

/// Fewer rows than a tile, exactly a pair, more pairs than clusters; one step and more than there are stages; columns
/// of one tile and three, of half a tile; depths that end within a step; strides with remainders and without.
fn cases() -> Vec<Extents> {
    [
        [1, 1, 1, 8, 8, 1],
        [2, 7, 7, 64, 128, 1],
        [1, 16, 16, 192, 64, 1],
        [3, 9, 11, 72, 264, 1],
        [5, 11, 19, 136, 520, 1],
        [1, 5, 3, 448, 16, 1],
        [2, 7, 9, 64, 72, 2],
        [3, 16, 12, 128, 256, 2],
        [4, 9, 7, 40, 48, 3],
    ]
    .map(case)
    .to_vec()
}

impl Extents {
    fn rows(&self) -> usize {
        self.n * self.p * self.q
    }

    /// The sums of each output, in f64.
    fn products(&self, input: &[f64], weight: &[f64]) -> Vec<f64> {
        let mut sums = Vec::with_capacity(self.rows() * self.k);
        for row in 0..self.rows() {
            let (image, y, x) = (row / self.q / self.p, row / self.q % self.p, row % self.q);
            let pixel = (image * self.h + y * self.stride) * self.w + x * self.stride;
            let pixel = &input[pixel * self.c..][..self.c];
            sums.extend(weight.chunks(self.c).map(|filter| pixel.iter().zip(filter).map(|(x, w)| x * w).sum::<f64>()));
        }
        sums
    }
}

/// Asserts the bounds of bf16 outputs: rounding once, and little besides.
fn assert_rounded(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let errors: Vec<f64> = actual.iter().zip(expected).map(|(actual, expected)| actual - expected).collect();
    let (error, scale) = (norm(&errors), norm(expected));
    assert!(error <= 2.5e-3 * scale, "{what}: relative error {:e}", error / scale);
    let typical = scale / (expected.len() as f64).sqrt();
    for (at, (error, expected)) in errors.iter().zip(expected).enumerate() {
        let bound = expected.abs() / 256.0 + 1e-3 * typical;
        assert!(error.abs() <= bound, "{what}: element {at} should be {expected}, is off by {error:e}");
    }
}

/// A forward convolution with everything that its finish can do, and without.
struct Forward {
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor,
    output: Tensor,
    mean: Tensor,
    m2: Tensor,
}

impl Forward {
    fn new(hopper: &Hopper, extents: &Extents) -> Result<Self> {
        let Extents { n, h, w, c, k, p, q, .. } = *extents;
        let sums = [extents.rows().div_ceil(ROWS_PER_SUM), k];
        Ok(Self {
            input: hopper.values("input", [n, h, w, c]),
            weight: hopper.values("weight", [k, 1, 1, c]),
            scale: normal(0, "scale", [k], &hopper.device),
            shift: normal(0, "shift", [k], &hopper.device),
            residual: hopper.values("residual", [n, p, q, k]),
            output: Tensor::uninit::<bf16>([n, p, q, k], hopper.cuda())?,
            mean: Tensor::uninit::<f32>(sums, hopper.cuda())?,
            m2: Tensor::uninit::<f32>(sums, hopper.cuda())?,
        })
    }

    fn plain(&self, cuda: &CudaDevice) -> Result<ForwardFinish> {
        let (output, channels) = (self.output.pointer::<bf16>(cuda)?, self.output.shape().last() as u32);
        Ok(ForwardFinish { output, scale: 0, shift: 0, residual: 0, mean: 0, m2: 0, channels, relu: 0 })
    }

    fn folded(&self, cuda: &CudaDevice) -> Result<ForwardFinish> {
        let [scale, shift] = [self.scale.pointer::<f32>(cuda)?, self.shift.pointer::<f32>(cuda)?];
        let residual = self.residual.pointer::<bf16>(cuda)?;
        Ok(ForwardFinish { scale, shift, residual, relu: 1, ..self.plain(cuda)? })
    }

    fn with_moments(&self, cuda: &CudaDevice) -> Result<ForwardFinish> {
        let [mean, m2] = [self.mean.pointer::<f32>(cuda)?, self.m2.pointer::<f32>(cuda)?];
        Ok(ForwardFinish { mean, m2, ..self.plain(cuda)? })
    }

    /// Runs the kernel and returns its output.
    fn run(&self, hopper: &Hopper, extents: &Extents, finish: ForwardFinish, tile: Tile) -> Result<Vec<f64>> {
        forward(hopper.cuda(), [&self.input, &self.weight], extents, finish, tile)?;
        Ok(wide(&self.output))
    }

    /// The sums in f64.
    fn products(&self, extents: &Extents) -> Vec<f64> {
        extents.products(&wide(&self.input), &wide(&self.weight))
    }
}

#[test]
fn outputs_are_right_under_every_schedule() -> Result<()> {
    for hopper in Hopper::all() {
        for extents in cases() {
            let case = Forward::new(&hopper, &extents)?;
            let sums = case.products(&extents);
            let affine = |name: &Tensor| name.to_vec::<f32>().unwrap();
            let (scale, shift, residual) = (affine(&case.scale), affine(&case.shift), wide(&case.residual));
            let finished = sums.iter().enumerate().map(|(at, sum)| {
                let channel = at % extents.k;
                (sum * f64::from(scale[channel]) + f64::from(shift[channel]) + residual[at]).max(0.0)
            });
            let finished: Vec<f64> = finished.collect();
            let mut both = Vec::new();
            for tile in [Tile::Wide, Tile::Narrow] {
                let what = format!("{tile:?}: {extents:?}");
                let plain = case.run(&hopper, &extents, case.plain(hopper.cuda())?, tile)?;
                assert_rounded(&what, &plain, &sums);
                let folded = case.run(&hopper, &extents, case.folded(hopper.cuda())?, tile)?;
                assert_rounded(&what, &folded, &finished);
                both.push((plain, folded));
            }
            assert!(both[0] == both[1], "the tile changes a bit: {extents:?}");
        }
    }
    Ok(())
}

#[test]
fn moments_are_those_of_the_stored_outputs() -> Result<()> {
    let Some(hopper) = Hopper::new(2, AsyncCopies::Late) else { return Ok(()) };
    for (extents, tile) in cases().into_iter().flat_map(|extents| [(extents, Tile::Wide), (extents, Tile::Narrow)]) {
        let case = Forward::new(&hopper, &extents)?;
        let output = case.run(&hopper, &extents, case.with_moments(hopper.cuda())?, tile)?;
        assert_rounded(&format!("{tile:?}: {extents:?}"), &output, &case.products(&extents));
        let (means, m2s) = (case.mean.to_vec::<f32>()?, case.m2.to_vec::<f32>()?);
        for (part, rows) in output.chunks(ROWS_PER_SUM * extents.k).enumerate() {
            let count = (rows.len() / extents.k) as f64;
            for channel in 0..extents.k {
                let column = || rows.iter().skip(channel).step_by(extents.k);
                let mean = column().sum::<f64>() / count;
                let m2 = column().map(|y| (y - mean).powi(2)).sum::<f64>();
                let at = part * extents.k + channel;
                let (error, deviation) = (f64::from(means[at]) - mean, (m2 / count).sqrt());
                assert!(error.abs() <= 1e-5 * deviation + 1e-7 * mean.abs(), "mean {at}: {error:e}: {extents:?}");
                let error = f64::from(m2s[at]) - m2;
                assert!(error.abs() <= 1e-5 * m2, "M2 {at}: {error:e} of {m2}: {extents:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn input_gradients_are_masked_and_summed() -> Result<()> {
    for hopper in Hopper::all() {
        for extents in cases().into_iter().filter(|extents| extents.stride == 1) {
            // The input's gradient, of K columns: as a product it is a forward convolution.
            let cuda = hopper.cuda();
            let Extents { n, h, w, c, k, .. } = extents;
            let [grad, flipped] = [hopper.values("grad", [n, h, w, c]), hopper.values("flipped", [k, 1, 1, c])];
            let partial = hopper.values("partial", [n, h.div_ceil(2), w.div_ceil(2), k]);
            let input = hopper.values("input", [n, h, w, k]);
            let mean = normal(0, "mean", [k], &hopper.device);
            let bytes = (0..extents.rows() * k / 8).map(|byte| (byte * 37 + byte / 5) as u8).collect::<Vec<_>>();
            let mask = Tensor::new::<u8>(bytes.clone(), [extents.rows(), k / 8], &hopper.device)?;
            let sums = [extents.rows().div_ceil(ROWS_PER_SUM), k];
            let output = Tensor::uninit::<bf16>([n, h, w, k], cuda)?;
            let [sum, product] = [Tensor::uninit::<f32>(sums, cuda)?, Tensor::uninit::<f32>(sums, cuda)?];
            let finish = GradFinish {
                output: output.pointer::<bf16>(cuda)?,
                partial: finish::Partial { grad: partial.pointer::<bf16>(cuda)?, stride: 2, h: h as u32, w: w as u32 },
                mask: mask.pointer::<u8>(cuda)?,
                input: input.pointer::<bf16>(cuda)?,
                mean: mean.pointer::<f32>(cuda)?,
                sum: sum.pointer::<f32>(cuda)?,
                product: product.pointer::<f32>(cuda)?,
                channels: k as u32,
            };
            input_grad(cuda, [&grad, &flipped], &extents, finish, Tile::of(k))?;

            let (mut expected, partial) = (extents.products(&wide(&grad), &wide(&flipped)), wide(&partial));
            for (at, value) in expected.iter_mut().enumerate() {
                let (row, channel) = (at / k, at % k);
                let (image, y, x) = (row / w / h, row / w % h, row % w);
                if y % 2 == 0 && x % 2 == 0 {
                    let pixel = (image * h.div_ceil(2) + y / 2) * w.div_ceil(2) + x / 2;
                    *value += partial[pixel * k + channel];
                }
                if bytes[at / 8] >> (at % 8) & 1 == 0 {
                    *value = 0.0;
                }
            }
            let stored = wide(&output);
            assert_rounded(&format!("{extents:?}"), &stored, &expected);
            let (input, mean) = (wide(&input), mean.to_vec::<f32>()?);
            let (sum, product) = (sum.to_vec::<f32>()?, product.to_vec::<f32>()?);
            for (part, rows) in stored.chunks(ROWS_PER_SUM * k).enumerate() {
                for channel in 0..k {
                    let column = (0..rows.len() / k).map(|row| {
                        let y = input[(part * ROWS_PER_SUM + row) * k + channel];
                        (rows[row * k + channel], y - f64::from(mean[channel]))
                    });
                    let [mut exact, mut size] = [[0.0; 2]; 2];
                    for (g, y) in column {
                        exact = [exact[0] + g, exact[1] + g * y];
                        size = [size[0] + g.abs(), size[1] + (g * y).abs()];
                    }
                    for (i, actual) in [sum[part * k + channel], product[part * k + channel]].into_iter().enumerate() {
                        let error = (f64::from(actual) - exact[i]).abs();
                        assert!(error <= 1e-5 * size[i], "sum {i} of channel {channel}: {error:e}: {extents:?}");
                    }
                }
            }
        }
    }
    Ok(())
}
