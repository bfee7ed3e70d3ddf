use proptest::prelude::*;

use super::{Window, average_forward, average_pool, concat_forward, concat_pool, max_forward, max_pool, max_values};
use crate::{
    Device, Result, Tensor,
    autograd::{Tape, Var},
    ops::testing::{F32, assert_close, bits, cases, check_op, cpu, devices, gpus, normal, on, wide},
    tensor::DType,
};

/// The largest element of each window, and its position.
fn reference_max(x: &[f64], [n, h, w, c]: [usize; 4], window: Window) -> Vec<(f64, usize)> {
    let Window { size, stride, padding } = window;
    let extent = |extent: usize| (extent + 2 * padding - size) / stride + 1;
    let (p, q) = (extent(h), extent(w));
    let output = |at: usize| {
        let (image, y, x_at, channel) = (at / (p * q * c), at / (q * c) % p, at / c % q, at % c);
        let inside = (0..size * size).filter_map(|tap| {
            let y = (y * stride + tap / size).checked_sub(padding).filter(|y| *y < h)?;
            let x_at = (x_at * stride + tap % size).checked_sub(padding).filter(|x| *x < w)?;
            Some((x[((image * h + y) * w + x_at) * c + channel], y * w + x_at))
        });
        // The first of equals.
        inside.reduce(|best, next| if next.0 > best.0 { next } else { best }).expect("a window reaches the image")
    };
    (0..n * p * q * c).map(output).collect()
}

fn reference_average(x: &[f64], [n, h, w, c]: [usize; 4]) -> Vec<f64> {
    let column = |at: usize| x[at / c * h * w * c..][..h * w * c].iter().skip(at % c).step_by(c);
    (0..n * c).map(|at| column(at).sum::<f64>() / (h * w) as f64).collect()
}

fn reference_concat(x: &[f64], [n, h, w, c]: [usize; 4]) -> Vec<f64> {
    let column = |at: usize| x[at / c * h * w * c..][..h * w * c].iter().skip(at % c).step_by(c);
    let max: Vec<f64> = (0..n * c).map(|at| column(at).copied().fold(f64::NEG_INFINITY, f64::max)).collect();
    let average = reference_average(x, [n, h, w, c]);
    (0..n).flat_map(|image| [&max[image * c..][..c], &average[image * c..][..c]].concat()).collect()
}

