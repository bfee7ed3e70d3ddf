use proptest::prelude::*;

use super::{forward, linear};
use crate::{
    Device, Result, Tensor,
    autograd::Tape,
    ops::testing::{F32, assert_close_to, bits, cases, check_op, cpu, devices, normal, wide},
};

fn tensors(n: usize, inputs: usize, outputs: usize, device: &Device) -> [Tensor; 3] {
    [
        normal(n as u64, "input", [n, inputs], device),
        normal(inputs as u64, "weight", [outputs, inputs], device),
        normal(outputs as u64, "bias", [outputs], device),
    ]
}

fn reference(input: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let inputs = weight.len() / bias.len();
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    let row = |x: &[f64]| weight.chunks(inputs).zip(bias).map(|(w, bias)| dot(x, w) + bias).collect::<Vec<_>>();
    input.chunks(inputs).flat_map(row).collect()
}

/// Holds the gradients that the tape makes of `seed` against sums in f64.
fn check_gradients([input, weight, bias]: [Tensor; 3], seed: Tensor) -> Result<()> {
    let (x, w, g) = (wide(&input), wide(&weight), wide(&seed));
    let ([n, inputs], outputs) = ([input.dims()[0], input.dims()[1]], bias.dims()[0]);
    let sum = |count: usize, term: &dyn Fn(usize) -> f64| (0..count).map(term).sum::<f64>();
    let of_input = (0..n * inputs)
        .map(|at| sum(outputs, &|output| g[at / inputs * outputs + output] * w[output * inputs + at % inputs]));
    let of_weight =
        (0..outputs * inputs).map(|at| sum(n, &|row| g[row * outputs + at / inputs] * x[row * inputs + at % inputs]));
    let of_bias = (0..outputs).map(|output| sum(n, &|row| g[row * outputs + output]));
    let expected = [of_input.collect(), of_weight.collect(), of_bias.collect::<Vec<f64>>()];
    let mut tape = Tape::new();
    let [x, w, b] = [("x", input), ("w", weight), ("b", bias)].map(|(name, value)| tape.leaf(name, value));
    let output = linear(&mut tape, &x, &w, &b)?;
    let grads = tape.backward_from(&output, seed)?;
    for ((name, expected), terms) in ["x", "w", "b"].into_iter().zip(expected).zip([outputs, n, n]) {
        let scale = ((expected.len() * (terms + 1)) as f64).sqrt();
        assert_close_to(name, &grads[name], &expected, scale, F32);
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn ragged_shapes_match_the_reference(
        n in 1..200usize,
        inputs in prop_oneof![1..700usize, 1020..1030usize],
        outputs in 1..140usize,
    ) {
        for device in devices() {
            let [input, weight, bias] = tensors(n, inputs, outputs, &device);
            let expected = reference(&wide(&input), &wide(&weight), &wide(&bias));
            // What the products of normal values amount to: a few outputs may cancel.
            let scale = ((n * outputs * (inputs + 1)) as f64).sqrt();
            assert_close_to("linear", &forward(&input, &weight, &bias)?, &expected, scale, F32);
        }
    }

    #[test]
    fn gradients_match_the_reference(n in 1..150usize, inputs in 1..150usize, outputs in 1..150usize) {
        for device in devices() {
            check_gradients(tensors(n, inputs, outputs, &device), normal(1, "seed", [n, outputs], &device))?;
        }
    }

    #[test]
    fn the_tape_computes_the_numeric_gradient(n in 1..7usize, inputs in 1..10usize, outputs in 1..8usize) {
        for device in devices() {
            check_op("linear", &tensors(n, inputs, outputs, &device),
                |tape, vars| linear(tape, &vars[0], &vars[1], &vars[2]),
                |inputs| reference(&inputs[0], &inputs[1], &inputs[2]))?;
        }
    }
}

#[test]
fn gradients_past_the_block_size_are_numeric_ones() -> Result<()> {
    devices().iter().try_for_each(|device| {
        check_op(
            "large linear",
            &tensors(67, 9, 70, device),
            |tape, vars| linear(tape, &vars[0], &vars[1], &vars[2]),
            |inputs| reference(&inputs[0], &inputs[1], &inputs[2]),
        )
    })
}

/// On the processor sums go on from block to block, and tasks share out columns, or rows where there are many.
#[test]
fn gradients_of_several_blocks_match_the_reference() -> Result<()> {
    for (n, inputs, outputs) in [(70, 601, 600), (33, 300, 1601)] {
        let device = cpu(2);
        check_gradients(tensors(n, inputs, outputs, &device), normal(1, "seed", [n, outputs], &device))?;
    }
    Ok(())
}

#[test]
fn a_sample_does_not_depend_on_its_batch() -> Result<()> {
    let shapes =
        [(300, 512, 2), (64, 2048, 10), (65, 1024, 1), (33, 700, 65), (40, 600, 129), (500, 5, 3), (20, 1030, 1000)];
    for (device, (n, inputs, outputs)) in
        devices().iter().flat_map(|device| shapes.into_iter().map(move |shape| (device, shape)))
    {
        let [input, weight, bias] = tensors(n, inputs, outputs, device);
        let whole = bits(&forward(&input, &weight, &bias)?);
        let elements = input.to_vec::<f32>()?;
        for (first, count) in [(0, 1), (n / 2, 1), (n - 1, 1), (1, 2), (3, n / 2), (1, n - 1)] {
            let part = elements[first * inputs..][..count * inputs].to_vec();
            let part = forward(&Tensor::new(part, [count, inputs], input.device())?, &weight, &bias)?;
            let expected = &whole[first * outputs..][..count * outputs];
            assert!(bits(&part) == expected, "samples {first} + {count} of {n}, {inputs} to {outputs} on {device}");
        }
    }
    Ok(())
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let results = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let tensors = tensors(150, 90, 140, &cpu(threads));
        let mut tape = Tape::new();
        let [input, weight, bias] = tensors.map(|tensor| tape.leaf(&format!("{}", tensor.shape()), tensor));
        let output = linear(&mut tape, &input, &weight, &bias)?;
        let seed = normal(1, "seed", output.value().shape(), output.value().device());
        let output_bits = bits(output.value());
        let grads = tape.backward_from(&output, seed)?;
        assert_eq!(grads.len(), 3);
        Ok([vec![output_bits], grads.values().map(bits).collect()].concat())
    };
    let one = results(1)?;
    assert!(one == results(2)? && one == results(3)?);
    Ok(())
}

