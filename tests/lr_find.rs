//! The search for a learning rate: what it finds, and that it leaves no trace.

mod common;

use common::learning::{Told, bits, cats_and_dogs, data, folders, learner, listened, timeless};
use unfreeze::{
    Error,
    data::Augment,
    learner::{Event, Fit, Flow, Learner, LrFind, StepOptions},
    optim::OptimizerKind,
};

/// Thirty images of each class, which tints tell apart.
fn tinted() -> tempfile::TempDir {
    folders(&["red", "green", "blue"], 30, 2, 3)
}

/// What a search might leave behind, in comparable form: everything a later fit shows.
fn later(learner: &mut Learner) -> impl PartialEq + std::fmt::Debug + use<> {
    let history = timeless(learner.fit(Fit::epochs(2).lr(1e-2)).unwrap());
    (history, bits(learner.model()), learner.freeze_state().clone())
}

type Prepare = fn(&mut Learner);
const WAYS: [Prepare; 4] = [
    |_| {},
    |l| l.precompute(true),
    Learner::unfreeze,
    |l| {
        l.unfreeze();
        l.bn_freeze(true);
    },
];

#[test]
fn a_search_leaves_the_learner_bit_for_bit_as_it_was() {
    let folder = cats_and_dogs();
    for (way, prepare) in WAYS.iter().enumerate() {
        let fresh = |searching: bool| {
            let mut data = data(&folder);
            data.transforms = data.transforms.augment(Augment::SideOn).max_zoom(1.2);
            let mut learner = learner(data);
            prepare(&mut learner);
            learner.fit(Fit::epochs(1).lr(1e-2)).unwrap();
            let before = (bits(learner.model()), learner.history().to_vec());
            if searching {
                let found = learner.lr_find(LrFind::default().steps(12)).unwrap();
                assert_eq!(found.lrs.len(), found.losses.len());
                assert!(found.lrs.len() > 3, "{found:?}");
                assert!((bits(learner.model()), learner.history().to_vec()) == before, "way {way}");
            }
            later(&mut learner)
        };
        assert!(fresh(true) == fresh(false), "way {way}");
    }
}

#[test]
fn a_search_that_fails_is_undone_too() {
    let folder = cats_and_dogs();
    for stop in [false, true] {
        let learner = learner(data(&folder));
        let cancel = learner.cancel_token();
        let mut learner = learner.callback(move |event: &Event| match event {
            Event::Finding { step: 4, .. } if stop => Flow::Stop,
            Event::Finding { step: 4, .. } => {
                cancel.cancel();
                Flow::Continue
            }
            _ => Flow::Continue,
        });
        learner.unfreeze();
        let before = bits(learner.model());
        match learner.lr_find(LrFind::default().steps(20)) {
            Ok(found) => assert!(stop && found.lrs.len() == 5, "{found:?}"),
            Err(Error::Cancelled) => assert!(!stop),
            Err(error) => panic!("{error}"),
        }
        assert!(bits(learner.model()) == before && learner.history().is_empty());
    }
}

#[test]
fn the_suggestion_learns_and_a_hundredth_of_it_does_not() {
    let folder = tinted();
    let fresh = || {
        let mut learner = learner(data(&folder).batch_size(16));
        learner.precompute(true);
        learner
    };
    let found = fresh().lr_find(LrFind::default()).unwrap();
    let lr = found.suggestion.unwrap();
    assert!(
        (1e-3..=1.0).contains(&lr) && (1e-4..=10.0).contains(&found.steepest.unwrap()),
        "{lr} {:?}",
        found.steepest
    );
    let loss = |lr: f32| fresh().fit(Fit::epochs(6).lr(lr)).unwrap().last().unwrap().train_loss;
    let (suggested, slow) = (loss(lr), loss(lr / 100.0));
    assert!(suggested < 0.6 * slow, "{suggested} against {slow} at {lr}");
}

#[test]
fn rates_keep_their_ratios_and_all_steps_are_told() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    let find = LrFind::default().start(1e-5).end(1e-3).steps(20).ratios([0.1, 0.5, 1.0]);
    let found = learner.lr_find(find).unwrap();
    assert_eq!(found.lrs.len(), 20);
    assert!((found.lrs[0] / 1e-5 - 1.0).abs() < 1e-5 && (found.lrs[19] / 1e-3 - 1.0).abs() < 1e-5);
    // An epoch of ten images has three steps, so this search goes through several; none of its steps is a fit's.
    assert!(!told.lock().unwrap().iter().any(|told| matches!(told, Told::Step { .. } | Told::Epoch)));

    let (sender, receiver) = std::sync::mpsc::channel();
    let mut learner = common::learning::learner(data(&folder)).callback(move |event: &Event| {
        if let Event::Finding { step, steps: 20, lrs, .. } = event {
            sender.send((*step, lrs.to_vec())).unwrap();
        }
        Flow::Continue
    });
    learner
        .lr_find(LrFind::default().end(1e-3).steps(20).ratios(unfreeze::optim::PerGroup::Range(1e-4, 1e-2)))
        .unwrap();
    let rates: Vec<(usize, Vec<f32>)> = receiver.try_iter().collect();
    assert!(rates.iter().map(|(step, _)| *step).eq(0..20), "{rates:?}");
    for (_, lrs) in rates {
        assert!((lrs[2] / lrs[0] / 100.0 - 1.0).abs() < 1e-3 && (lrs[2] / lrs[1] / 10.0 - 1.0).abs() < 1e-3, "{lrs:?}");
    }
}

