//! How fits end, well and badly; model files and weights.

mod common;

use std::{collections::BTreeMap, fs, sync::Arc, thread};

use common::learning::{Told, bits, cats_and_dogs, changed, data, learner, listened};
use tempfile::TempDir;
use unfreeze::{
    Device, Error,
    autograd::Parameters,
    checkpoint::{Checkpoint, FileTensor, Weights, collect, write_safetensors},
    data::{Split, shuffled},
    learner::{Classifier, Event, Fit, Flow, Learner, ModelFile},
    nn::{Arch, HeadSpec, Model},
};

fn lrs_of_steps(told: &[Told]) -> Vec<(usize, f32)> {
    let step = |told: &Told| match told {
        Told::Step { epoch, lrs, .. } => Some((*epoch, lrs[2])),
        _ => None,
    };
    told.iter().filter_map(step).collect()
}

/// Cuts a file in half: it still starts as an image does.
fn damage(path: impl AsRef<std::path::Path>) {
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn cycles_set_epochs_and_rates() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    let fit = Fit::cycles(2).cycle_len(1).cycle_mult(2).lr(0.1).phase("cycles");
    let records = learner.fit(fit).unwrap().to_vec();
    let labels: Vec<_> = records.iter().map(|record| (record.phase.as_str(), record.epoch)).collect();
    assert_eq!(labels, [("cycles", 0), ("cycles", 1), ("cycles", 2)]);
    // Three steps in the first cycle, six in the second; the first twentieth runs at a hundredth.
    let half_cosine = |share: f64| (0.1f32 as f64 * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0) as f32;
    let first = [0.001, half_cosine(1.0 / 3.0), half_cosine(2.0 / 3.0)];
    let expected: Vec<f32> = first.into_iter().chain((0..6).map(|step| half_cosine(f64::from(step) / 6.0))).collect();
    let steps = lrs_of_steps(&told.lock().unwrap());
    assert_eq!(steps.iter().map(|step| step.0).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    for ((_, lr), expected) in steps.iter().zip(&expected) {
        assert!((lr - expected).abs() < 1e-7, "{steps:?} {expected:?}");
    }
    for (record, last) in records.iter().zip([2, 5, 8]) {
        assert_eq!(record.lrs, [0.0, 0.0, steps[last].1], "frozen groups have no rate");
    }
}

/// Two of ten images are broken: the cache holds eight, so an epoch has two steps instead of three.
#[test]
fn cycles_restart_where_an_epoch_does_though_images_are_missing() {
    let folder = cats_and_dogs();
    damage(folder.path().join("train/cat/0.png"));
    damage(folder.path().join("train/dog/4.png"));
    for precompute in [true, false] {
        let (mut learner, told) = listened(learner(data(&folder)));
        learner.precompute(precompute);
        learner.fit(Fit::cycles(2).lr(0.1)).unwrap();
        let told = told.lock().unwrap();
        let start = lrs_of_steps(&told).into_iter().find(|(epoch, _)| *epoch == 1).unwrap();
        assert_eq!(start.1, 0.1, "precompute {precompute}");
        for name in ["cat/0.png", "dog/4.png"] {
            let notes = told.iter().filter(|told| matches!(told, Told::Note(text) if text.contains(name))).count();
            assert_eq!(notes, 1, "{name} is reported once");
        }
    }
}

#[test]
fn wrong_settings_are_refused_before_anything_is_trained() {
    let folder = cats_and_dogs();
    let (mut learner, told) = listened(learner(data(&folder)));
    let before = bits(learner.model());
    for (fit, cause) in [
        (Fit::epochs(1).lr([1e-3, 1e-2]), "lr: 2 values given for 3 layer groups (0 stem..layer1 (frozen), 1"),
        (Fit::epochs(1).wd(vec![0.1; 4]), "wd: 4 values given for 3 layer groups (0 stem..layer1 (frozen), 1"),
        (Fit::epochs(1).lr(-1.0), "-1 is not a rate"),
        (Fit::epochs(1).lr(f32::NAN), "NaN is not a rate"),
        (Fit::epochs(0), "at least 1"),
        (Fit::cycles(usize::MAX).cycle_len(2), "more than"),
    ] {
        let error = learner.fit(fit).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }) && error.to_string().contains(cause), "{error}");
    }
    for batch_size in [0, 1] {
        learner.set_data(data(&folder).batch_size(batch_size)).unwrap();
        let message = learner.fit(Fit::epochs(1)).unwrap_err().to_string();
        assert!(message.contains("batch_size") && message.contains("2 or more"), "{message}");
    }
    assert!(learner.history().is_empty() && told.lock().unwrap().is_empty());
    assert!(changed(&before, &bits(learner.model())).is_empty());
}

