use proptest::prelude::*;

use super::{AdamWStep, SgdStep, adamw, sgd};
use crate::{
    Result, Tensor,
    ops::testing::{F32, assert_close, assert_close_to, bits, cases, cpu, norm, normal, wide},
};

const STEPS: u32 = 5;

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn sgd_matches_the_reference(
        len in 1..40usize,
        lr in 1e-3f32..0.5,
        momentum in prop_oneof![Just(0f32), 0f32..1.0],
        weight_decay in prop_oneof![Just(0f32), 0f32..0.1],
        nesterov: bool,
    ) {
        let device = cpu(2);
        let mut p = normal(len as u64, "p", [len], &device);
        let mut buffer = Tensor::zeros([len], &device).unwrap();
        let mut exact = wide(&p);
        // PyTorch's buffer starts as the first gradient.
        let mut velocity: Option<Vec<f64>> = None;
        let step = SgdStep { lr, momentum, weight_decay, nesterov };
        let [lr, momentum, weight_decay] = [lr, momentum, weight_decay].map(f64::from);
        for number in 0..STEPS {
            let grad = normal(u64::from(number), "grad", [len], &device);
            let decayed: Vec<f64> = wide(&grad).iter().zip(&exact).map(|(g, p)| g + weight_decay * p).collect();
            let new: Vec<f64> = match &velocity {
                None => decayed.clone(),
                Some(old) => old.iter().zip(&decayed).map(|(old, g)| momentum * old + g).collect(),
            };
            for ((p, g), v) in exact.iter_mut().zip(&decayed).zip(&new) {
                *p -= lr * if nesterov { g + momentum * v } else { *v };
            }
            velocity = Some(new);
            sgd(&mut p, &grad, &mut buffer, step)?;
            // Where steps undo one another the parameter may be small: at least 1 is what it began with.
            assert_close_to("parameter", &p, &exact, norm(&exact).max(1.0), F32);
            let new = velocity.as_deref().expect("set above");
            assert_close_to("buffer", &buffer, new, norm(new).max(1.0), F32);
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
        let device = cpu(2);
        let mut p = normal(len as u64, "p", [len], &device);
        let (mut mean, mut square) = (Tensor::zeros([len], &device).unwrap(), Tensor::zeros([len], &device).unwrap());
        let mut exact = wide(&p);
        let (mut m, mut v) = (vec![0f64; len], vec![0f64; len]);
        for number in 1..=STEPS {
            let grad = normal(u64::from(number), "grad", [len], &device);
            adamw(&mut p, &grad, &mut mean, &mut square, AdamWStep { lr, beta1, beta2, eps, weight_decay, step: number })?;
            let [lr, beta1, beta2, eps, weight_decay] = [lr, beta1, beta2, eps, weight_decay].map(f64::from);
            for (at, g) in wide(&grad).into_iter().enumerate() {
                m[at] = beta1 * m[at] + (1.0 - beta1) * g;
                v[at] = beta2 * v[at] + (1.0 - beta2) * g * g;
                let unbiased_m = m[at] / (1.0 - beta1.powi(number as i32));
                let unbiased_v = v[at] / (1.0 - beta2.powi(number as i32));
                exact[at] = exact[at] * (1.0 - lr * weight_decay) - lr * unbiased_m / (unbiased_v.sqrt() + eps);
            }
            assert_close_to("parameter", &p, &exact, norm(&exact).max(1.0), F32);
            assert_close_to("mean", &mean, &m, norm(&m).max(0.1), F32);
            assert_close("mean square", &square, &v, F32);
        }
    }
}

const SGD: SgdStep = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov: true };
const ADAMW: AdamWStep = AdamWStep { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-5, weight_decay: 0.1, step: 1 };

#[test]
fn results_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let results = |threads: usize| -> Result<[Vec<u32>; 5]> {
        let device = cpu(threads);
        let len = 3 * crate::ops::CHUNK + 5;
        let [mut p, grad] = ["p", "grad"].map(|name| normal(1, name, [len], &device));
        let [mut buffer, mut mean, mut square] = [(); 3].map(|()| Tensor::zeros([len], &device).unwrap());
        sgd(&mut p, &grad, &mut buffer, SGD)?;
        let after_sgd = bits(&p);
        adamw(&mut p, &grad, &mut mean, &mut square, ADAMW)?;
        Ok([after_sgd, bits(&buffer), bits(&p), bits(&mean), bits(&square)])
    };
    let one = results(1)?;
    assert!(one == results(2)? && one == results(3)?);
    Ok(())
}

#[test]
fn a_step_leaves_clones_alone() -> Result<()> {
    let device = cpu(1);
    let mut p = Tensor::full([3], 1.0, &device).unwrap();
    let before = p.clone();
    let mut buffer = Tensor::zeros([3], &device).unwrap();
    sgd(&mut p, &Tensor::full([3], 1.0, &device).unwrap(), &mut buffer, SGD)?;
    assert_eq!(before.to_vec::<f32>()?, [1.0; 3]);
    assert_ne!(p.to_vec::<f32>()?, [1.0; 3]);
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = cpu(1);
    let fitting = || Tensor::zeros([3], &device).unwrap();
    let wrong = || Tensor::zeros([1, 3], &device).unwrap();
    assert!(sgd(&mut fitting(), &wrong(), &mut fitting(), SGD).is_err());
    assert!(sgd(&mut fitting(), &fitting(), &mut wrong(), SGD).is_err());
    assert!(adamw(&mut fitting(), &wrong(), &mut fitting(), &mut fitting(), ADAMW).is_err());
    assert!(adamw(&mut fitting(), &fitting(), &mut wrong(), &mut fitting(), ADAMW).is_err());
    assert!(adamw(&mut fitting(), &fitting(), &mut fitting(), &mut wrong(), ADAMW).is_err());
    let step = AdamWStep { step: 0, ..ADAMW };
    let error = adamw(&mut fitting(), &fitting(), &mut fitting(), &mut fitting(), step).expect_err("no step 0");
    assert!(error.to_string().contains("from 1"), "{error}");
}
