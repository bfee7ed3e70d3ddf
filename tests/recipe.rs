//! What stands around the fits of a recipe: warm-ups, phases, sizes, unfreezing, what is watched.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::learning::{Told, bits, cats_and_dogs, changed, data, folders, learner, listened, timeless};
use unfreeze::{
    Error, Result,
    data::{LoaderOptions, Split, Transforms},
    learner::{
        Classifier, Course, EarlyStopping, Event, FineTune, Fit, Flow, Learner, ModelFile, Parts, Phase, Recipe,
        ReduceLrOnPlateau, SaveModel, Unfreeze,
    },
    nn::Grouping,
    optim::{Decay, FreezeOut, OptimizerKind, PerGroup, WarmUp},
    prelude::Device,
};

/// The last group's rate in each step.
fn rates(told: &[Told]) -> Vec<f32> {
    let rate = |told: &Told| match told {
        Told::Step { lrs, .. } => lrs.last().copied(),
        _ => None,
    };
    told.iter().filter_map(rate).collect()
}

fn assert_near(found: &[f32], expected: &[f64]) {
    let near = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() <= 1e-6 * expected.abs();
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?}, not {expected:?}");
}

#[test]
fn a_warm_up_leads_into_any_schedule_and_ends_before_the_fit() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    // Three steps to an epoch; the second cycle is as without a warm-up.
    learner.fit(Fit::cycles(2).lr(0.1).warm_up(WarmUp::steps(3))).unwrap();
    let half = |share: f64| 0.1 * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0;
    let expected = [0.001 * 0.25, half(1.0 / 3.0) * 0.5, half(2.0 / 3.0) * 0.75, 0.1, half(1.0 / 3.0), half(2.0 / 3.0)];
    assert_near(&rates(&told.lock().unwrap()), &expected);
    let message = learner.fit(Fit::epochs(1).warm_up(WarmUp::steps(4))).unwrap_err().to_string();
    assert!(message.starts_with("warm_up: 4 steps, but the fit has 1 epochs"), "{message}");
}

/// The rates of fastai 2's `fine_tune(2, base_lr=0.01)`, three batches to an epoch, computed apart from its definition.
#[test]
fn fine_tune_is_fastai_2s() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    learner.precompute(true);
    let options = FineTune { base_lr: 0.01, ..FineTune::epochs(2) };
    let records = learner.fine_tune(&options).unwrap();
    assert_eq!(records.iter().map(|record| record.cached).collect::<Vec<_>>(), [true, false, false]);
    let told = told.lock().unwrap();
    let head = [4.000000000e-04, 2.844104339e-03, 7.687398181e-03];
    let whole = [1.000000000e-03, 3.347296355e-03, 4.972077345e-03, 4.058733917e-03, 2.313201634e-03, 6.674136467e-04];
    assert_near(&rates(&told), &[head.as_slice(), &whole].concat());
    let last = told.iter().rev().find_map(|told| match told {
        Told::Step { lrs, .. } => Some(lrs.clone()),
        _ => None,
    });
    let last = last.unwrap();
    assert!((last[2] / last[1] - 10.0).abs() < 1e-4 && (last[1] / last[0] - 10.0).abs() < 1e-4, "{last:?}");
    assert!((0..3).all(|group| learner.freeze_state().is_trainable(group)));
    assert!(!told.iter().any(|told| matches!(told, Told::Note(_))), "{told:?}");
    let nothing = FineTune { freeze_epochs: 0, ..FineTune::epochs(0) };
    assert!(learner.fine_tune(&nothing).unwrap_err().to_string().contains("trains nothing"));
}

fn phases(learner: &Learner) -> Vec<(&str, usize)> {
    learner.history().iter().map(|record| (record.phase.as_str(), record.epoch)).collect()
}