#[test]
fn callbacks_and_tokens_end_a_fit() {
    let folder = cats_and_dogs();
    let counted = |stop: fn(&Event) -> bool| {
        let steps = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = steps.clone();
        let mut learner = learner(data(&folder)).callback(move |event: &Event| {
            let step = matches!(event, Event::Step { .. });
            counter.fetch_add(usize::from(step), std::sync::atomic::Ordering::SeqCst);
            if stop(event) { Flow::Stop } else { Flow::Continue }
        });
        let epochs = learner.fit(Fit::epochs(3)).unwrap().len();
        (epochs, steps.load(std::sync::atomic::Ordering::SeqCst))
    };
    assert_eq!(counted(|_| false), (3, 9));
    assert_eq!(counted(|event| matches!(event, Event::Step { epoch: 1, step: 1, .. })), (2, 5));
    assert_eq!(counted(|event| matches!(event, Event::Epoch(record) if record.epoch == 0)), (1, 3));

    for precompute in [false, true] {
        let learner = learner(data(&folder));
        let token = learner.cancel_token();
        let mut learner = learner.callback(move |event: &Event| {
            if matches!(event, Event::Step { epoch: 1, .. }) {
                let token = token.clone();
                thread::spawn(move || token.cancel()).join().unwrap();
            }
            Flow::Continue
        });
        learner.precompute(precompute);
        assert!(matches!(learner.fit(Fit::epochs(3)), Err(Error::Cancelled)));
        assert_eq!(learner.history().len(), 1, "the epoch that was finished");
    }
}

#[test]
fn divergence_names_the_place_and_is_never_recorded() {
    let folder = cats_and_dogs();
    // With one step to an epoch, only the validation can notice.
    for (batch_size, precompute) in [(4, false), (4, true), (10, false), (10, true)] {
        let mut learner = learner(data(&folder).batch_size(batch_size));
        learner.precompute(precompute);
        let error = learner.fit(Fit::epochs(1).lr(1e38).phase("boom")).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Diverged(_)) && message.contains("phase 'boom'"), "{message}");
        assert!(message.contains("epoch 0, step 1") && message.contains("lower the learning rate"), "{message}");
        assert!(message.contains("head"), "the layer is named: {message}");
        assert!(learner.history().is_empty());
    }
}

#[test]
fn broken_images_are_left_out_unless_all_are() {
    let folder = cats_and_dogs();
    for split in ["valid", "train"] {
        for class in ["cat", "dog"] {
            for entry in fs::read_dir(folder.path().join(split).join(class)).unwrap() {
                damage(entry.unwrap().path());
            }
        }
        for precompute in [false, true] {
            let mut learner = learner(data(&folder));
            learner.precompute(precompute);
            let error = learner.fit(Fit::epochs(1)).unwrap_err();
            assert!(matches!(error, Error::Data { .. }) && error.to_string().contains("could be decoded"), "{error}");
            assert!(learner.history().is_empty());
        }
    }
    let mut learner = learner(data(&folder).strict(true).unwrap());
    let message = learner.fit(Fit::epochs(1)).unwrap_err().to_string();
    assert!(message.contains("train") && message.contains(".png"), "{message}");
}