#[test]
fn a_search_of_one_epoch_has_its_steps() {
    let (few, many) = (cats_and_dogs(), tinted());
    let find = || LrFind::default().end(1e-3).one_epoch();
    // Ninety images by eight, the last two in a batch of their own.
    let found = learner(data(&many).batch_size(8)).lr_find(find()).unwrap();
    assert!(found.lrs.len() == 12 && (found.lrs[11] / 1e-3 - 1.0).abs() < 1e-5, "{found:?}");
    // Of two batches to a step fewer.
    let twice = find().options(StepOptions { accumulate: 2, ..StepOptions::default() });
    let message = learner(data(&many).batch_size(8)).lr_find(twice).unwrap_err().to_string();
    assert!(message.starts_with("steps: 6, those of an epoch"), "{message}");
    let message = learner(data(&few)).lr_find(find()).unwrap_err().to_string();
    assert!(message.starts_with("steps: 3, those of an epoch, is not between 10"), "{message}");
}

#[test]
fn numbers_beyond_floats_end_the_search() {
    let folder = cats_and_dogs();
    let mut searched = learner(data(&folder));
    searched.unfreeze();
    let before = bits(searched.model());
    let found = searched.lr_find(LrFind::default().end(1e30).steps(40)).unwrap();
    assert!(found.lrs.len() < 40, "{found:?}");
    assert!([&found.losses, &found.smoothed].iter().all(|values| values.iter().all(|value| value.is_finite())));
    assert!(bits(searched.model()) == before);
    // Broken from the start.
    let mut broken = data(&folder);
    broken.transforms.mean = [f32::MAX; 3];
    broken.transforms.std = [1e-30; 3];
    let message = learner(broken).lr_find(LrFind::default()).unwrap_err().to_string();
    assert!(message.contains("before any training: "), "{message}");
}

/// The rate to train with is that of the steps that will be made.
#[test]
fn steps_are_made_as_asked_for() {
    let folder = cats_and_dogs();
    for cached in [false, true] {
        let losses = |options: StepOptions| {
            let mut learner = learner(data(&folder));
            learner.precompute(cached);
            let before = bits(learner.model());
            let found = learner.lr_find(LrFind::default().end(0.1).steps(12).options(options)).unwrap();
            assert_eq!(bits(learner.model()), before);
            assert!(found.lrs.len() == 12 && (found.lrs[0], found.lrs[11]) == (1e-5, 0.1), "{:?}", found.lrs);
            found.losses
        };
        let plain = losses(StepOptions::default());
        // Averages of weights change nothing.
        assert_eq!(losses(StepOptions { ema: Some(0.9), swa: Some(1), ..StepOptions::default() }), plain);
        for options in [
            StepOptions { optimizer: OptimizerKind::adamw(), ..StepOptions::default() },
            StepOptions { clip_grad: Some(1e-3), ..StepOptions::default() },
            StepOptions { accumulate: 2, ..StepOptions::default() },
            StepOptions { mixup: Some(0.4), ..StepOptions::default() },
        ] {
            assert_ne!(losses(options.clone()), plain, "{options:?}");
        }
    }
}

#[test]
fn options_that_make_no_sense_are_named() {
    let folder = cats_and_dogs();
    let mut learner = learner(data(&folder));
    for (find, setting) in [
        (LrFind::default().steps(9), "steps: 9"),
        (LrFind::default().start(0.0), "start: 0"),
        (LrFind::default().start(f32::NAN), "start: NaN"),
        (LrFind::default().end(1e-5), "end: 0.00001"),
        (LrFind::default().end(f32::INFINITY), "end: inf"),
        (LrFind::default().ratios([1.0, 1.0]), "lr: 2 values"),
        (LrFind::default().ratios([1.0, 1.0, 0.0]), "lr: the last"),
        (LrFind::default().wd([1.0]), "wd: 1 values"),
        (LrFind::default().options(StepOptions { accumulate: 0, ..StepOptions::default() }), "accumulate: 0"),
    ] {
        let message = learner.lr_find(find).unwrap_err().to_string();
        assert!(message.starts_with(setting), "{message}");
    }
    assert!(learner.lr_find(LrFind::default().steps(10).optimizer(OptimizerKind::adamw())).is_ok());
}
