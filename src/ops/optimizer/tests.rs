use proptest::prelude::*;

use super::{Item, Rate, Rates, Rule, Scaling, Table, step};
use crate::{
    DType, Device, Precision, Result, Shape, Tensor,
    autograd::Packed,
    ops::conv::mma::pack,
    ops::testing::{F32, assert_close, assert_close_to, bits, cases, cpu, devices, norm, normal, on, wide},
};

const STEPS: u32 = 5;

/// Zeros in the shape of `parameter`, as many as `rule` keeps.
fn fresh(rule: Rule, parameter: &Tensor) -> Vec<Tensor> {
    (0..rule.buffers()).map(|_| Tensor::zeros(parameter.shape(), parameter.device()).unwrap()).collect()
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn sgd_matches_the_reference(
        len in 1..40usize,
        lr in 1e-3f32..0.5,
        momentum in prop_oneof![Just(0f32), 0f32..1.0],
        weight_decay in prop_oneof![Just(0f32), 0f32..0.1],
        nesterov: bool,
        decoupled: bool,
    ) {
        for device in devices() {
            let mut p = normal(len as u64, "p", [len], &device);
            let rule = Rule::Sgd { momentum, nesterov, decoupled };
            let mut buffers = fresh(rule, &p);
            let mut exact = wide(&p);
            // PyTorch's buffer starts as the first gradient.
            let mut velocity: Option<Vec<f64>> = None;
            for number in 0..STEPS {
                let grad = normal(u64::from(number), "grad", [len], &device);
                let item = Item { parameter: &mut p, grad: &grad, buffers: &mut buffers, packed: None, group: 0 };
                let rates = Rates::new(rule, &[Rate { lr, weight_decay }], &device)?;
                step(&rates, &mut [item], &mut Table::default())?;
                let [lr, momentum, weight_decay] = [lr, momentum, weight_decay].map(f64::from);
                let penalty = if decoupled { 0.0 } else { weight_decay };
                let decayed: Vec<f64> = wide(&grad).iter().zip(&exact).map(|(g, p)| g + penalty * p).collect();
                let new: Vec<f64> = match &velocity {
                    None => decayed.clone(),
                    Some(old) => old.iter().zip(&decayed).map(|(old, g)| momentum * old + g).collect(),
                };
                for ((p, g), v) in exact.iter_mut().zip(&decayed).zip(&new) {
                    *p *= if decoupled { 1.0 - lr * weight_decay } else { 1.0 };
                    *p -= lr * if nesterov { g + momentum * v } else { *v };
                }
                // Where steps undo one another the parameter may be small: at least 1 is what it began with.
                assert_close_to("parameter", &p, &exact, norm(&exact).max(1.0), F32);
                assert_close_to("buffer", &buffers[0], &new, norm(&new).max(1.0), F32);
                velocity = Some(new);
            }
        }
    }

    #[test]
    fn adamw_matches_the_reference(
        len in 1..40usize,
        lr in 1e-4f32..0.1,
        beta1 in prop_oneof![Just(0f32), Just(0.9), 0f32..0.99],
        beta2 in prop_oneof![Just(0.99f32), Just(0.999), 0.5f32..0.999],
        eps in prop_oneof![Just(1e-8f32), Just(1e-5), Just(1e-2)],
        weight_decay in prop_oneof![Just(0f32), 0f32..0.1],
    ) {
        for device in devices() {
            let mut p = normal(len as u64, "p", [len], &device);
            let mut buffers = fresh(Rule::AdamW { beta1, beta2, eps, step: 1 }, &p);
            let mut exact = wide(&p);
            let (mut m, mut v) = (vec![0f64; len], vec![0f64; len]);
            for number in 1..=STEPS {
                let grad = normal(u64::from(number), "grad", [len], &device);
                let item = Item { parameter: &mut p, grad: &grad, buffers: &mut buffers, packed: None, group: 0 };
                let rule = Rule::AdamW { beta1, beta2, eps, step: number };
                let rates = Rates::new(rule, &[Rate { lr, weight_decay }], &device)?;
                step(&rates, &mut [item], &mut Table::default())?;
                let [lr, beta1, beta2, eps, weight_decay] = [lr, beta1, beta2, eps, weight_decay].map(f64::from);
                for (at, g) in wide(&grad).into_iter().enumerate() {
                    m[at] = beta1 * m[at] + (1.0 - beta1) * g;
                    v[at] = beta2 * v[at] + (1.0 - beta2) * g * g;
                    let unbiased_m = m[at] / (1.0 - beta1.powi(number as i32));
                    let unbiased_v = v[at] / (1.0 - beta2.powi(number as i32));
                    exact[at] = exact[at] * (1.0 - lr * weight_decay) - lr * unbiased_m / (unbiased_v.sqrt() + eps);
                }
                assert_close_to("parameter", &p, &exact, norm(&exact).max(1.0), F32);
                assert_close_to("mean", &buffers[0], &m, norm(&m).max(0.1), F32);
                assert_close("mean square", &buffers[1], &v, F32);
            }
        }
    }
}

