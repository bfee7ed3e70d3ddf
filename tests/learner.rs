//! The learner: what it trains, what it leaves alone, and that the cache never shows.

mod common;

use std::{
    fs,
    sync::{Arc, Mutex},
};

use common::learning::{Told, bits, cats_and_dogs, changed, data, folders, learner, listened, picture, timeless};
use unfreeze::{
    autograd::{Parameters, Role, Var},
    data::{Augment, LoaderOptions, Split, Transforms},
    learner::{Ensemble, Evaluation, Event, Fit, Flow, Learner, ModelFile, Tta},
    nn::{Grouping, HeadSpec, Pass, Unit},
    ops::loss::{CrossEntropy, Target, cross_entropy, softmax},
    optim::{OneCycle, OptimizerKind, Schedule},
    prelude::{Device, Precision, Tensor},
};

/// Evaluation from cached activations (where the state allows) and anew.
fn both_ways(learner: &mut Learner, split: Split) -> [Evaluation; 2] {
    [true, false].map(|on| {
        learner.precompute(on);
        learner.evaluate(split).unwrap()
    })
}

fn assert_equal([a, b]: &[Evaluation; 2]) {
    assert_eq!((a.loss.to_bits(), a.accuracy), (b.loss.to_bits(), b.accuracy));
    assert_eq!((&a.probabilities, &a.labels, &a.indices), (&b.probabilities, &b.labels, &b.indices));
}

#[test]
fn what_is_frozen_stays_bit_for_bit_and_the_rest_learns() {
    let folder = cats_and_dogs();
    type Set = fn(&mut Learner);
    let cases: [(Grouping, Set, &[usize]); 8] = [
        (Grouping::Fastai, |_| {}, &[2]),
        (Grouping::Fastai, |l| l.freeze_to(1).unwrap(), &[1, 2]),
        (Grouping::Fastai, |l| l.freeze_to(-2).unwrap(), &[1, 2]),
        (Grouping::Fastai, Learner::unfreeze, &[0, 1, 2]),
        (Grouping::Fastai, |l| l.freeze_except(0).unwrap(), &[0]),
        (Grouping::PerStage, |l| l.freeze_except(2).unwrap(), &[2]),
        (Grouping::PerBlock, |l| l.freeze_to(9).unwrap(), &[9, 10]),
        (
            Grouping::PerBlock,
            |l| {
                l.unfreeze();
                l.freeze()
            },
            &[10],
        ),
    ];
    for (grouping, set, trainable) in cases {
        let mut learner = learner(data(&folder)).grouping(grouping);
        set(&mut learner);
        let state = learner.freeze_state().clone();
        let before = bits(learner.model());
        learner.fit(Fit::epochs(1).lr(1e-2)).unwrap();
        let changed = changed(&before, &bits(learner.model()));
        let expected: Vec<&String> =
            before.keys().filter(|name| trainable.contains(&learner.model().group_of(name))).collect();
        assert_eq!(changed.iter().collect::<Vec<_>>(), expected, "{grouping:?}: {state}");
        assert_eq!(*learner.freeze_state(), state);
    }
}

#[test]
fn groups_cut_where_their_names_say() {
    let folder = cats_and_dogs();
    let cut = |grouping| {
        let learner = learner(data(&folder)).grouping(grouping);
        let group = |unit| grouping.group(learner.model().arch(), unit);
        let groups: Vec<usize> = learner.model().units().into_iter().map(group).collect();
        (groups, learner.freeze_state().names().join(" "))
    };
    assert_eq!(
        cut(Grouping::Fastai),
        (vec![0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2], "stem..layer1 layer2..layer3 head".into())
    );
    assert_eq!(
        cut(Grouping::PerStage),
        (vec![0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4], "stem layer1 layer2 layer3 head".into())
    );
    let (groups, names) = cut(Grouping::PerBlock);
    assert_eq!(groups, Vec::from_iter(0..11));
    assert!(names.starts_with("stem layer1.0 layer1.1") && names.ends_with("layer3.2 head"), "{names}");
    assert_eq!(Unit::of("layer2.1.bn1.running_mean"), Unit::Block(2, 1));
}

