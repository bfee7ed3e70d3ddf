//! Steps as CUDA graphs: a replay makes the step that would have been made launch by launch, whatever changed since it
//! was captured.

mod common;

use std::sync::Arc;

use common::{
    emulator::{Emulator, Settings, emulated, gpu},
    learning::{Told, bits, data, folders, learner_of, listened},
};
use unfreeze::{
    Device, Precision, Result, Tensor,
    checkpoint::Weights,
    data::{Augment, Transforms},
    learner::{Event, Fit, Flow, Input, Labels, Learner, LrFind, Objective, Step, Stepper},
    nn::{Arch, FreezeState, Grouping, HeadSpec, Model},
    ops::loss::CrossEntropy,
    optim::{OneCycle, Optimizer, OptimizerKind},
    random::Random,
};

/// The device under test (see [`gpu`]); of an emulated one, which is then the test's own, the driver too.
fn device() -> Option<(Device, Option<Arc<Emulator>>)> {
    match std::env::var_os("UNFREEZE_TEST_DEVICE") {
        Some(_) => gpu().map(|device| (device, None)),
        None => emulated(Settings::default()).map(|(device, driver)| (device, Some(driver))),
    }
}

/// The graphs that there are on `device`.
fn count_graphs(device: &Device) -> usize {
    match device {
        Device::Cuda(cuda) => cuda.graphs(),
        _ => 0,
    }
}

/// A small network in training.
struct Training {
    device: Device,
    model: Model,
    optimizer: Optimizer,
    loss: CrossEntropy,
    stepper: Stepper,
    /// Whether a graph may be refused.
    may_be_refused: bool,
    weight_decay: f32,
    momentum: f32,
    seed: u64,
    steps: u64,
}

impl Training {
    fn new(device: &Device, graphs: bool, precision: Precision) -> Result<Self> {
        let mut model = Model::new(Arch::ResNet8, HeadSpec::fastai(vec![8]), 3, 5, device)?;
        model.set_grouping(Grouping::PerStage);
        model.set_precision(precision)?;
        Ok(Self {
            device: device.clone(),
            model,
            optimizer: Optimizer::new(OptimizerKind::adamw()),
            loss: CrossEntropy::default(),
            stepper: Stepper::new(graphs),
            may_be_refused: false,
            weight_decay: 1e-3,
            momentum: 0.9,
            seed: 3,
            steps: 0,
        })
    }

    /// Makes a step on `count` images of its own and returns the loss.
    fn step(&mut self, count: usize) -> Result<f32> {
        let mut random = Random::stream(7, "images", &[self.steps]);
        let pixels = (0..count * 16 * 16 * 3).map(|_| random.normal_pair()[0]).collect();
        let input = Input::Images(Tensor::new(pixels, [count, 16, 16, 3], &self.device)?);
        let labels = Labels::Classes((0..count as u32).map(|at| (at + self.steps as u32) % 3).collect());
        let (number, seed, weight_decay) = (self.steps, self.seed, self.weight_decay);
        self.steps += 1;
        let Self { model, optimizer, loss, .. } = self;
        let groups = model.grouping().names(model.arch()).len();
        let lrs: Vec<f32> = (0..groups).map(|group| 0.01 * (group + 1) as f32 / (1 + number) as f32).collect();
        let weight_decays = &vec![weight_decay; groups];
        let loss = Objective::CrossEntropy(loss);
        let step = Step { model, optimizer, loss, lrs: &lrs, weight_decays, momentum: self.momentum, seed, number };
        let loss = self.stepper.step(step, &input, labels)?.scalar();
        if let Some(error) = self.stepper.take_refusal() {
            assert!(self.may_be_refused, "{error}");
        }
        loss
    }
}

/// Both make the same steps on the same device, one launch by launch.
fn pair(device: &Device, precision: Precision) -> Result<[Training; 2]> {
    Ok([Training::new(device, true, precision)?, Training::new(device, false, precision)?])
}