#[test]
fn phases_have_settings_of_their_own() {
    let (folder, other) = (cats_and_dogs(), folders(&["cat", "dog"], 4, 2, 9));
    let (mut learner, told) = listened(learner(data(&folder)));
    let larger = data(&other).transforms(Transforms::new(20));
    let list = [
        Phase::epochs(1).lr(0.1).lr_to(0.01, Decay::Exponential).phase("head"),
        Phase::epochs(2).lr([1e-3, 1e-2, 0.1]).lr_to(0.0, Decay::Linear).freeze_to(1).optimizer(OptimizerKind::adamw()),
        Phase::epochs(1).lr(0.1).lr_to(0.02, Decay::Cosine).momentum(0.5).momentum_to(0.9, Decay::Polynomial(2.0)),
        Phase::epochs(1).lr(0.1).lr_to(0.02, Decay::Polynomial(2.0)).data(larger).freeze_to(-1),
    ];
    assert_eq!(learner.fit_phases(list).unwrap().len(), 5);
    assert_eq!(phases(&learner), [("head", 0), ("phase-2", 0), ("phase-2", 1), ("phase-3", 0), ("phase-4", 0)]);
    // fastai 0.7's `DecayScheduler`, by hand; the first of two batches of the last phase has no way behind it.
    let tenth = 0.1f64.powf(1.0 / 3.0);
    let cosine = |at: f64| 0.02 + 0.08 / 2.0 * (1.0 + (std::f64::consts::PI * at).cos());
    let expected = [
        &[0.1, 0.1 * tenth, 0.1 * tenth * tenth][..],
        &[0.1, 0.5 / 6.0, 0.4 / 6.0, 0.05, 0.2 / 6.0, 0.1 / 6.0],
        &[cosine(0.0), cosine(1.0 / 3.0), cosine(2.0 / 3.0)],
        &[0.1, 0.02 + 0.08 * 0.25],
    ];
    assert_near(&rates(&told.lock().unwrap()), &expected.concat());
    assert_eq!((learner.data().transforms.size, learner.data().items(Split::Train).len()), (20, 8));
    assert!(learner.freeze_state().is_head_only());

    let before = bits(learner.model());
    let strangers = data(folders(&["cat", "horse"], 1, 1, 0));
    for (phase, cause) in [
        (Phase::epochs(0), "epochs: 0"),
        (Phase::epochs(1).freeze_to(3), "group 3 does not exist"),
        (Phase::epochs(1).lr([1.0, 1.0]), "lr: 2 values"),
        (Phase::epochs(1).lr_to(0.0, Decay::Exponential), "lr: falls exponentially from 0.01 to 0"),
        (Phase::epochs(1).lr_to(f32::NAN, Decay::Linear), "lr: ends at NaN"),
        (Phase::epochs(1).lr(0.0).lr_to(0.1, Decay::Linear), "lr: the last layer group's"),
        (Phase::epochs(1).momentum(1.5), "momentum: 1.5 is not in"),
        (Phase::epochs(1).momentum_to(0.1, Decay::Polynomial(0.0)), "momentum: falls as the power 0"),
        (Phase::epochs(1).data(strangers), "horse"),
    ] {
        // One that is wrong at the end is found before the first is trained.
        let message = learner.fit_phases([Phase::epochs(1), phase]).unwrap_err().to_string();
        assert!(message.contains(cause), "{message}");
    }
    assert!(learner.fit_phases([]).is_err() && learner.history().len() == 5);
    assert!(changed(&before, &bits(learner.model())).is_empty());
}

#[test]
fn a_loss_that_runs_away_ends_all_phases() {
    let folder = cats_and_dogs();
    let mut learner = learner(data(&folder));
    let away = Phase::epochs(40).lr(1e-3).lr_to(1e3, Decay::Exponential).stop_div(true);
    let records = learner.fit_phases([Phase::epochs(1), away, Phase::epochs(1)]).unwrap();
    assert!((3..41).contains(&records.len()) && records.last().unwrap().phase == "phase-2", "{records:?}");
    let lowest = records[1..].iter().map(|record| record.train_loss).fold(f32::INFINITY, f32::min);
    assert!(records.last().unwrap().train_loss > 2.0 * lowest, "{records:?}");
}

