//! The kernels against f64, in an emulated Hopper: both tiles, ragged everywhere, strides, all that a finish can do;
//! what they move and multiply; and that the emulator finds each barrier, wait and fence that is taken away.

mod choice;
mod planted;

use std::sync::Arc;

use half::bf16;
use simt::{AsyncCopies, Counters};

use super::{super::Geometry, *};
use crate::{
    Device, Shape,
    device::cuda::Driver,
    ops::{
        batchnorm::Sink,
        testing::{
            KnownNorm, assert_bits,
            emulator::{Emulator, Settings, emulated},
            norm, normal,
        },
    },
};

const TILES: [Tile; 2] = [Tile::Wide, Tile::Narrow];

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

/// What a forward convolution reads, with and without a finish.
struct Forward {
    input: Tensor,
    weight: Tensor,
    norm: KnownNorm,
    residual: Tensor,
}

impl Forward {
    fn new(hopper: &Hopper, extents: &Extents) -> Self {
        let Extents { n, h, w, c, k, .. } = *extents;
        Self {
            input: hopper.values("input", [n, h, w, c]),
            weight: hopper.values("weight", [k, 1, 1, c]),
            norm: KnownNorm::new(0, k, &hopper.device),
            residual: hopper.values("residual", extents.output()),
        }
    }

    /// A batchnorm, a shortcut and ReLU.
    fn finished(&self) -> Epilogue<'_> {
        Epilogue { norm: Some(self.norm.fixed()), residual: Some(&self.residual), relu: true }
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
            let case = Forward::new(&hopper, &extents);
            let sums = case.products(&extents);
            let both = sums.iter().zip(wide(&case.residual)).enumerate();
            let expected: Vec<f64> =
                both.map(|(at, (sum, residual))| (case.norm.exact(at % extents.k, *sum) + residual).max(0.0)).collect();
            let mut both = Vec::new();
            for tile in TILES {
                let run = |epilogue| forward(hopper.cuda(), tile, &case.input, &case.weight, &extents, epilogue);
                let (plain, finished) = (wide(&run(Epilogue::default())?), wide(&run(case.finished())?));
                assert_rounded(&format!("{tile:?}: {extents:?}"), &plain, &sums);
                assert_rounded(&format!("{tile:?}, finished: {extents:?}"), &finished, &expected);
                both.push((plain, finished));
            }
            assert!(both[0] == both[1], "the tile changes a bit: {extents:?}");
        }
    }
    Ok(())
}