/// One step of each of `pair`, which must agree in every bit.
fn step_alike([replayed, launched]: &mut [Training; 2], count: usize) -> Result<()> {
    let losses = [replayed.step(count)?, launched.step(count)?];
    assert_eq!(losses[0].to_bits(), losses[1].to_bits(), "step {}: {losses:?}", replayed.steps);
    let [replayed, launched] = [&replayed.model, &launched.model].map(bits);
    assert!(replayed == launched);
    Ok(())
}

#[test]
fn a_replay_is_a_handful_of_calls_for_the_same_launches() -> Result<()> {
    let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
    let Device::Cuda(cuda) = &device else { unreachable!() };
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let [mut replayed, mut launched] = pair(&device, precision)?;
        let cost = |training: &mut Training| -> Result<(usize, usize, u64)> {
            let sum = || cuda.launches().values().sum::<u64>();
            let before = (driver.calls(), driver.launches(), sum());
            training.step(4)?;
            Ok((driver.calls() - before.0, driver.launches() - before.1, sum() - before.2))
        };
        for _ in 0..3 {
            cost(&mut replayed)?;
            cost(&mut launched)?;
        }
        assert_eq!(driver.graphs().len(), 1, "{precision}");
        for _ in 0..3 {
            let (live, peak) = (device.memory().live, device.memory().peak);
            let (calls, launches, counted) = cost(&mut replayed)?;
            // Images up and over, labels, the step's number, rates, the replay, the loss back.
            assert_eq!(calls, 7, "{precision}");
            assert_eq!((device.memory().live, device.memory().peak), (live, peak));
            let (separate, expected, also) = cost(&mut launched)?;
            assert!(separate > expected && expected > 80, "{precision}: {separate} calls, {expected} launches");
            assert_eq!((launches, counted), (expected, also), "{precision}");
        }
        assert!(bits(&replayed.model) == bits(&launched.model));
    }
    assert!(driver.graphs().is_empty());
    Ok(())
}

/// Whatever decides a step may change between two of them.
#[test]
fn a_change_shows_at_once() -> Result<()> {
    let Some((device, _)) = device() else { return Ok(()) };
    let mut both = pair(&device, Precision::F32)?;
    let mut state = FreezeState::head_only(Arch::ResNet8, Grouping::PerStage);
    state.freeze_to(2)?;
    let weights = Tensor::new(vec![0.5, 1.0, 2.0], [3], &device)?;
    let other_weights = Tensor::new(vec![2.0, 1.0, 0.5], [3], &device)?;
    type Change<'a> = &'a dyn Fn(&mut Training) -> Result<()>;
    let changes: [(&str, Change); 14] = [
        ("nothing", &|_| Ok(())),
        ("weight decay", &|training| {
            training.weight_decay = 0.1;
            Ok(())
        }),
        ("momentum", &|training| {
            training.momentum = 0.5;
            Ok(())
        }),
        ("seed", &|training| {
            training.seed = 4;
            Ok(())
        }),
        ("frozen layers", &|training| {
            training.model.apply(&state, false);
            Ok(())
        }),
        ("frozen batchnorms", &|training| {
            training.model.apply(&state, true);
            Ok(())
        }),
        ("label smoothing", &|training| {
            training.loss.label_smoothing = 0.1;
            Ok(())
        }),
        ("class weights", &|training| {
            training.loss.class_weights = Some(weights.clone());
            Ok(())
        }),
        ("other class weights", &|training| {
            training.loss.class_weights = Some(other_weights.clone());
            Ok(())
        }),
        ("precision", &|training| training.model.set_precision(Precision::Bf16)),
        ("momentum of batchnorms", &|training| {
            training.model.norms_mut().for_each(|norm| norm.momentum = 0.3);
            Ok(())
        }),
        ("eps of batchnorms", &|training| {
            training.model.norms_mut().for_each(|norm| norm.eps = 0.1);
            Ok(())
        }),
        ("layer groups", &|training| {
            training.model.set_grouping(Grouping::Fastai);
            Ok(())
        }),
        ("optimizer", &|training| {
            training.optimizer = Optimizer::new(OptimizerKind::default());
            Ok(())
        }),
    ];
    for (what, change) in changes {
        both.iter_mut().try_for_each(change)?;
        for _ in 0..4 {
            step_alike(&mut both, 4)?;
        }
        assert_eq!(count_graphs(&device), 1, "{what}");
    }
    Ok(())
}