#[test]
fn gradual_unfreezing_adds_a_group_at_a_time() {
    let folder = cats_and_dogs();
    let trained = |learner: &Learner| -> Vec<(String, usize)> {
        let trained = |lrs: &[f32]| lrs.iter().filter(|lr| **lr > 0.0).count();
        learner.history().iter().map(|record| (record.phase.clone(), trained(&record.lrs))).collect()
    };
    let recipe = |parts, freeze_to| Recipe {
        parts,
        freeze_to,
        epochs: 1,
        cycles: 1,
        unfreeze: Unfreeze::Gradual,
        ..Recipe::default()
    };
    for (parts, freeze_to, expected) in [
        (
            Parts::Full,
            0,
            &[("head", 1), ("unfreeze layer3", 2), ("unfreeze layer2", 3), ("unfreeze layer1", 4), ("finetune", 5)][..],
        ),
        (Parts::Finetune, 2, &[("unfreeze head", 1), ("unfreeze layer3", 2), ("finetune", 3)]),
        (Parts::Full, 3, &[("head", 1), ("finetune", 2)]),
    ] {
        let mut learner = learner(data(&folder)).grouping(Grouping::PerStage);
        learner.run(&recipe(parts, freeze_to), |_| Ok(())).unwrap();
        let expected: Vec<(String, usize)> = expected.iter().map(|(name, count)| (name.to_string(), *count)).collect();
        assert_eq!(trained(&learner), expected);
    }
    let mut learner = learner(data(&folder));
    let message = learner.gradual_unfreeze(0, 1, &Fit::epochs(1)).unwrap_err().to_string();
    assert!(message.contains("group 0 comes before 1"), "{message}");
    assert!(learner.gradual_unfreeze(3, 1, &Fit::epochs(1)).unwrap_err().to_string().contains("group 3"));
}

#[test]
fn sizes_follow_each_other_and_the_last_one_stays() {
    let folder = cats_and_dogs();
    let mut images = data(&folder);
    images.transforms = Transforms::new(20).resize(25);
    let mut learner = learner(images).grouping(Grouping::PerStage);
    let prefix = folder.path().join("snapshot");
    let recipe = Recipe {
        epochs: 1,
        cycles: 1,
        freeze_to: 2,
        sizes: vec![16, 20, 24],
        snapshots: Some(prefix),
        ..Recipe::default()
    };
    let mut sizes = Vec::new();
    learner
        .run(&recipe, |learner| {
            sizes.push((learner.data().transforms.size, learner.data().transforms.resize));
            Ok(())
        })
        .unwrap();
    assert_eq!(phases(&learner), [("head", 0), ("finetune-16", 0), ("finetune-20", 0), ("finetune-24", 0)]);
    assert_eq!(sizes, [(16, 20), (16, 20), (20, 25), (24, 30)]);
    assert!(!learner.freeze_state().is_trainable(1) && learner.freeze_state().is_trainable(2));
    assert!(learner.history()[1..].iter().all(|record| record.lrs[1] == 0.0 && record.lrs[2] > 0.0));
    let file = folder.path().join("snapshot-1.safetensors");
    let saved = ModelFile::load(&file, &Device::cpu(1).unwrap()).unwrap();
    assert_eq!((saved.transforms.size, saved.transforms.resize), (24, 30), "snapshots are of the last size");
    assert!(!folder.path().join("snapshot-2.safetensors").exists());

    // Weights, groups and what is frozen are those of the size before.
    let (before, state) = (bits(learner.model()), learner.freeze_state().clone());
    learner.set_size(32);
    assert!(changed(&before, &bits(learner.model())).is_empty() && *learner.freeze_state() == state);
    let none = Recipe { sizes: vec![16, 0], ..Recipe::default() };
    assert!(learner.run(&none, |_| Ok(())).unwrap_err().to_string().contains("size: 0"));

    let mut head = common::learning::learner(data(&folder));
    let recipe = Recipe { parts: Parts::Head, epochs: 1, sizes: vec![16, 20], ..Recipe::default() };
    head.run(&recipe, |_| Ok(())).unwrap();
    assert_eq!(phases(&head), [("head-16", 0), ("head-20", 0)]);
    assert!(head.history().iter().all(|record| record.cached));
}

