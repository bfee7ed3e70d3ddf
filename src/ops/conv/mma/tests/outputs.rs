//! Forward: against f64, under every tile, with every epilogue; the moments of what is stored.

use half::bf16;
use proptest::prelude::*;

use super::{
    super::{cuda, forward, forward_with_moments, pack, table::Tile},
    Operands, PRECISIONS, activation, any_case, assert_close, bits, extents, gpu, stored, wide,
};
use crate::{
    Result, Tensor,
    ops::{
        conv::{
            Epilogue, Geometry,
            tests::{Case, case},
        },
        testing::{KnownNorm, assert_bits, cases, cpu, norm},
    },
    tensor::Precision,
};

impl Case {
    /// The convolution in f64.
    fn exact(&self, operands: &Operands) -> Vec<f64> {
        let (x, w) = (wide(&operands.input), wide(&operands.weight));
        let mut output = vec![0.0; self.output_dims().iter().product()];
        self.products(|at_x, at_w, at_y| output[at_y] += x[at_x] * w[at_w]);
        output
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn ragged_shapes_match_the_reference_under_every_tile(case in any_case(8)) {
        let Some((device, cuda)) = gpu() else { return Ok(()) };
        for precision in PRECISIONS {
            let operands = Operands::new(&case, precision, &device)?;
            let Operands { input, packed, extents, .. } = &operands;
            let chosen = forward(input, packed, case.geometry, Epilogue::default())?;
            assert_eq!((chosen.dims(), chosen.dtype()), (&case.output_dims()[..], precision.storage()));
            assert_close(&format!("{case:?}, {precision}"), &chosen, &case.exact(&operands), precision);
            for tile in operands.tiles() {
                let output = cuda::forward(&cuda, tile, input, &packed.forward, extents, Epilogue::default())?;
                assert!(bits(&output) == bits(&chosen), "{tile:?}: {case:?}, {precision}");
            }
        }
    }

    #[test]
    fn every_epilogue_matches_the_reference(case in any_case(4)) {
        let Some((device, _)) = gpu() else { return Ok(()) };
        let k = case.weight_dims()[0];
        let norm = KnownNorm::new(1, k, &device);
        for (precision, choice) in PRECISIONS.into_iter().flat_map(|precision| (0..8).map(move |choice| (precision, choice))) {
            let operands = Operands::new(&case, precision, &device)?;
            let residual = activation(3, "residual", case.output_dims(), precision, &device);
            let (with_norm, with_residual, relu) = (choice & 1 > 0, choice & 2 > 0, choice & 4 > 0);
            let epilogue = Epilogue {
                norm: with_norm.then(|| norm.fixed()),
                residual: with_residual.then_some(&residual),
                relu,
            };
            let residual = wide(&residual);
            let expected: Vec<f64> = case.exact(&operands).iter().enumerate().map(|(at, y)| {
                let normed = if with_norm { norm.exact(at % k, *y) } else { *y };
                let sum = if with_residual { normed + residual[at] } else { normed };
                if relu { sum.max(0.0) } else { sum }
            }).collect();
            let what = format!("norm {with_norm}, residual {with_residual}, relu {relu}: {case:?}, {precision}");
            let actual = forward(&operands.input, &operands.packed, case.geometry, epilogue)?;
            assert_close(&what, &actual, &expected, precision);
        }
    }
}

/// Filters that pick a channel each, so that what a batchnorm makes of it is known to the bit: that of the fold in a
/// launch of its own, under every tile.
#[test]
fn a_batchnorm_is_folded_to_the_bit() -> Result<()> {
    let Some((device, cuda)) = gpu() else { return Ok(()) };
    let cases = [case([2, 9, 10, 72, 136, 1, 1, 1, 0, 1]), case([1, 8, 24, 64, 72, 3, 3, 1, 1, 1])];
    for ((case, precision), eps) in cases
        .iter()
        .flat_map(|case| PRECISIONS.map(|it| (case, it)))
        .flat_map(|it| [1e-5, 1e-30, 0.0].map(|eps| (it, eps)))
    {
        let (k, c) = (case.weight_dims()[0], case.group_c);
        let picked = |filter: usize| filter * 7 % c;
        let mut weight = vec![0.0; k * case.r * case.s * c];
        (0..k).for_each(|filter| weight[(filter * case.r * case.s + case.r * case.s / 2) * c + picked(filter)] = 1.0);
        let weight = stored(&weight, case.weight_dims(), Precision::F32, &device);
        // Values that tensor cores take as they are.
        let x = wide(&activation(1, "input", case.input_dims(), Precision::Bf16, &device));
        let input = stored(&x, case.input_dims(), precision, &device);
        let packed = pack(&weight, 1, precision, false)?;
        let extents = extents(input.shape(), packed.forward.shape(), case.geometry)?;
        let norm = KnownNorm::awkward(k, eps, &device);
        let normed = |(pixel, filter): (usize, usize)| {
            let [factor, offset] = norm.folded(filter);
            let y = (x[pixel * c + picked(filter)] as f32).mul_add(factor, offset);
            if precision == Precision::Bf16 { bf16::from_f32(y).to_f32() } else { y }
        };
        let pixels = case.output_dims()[..3].iter().product();
        let expected: Vec<f32> = (0..pixels).flat_map(|at| (0..k).map(move |k| (at, k))).map(normed).collect();
        let operands = Operands { grad: input.clone(), input, weight, packed, extents };
        for tile in operands.tiles() {
            let Operands { input, packed, extents, .. } = &operands;
            let epilogue = Epilogue { norm: Some(norm.fixed()), ..Epilogue::default() };
            let output = cuda::forward(&cuda, tile, input, &packed.forward, extents, epilogue)?;
            assert_bits(&format!("{tile:?}, {precision}, {eps:e}: {case:?}"), &output, &expected);
        }
    }
    Ok(())
}

/// The pixels of a batch of maps, tile of 8 by 8 after tile.
fn by_patches(values: &[f64], [n, h, w, c]: [usize; 4]) -> Vec<f64> {
    let pixels = (0..n * h * w).map(|at| {
        let (tile, row) = (at / 64, at % 64);
        let (image, y, x) = (tile / (w / 8) / (h / 8), tile / (w / 8) % (h / 8), tile % (w / 8));
        (image * h + y * 8 + row / 8) * w + x * 8 + row % 8
    });
    pixels.flat_map(|pixel| values[pixel * c..][..c].iter().copied()).collect()
}

/// Convolutions whose input is copied once for all taps: with the bits of the others, on maps of several tiles, with
/// and without a second tile in the last block, with more filters than a tile has, with groups.
#[test]
fn patches_give_the_bits_of_windows() -> Result<()> {
    let Some((device, cuda)) = gpu() else { return Ok(()) };
    for case in [
        case([1, 24, 8, 64, 64, 3, 3, 1, 1, 1]),
        case([2, 8, 16, 64, 72, 3, 3, 1, 1, 1]),
        case([1, 8, 8, 128, 128, 3, 3, 1, 1, 16]),
    ] {
        let operands = Operands::new(&case, Precision::Bf16, &device)?;
        let Operands { input, packed, extents, .. } = &operands;
        assert_eq!(operands.tiles()[0], Tile::Patches);
        let residual = activation(3, "residual", case.output_dims(), Precision::Bf16, &device);
        let norm = KnownNorm::new(1, extents.k, &device);
        let epilogue = Epilogue { norm: Some(norm.fixed()), residual: Some(&residual), relu: true };
        let plain = cuda::forward(&cuda, Tile::Small, input, &packed.forward, extents, Epilogue::default())?;
        assert_close(&format!("{case:?}"), &plain, &case.exact(&operands), Precision::Bf16);
        for epilogue in [Epilogue::default(), epilogue] {
            let [patches, windows] = [Tile::Patches, Tile::Tall]
                .map(|tile| cuda::forward(&cuda, tile, input, &packed.forward, extents, epilogue));
            assert!(bits(&patches?) == bits(&windows?), "{case:?}");
        }
    }
    Ok(())
}

/// Rows that fill tiles and rows that do not, columns likewise; images far from zero, where sums of squares would lose
/// all digits.
#[test]
fn moments_of_tiles_are_those_of_the_stored_output() -> Result<()> {
    let Some((device, cuda)) = gpu() else { return Ok(()) };
    let all = [
        [3, 9, 10, 24, 72, 1, 1, 1, 0, 1],
        [2, 8, 8, 16, 64, 3, 3, 1, 1, 1],
        [3, 8, 8, 64, 72, 3, 3, 1, 1, 1], // an odd number of patches
        [1, 3, 3, 40, 136, 1, 1, 2, 0, 1],
        [2, 12, 12, 32, 32, 3, 3, 1, 1, 8],
    ]
    .map(case);
    for (case, precision) in all.iter().flat_map(|case| PRECISIONS.map(|precision| (case, precision))) {
        let operands = Operands::new(case, precision, &device)?;
        let Operands { packed, extents, .. } = &operands;
        let shifted: Vec<f64> = wide(&operands.input).iter().map(|x| x + 20.0).collect();
        let input = stored(&shifted, case.input_dims(), precision, &device);
        let plain = forward(&input, packed, case.geometry, Epilogue::default())?;
        let (_, chosen) = forward_with_moments(&input, packed, case.geometry)?;
        assert_eq!(chosen.rows, plain.shape().rows());
        for tile in operands.tiles() {
            let (output, moments) = cuda::forward_with_moments(&cuda, tile, &input, &packed.forward, extents)?;
            assert!(bits(&output) == bits(&plain), "{tile:?}: {case:?}");
            let (means, squares, rows) = (wide(&moments.mean), wide(&moments.m2), moments.rows_per_tile);
            let output = match tile {
                Tile::Patches => by_patches(&wide(&output), case.output_dims()),
                _ => wide(&output),
            };
            for (tile, stored) in output.chunks(rows * extents.k).enumerate() {
                for channel in 0..extents.k {
                    let column: Vec<f64> = stored.iter().skip(channel).step_by(extents.k).copied().collect();
                    let (count, at) = (column.len() as f64, tile * extents.k + channel);
                    let mean = column.iter().sum::<f64>() / count;
                    let m2 = column.iter().map(|y| (y - mean).powi(2)).sum::<f64>();
                    let what = format!("tile {tile}, channel {channel} of {case:?}, {precision}");
                    // A mean is stored as f32: its own rounding is allowed for.
                    let bound = 1e-5 * (m2 / count).sqrt() + 1e-7 * mean.abs();
                    assert!((means[at] - mean).abs() <= bound, "mean {} not {mean}: {what}", means[at]);
                    // So is that of the first value, from which distances are taken.
                    let bound = 1e-5 * m2 + 1e-12 * mean * mean;
                    assert!((squares[at] - m2).abs() <= bound, "M2 {} not {m2}: {what}", squares[at]);
                }
            }
        }
    }
    Ok(())
}

/// The stem: images with a fourth channel of zeros, weights of three channels.
#[test]
fn images_have_a_fourth_channel() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    let case = case([2, 21, 18, 3, 64, 7, 7, 2, 3, 1]);
    for precision in PRECISIONS {
        let weight = activation(1, "weight", case.weight_dims(), precision, &device);
        let weight = stored(&wide(&weight), case.weight_dims(), Precision::F32, &device);
        let narrow = wide(&activation(1, "image", case.input_dims(), precision, &device));
        let four: Vec<f64> = narrow.chunks(3).flat_map(|x| [x[0], x[1], x[2], 0.0]).collect();
        let input = stored(&four, [case.n, case.h, case.w, 4], precision, &device);
        let packed = pack(&weight, 1, precision, false)?;
        assert_eq!(packed.forward.dims(), [64, 7, 7, 4]);
        let mut expected = vec![0.0; case.output_dims().iter().product()];
        let w = wide(&weight);
        case.products(|at_x, at_w, at_y| expected[at_y] += narrow[at_x] * w[at_w]);
        let output = forward(&input, &packed, case.geometry, Epilogue::default())?;
        assert_close(&format!("a stem in {precision}"), &output, &expected, precision);
    }
    Ok(())
}