#[test]
fn short_batches_leave_the_graph_alone() -> Result<()> {
    let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
    let mut training = Training::new(&device, true, Precision::F32)?;
    let mut calls = Vec::new();
    for count in [4, 4, 3, 4, 3, 4, 3, 4, 6, 6, 4, 6] {
        let before = driver.calls();
        training.step(count)?;
        calls.push((count, driver.calls() - before < 10));
    }
    // The first two make the optimizer's buffers, and see that nothing moves any more; the third captures.
    let launched = [(4, false), (4, false), (3, false), (4, false), (3, false)];
    let replayed = [(4, true), (3, false), (4, true), (6, false), (6, false), (4, false), (6, true)];
    assert_eq!(calls, [&launched[..], &replayed].concat());
    Ok(())
}

#[test]
fn what_was_cloned_from_a_model_stays() -> Result<()> {
    let Some((device, _)) = device() else { return Ok(()) };
    let mut both = pair(&device, Precision::Bf16)?;
    for _ in 0..4 {
        step_alike(&mut both, 4)?;
    }
    let (snapshot, optimizer) = (both[0].model.clone(), both[0].optimizer.clone());
    let expected = bits(&snapshot);
    for _ in 0..4 {
        step_alike(&mut both, 4)?;
    }
    assert!(bits(&snapshot) == expected);
    // And one goes on from there.
    (both[0].model, both[0].optimizer, both[0].steps) = (snapshot.clone(), optimizer.clone(), 4);
    (both[1].model, both[1].optimizer, both[1].steps) = (snapshot, optimizer, 4);
    for _ in 0..4 {
        step_alike(&mut both, 4)?;
    }
    Ok(())
}

#[test]
fn a_graph_gives_way_where_memory_is_short() -> Result<()> {
    // Room for three of the chunks that memory comes in; a graph holds one.
    let capacity = 100 << 20;
    let Some((device, driver)) = emulated(Settings { capacity, ..Settings::default() }) else { return Ok(()) };
    let mut both = pair(&device, Precision::F32)?;
    for _ in 0..4 {
        step_alike(&mut both, 4)?;
    }
    assert_eq!(driver.graphs().len(), 1);
    // More than there is beside its chunk, and all of it there: nothing of the graph may stay.
    let large = |device: &Device| Tensor::zeros([(64 << 20) / 4], device);
    let first = large(&device)?;
    assert!(driver.graphs().is_empty());
    drop(first);
    device.trim();
    for _ in 0..4 {
        step_alike(&mut both, 4)?;
    }
    assert_eq!(driver.graphs().len(), 1);
    // What happens again and again is said, and the next steps are launched.
    drop(large(&device)?);
    device.trim();
    let [replayed, _] = &mut both;
    replayed.may_be_refused = true;
    for _ in 0..4 {
        step_alike(&mut both, 4)?;
    }
    assert!(driver.graphs().is_empty());
    Ok(())
}

#[test]
fn the_recipe_ends_on_the_same_bits() -> Result<()> {
    let Some((device, driver)) = device() else { return Ok(()) };
    let folder = folders(&["cat", "dog"], 7, 2, 0);
    let run = |graphs: bool| -> Result<_> {
        let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.1);
        let data = data(folder.path()).transforms(transforms);
        let (mut learner, told) = listened(learner_of(Arch::ResNet8, data, &device).graphs(graphs));
        let calls = || driver.as_ref().map_or(0, |driver| driver.calls());
        let before = calls();
        let found = learner.lr_find(LrFind::default().steps(10))?;
        learner.precompute(true);
        learner.fit(Fit::epochs(4).lr(1e-2))?;
        learner.precompute(false);
        learner.fit(Fit::cycles(2).lr(1e-2).wd(1e-3))?;
        learner.unfreeze();
        learner.fit(Fit::cycles(2).cycle_mult(2).lr([1e-4, 1e-3, 1e-2]).optimizer(OptimizerKind::adamw()))?;
        assert_eq!(count_graphs(&device), 0, "memory of graphs is given back");
        let told = told.lock().unwrap().clone();
        assert!(!told.iter().any(|told| matches!(told, Told::Note(text) if text.contains("graph"))));
        Ok((bits(learner.model()), found, told, calls() - before))
    };
    let [replayed, launched] = [true, false].map(|graphs| run(graphs).unwrap());
    assert!(replayed.0 == launched.0 && replayed.1 == launched.1);
    assert_eq!(replayed.2, launched.2);
    assert!(driver.is_none() || replayed.3 < launched.3 * 3 / 4, "{} calls, {} without graphs", replayed.3, launched.3);
    Ok(())
}