#[test]
fn only_explicit_calls_change_what_is_trained() {
    let (folder, other) = (cats_and_dogs(), folders(&["cat", "dog"], 2, 2, 9));
    let mut learner = learner(data(&folder));
    assert_eq!(
        learner.freeze_state().to_string(),
        "0 stem..layer1 (frozen), 1 layer2..layer3 (frozen), 2 head (trainable)"
    );
    learner.freeze_to(1).unwrap();
    let state = learner.freeze_state().clone();
    learner.precompute(true);
    learner.bn_freeze(true);
    learner.fit(Fit::epochs(1)).unwrap();
    learner.set_data(data(&other)).unwrap();
    learner.evaluate(Split::Valid).unwrap();
    for wrong in [3, -4] {
        let message = learner.freeze_to(wrong).unwrap_err().to_string();
        assert!(
            message.contains(&format!("group {wrong} does not exist; the groups are 0 stem..layer1 (frozen)")),
            "{message}"
        );
    }
    let message = learner.freeze_except(3).unwrap_err().to_string();
    assert!(message.contains("2 head (trainable)"), "{message}");
    let strangers = folders(&["cat", "horse"], 1, 1, 0);
    let message = learner.set_data(data(&strangers)).unwrap_err().to_string();
    assert!(message.contains("horse") && message.contains("dog"), "{message}");
    assert_eq!(*learner.freeze_state(), state);
}

/// fastai's first `unfreeze` after precompute=True left the backbone frozen; its `freeze_to(1)` froze the head, and
/// three learning rates were refused.
#[test]
fn precompute_changes_neither_groups_nor_what_unfreeze_does() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    learner.precompute(true);
    let rates = [1e-4, 1e-3, 1e-2];
    let record = learner.fit(Fit::epochs(1).lr(rates)).unwrap()[0].clone();
    assert!(record.cached && record.lrs == [0.0, 0.0, 1e-2], "frozen groups have no rate: {:?}", record.lrs);

    let before = bits(learner.model());
    learner.unfreeze();
    assert!(!learner.fit(Fit::epochs(1).lr(rates)).unwrap()[0].cached);
    let after = bits(learner.model());
    assert_eq!(changed(&before, &after).len(), before.len(), "everything learned, from the first unfreeze on");
    let notes = told.lock().unwrap().clone().into_iter();
    let notes: Vec<Told> = notes.filter(|told| matches!(told, Told::Note(_))).collect();
    let expected = [
        "lr: frozen groups do not learn: 0.0001 for 0 stem..layer1, 0.001 for 1 layer2..layer3 has no effect",
        "precompute is on, but the backbone is trainable: activations are computed anew",
    ];
    assert_eq!(notes, expected.map(|note| Told::Note(note.into())));

    learner.freeze_to(1).unwrap();
    learner.fit(Fit::epochs(1).lr(rates)).unwrap();
    let changed = changed(&after, &bits(learner.model()));
    assert!(
        changed.iter().any(|name| name.starts_with("head.")) && !changed.iter().any(|name| name.starts_with("layer1."))
    );
}

