use proptest::prelude::*;

use super::{Head, Samples, Steps, train};
use crate::{
    Device, Error, Result, Tensor,
    autograd::{Tape, Var},
    ops::{
        gather::gather,
        linear::linear,
        loss::{CrossEntropy, Target, cross_entropy},
        optimizer::{self, Item, Rate, Rates, Rule, Table},
        testing::{
            bits, cases, devices,
            emulator::{Settings, emulated},
            normal,
        },
    },
};

const WEIGHT_DECAYS: [f32; 2] = [1e-2, 3e-3];

/// A classifier with its optimizer's buffers.
#[derive(Clone)]
struct State {
    parameters: [Tensor; 2],
    buffers: [Vec<Tensor>; 2],
}

impl State {
    fn new(classes: usize, width: usize, rule: Rule, device: &Device) -> Result<Self> {
        let parameters = [normal(1, "weight", [classes, width], device), normal(1, "bias", [classes], device)];
        let zeros = |like: &Tensor| {
            (0..rule.buffers()).map(|_| Tensor::zeros(like.shape(), device)).collect::<Result<Vec<_>>>()
        };
        Ok(Self { buffers: [zeros(&parameters[0])?, zeros(&parameters[1])?], parameters })
    }

    fn bits(&self) -> Vec<Vec<u32>> {
        self.parameters.iter().chain(self.buffers.iter().flatten()).map(bits).collect()
    }

    /// The steps in one launch; their losses.
    fn trained(&mut self, samples: Samples, steps: Steps, options: &CrossEntropy) -> Result<Tensor> {
        let ([weight, bias], [weight_buffers, bias_buffers]) = (&mut self.parameters, &mut self.buffers);
        train(&mut Head { weight, bias, weight_buffers, bias_buffers }, samples, steps, options)
    }

    /// The same steps, each by a launch per operation.
    fn stepped(&mut self, samples: Samples, steps: Steps, options: &CrossEntropy) -> Result<Vec<u32>> {
        let device = samples.features.device().clone();
        let labels = samples.labels.to_vec::<u32>()?;
        let mut losses = Vec::new();
        for ((batch, lr), rule) in steps.batches.iter().zip(steps.lrs).zip(steps.rules) {
            let rows = Tensor::new(batch.clone(), [batch.len()], &device)?;
            let features = Var::constant(gather(samples.features, &rows)?);
            let mut tape = Tape::new();
            let [weight, bias] = [0, 1].map(|at| tape.leaf(["weight", "bias"][at], self.parameters[at].clone()));
            let logits = linear(&mut tape, &features, &weight, &bias)?;
            let labels = batch.iter().map(|row| labels[*row as usize]).collect();
            let target = Target::labels(labels, self.parameters[1].shape().elements(), &device)?;
            let loss = cross_entropy(&mut tape, &logits, &target, options)?;
            losses.extend(bits(loss.value()));
            drop((weight, bias));
            let grads = tape.backward(&loss)?;
            let mut items: Vec<Item> = (self.parameters.iter_mut().zip(&mut self.buffers).zip(["weight", "bias"]))
                .enumerate()
                .map(|(group, ((parameter, buffers), name))| Item {
                    parameter,
                    grad: &grads[name],
                    buffers,
                    packed: None,
                    group,
                })
                .collect();
            let rates = steps.weight_decays.map(|weight_decay| Rate { lr: *lr, weight_decay });
            let rates = Rates::new(*rule, &rates, &device)?;
            optimizer::step(&rates, &mut items, &mut Table::default())?;
        }
        Ok(losses)
    }
}

/// Rows of `sizes` batches out of `count`, in an order without system.
fn batches(sizes: &[usize], count: usize) -> Vec<Vec<u32>> {
    let number = |step: usize, i: usize| ((step * 31 + i * 17 + i * i) % count) as u32;
    sizes.iter().enumerate().map(|(step, &size)| (0..size).map(|i| number(step, i)).collect()).collect()
}

fn rules() -> impl Strategy<Value = Rule> {
    prop_oneof![
        (0f32..1.0, any::<bool>(), any::<bool>()).prop_map(|(momentum, nesterov, decoupled)| Rule::Sgd {
            momentum,
            nesterov,
            decoupled
        }),
        Just(Rule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-5, step: 3 }),
    ]
}