#[test]
fn a_refused_graph_is_said_and_steps_go_on() -> Result<()> {
    let Some((device, driver)) = emulated(Settings { captures: false, ..Settings::default() }) else { return Ok(()) };
    let folder = folders(&["cat", "dog"], 4, 1, 0);
    let (mut learner, told) = listened(learner_of(Arch::ResNet8, data(folder.path()), &device));
    learner.fit(Fit::epochs(4).lr(1e-2))?;
    assert_eq!(learner.steps(), 8);
    assert!(driver.graphs().is_empty());
    let told = told.lock().unwrap().clone();
    let notes = told.iter().filter(|told| matches!(told, Told::Note(text) if text.contains("one by one")));
    assert_eq!(notes.count(), 1, "{told:?}");
    Ok(())
}

/// A linear head on cached activations makes the steps of up to 64 batches in one launch.
#[test]
fn a_linear_head_makes_many_steps_in_a_launch() -> Result<()> {
    let Some((device, _)) = device() else { return Ok(()) };
    let Device::Cuda(cuda) = &device else { unreachable!() };
    // Batches of two: 71 steps to the epoch, for one sample at the end is of no use.
    let folder = folders(&["cat", "dog"], 71, 2, 0);
    std::fs::remove_file(folder.path().join("train/cat/0.png")).unwrap();
    let launched = || cuda.launches().get("head_trainer_few").copied().unwrap_or_default();
    let run = |graphs: bool, kind: OptimizerKind, weighted: bool| -> Result<_> {
        let data = data(folder.path()).batch_size(2);
        let learner = Learner::with_head(Weights::random(Arch::ResNet8), data, HeadSpec::Linear)?;
        let learner = learner.device(device.clone())?.seed(1)?.graphs(graphs);
        let class_weights = weighted.then(|| Tensor::new(vec![0.5, 2.0], [2], &Device::cpu(1).unwrap()).unwrap());
        let loss = CrossEntropy { class_weights, label_smoothing: if weighted { 0.1 } else { 0.0 } };
        let (mut learner, told) = listened(learner.loss(loss));
        learner.precompute(true);
        let before = launched();
        learner.fit(Fit::epochs(2).lr(1e-2).wd(1e-3).optimizer(kind).one_cycle(OneCycle::default()))?;
        let told = told.lock().unwrap().clone();
        Ok((bits(learner.model()), told, learner.steps(), launched() - before))
    };
    for (kind, weighted) in [(OptimizerKind::default(), false), (OptimizerKind::adamw(), true)] {
        let [together, apart] = [true, false].map(|graphs| run(graphs, kind, weighted).unwrap());
        assert_eq!((together.3, apart.3), (4, 0));
        assert_eq!((together.2, apart.2), (140, 140));
        assert!(together.0 == apart.0);
        assert_eq!(together.1, apart.1);
    }
    // Whoever wants to stop hears of what was made together, and of no more.
    let learner =
        Learner::with_head(Weights::random(Arch::ResNet8), data(folder.path()).batch_size(2), HeadSpec::Linear)?;
    let (learner, told) = listened(learner.device(device.clone())?);
    let mut learner = learner.callback(|event: &Event| match event {
        Event::Step { step: 3, .. } => Flow::Stop,
        _ => Flow::Continue,
    });
    learner.precompute(true);
    learner.fit(Fit::epochs(2))?;
    let steps = told.lock().unwrap().iter().filter(|told| matches!(told, Told::Step { .. })).count();
    assert_eq!((learner.steps(), steps, learner.history().len()), (64, 64, 1));
    Ok(())
}