#[test]
fn the_cache_shows_in_no_result() {
    let folder = cats_and_dogs();
    let train = |precompute| {
        let mut learner = learner(data(&folder));
        learner.precompute(precompute);
        let cached: Vec<bool> = learner.fit(Fit::cycles(2).cycle_mult(2)).unwrap().iter().map(|r| r.cached).collect();
        assert_eq!(cached, [precompute; 3]);
        let evaluations = [Split::Train, Split::Valid].map(|split| both_ways(&mut learner, split));
        evaluations.iter().for_each(assert_equal);
        assert_eq!(evaluations[0][0].labels, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
        (bits(learner.model()), timeless(learner.history()))
    };
    assert!(train(true) == train(false), "parameters or history differ");
}

/// fastai went on with the old activations after `set_data`, after fine-tuning, and after files changed.
#[test]
fn stale_activations_are_never_served() {
    let (folder, other) = (cats_and_dogs(), folders(&["cat", "dog"], 5, 3, 7));
    let mut learner = learner(data(&folder));
    learner.precompute(true);
    learner.fit(Fit::epochs(1)).unwrap();
    let mut seen: Vec<Vec<f32>> = Vec::new();
    let mut check = |learner: &mut Learner, what: &str| {
        for split in [Split::Train, Split::Valid] {
            let evaluations = both_ways(learner, split);
            assert_equal(&evaluations);
            let [evaluation, _] = evaluations;
            assert!(!seen.contains(&evaluation.probabilities), "{what} changes what the network sees");
            seen.push(evaluation.probabilities);
        }
        learner.precompute(true);
    };
    check(&mut learner, "training");
    learner.set_data(data(&other)).unwrap();
    check(&mut learner, "other data");
    learner.set_data(data(&other).transforms(Transforms::new(18))).unwrap();
    check(&mut learner, "another size");
    learner.set_data(data(&other).transforms(Transforms::new(18).resize(20))).unwrap();
    check(&mut learner, "another crop");
    learner.set_data(data(&other).transforms(Transforms::new(18).normalise([0.5; 3], [0.5; 3]))).unwrap();
    check(&mut learner, "another normalisation");

    // Statistics alone change the features too.
    learner.freeze_except(0).unwrap();
    learner.fit(Fit::epochs(1).lr(0.0)).unwrap();
    learner.freeze();
    check(&mut learner, "new running statistics");
    learner.unfreeze();
    learner.bn_freeze(true);
    learner.fit(Fit::epochs(1).lr([1e-2, 1e-2, 0.0])).unwrap();
    learner.freeze();
    check(&mut learner, "fine-tuning");
    for split in ["train", "valid"] {
        picture(30, 0, 99).save(other.path().join(split).join("cat/0.png")).unwrap();
    }
    check(&mut learner, "a rewritten file");
    std::fs::rename(other.path().join("train/cat/0.png"), other.path().join("train/dog/9.png")).unwrap();
    let again = data(&other).transforms(Transforms::new(18));
    assert_eq!(again.items(Split::Train).iter().map(|item| item.label).sum::<u32>(), 6);
    learner.set_data(again).unwrap();
    let evaluations = both_ways(&mut learner, Split::Train);
    assert_equal(&evaluations);
}

#[test]
fn save_writes_the_whole_network_whatever_is_cached() {
    let folder = cats_and_dogs();
    let mut learner = learner(data(&folder));
    learner.precompute(true);
    learner.fit(Fit::epochs(1)).unwrap();
    let path = folder.path().join("model.safetensors");
    learner.save(&path).unwrap();
    let loaded = ModelFile::load(&path, &Device::cpu(1).unwrap()).unwrap();
    assert_eq!(bits(&loaded.model), bits(learner.model()));
}

#[test]
fn one_seed_decides_everything_and_threads_nothing() {
    let folder = cats_and_dogs();
    let train = |seed, threads| {
        let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.2);
        let learner = learner(data(&folder).transforms(transforms));
        let mut learner = learner.device(Device::cpu(threads).unwrap()).unwrap().seed(seed).unwrap();
        learner.precompute(true);
        learner.fit(Fit::epochs(1)).unwrap();
        learner.unfreeze();
        learner.fit(Fit::cycles(1).cycle_len(2).optimizer(OptimizerKind::adamw()).lr(1e-3)).unwrap();
        (bits(learner.model()), timeless(learner.history()))
    };
    let one = train(3, 1);
    assert!(one == train(3, 2) && one == train(3, 3), "another number of threads, another result");
    let other = train(4, 1);
    assert_eq!(changed(&one.0, &other.0).len(), one.0.len());
}

/// One step of SGD, against gradients from the tape: decides seed, order, views, dropout, groups at once.
#[test]
fn a_step_moves_each_group_by_its_own_rate_times_the_gradient() {
    let (folder, seed, rates) = (cats_and_dogs(), 7, [0.0, 1e-3, 1e-2]);
    let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.2);
    let data = data(&folder).transforms(transforms).batch_size(10);
    let (learner, told) = listened(learner(data).seed(seed).unwrap());
    let mut learner = learner;
    learner.unfreeze();
    let model = learner.model().clone();

    let mut loader = learner.data().loader(Split::Train, &LoaderOptions::training(seed, 0)).unwrap();
    let batch = loader.next().unwrap().unwrap();
    let device = Device::cpu(1).unwrap();
    let images = Var::constant(batch.upload(&learner.data().transforms, &device, Precision::F32).unwrap());
    let target = Target::Labels(Tensor::new(batch.labels, [10], &device).unwrap());
    let run = |seed, step| {
        let mut pass = Pass::training(seed, step);
        let logits = model.forward(&mut pass, &images).unwrap();
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default()).unwrap();
        (loss.value().scalar().unwrap(), pass.tape.backward(&loss).unwrap())
    };
    let (loss, gradients) = run(seed, 0);
    assert!(loss != run(seed + 1, 0).0 && loss != run(seed, 1).0, "dropout depends on seed and step");

    learner.fit(Fit::epochs(1).lr(rates)).unwrap();
    let first = Told::Step { epoch: 0, step: 0, loss, lrs: rates.to_vec() };
    assert!(told.lock().unwrap().contains(&first), "expected {first:?}");
    let mut after = std::collections::HashMap::new();
    learner.model().visit(&mut |parameter| {
        after.insert(parameter.name().clone(), parameter.value.to_vec::<f32>().unwrap());
    });
    let mut moved = [0; 3];
    model.visit(&mut |parameter| {
        let Some(gradient) = gradients.get(parameter.name()) else {
            return assert!(!parameter.role().is_learned(), "{} has no gradient", parameter.name());
        };
        let (before, gradient) = (parameter.value.to_vec::<f32>().unwrap(), gradient.to_vec::<f32>().unwrap());
        let group = model.group_of(parameter.name());
        for ((before, gradient), after) in before.iter().zip(&gradient).zip(&after[parameter.name()]) {
            let expected = before - rates[group] * gradient;
            assert!(
                (after - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
                "{}: {after} {expected}",
                parameter.name()
            );
            moved[group] += usize::from(after != before);
        }
    });
    assert!(moved[0] == 0 && moved[1] > 1000 && moved[2] > 1000, "{moved:?}");
}