#[test]
fn moments_are_those_of_the_stored_outputs() -> Result<()> {
    let Some(hopper) = Hopper::new(2, AsyncCopies::Late) else { return Ok(()) };
    for (extents, tile) in cases().into_iter().flat_map(|extents| TILES.map(|tile| (extents, tile))) {
        let case = Forward::new(&hopper, &extents);
        let (output, moments) = forward_with_moments(hopper.cuda(), tile, &case.input, &case.weight, &extents)?;
        let output = wide(&output);
        assert_rounded(&format!("{tile:?}: {extents:?}"), &output, &case.products(&extents));
        assert_eq!((moments.rows, moments.rows_per_tile), (extents.rows(), ROWS_PER_SUM));
        let (means, m2s) = (moments.mean.to_vec::<f32>()?, moments.m2.to_vec::<f32>()?);
        for (part, rows) in output.chunks(ROWS_PER_SUM * extents.k).enumerate() {
            let count = (rows.len() / extents.k) as f64;
            for channel in 0..extents.k {
                let column = || rows.iter().skip(channel).step_by(extents.k);
                let mean = column().sum::<f64>() / count;
                let m2 = column().map(|y| (y - mean).powi(2)).sum::<f64>();
                let at = part * extents.k + channel;
                let (error, deviation) = (f64::from(means[at]) - mean, (m2 / count).sqrt());
                // A mean is stored as f32: its own rounding too.
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
            let Extents { n, h, w, c, k, .. } = extents;
            let [grad, flipped] = [hopper.values("grad", [n, h, w, k]), hopper.values("flipped", [c, 1, 1, k])];
            let partial = hopper.values("partial", [n, h.div_ceil(2), w.div_ceil(2), c]);
            let mask: Vec<u8> = (0..extents.rows() * c / 8).map(|byte| (byte * 37 + byte / 5) as u8).collect();
            let sink = Sink {
                mask: Some(Tensor::new(mask.clone(), [extents.rows(), c / 8], &hopper.device)?),
                input: hopper.values("input", [n, h, w, c]),
                mean: normal(0, "mean", [c], &hopper.device),
            };
            let finish = mma::GradFinish {
                partial: Some(mma::Partial::Strided { grad: &partial, stride: 2 }),
                sink: Some(&sink),
            };
            let exchanged = Extents { c: k, k: c, ..extents };
            let (mut expected, partial) = (exchanged.products(&wide(&grad), &wide(&flipped)), wide(&partial));
            for (at, value) in expected.iter_mut().enumerate() {
                let (row, channel) = (at / c, at % c);
                let (image, y, x) = (row / w / h, row / w % h, row % w);
                if y % 2 == 0 && x % 2 == 0 {
                    let pixel = (image * h.div_ceil(2) + y / 2) * w.div_ceil(2) + x / 2;
                    *value += partial[pixel * c + channel];
                }
                if mask[at / 8] >> (at % 8) & 1 == 0 {
                    *value = 0.0;
                }
            }
            let mut both = Vec::new();
            for tile in TILES {
                let (stored, sums) = input_grad(hopper.cuda(), tile, &grad, &flipped, &extents, finish)?;
                let (stored, sums) = (wide(&stored), sums.expect("sums for the sink"));
                assert_rounded(&format!("{tile:?}: {extents:?}"), &stored, &expected);
                assert_sums(&stored, &sink, &sums, c)?;
                both.push(stored);
            }
            assert!(both[0] == both[1], "the tile changes a bit: {extents:?}");
        }
    }
    Ok(())
}

/// The sums of the gradient as it is stored, and of its products with the batchnorm's centred input.
fn assert_sums(stored: &[f64], sink: &Sink, sums: &TileSums, channels: usize) -> Result<()> {
    let (input, mean) = (wide(&sink.input), sink.mean.to_vec::<f32>()?);
    let (sum, product) = (sums.sum.to_vec::<f32>()?, sums.product.to_vec::<f32>()?);
    for (part, rows) in stored.chunks(ROWS_PER_SUM * channels).enumerate() {
        for channel in 0..channels {
            let [mut exact, mut size] = [[0.0; 2]; 2];
            for (row, g) in rows.iter().skip(channel).step_by(channels).enumerate() {
                let y = input[(part * ROWS_PER_SUM + row) * channels + channel] - f64::from(mean[channel]);
                exact = [exact[0] + g, exact[1] + g * y];
                size = [size[0] + g.abs(), size[1] + (g * y).abs()];
            }
            let at = part * channels + channel;
            for (actual, (exact, size)) in [sum[at], product[at]].into_iter().zip(exact.into_iter().zip(size)) {
                let error = f64::from(actual) - exact;
                assert!(error.abs() <= 1e-5 * size, "part {part}, channel {channel}: {error:e} of {exact}");
            }
        }
    }
    Ok(())
}

/// Every product and every byte that the tiling implies, and no more; rows of outputs in whole sectors; no bank
/// conflict.
#[test]
fn what_is_moved_and_multiplied_is_what_the_tiling_implies() -> Result<()> {
    let Some(hopper) = Hopper::new(0, AsyncCopies::Late) else { return Ok(()) };
    let extents = case([5, 11, 19, 136, 528, 1]);
    let case = Forward::new(&hopper, &extents);
    for (tile, entry) in TILES.into_iter().zip(["conv_1x1_forward_128x256", "conv_1x1_forward_128x128"]) {
        forward(hopper.cuda(), tile, &case.input, &case.weight, &extents, Epilogue::default())?;
        let counters = hopper.counters(entry);
        let (cols, steps) = (tile.cols(), extents.c.div_ceil(64));
        let stages = (BLOCKS * tile.pairs(extents.rows(), extents.k) * steps) as u64;
        // Of each stage, two consumers multiply 64 rows, 16 values of k at a time.
        assert_eq!((counters.wgmma, counters.wgmma_products), (stages * 8, stages * (128 * cols * 64) as u64));
        // Each block copies its own rows of x, and half of w's to both.
        let [x, w] = [128 * 64 * 2, cols * 64 * 2].map(|bytes| bytes as u64);
        assert_eq!((counters.bulk_load_bytes, counters.bulk_delivered_bytes), (stages * (x + w / 2), stages * (x + w)));
        assert_eq!((counters.global_load_requests, counters.mma, counters.atomics), (0, 0, 0));
        assert_eq!(counters.global_store_sectors, (extents.rows() * extents.k * 2 / 32) as u64);
        assert_eq!(counters.bank_conflicts(), 0);
    }
    Ok(())
}

/// Filters that pick a channel each, on tiles of several columns that follow each other in a block.
#[test]
fn a_batchnorm_is_folded_to_the_bit() -> Result<()> {
    let Some(hopper) = Hopper::new(1, AsyncCopies::Late) else { return Ok(()) };
    let extents = case([5, 11, 19, 136, 520, 1]);
    let picked = |filter: usize| filter * 7 % extents.c;
    let mut weight = vec![bf16::ZERO; extents.k * extents.c];
    (0..extents.k).for_each(|filter| weight[filter * extents.c + picked(filter)] = bf16::ONE);
    let weight = Tensor::new(weight, [extents.k, 1, 1, extents.c], &hopper.device)?;
    let Forward { input, .. } = Forward::new(&hopper, &extents);
    let x = input.to_vec::<bf16>()?;
    for (eps, tile) in [1e-5, 1e-30, 0.0].into_iter().flat_map(|eps| TILES.map(|tile| (eps, tile))) {
        let norm = KnownNorm::awkward(extents.k, eps, &hopper.device);
        let normed = |(pixel, filter): (usize, usize)| {
            let [factor, offset] = norm.folded(filter);
            bf16::from_f32(x[pixel * extents.c + picked(filter)].to_f32().mul_add(factor, offset)).to_f32()
        };
        let outputs = (0..extents.rows()).flat_map(|pixel| (0..extents.k).map(move |filter| (pixel, filter)));
        let epilogue = Epilogue { norm: Some(norm.fixed()), ..Epilogue::default() };
        let output = forward(hopper.cuda(), tile, &input, &weight, &extents, epilogue)?;
        assert_bits(&format!("{tile:?}, {eps:e}"), &output, &outputs.map(normed).collect::<Vec<f32>>());
    }
    Ok(())
}

#[test]
fn clusters_keep_their_columns_where_that_is_cheap() {
    // Of an H200's 66: all for one column, for two, three, 64 for four and eight; all again where a third would idle.
    let found = [1, 2, 3, 4, 8, 24, 40].map(|across| clusters(10_000, across, 132));
    assert_eq!(found, [66, 66, 66, 64, 64, 66, 66]);
    assert_eq!((clusters(3, 2, 132), clusters(100, 8, 1)), (3, 1));
}

/// A batchnorm is read once by each consumer of a block while its tiles have the same columns, and nothing else is.
#[test]
fn a_batchnorm_is_folded_once_for_a_blocks_columns() -> Result<()> {
    let Some(hopper) = Hopper::new(0, AsyncCopies::Late) else { return Ok(()) };
    let extents = case([5, 19, 43, 64, 128, 1]);
    let case = Forward::new(&hopper, &extents);
    let epilogue = Epilogue { norm: Some(case.norm.fixed()), ..Epilogue::default() };
    forward(hopper.cuda(), Tile::Narrow, &case.input, &case.weight, &extents, epilogue)?;
    let counters = hopper.counters("conv_1x1_forward_128x128");
    let (pairs, clusters) =
        (Tile::Narrow.pairs(extents.rows(), extents.k), hopper.cuda().properties().multiprocessors as usize / BLOCKS);
    assert!(clusters < pairs, "{pairs} pairs of tiles for {clusters} clusters");
    let consumers = clusters * BLOCKS * 2;
    assert_eq!(counters.global_load_sectors, (consumers * 4 * extents.k * 4 / 32) as u64);
    assert_eq!(counters.bank_conflicts(), 0);
    Ok(())
}

/// A block of shared memory one barrier shorter than the kernel lays out is too short: the host's sum is exact.
#[test]
fn shared_memory_is_as_large_as_the_kernel_lays_out() -> Result<()> {
    let Some(hopper) = Hopper::new(0, AsyncCopies::Late) else { return Ok(()) };
    let (extents, cuda) = (case([1, 1, 1, 8, 8, 1]), hopper.cuda());
    let case = Forward::new(&hopper, &extents);
    let output = Factors::Bf16.uninit(extents.output(), cuda)?;
    let finish = ForwardFinish::new(cuda, Factors::Bf16, &output, Epilogue::default())?;
    for (tile, kernel) in TILES.into_iter().zip(&FORWARD) {
        let product = Conv1x1Product::new(cuda, &case.input, &case.weight, &extents, tile)?;
        let params = Conv1x1ForwardParams { product, finish };
        let launch = |shared| cuda.launch(kernel, [BLOCKS, 1, 1], shared, &params);
        launch(tile.shared())?;
        assert!(launch(tile.shared() - 8).is_err(), "{tile:?}");
    }
    Ok(())
}