/// Batches are fetched a step ahead: what is wrong with one is told no sooner than its step.
#[test]
fn a_broken_image_shows_in_the_step_of_its_batch() {
    let folder = cats_and_dogs();
    // The learner's seed is 1; five cats, five dogs; batches of four, four and two.
    let index = shuffled(10, 1, 0)[4];
    damage(folder.path().join(format!("train/{}/{}.png", ["cat", "dog"][index as usize / 5], index % 5)));

    let (mut lax, told) = listened(learner(data(&folder)));
    lax.fit(Fit::epochs(1)).unwrap();
    let told = told.lock().unwrap().clone();
    assert!(matches!(told[0], Told::Step { step: 0, .. }), "{told:?}");
    assert!(matches!(&told[1], Told::Note(note) if note.contains("skipped")), "{told:?}");
    assert!(matches!(told[2], Told::Step { step: 1, .. }), "{told:?}");

    let (mut strict, told) = listened(learner(data(&folder).strict(true).unwrap()));
    assert!(matches!(strict.fit(Fit::epochs(1)), Err(Error::Image { .. })));
    assert_eq!(lrs_of_steps(&told.lock().unwrap()).len(), 1);

    let stop = |event: &Event| match event {
        Event::Step { step: 0, .. } => Flow::Stop,
        _ => Flow::Continue,
    };
    let mut stopped = learner(data(&folder).strict(true).unwrap()).callback(stop);
    assert_eq!(stopped.fit(Fit::epochs(1)).unwrap().len(), 1);
}

#[test]
fn a_single_leftover_sample_joins_the_batch_before() {
    let folder = cats_and_dogs();
    for precompute in [false, true] {
        let (mut learner, told) = listened(learner(data(&folder).batch_size(3)));
        learner.precompute(precompute);
        learner.unfreeze();
        learner.fit(Fit::epochs(1)).unwrap();
        assert_eq!(lrs_of_steps(&told.lock().unwrap()).len(), 3);
    }
}

/// A trained learner's file.
fn trained(folder: &TempDir) -> (Learner, std::path::PathBuf) {
    let mut learner = learner(data(folder));
    learner.unfreeze();
    learner.fit(Fit::epochs(1)).unwrap();
    let path = folder.path().join("model.safetensors");
    learner.save(&path).unwrap();
    (learner, path)
}

#[test]
fn a_classifier_answers_as_the_learner_does_from_any_batch_and_thread() {
    let folder = cats_and_dogs();
    let (mut learner, path) = trained(&folder);
    let expected = learner.evaluate(Split::Valid).unwrap().probabilities;
    let classifier = Classifier::load(&path, Device::cpu(2).unwrap()).unwrap();
    assert_eq!(classifier.classes(), ["cat", "dog"]);
    let files: Vec<_> = learner.data().items(Split::Valid).iter().map(|item| item.path.clone()).collect();
    let answer = || -> Vec<f32> {
        let predict = |file| classifier.predict_file(file).unwrap();
        files
            .iter()
            .map(predict)
            .flat_map(|prediction| {
                let best = prediction.top(1)[0];
                assert_eq!(prediction.class, classifier.classes()[best]);
                assert_eq!(prediction.probability, prediction.probabilities[best]);
                prediction.probabilities
            })
            .collect()
    };
    assert_eq!(answer(), expected);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(answer)).collect();
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), expected));
    });
}