#[test]
fn momentum_is_the_schedules() {
    let folder = cats_and_dogs();
    let run = |scheduled: Option<[f64; 3]>, own: f32| {
        let (told, mut learner) = (Arc::new(Mutex::new(Vec::new())), learner(data(&folder)));
        let list = told.clone();
        learner = learner.callback(move |event: &Event| {
            if let Event::Step { momentum, .. } = event {
                list.lock().unwrap().push(*momentum);
            }
            Flow::Continue
        });
        let shape = OneCycle { momentum: scheduled, ..OneCycle::default() };
        let kind = OptimizerKind::Sgd { momentum: own, nesterov: false, decoupled: false };
        learner.fit(Fit::epochs(2).lr(1e-2).one_cycle(shape).optimizer(kind)).unwrap();
        let told = told.lock().unwrap().clone();
        (bits(learner.model()), told)
    };
    // Two epochs of three batches.
    let constant = run(None, 0.5);
    assert_eq!(constant.1, [0.5; 6]);
    assert!(run(Some([0.5; 3]), 0.9) == constant);
    let moving = run(Some([0.95, 0.85, 0.95]), 0.9);
    assert!(moving.0 != constant.0 && moving.0 != run(None, 0.9).0);
    let schedule = Schedule::OneCycle { steps: 6, shape: OneCycle::default() };
    assert!((0..6).map(|step| schedule.at(step).momentum.unwrap() as f32).eq(moving.1));
}

#[test]
fn frozen_batchnorms_keep_statistics_and_learn_scale_and_shift() {
    let folder = cats_and_dogs();
    for first in [0, 1] {
        let mut learner = learner(data(&folder));
        learner.freeze_to(first).unwrap();
        learner.bn_freeze(true);
        let before = bits(learner.model());
        learner.fit(Fit::epochs(1)).unwrap();
        let changed = changed(&before, &bits(learner.model()));
        learner.model().visit(&mut |parameter| {
            let name = parameter.name().to_string();
            let trained = learner.model().group_of(&name) >= first as usize;
            let expected = trained && !matches!(parameter.role(), Role::RunningMean | Role::RunningVariance);
            assert_eq!(changed.contains(&name), expected, "{name}, trained from group {first}");
        });
        learner.bn_freeze(false);
        learner.fit(Fit::epochs(1)).unwrap();
        assert!(!common::learning::changed(&before, &bits(learner.model())).iter().all(|name| changed.contains(name)));
    }
}

#[test]
fn a_linear_head_trains_from_the_cache_too() {
    let folder = cats_and_dogs();
    let weights = unfreeze::checkpoint::Weights::random(unfreeze::nn::Arch::ResNet20);
    let train = |precompute| {
        let mut learner = Learner::with_head(weights.clone(), data(&folder), HeadSpec::Linear).unwrap();
        learner.precompute(precompute);
        learner.fit(Fit::epochs(2)).unwrap();
        (bits(learner.model()), timeless(learner.history()))
    };
    assert!(train(true) == train(false), "parameters or history differ");
}