/// The rule `steps` steps on, with another momentum.
fn moved(rule: Rule, steps: usize) -> Rule {
    let less = 1.0 / (steps + 1) as f32;
    match rule {
        Rule::Sgd { momentum, nesterov, decoupled } => Rule::Sgd { momentum: momentum * less, nesterov, decoupled },
        Rule::AdamW { beta1, beta2, eps, step } => {
            Rule::AdamW { beta1: beta1 * less, beta2, eps, step: step + steps as u32 }
        }
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn many_steps_at_once_are_those_of_separate_operations(
        sizes in prop::collection::vec(1..80usize, 1..4),
        classes in prop_oneof![1..17usize, 17..80usize],
        width in prop_oneof![1..40usize, 250..600usize],
        rule in rules(),
        smoothing in prop_oneof![Just(0f32), 0f32..0.3],
        weighted: bool,
    ) {
        for device in devices() {
            let count = 50;
            let labels: Vec<u32> = (0..count).map(|i| (i * 7 % classes) as u32).collect();
            let labels = Tensor::new(labels, [count], &device)?;
            let features = normal(0, "features", [count, width], &device);
            let samples = Samples { features: &features, labels: &labels };
            let batches = batches(&sizes, count);
            let lrs: Vec<f32> = (0..sizes.len()).map(|step| 0.1 / (step + 1) as f32).collect();
            let rules: Vec<Rule> = (0..sizes.len()).map(|step| moved(rule, step)).collect();
            let steps = Steps { batches: &batches, lrs: &lrs, weight_decays: WEIGHT_DECAYS, rules: &rules };
            let weights = (0..classes).map(|i| 0.5 + i as f32 % 3.0).collect();
            let weights = Tensor::new(weights, [classes], &device)?;
            let options = CrossEntropy { label_smoothing: smoothing, class_weights: weighted.then_some(weights) };
            let mut together = State::new(classes, width, rule, &device)?;
            let mut apart = together.clone();
            let losses = together.trained(samples, steps, &options)?;
            let expected = apart.stepped(samples, steps, &options)?;
            prop_assert_eq!(bits(&losses), expected);
            prop_assert!(together.bits() == apart.bits());
        }
    }
}

/// Two steps of three classes on an emulated GPU.
fn small(settings: Settings) -> Option<Result<Vec<Vec<u32>>>> {
    let (device, _) = emulated(settings)?;
    let run = || {
        let rule = Rule::Sgd { momentum: 0.9, nesterov: false, decoupled: false };
        let labels = Tensor::new((0..20).map(|i| i % 3).collect::<Vec<u32>>(), [20], &device)?;
        let features = normal(0, "features", [20, 300], &device);
        let samples = Samples { features: &features, labels: &labels };
        let batches = batches(&[70, 5], 20);
        let steps = Steps { batches: &batches, lrs: &[0.1, 0.05], weight_decays: WEIGHT_DECAYS, rules: &[rule; 2] };
        let mut state = State::new(3, 300, rule, &device)?;
        let losses = state.trained(samples, steps, &CrossEntropy::default())?;
        Ok(state.bits().into_iter().chain([bits(&losses)]).collect())
    };
    Some(run())
}

#[test]
fn the_order_of_blocks_changes_nothing() -> Result<()> {
    let mut first = None;
    for schedule in 0..4 {
        let Some(found) = small(Settings { schedule, ..Settings::default() }) else { return Ok(()) };
        let found = found?;
        assert!(*first.get_or_insert_with(|| found.clone()) == found, "schedule {schedule}");
    }
    Ok(())
}

#[test]
fn a_processor_ends_with_a_loss_that_is_not_finite() -> Result<()> {
    let (device, rule) = (Device::cpu(1)?, Rule::Sgd { momentum: 0.9, nesterov: false, decoupled: false });
    let labels = Tensor::new(vec![0u32, 1], [2], &device)?;
    let features = Tensor::new(vec![1.0, 2.0, f32::NAN, 4.0], [2, 2], &device)?;
    let samples = Samples { features: &features, labels: &labels };
    let (batches, lrs) = ([vec![0], vec![1], vec![0]], [0.1; 3]);
    let state = State::new(2, 2, rule, &device)?;
    let trained = |steps: usize| -> Result<_> {
        let mut state = state.clone();
        let (batches, rules) = (&batches[..steps], &[rule; 3][..steps]);
        let steps = Steps { batches, lrs: &lrs[..steps], weight_decays: [0.0; 2], rules };
        Ok((state.trained(samples, steps, &CrossEntropy::default())?.to_vec::<f32>()?, state.bits()))
    };
    let ((before, one), (losses, three)) = (trained(1)?, trained(3)?);
    assert!(losses.len() == 2 && losses[0] == before[0] && losses[1].is_nan(), "{losses:?}");
    assert!(one == three && one != state.bits());
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error_and_moves_nothing() -> Result<()> {
    devices().iter().try_for_each(what_does_not_fit)
}

fn what_does_not_fit(device: &Device) -> Result<()> {
    let rule = Rule::Sgd { momentum: 0.9, nesterov: false, decoupled: false };
    let labels = Tensor::new(vec![0u32, 1], [2], device)?;
    let features = normal(0, "features", [2, 4], device);
    let samples = Samples { features: &features, labels: &labels };
    let mut state = State::new(2, 4, rule, device)?;
    let before = state.bits();
    for (batch, lrs, message) in
        [(vec![0, 2], vec![0.1], "beyond"), (vec![], vec![0.1], "empty"), (vec![0], vec![], "rates")]
    {
        let steps = Steps { batches: &[batch], lrs: &lrs, weight_decays: [0.0; 2], rules: &[rule] };
        let error = state.trained(samples, steps, &CrossEntropy::default()).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }) && error.to_string().contains(message), "{error}");
    }
    let adamw = Steps {
        batches: &[vec![0]],
        lrs: &[0.1],
        weight_decays: [0.0; 2],
        rules: &[Rule::AdamW { beta1: 0.9, beta2: 0.9, eps: 0.1, step: 1 }],
    };
    assert!(state.trained(samples, adamw, &CrossEntropy::default()).unwrap_err().to_string().contains("buffers"));
    assert!(state.bits() == before);
    Ok(())
}