#[test]
fn an_empty_batch_works_and_what_does_not_fit_is_an_error() -> Result<()> {
    for device in devices() {
        let zeros = |dims: [usize; 2]| Tensor::zeros(dims, &device).unwrap();
        let bias = |outputs: usize| Tensor::zeros([outputs], &device).unwrap();
        assert_eq!(forward(&zeros([0, 4]), &zeros([3, 4]), &bias(3))?.dims(), [0, 3]);
        let mut tape = Tape::new();
        let [input, weight, shift] =
            [zeros([0, 4]), zeros([3, 4]), bias(3)].map(|tensor| tape.leaf(&format!("{}", tensor.shape()), tensor));
        let output = linear(&mut tape, &input, &weight, &shift)?;
        assert_eq!(tape.backward(&output)?["[3, 4]"].to_vec::<f32>()?, [0.0; 12]);
        assert!(forward(&zeros([2, 4]), &zeros([3, 5]), &bias(3)).is_err());
        assert!(forward(&zeros([2, 4]), &zeros([3, 4]), &bias(4)).is_err());
        assert!(forward(&zeros([2, 4]), &zeros([0, 4]), &bias(0)).is_err());
        assert!(forward(&zeros([2, 0]), &zeros([3, 0]), &bias(3)).is_err());
        assert!(forward(&bias(4), &zeros([3, 4]), &bias(3)).is_err());
    }
    Ok(())
}