const RULES: [Rule; 3] = [
    Rule::Sgd { momentum: 0.9, nesterov: true, decoupled: true },
    Rule::Sgd { momentum: 0.9, nesterov: false, decoupled: false },
    Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-5, step: 3 },
];

/// Bits of parameters of these lengths and their buffers after steps with rates of their own.
fn moved(rule: Rule, lengths: &[usize], device: &Device) -> Result<Vec<Vec<u32>>> {
    let named = |name: &str, at: usize| on(device, &normal(at as u64, name, [lengths[at]], &cpu(1)));
    let mut parameters: Vec<Tensor> = (0..lengths.len()).map(|at| named("p", at)).collect();
    let mut buffers: Vec<Vec<Tensor>> = parameters.iter().map(|parameter| fresh(rule, parameter)).collect();
    let (mut table, mut rates) = (Table::default(), Rates::new(rule, &[], device)?);
    for number in 0..3 {
        let grads: Vec<Tensor> = (0..lengths.len()).map(|at| named(&format!("grad {number}"), at)).collect();
        let rate = |at: usize| Rate { lr: 0.1 / (at + number + 1) as f32, weight_decay: 0.01 * at as f32 };
        rates.set(rule, &(0..lengths.len()).map(rate).collect::<Vec<_>>(), Scaling::default(), device)?;
        let all = parameters.iter_mut().zip(&mut buffers).zip(&grads).enumerate();
        let mut items: Vec<Item> = all
            .map(|(group, ((parameter, buffers), grad))| Item { parameter, grad, buffers, packed: None, group })
            .collect();
        step(&rates, &mut items, &mut table)?;
    }
    Ok(parameters.iter().chain(buffers.iter().flatten()).map(bits).collect())
}

#[test]
fn parameters_of_any_length_get_the_same_bits_on_every_device_and_number_of_threads() -> Result<()> {
    // Around blocks of 4096 elements, vectors of four, and none at all.
    let lengths = [1, 4096, 4097, 0, 0, 3, 8192, 1030, 3 * crate::ops::CHUNK + 5, 2];
    for rule in RULES {
        let expected = moved(rule, &lengths, &cpu(1))?;
        for device in devices().into_iter().chain([cpu(3)]) {
            assert!(moved(rule, &lengths, &device)? == expected, "{rule:?} on {device}");
        }
        assert!(devices().iter().all(|device| moved(rule, &[], device).is_ok()));
    }
    Ok(())
}