#[test]
fn model_files_that_lie_are_errors() {
    let folder = cats_and_dogs();
    let (_, path) = trained(&folder);
    let good = Checkpoint::read(&path).unwrap();
    let load = |metadata: &BTreeMap<String, String>| {
        let path = folder.path().join("bad.safetensors");
        write_safetensors(&path, &good.tensors, metadata).unwrap();
        let error = ModelFile::load(&path, &Device::cpu(1).unwrap()).expect_err("a bad file").to_string();
        assert!(error.contains("bad.safetensors"), "{error}");
        error
    };
    let huge = r#"{"kind":"fastai","hidden":[1099511627776],"dropout":[0.5]}"#;
    let larger = r#"{"kind":"fastai","hidden":[65536],"dropout":[0.5]}"#;
    let many = serde_json::json!(vec!["x"; 100_000]).to_string();
    for (key, value, cause) in [
        ("format_version", "2", "is of format 2, later than this program's 1"),
        ("format_version", "x", "format_version"),
        ("arch", "alexnet", "'alexnet' is unknown"),
        ("arch", "resnet32", "a tensor layer1.3.conv1.weight of [16, 16, 3, 3], but there is none"),
        ("head", huge, "hidden"),
        ("head", larger, "head.3.weight of [65536, 128]"),
        ("head", r#"{"kind":"linear"}"#, "fc.weight of [2, 64]"),
        ("head", r#"{"kind":"fastai","hidden":[8],"dropout":[]}"#, "dropout"),
        ("head", r#"{"kind":"fastai","hidden":[8],"dropout":[1.5]}"#, "dropout"),
        ("head", "not json", "head"),
        ("classes", "[]", "no classes"),
        ("classes", &many, "of [100000, 8]"),
        ("classes", "cat", "classes"),
        ("size", "0", "size"),
        ("size", "1e30", "size"),
        ("resize", "5", "resize"),
        ("std", "[0,1,1]", "std"),
        ("mean", "[1,2]", "mean"),
    ] {
        let mut metadata = good.metadata.clone();
        metadata.insert(key.into(), value.into());
        let message = load(&metadata);
        assert!(message.contains(cause), "{key} = {value:.40}: {message}");
        metadata.remove(key);
        let message = load(&metadata);
        assert!(message.contains(key) && message.contains("not a model trained by"), "{key}: {message}");
    }
}

#[test]
fn the_architecture_is_told_from_the_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::cpu(0).unwrap();
    use Arch::{ResNet18, ResNet20, ResNet32, ResNet44, ResNet50, ResNet56, ResNext50_32x4d};
    for arch in [ResNet18, ResNet20, ResNet32, ResNet44, ResNet56, ResNet50, ResNext50_32x4d] {
        let path = folder.path().join("weights.safetensors");
        let mut tensors = collect(&Model::new(arch, HeadSpec::Linear, 3, 1, &device).unwrap()).unwrap();
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let weights = Weights::file(&path).unwrap();
        assert_eq!(weights.arch(), arch);
        assert_eq!(weights.with_classifier(&device).unwrap().head.classes(), 3);
        // A new head is new, whatever the checkpoint's own has for a name and number of classes.
        let heads = [(HeadSpec::Linear, 2), (HeadSpec::Linear, 3), (HeadSpec::default(), 2)];
        for (head, classes) in heads.into_iter().take(if arch == ResNet20 { 3 } else { 0 }) {
            let [ours, fresh] = [&weights, &Weights::random(arch)]
                .map(|weights| bits(&weights.with_head(head.clone(), classes, 5, &device).unwrap()));
            let same: Vec<_> =
                ours.keys().filter(|name| name.starts_with("fc.") || name.starts_with("head.")).collect();
            assert!(
                same.iter().all(|name| ours[*name] == fresh[*name]) && ours["conv1.weight"] != fresh["conv1.weight"]
            );
        }
        let other = if arch == ResNet18 { ResNet20 } else { ResNet18 };
        let message = Weights::file_of(other, &path).unwrap_err().to_string();
        assert!(message.contains(&format!("of {arch}, not of {other}; use --arch {arch}")), "{message}");

        tensors.retain(|name, _| !name.starts_with("fc."));
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let backbone = Weights::file_of(arch, &path).unwrap();
        let model = backbone.with_head(HeadSpec::default(), 2, 0, &device).unwrap();
        let mut compared = 0;
        model.backbone.visit(&mut |parameter| {
            compared += usize::from(tensors.contains_key(&**parameter.name()));
        });
        assert_eq!(compared, tensors.len());
        let message = backbone.with_classifier(&device).unwrap_err().to_string();
        assert!(message.contains("no classifier of its own"), "{message}");
    }
    let path = folder.path().join("weights.safetensors");
    let tensor = FileTensor::from_f32(vec![1], vec![1.0]).unwrap();
    write_safetensors(&path, &BTreeMap::from([("x".into(), tensor)]), &BTreeMap::new()).unwrap();
    let message = Weights::file(&path).unwrap_err().to_string();
    assert!(message.contains("none of the known architectures"), "{message}");
}