#[test]
fn fits_are_watched_and_the_best_epoch_is_kept() {
    let folder = cats_and_dogs();
    let best = folder.path().join("best.safetensors");
    let (watched, told) = listened(learner(data(&folder)));
    let mut watched = watched.save_best(SaveModel::new(&best)).unwrap();
    watched.fit(Fit::epochs(2).lr(0.01)).unwrap();
    let losses = |learner: &Learner| -> Vec<f32> { learner.history().iter().map(|record| record.valid_loss).collect() };
    // None is better by so much than the first.
    let much = EarlyStopping { patience: 2, min_delta: 9.0, ..EarlyStopping::default() };
    let fit = Fit::epochs(6).lr(0.01).early_stopping(much);
    assert_eq!(watched.fit(fit).unwrap().len(), 3);
    let plateau = ReduceLrOnPlateau { factor: 2.0, min_lr: 3e-9, min_delta: 9.0, ..ReduceLrOnPlateau::default() };
    told.lock().unwrap().clear();
    watched.fit(Fit::epochs(4).lr(1e-8).reduce_on_plateau(plateau)).unwrap();
    let expected: Vec<f64> = [1e-8, 1e-8, 5e-9, 3e-9].into_iter().flat_map(|lr| [lr; 3]).collect();
    assert_near(&rates(&told.lock().unwrap()), &expected);

    let losses = losses(&watched);
    let lowest = losses.iter().copied().fold(f32::INFINITY, f32::min);
    let kept = Classifier::load(&best, Device::cpu(1).unwrap()).unwrap();
    let loader = data(&folder).loader(Split::Valid, &LoaderOptions::evaluation()).unwrap();
    let again = kept.evaluate(loader, None, |_| {}).unwrap().loss;
    assert!((again - lowest).abs() < 1e-5, "{again} {losses:?}");

    let odd = EarlyStopping { monitor: "f1".into(), ..EarlyStopping::default() };
    let message = watched.fit(Fit::epochs(1).early_stopping(odd)).unwrap_err().to_string();
    assert!(message.contains("'f1' is not recorded; give one of train_loss, valid_loss, accuracy"), "{message}");
    assert!(learner(data(&folder)).save_best(SaveModel { monitor: "x".into(), ..SaveModel::new("best") }).is_err());
}

/// A learner whose fit ends after so many steps.
fn ended(folder: &tempfile::TempDir, fit: &Fit, precompute: bool, steps: u64) -> Learner {
    let seen = AtomicU64::new(0);
    let mut learner = learner(data(folder)).callback(move |event: &Event| match event {
        Event::Step { .. } if seen.fetch_add(1, Ordering::SeqCst) + 1 == steps => Flow::Stop,
        _ => Flow::Continue,
    });
    learner.unfreeze();
    learner.precompute(precompute);
    learner.fit(fit.clone()).unwrap();
    learner
}

#[test]
fn layers_are_frozen_one_after_the_other() {
    let folder = cats_and_dogs();
    // Twelve steps; groups end at .25, .625 and 1: group 0 makes three steps, group 1 eight.
    let options = "linear:0.25:unscaled".parse::<FreezeOut>().unwrap();
    let fit = Fit::epochs(4).lr(0.1).freeze_out(options);
    let [three, four, eight, nine, all] = [3, 4, 8, 9, 99].map(|steps| ended(&folder, &fit, false, steps));
    let group = |learner: &Learner, before: &Learner| {
        let changed = changed(&bits(before.model()), &bits(learner.model()));
        let mut groups: Vec<usize> = changed.iter().map(|name| learner.model().group_of(name)).collect();
        groups.dedup();
        groups.sort_unstable();
        groups.dedup();
        groups
    };
    // Parameters and running statistics alike.
    assert_eq!((group(&four, &three), group(&eight, &four)), (vec![1, 2], vec![1, 2]));
    assert_eq!((group(&nine, &eight), group(&all, &nine)), (vec![2], vec![2]));
    assert_eq!(all.history().len(), 4);
    let lrs = &all.history()[0].lrs;
    let course = |end: f64| 0.1 * 0.5 * (1.0 + (std::f64::consts::PI * (2.0 / 12.0) / end).cos());
    assert_near(lrs, &[course(0.25), course(0.625), course(1.0)]);
    assert_eq!(all.history()[3].lrs[..2], [0.0, 0.0]);
    assert!((0..3).all(|group| all.freeze_state().is_trainable(group)), "as before the fit");
    // What is frozen is cached, where that is asked for: from the second epoch on the first group, then the second too.
    let cached = ended(&folder, &fit, true, 99);
    assert_eq!(cached.history().iter().map(|record| record.cached).collect::<Vec<_>>(), [false, true, true, true]);

    let mut learner = learner(data(&folder));
    for fit in [Fit::cycles(2).freeze_out(options), Fit::epochs(1).flat_cosine(0.5, 10.0).freeze_out(options)] {
        assert!(learner.fit(fit).unwrap_err().to_string().starts_with("freeze_out: "));
    }
    let recipe = Recipe { freeze_out: Some(options), schedule: Course::OneCycle, ..Recipe::default() };
    assert!(recipe.validate(&learner).unwrap_err().to_string().starts_with("freeze_out: "));
}