prop_compose! {
    /// A window and extents that it fits.
    fn any_window()(size in 1..5usize, stride in 1..4usize)
        (padding in 0..=size / 2, extra in [0..6usize, 0..6], n in 1..4usize, c in 1..6usize, size in Just(size), stride in Just(stride))
        -> (Window, [usize; 4])
    {
        let extent = |extra: usize| extra + size.saturating_sub(2 * padding).max(1);
        (Window { size, stride, padding }, [n, extent(extra[0]), extent(extra[1]), c])
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn the_maximum_and_its_position(
        (window, dims) in any_window(),
        levels in prop_oneof![Just(1e6f32), Just(2.0)], // few levels make ties
    ) {
        let x = normal(dims[1] as u64, "x", dims, &cpu(2)).to_vec::<f32>()?;
        for device in devices() {
            let x = Tensor::new(x.iter().map(|x| (x * levels).round() / levels).collect(), dims, &device)?;
            let (output, at) = max_forward(&x, window)?;
            let expected = reference_max(&wide(&x), dims, window);
            prop_assert_eq!(wide(&output), expected.iter().map(|(value, _)| *value).collect::<Vec<_>>());
            prop_assert_eq!(at.to_vec::<u32>()?, expected.iter().map(|(_, at)| *at as u32).collect::<Vec<_>>());
            prop_assert_eq!(bits(&max_values(&x, window)?), bits(&output));
        }
    }

    #[test]
    fn the_gradients_are_numeric_ones((window, dims) in any_window()) {
        for device in devices() {
            check(&normal(dims[2] as u64, "x", dims, &device), window)?;
        }
    }

    #[test]
    fn the_gradients_of_bf16_are_numeric_ones((window, [n, h, w, c]) in any_window()) {
        for device in gpus() {
            check(&distinct([n, h, w, 4 * c.div_ceil(4)], &device)?.cast(DType::BF16)?, window)?;
        }
    }
}

/// Outputs and gradients of each pool.
fn check(x: &Tensor, window: Window) -> Result<()> {
    let &[n, h, w, c] = x.dims() else { panic!("a map") };
    let dims = [n, h, w, c];
    let x = std::slice::from_ref(x);
    check_op(
        "max pool",
        x,
        |tape, vars| max_pool(tape, &vars[0], window),
        |inputs| reference_max(&inputs[0], dims, window).into_iter().map(|(value, _)| value).collect(),
    )?;
    check_op(
        "average pool",
        x,
        |tape, vars| average_pool(tape, &vars[0]),
        |inputs| reference_average(&inputs[0], dims),
    )?;
    check_op("concat pool", x, |tape, vars| concat_pool(tape, &vars[0]), |inputs| reference_concat(&inputs[0], dims))
}

/// A map of less than 101 pixels whose channels hold each value once, all of them exact in bf16: a tie would have no
/// numeric gradient.
fn distinct([n, h, w, c]: [usize; 4], device: &Device) -> Result<Tensor> {
    let value = |at: usize| (at / c * 101 + at % c) % (h * w);
    Tensor::new((0..n * h * w * c).map(|at| value(at) as f32 - 8.0).collect(), [n, h, w, c], device)
}

#[test]
fn the_average_of_a_large_map() -> Result<()> {
    let dims = [2, 112, 112, 3];
    let x = normal(1, "x", dims, &cpu(2)).to_vec::<f32>()?;
    for device in devices() {
        let x = Tensor::new(x.iter().map(|x| x + 0.5).collect(), dims, &device)?;
        assert_close("average", &average_forward(&x)?, &reference_average(&wide(&x), dims), F32);
        assert_close("concat", &concat_forward(&x)?.0, &reference_concat(&wide(&x), dims), F32);
    }
    Ok(())
}

/// Outputs and gradients of each pool.
fn pooled(x: &Tensor) -> Result<[Vec<u32>; 6]> {
    let mut outputs = Vec::new();
    for pool in 0..3 {
        let mut tape = Tape::new();
        let x = tape.leaf("x", x.clone());
        let y = match pool {
            0 => max_pool(&mut tape, &x, Window::STEM)?,
            1 => average_pool(&mut tape, &x)?,
            _ => concat_pool(&mut tape, &x)?,
        };
        let seed = normal(2, "seed", y.value().shape(), y.value().device());
        outputs.push(bits(y.value()));
        outputs.push(bits(&tape.backward_from(&y, seed)?["x"]));
    }
    Ok(outputs.try_into().expect("three outputs, three gradients"))
}

#[test]
fn all_but_averages_are_the_same_bits_everywhere() -> Result<()> {
    // Channels around the GPU's groups of 16 and of 64, one by one and four at a time; more positions than lanes.
    for dims in [[2, 9, 7, 64], [1, 3, 5, 68], [3, 6, 4, 17], [1, 1, 1, 4], [2, 33, 2, 3]] {
        // Coarse values make ties.
        let x = normal(1, "x", dims, &cpu(1)).to_vec::<f32>()?.iter().map(|x| (x * 2.0).round()).collect();
        let x = Tensor::new(x, dims, &cpu(1))?;
        let expected = pooled(&x)?;
        for device in devices() {
            let actual = pooled(&on(&device, &x))?;
            assert!(actual[0] == expected[0] && actual[1] == expected[1], "max pool of {dims:?} on {device}");
            assert!(actual[3] == expected[3], "gradient of the average of {dims:?} on {device}");
            // Sums of so few halves are exact in any order, their quotients too.
            assert!(actual[2] == expected[2] && actual[4] == expected[4], "pools of {dims:?} on {device}");
            assert!(actual[5] == expected[5], "gradient of the concat pool of {dims:?} on {device}");
        }
    }
    Ok(())
}

#[test]
fn an_image_does_not_depend_on_its_batch() -> Result<()> {
    let dims = [3, 7, 7, 20];
    for device in devices() {
        let all = normal(1, "x", dims, &device);
        let alone = Tensor::new(all.to_vec::<f32>()?[2 * 980..].to_vec(), [1, 7, 7, 20], &device)?;
        let together = bits(&concat_forward(&all)?.0);
        assert!(together[2 * 40..] == bits(&concat_forward(&alone)?.0), "{device}");
    }
    Ok(())
}

#[test]
fn of_equals_the_first_gets_the_gradient() -> Result<()> {
    for device in devices() {
        let window = Window { size: 2, stride: 2, padding: 0 };
        // −∞ everywhere is a tie as well, and must not send the gradient out of its window.
        for value in [7.0, 0.0, f32::NEG_INFINITY] {
            let mut tape = Tape::new();
            let x = tape.leaf("x", Tensor::full([1, 4, 4, 1], value, &device).unwrap());
            let y = max_pool(&mut tape, &x, window)?;
            assert_eq!(y.value().to_vec::<f32>()?, [value; 4]);
            let grad = &tape.backward(&y)?["x"];
            let first = [1., 0., 1., 0., 0., 0., 0., 0.];
            assert_eq!(grad.to_vec::<f32>()?, [first, first].concat(), "{value}");

            let mut tape = Tape::new();
            let x = tape.leaf("x", Tensor::full([1, 2, 2, 1], value, &device).unwrap());
            let y = concat_pool(&mut tape, &x)?;
            let grad = &tape.backward_from(&y, Tensor::new(vec![1., 4.], [1, 2], &device)?)?["x"];
            assert_eq!(grad.to_vec::<f32>()?, [2., 1., 1., 1.]);
        }
    }
    Ok(())
}

#[test]
fn a_nan_wins_wherever_it_stands() -> Result<()> {
    for device in devices() {
        for at in 0..4 {
            let mut x = vec![1., 3., f32::INFINITY, 2.];
            x[at] = f32::NAN;
            let x = Tensor::new(x, [1, 2, 2, 1], &device)?;
            let (output, position) = max_forward(&x, Window { size: 2, stride: 1, padding: 0 })?;
            assert!(output.scalar()?.is_nan());
            assert_eq!(position.to_vec::<u32>()?, [at as u32]);
            let (output, position) = concat_forward(&x)?;
            assert!(output.to_vec::<f32>()?.iter().all(|value| value.is_nan()));
            assert_eq!(position.to_vec::<u32>()?, [at as u32]);
            assert!(average_forward(&x)?.scalar()?.is_nan());
        }
    }
    Ok(())
}

#[test]
fn of_several_nans_the_first_counts() -> Result<()> {
    // Lanes of a block take every 16th position: the first NaN is neither in the first lane nor seen first.
    let mut x: Vec<f32> = (0..40).map(|at| at as f32).collect();
    for at in [5, 16, 21, 32] {
        x[at] = f32::NAN;
    }
    for device in devices() {
        let x = Tensor::new(x.clone(), [1, 8, 5, 1], &device)?;
        assert_eq!(concat_forward(&x)?.1.to_vec::<u32>()?, [5], "{device}");
        let (_, at) = max_forward(&x, Window { size: 5, stride: 1, padding: 0 })?;
        assert_eq!(at.to_vec::<u32>()?, [5, 5, 16, 16], "{device}");
    }
    Ok(())
}

#[test]
fn more_images_than_a_grid_has_blocks() -> Result<()> {
    let n = crate::ops::MOST_IMAGES + 70;
    for device in devices() {
        let values: Vec<f32> = (0..2 * n).map(|at| at as f32).collect();
        let x = Tensor::new(values.clone(), [n, 2, 1, 1], &device)?;
        let run = |pool: fn(&mut Tape, &Var) -> Result<Var>| -> Result<[Vec<f32>; 2]> {
            let mut tape = Tape::new();
            let x = tape.leaf("x", x.clone());
            let y = pool(&mut tape, &x)?;
            let grads = tape.backward_from(&y, y.value().clone())?;
            Ok([y.value().to_vec()?, grads["x"].to_vec()?])
        };
        let [y, grad] = run(|tape, x| max_pool(tape, x, Window { size: 1, stride: 1, padding: 0 }))?;
        assert!(y == values && grad == values, "max pool on {device}");
        let pairs = || values.chunks(2);
        let [y, grad] = run(average_pool)?;
        assert!(y.iter().zip(pairs()).all(|(y, x)| *y == x[0] + 0.5), "average pool on {device}");
        assert!(grad.chunks(2).zip(&y).all(|(grad, y)| grad == [y / 2.0; 2]), "its gradient on {device}");
        let [y, grad] = run(concat_pool)?;
        assert!(y.chunks(2).zip(pairs()).all(|(y, x)| y == [x[1], x[0] + 0.5]), "concat pool on {device}");
        let expected = |y: &[f32]| [y[1] / 2.0, y[0] + y[1] / 2.0];
        assert!(grad.chunks(2).zip(y.chunks(2)).all(|(grad, y)| grad == expected(y)), "its gradient on {device}");
    }
    Ok(())
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let results = |threads: usize| pooled(&normal(1, "x", [5, 15, 14, 9], &cpu(threads)));
    let one = results(1)?;
    assert!(one == results(2)? && one == results(3)?);
    Ok(())
}

#[test]
fn an_empty_batch_works_and_what_does_not_fit_is_an_error() -> Result<()> {
    for device in devices() {
        let empty = Tensor::zeros([0, 4, 4, 3], &device).unwrap();
        assert_eq!(max_forward(&empty, Window::STEM)?.0.dims(), [0, 2, 2, 3]);
        assert_eq!(average_forward(&empty)?.dims(), [0, 3]);
        assert_eq!(concat_forward(&empty)?.0.dims(), [0, 6]);
        let x = Tensor::zeros([1, 4, 4, 3], &device).unwrap();
        for (size, stride, padding) in [(0, 1, 0), (3, 0, 1), (3, 1, 2), (5, 1, 0)] {
            let window = Window { size, stride, padding };
            assert!(max_forward(&x, window).is_err(), "{window:?}");
        }
        for dims in [[1, 0, 4, 3], [1, 4, 0, 3], [1, 4, 4, 0]] {
            let x = Tensor::zeros(dims, &device).unwrap();
            assert!(max_forward(&x, Window { size: 2, stride: 1, padding: 1 }).is_err(), "{dims:?}");
            assert!(average_forward(&x).is_err() && concat_forward(&x).is_err(), "{dims:?}");
        }
        assert!(average_forward(&Tensor::zeros([4, 3], &device).unwrap()).is_err());
    }
    Ok(())
}