#[test]
fn a_nan_passes_the_relu_and_spoils_its_own_windows_alone() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    let case = case([1, 6, 5, 8, 8, 3, 3, 1, 1, 1]);
    for precision in PRECISIONS {
        let Operands { input, packed, .. } = Operands::new(&case, precision, &device)?;
        let mut values = wide(&input);
        let (y, x) = (2, 4);
        values[(y * case.w + x) * 8 + 7] = f64::NAN;
        let input = stored(&values, case.input_dims(), precision, &device);
        let epilogue = Epilogue { relu: true, ..Epilogue::default() };
        let output = wide(&forward(&input, &packed, case.geometry, epilogue)?);
        for (at, value) in output.iter().enumerate() {
            let (p, q) = (at / 8 / case.w, at / 8 % case.w);
            assert_eq!(value.is_nan(), p.abs_diff(y) <= 1 && q.abs_diff(x) <= 1, "({p}, {q}) in {precision}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let Some((device, _)) = gpu() else { return Ok(()) };
    let case = case([1, 5, 5, 8, 8, 3, 3, 1, 1, 1]);
    let Operands { input, packed, weight, .. } = Operands::new(&case, Precision::Bf16, &device)?;
    let failed = |input: &Tensor, geometry| {
        forward(input, &packed, geometry, Epilogue::default()).expect_err("does not fit").to_string()
    };
    let error = failed(&input, Geometry { groups: 3, ..case.geometry });
    assert!(error.contains("channels and groups do not fit"), "{error}");
    let error = failed(&activation(1, "other", case.input_dims(), Precision::Tf32, &device), case.geometry);
    assert!(error.contains("F32 was used as BF16"), "{error}");
    let error = failed(&input.reshape([1, 5, 10, 4])?, case.geometry);
    assert!(error.contains("do not fit"), "{error}");
    let host = stored(&[0.0; 200], case.input_dims(), Precision::Bf16, &cpu(1));
    assert!(failed(&host, case.geometry).contains("tensor cores are a GPU's"));
    let error = pack(&weight, 1, Precision::F32, false).expect_err("no tensor cores").to_string();
    assert!(error.contains("f32 convolutions read the weight itself"), "{error}");
    let empty = activation(1, "empty", [0, 5, 5, 8], Precision::Bf16, &device);
    assert_eq!(forward(&empty, &packed, case.geometry, Epilogue::default())?.dims(), [0, 5, 5, 8]);
    assert_eq!(norm(&wide(&forward_with_moments(&empty, &packed, case.geometry)?.1.mean)), 0.0);
    Ok(())
}