#[test]
fn a_step_leaves_clones_alone() -> Result<()> {
    for device in devices() {
        for rule in RULES {
            let mut p = Tensor::full([3], 1.0, &device)?;
            let before = p.clone();
            let (grad, mut buffers) = (before.clone(), fresh(rule, &p));
            let zeros = buffers.clone();
            let item = Item { parameter: &mut p, grad: &grad, buffers: &mut buffers, packed: None, group: 0 };
            let rates = Rates::new(rule, &[Rate { lr: 0.1, weight_decay: 0.0 }], &device)?;
            step(&rates, &mut [item], &mut Table::default())?;
            assert_eq!(before.to_vec::<f32>()?, [1.0; 3]);
            assert_eq!(zeros[0].to_vec::<f32>()?, [0.0; 3]);
            assert_ne!(p.to_vec::<f32>()?, [1.0; 3]);
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error_and_moves_nothing() -> Result<()> {
    for device in devices() {
        let [fitting, wrong] = [Tensor::zeros([3], &device)?, Tensor::zeros([1, 3], &device)?];
        let grad = Tensor::full([3], 1.0, &device)?;
        for rule in RULES {
            let fits = fresh(rule, &fitting);
            let attempt_in = |group: usize, grad: &Tensor, buffers: &[Tensor], rule: Rule| {
                let (mut first, mut parameter) = (fitting.clone(), fitting.clone());
                let [mut whole, mut buffers] = [fits.clone(), buffers.to_vec()];
                let whole = Item { parameter: &mut first, grad, buffers: &mut whole, packed: None, group: 0 };
                let mut items = vec![whole];
                let buffers = &mut buffers;
                items.push(Item { parameter: &mut parameter, grad, buffers, packed: None, group });
                let outcome = Rates::new(rule, &[Rate { lr: 0.1, weight_decay: 0.0 }], &device)
                    .and_then(|rates| step(&rates, &mut items, &mut Table::default()));
                assert_eq!(outcome.is_err(), first.to_vec::<f32>().unwrap() == [0.0; 3]);
                outcome
            };
            let attempt = |grad: &Tensor, buffers: &[Tensor], rule: Rule| attempt_in(0, grad, buffers, rule);
            assert!(attempt(&grad, &fits, rule).is_ok());
            assert!(attempt_in(1, &grad, &fits, rule).unwrap_err().to_string().contains("group 1"));
            assert!(attempt(&wrong, &fits, rule).is_err());
            assert!(attempt(&grad, &[], rule).is_err());
            assert!(attempt(&grad, &[&fits[..], &fits[..1]].concat(), rule).is_err());
            let last = [&fits[1..], std::slice::from_ref(&wrong)].concat();
            assert!(attempt(&grad, &last, rule).is_err());
            if let Rule::AdamW { beta1, beta2, eps, .. } = rule {
                let error = attempt(&grad, &fits, Rule::AdamW { beta1, beta2, eps, step: 0 }).expect_err("no step 0");
                assert!(error.to_string().contains("from 1"), "{error}");
            }
        }
    }
    Ok(())
}

/// What a step makes of packed weights is what packing the moved master makes, for every kind of grouping.
#[test]
fn copies_for_tensor_cores_follow_their_master() -> Result<()> {
    let Some(device) = crate::ops::testing::emulator::gpu() else { return Ok(()) };
    // Filters, taps, channels of a group, groups: a stem, ragged tiles, joined groups, groups too wide to be joined.
    for (k, r, group_c, groups) in [(8, 7, 3, 1), (40, 3, 72, 1), (64, 3, 4, 16), (128, 1, 64, 2)] {
        for precision in [Precision::Bf16, Precision::Tf32] {
            for rule in RULES {
                let mut weight = normal(1, "weight", [k, r, r, group_c], &device);
                let grad = normal(2, "grad", weight.shape(), &device);
                let flipped = group_c != 3;
                let mut packed = pack(&weight, groups, precision, flipped)?;
                let mut buffers = fresh(rule, &weight);
                let rates = Rates::new(rule, &[Rate { lr: 0.1, weight_decay: 0.01 }], &device)?;
                let (mut alone, mut own) = (weight.clone(), buffers.clone());
                let item = Item { parameter: &mut alone, grad: &grad, buffers: &mut own, packed: None, group: 0 };
                step(&rates, &mut [item], &mut Table::default())?;
                let copies = Some(&mut packed);
                let item =
                    Item { parameter: &mut weight, grad: &grad, buffers: &mut buffers, packed: copies, group: 0 };
                step(&rates, &mut [item], &mut Table::default())?;
                assert!(bits(&weight) == bits(&alone), "{k} {r} {group_c} {groups} {rule:?}");
                let expected = pack(&weight, groups, precision, flipped)?;
                let all = |packed: &Packed| {
                    let copies = [Some(&packed.forward), packed.flipped.as_ref()].into_iter().flatten();
                    copies.map(|copy| copy.cast(DType::F32).map(|copy| bits(&copy))).collect::<Result<Vec<_>>>()
                };
                assert!(all(&packed)? == all(&expected)?, "{k} {r} {group_c} {groups} {precision} {rule:?}");
            }
        }
    }
    Ok(())
}

/// Gradients of which only a GPU's third has copies for tensor cores, whose blocks are others.
#[test]
fn the_norm_of_all_gradients_is_bounded() -> Result<()> {
    let shapes: [Shape; 5] = [[5].into(), [9000].into(), [70, 3, 3, 40].into(), [0].into(), [1030].into()];
    let rule = Rule::Sgd { momentum: 0.0, nesterov: false, decoupled: false };
    for device in devices() {
        for (factor, clip) in [(1.0, Some(0.5)), (0.25, Some(20.0)), (0.25, None), (2.0, Some(1e6))] {
            let made = |name: &str| -> Vec<Tensor> {
                shapes.iter().map(|shape| normal(shape.elements() as u64, name, *shape, &device)).collect()
            };
            let (mut parameters, grads) = (made("p"), made("grad"));
            let exact: Vec<f64> = grads.iter().flat_map(wide).map(|g| f64::from(factor) * g).collect();
            let share = clip.map_or(1.0, |most| (f64::from(most) / (norm(&exact) + 1e-6)).min(1.0));
            assert_eq!(share < 1.0, clip.is_some_and(|most| most < 100.0), "both cases are met");
            let mut expected = parameters.iter().flat_map(wide).zip(&exact).map(|(p, g)| p - 0.5 * share * g);
            let expected: Vec<Vec<f64>> =
                parameters.iter().map(|p| expected.by_ref().take(wide(p).len()).collect()).collect();
            let mut buffers: Vec<Vec<Tensor>> = parameters.iter().map(|parameter| fresh(rule, parameter)).collect();
            let on_gpu = matches!(device, Device::Cuda(_));
            let mut packed = on_gpu.then(|| pack(&parameters[2], 1, Precision::Bf16, true)).transpose()?;
            let mut rates = Rates::new(rule, &[], &device)?;
            rates.set(rule, &[Rate { lr: 0.5, weight_decay: 0.0 }], Scaling { factor, clip }, &device)?;
            let all = parameters.iter_mut().zip(&mut buffers).zip(&grads);
            let mut items: Vec<Item> = all
                .map(|((parameter, buffers), grad)| Item { parameter, grad, buffers, packed: None, group: 0 })
                .collect();
            items[2].packed = packed.as_mut();
            step(&rates, &mut items, &mut Table::default())?;
            for (parameter, expected) in parameters.iter().zip(&expected) {
                assert_close(&format!("{factor} {clip:?}"), parameter, expected, F32);
            }
        }
    }
    Ok(())
}