#[test]
fn views_are_averaged_whether_cached_or_not() {
    let folder = cats_and_dogs();
    let augmented = || data(&folder).transforms(Transforms::new(16).augment(Augment::SideOn).max_zoom(1.1));
    let mut learner = learner(augmented());
    let tta = Tta::views(3).clean_weight(0.4);
    let [cached, anew] = [true, false].map(|on| {
        learner.precompute(on);
        learner.tta(tta, Split::Valid).unwrap()
    });
    assert_equal(&[cached.clean.clone(), anew.clean]);
    assert_equal(&[cached.averaged.clone(), anew.averaged]);
    assert_equal(&[cached.clean.clone(), learner.evaluate(Split::Valid).unwrap()]);
    // The average is that of views drawn here, which differ from one another.
    let (device, transforms) = (Device::cpu(1).unwrap(), augmented().transforms);
    let views = [0, 1, 2].map(|number| {
        let loader = learner.data().loader(Split::Valid, &Tta::loader_options(1, number)).unwrap();
        let batches = loader.map(|batch| {
            let images = batch.unwrap().upload(&transforms, &device, Precision::F32).unwrap();
            softmax(&learner.model().logits(&images).unwrap()).unwrap().to_vec::<f32>().unwrap()
        });
        batches.collect::<Vec<_>>().concat()
    });
    assert!(views[0] != views[1] && views[1] != views[2]);
    for (at, found) in cached.averaged.probabilities.iter().enumerate() {
        let augmented = views.iter().map(|view| view[at]).sum::<f32>() / 3.0;
        let expected = 0.4 * cached.clean.probabilities[at] + 0.6 * augmented;
        assert!((found - expected).abs() < 1e-6, "{at}: {found}, not {expected}");
    }
    // Nothing random, nothing to average.
    learner.set_data(data(&folder)).unwrap();
    assert!(learner.tta(tta, Split::Valid).unwrap_err().to_string().contains("augmentation"));
}

#[test]
fn snapshots_are_of_the_ends_of_cycles_and_decide_together() {
    let (folder, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let prefix = out.path().join("pets");
    let fit = || Fit::cycles(3).cycle_len(1).cycle_mult(2).lr(1e-2).snapshots(&prefix);
    let mut learner = learner(data(&folder));
    learner.fit(fit()).unwrap();
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 3);
    let last = ModelFile::load(out.path().join("pets-3.safetensors"), &Device::cpu(1).unwrap()).unwrap();
    assert!(bits(&last.model) == bits(learner.model()));
    // The first cycle alone ends on the first snapshot.
    let mut again = common::learning::learner(data(&folder));
    again.fit(Fit::cycles(1).lr(1e-2)).unwrap();
    let first = ModelFile::load(out.path().join("pets-1.safetensors"), &Device::cpu(1).unwrap()).unwrap();
    assert!(bits(&first.model) == bits(again.model()));

    let device = Device::cpu(2).unwrap();
    let ensemble = Ensemble::last(&prefix, 2, &device).unwrap();
    assert_eq!(ensemble.members().len(), 2);
    let data = learner.data();
    let loader = |_: &Transforms| data.loader(Split::Valid, &LoaderOptions::evaluation());
    let found = ensemble.evaluate(loader, None, |skipped| panic!("{skipped}")).unwrap();
    let [a, b] = [0, 1].map(|member| &found.members[member]);
    assert!(a.probabilities != b.probabilities);
    assert_eq!(b.probabilities, learner.evaluate(Split::Valid).unwrap().probabilities);
    for (mean, (a, b)) in found.averaged.probabilities.iter().zip(a.probabilities.iter().zip(&b.probabilities)) {
        assert!((mean - (a + b) / 2.0).abs() < 1e-6);
    }
    let image = picture(20, 0, 77);
    let [a, b] = [0, 1].map(|member| ensemble.members()[member].predict(&image).unwrap().probabilities[0]);
    assert!((ensemble.predict(&image).unwrap().probabilities[0] - (a + b) / 2.0).abs() < 1e-6);

    let error = Ensemble::last(&prefix, 4, &device).unwrap_err().to_string();
    assert!(error.contains("there are 3") && error.contains("pets-4"), "{error}");
    assert!(Ensemble::load(&[] as &[&std::path::Path], &device).unwrap_err().to_string().contains("no networks"));
    let other = folders(&["ant", "bee"], 2, 1, 0);
    let (strange, path) =
        (common::learning::learner(common::learning::data(&other)), out.path().join("ants.safetensors"));
    strange.save(&path).unwrap();
    let error = Ensemble::load(&[out.path().join("pets-1.safetensors"), path], &device).unwrap_err().to_string();
    assert!(error.contains("ants.safetensors") && error.contains("bee"), "{error}");
}