type Program = fn(&mut Learner, &tempfile::TempDir) -> Result<()>;

/// What has a memory over epochs, sizes or phases.
const PROGRAMS: [Program; 5] = [
    |learner, other| {
        let larger = data(other).transforms(Transforms::new(20));
        let watched = EarlyStopping { min_delta: 0.5, patience: 2, ..EarlyStopping::default() };
        learner.fit(Fit::epochs(4).lr(1e-3).early_stopping(watched))?;
        learner
            .fit_phases([
                Phase::epochs(1).lr(1e-2).lr_to(1e-3, Decay::Cosine),
                Phase::epochs(2).lr(1e-3).freeze_to(1).data(larger),
            ])
            .map(drop)
    },
    |learner, _| {
        let sizes = vec![16, 20];
        let recipe =
            Recipe { epochs: 2, cycles: 1, warm_up: 0.5, unfreeze: Unfreeze::Gradual, sizes, ..Recipe::default() };
        learner.run(&recipe, |_| Ok(()))
    },
    |learner, _| {
        learner.unfreeze();
        learner.precompute(true);
        learner.fit(Fit::epochs(4).lr(0.1).freeze_out("cubic:0.5".parse()?)).map(drop)
    },
    |learner, _| {
        let plateau = ReduceLrOnPlateau { min_delta: 0.5, ..ReduceLrOnPlateau::default() };
        learner.fit(Fit::epochs(4).lr(PerGroup::All(1e-2)).reduce_on_plateau(plateau))?;
        learner.fine_tune(&FineTune::epochs(2)).map(drop)
    },
    |learner, _| {
        let away = Phase::epochs(9).lr(0.01).lr_to(1e4, Decay::Exponential).stop_div(true);
        learner.fit_phases([away, Phase::epochs(1)]).map(drop)
    },
];

#[test]
fn programs_cancelled_at_any_step_go_on_bit_for_bit() {
    let (images, other) = (cats_and_dogs(), folders(&["cat", "dog"], 4, 2, 9));
    for (number, program) in PROGRAMS.iter().enumerate() {
        let mut whole = learner(data(&images));
        program(&mut whole, &other).unwrap();
        let steps = whole.steps();
        // Of an epoch's three steps each is met; every seventh moment will do, the last one among them.
        for cancelled_at in (0..steps).rev().step_by(7) {
            let folder = tempfile::tempdir().unwrap();
            let first = learner(data(&images)).checkpoints(folder.path());
            let (token, seen) = (first.cancel_token(), AtomicU64::new(0));
            let mut first = first.callback(move |event: &Event| {
                if matches!(event, Event::Step { .. }) && seen.fetch_add(1, Ordering::SeqCst) == cancelled_at {
                    token.cancel();
                }
                Flow::Continue
            });
            let outcome = program(&mut first, &other);
            assert!(matches!(outcome, Ok(()) | Err(Error::Cancelled)), "{outcome:?}");
            let mut second = learner(data(&images)).checkpoints(folder.path());
            if Learner::can_resume(folder.path()) {
                second.resume(folder.path()).unwrap();
            }
            program(&mut second, &other).unwrap();
            assert_eq!(timeless(second.history()), timeless(whole.history()), "program {number}, step {cancelled_at}");
            assert!(bits(second.model()) == bits(whole.model()), "program {number}, step {cancelled_at}");
            assert_eq!(second.data().transforms, whole.data().transforms);
        }
    }
}

#[test]
fn a_phase_that_goes_on_with_other_images_is_refused() {
    let (images, other, folder) = (cats_and_dogs(), folders(&["cat", "dog"], 4, 2, 9), tempfile::tempdir().unwrap());
    let list = |second: &tempfile::TempDir| [Phase::epochs(1), Phase::epochs(2).data(data(second))];
    let mut begun = learner(data(&images)).checkpoints(folder.path());
    begun.fit_phases(list(&other)).unwrap();
    let mut again = learner(data(&images));
    again.resume(folder.path()).unwrap();
    let message = again.fit_phases(list(&images)).unwrap_err().to_string();
    assert!(message.starts_with("resume: the images of fit 1, 'phase-2', are not those"), "{message}");
}
