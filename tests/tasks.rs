//! Images of several labels, and of numbers: from a table to predictions.

mod common;

use std::{fs, path::Path};

use common::program::unfreeze;
use serde_json::json;
use tempfile::TempDir;
use unfreeze::{
    Device,
    data::{Holdout, ImageData, RgbImage, Split, Task, Transforms},
    learner::{Classifier, Fit, Learner, Metric, Tta},
    nn::{Arch, HeadSpec},
    ops::{loss::CrossEntropy, pointwise_loss::Pointwise},
    prelude::Weights,
    random::Random,
};

const LABELS: [&str; 3] = ["red", "green", "blue"];

/// Dark noise in which each colour may be strong or not; its strengths.
fn picture(number: u64) -> (RgbImage, [f32; 3]) {
    let mut random = Random::stream(number, "tasks", &[]);
    let strengths = [0; 3].map(|_| if random.chance(0.5) { random.uniform(120.0, 180.0) } else { 0.0 });
    let mut image = RgbImage::new(17, 17);
    for pixel in image.pixels_mut() {
        pixel.0 = strengths.map(|strength| (strength + random.uniform(0.0, 40.0)) as u8);
    }
    (image, strengths)
}

/// A table of such pictures: labels where a colour is strong, or numbers.
fn table(task: Task, count: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut text = match task {
        Task::Regression => "path,red,blue,split\n".to_string(),
        _ => "path,label,split\n".into(),
    };
    for number in 0..count {
        let (image, strengths) = picture(number);
        image.save(folder.path().join(format!("{number}.png"))).unwrap();
        let split = ["train", "train", "train", "valid", "test"][number as usize % 5];
        let labels: Vec<&str> =
            LABELS.into_iter().zip(strengths).filter(|(_, s)| *s > 0.0).map(|(name, _)| name).collect();
        text += &match task {
            Task::Regression => format!("{number}.png,{},{},{split}\n", strengths[0] / 100.0, strengths[2] / 100.0),
            _ => format!("{number}.png,{},{split}\n", labels.join(" ")),
        };
    }
    fs::write(folder.path().join("labels.csv"), text).unwrap();
    folder
}

fn learner(task: Task, folder: &Path) -> Learner {
    let data = ImageData::from_csv_for(task, folder.join("labels.csv"), None).unwrap();
    let data = data.transforms(Transforms::new(16)).batch_size(8);
    let learner = Learner::with_head(Weights::random(Arch::ResNet20), data, HeadSpec::fastai(vec![16])).unwrap();
    learner.seed(1).unwrap()
}

/// A lower threshold gives more labels, in metrics as in predictions, and goes with the model.
#[test]
fn labels_are_given_from_a_threshold_on() {
    let folder = table(Task::MultiLabel, 40);
    let learner = || learner(Task::MultiLabel, folder.path());
    let found = learner().evaluate(Split::Valid).unwrap();
    let mut sorted = found.probabilities.clone();
    sorted.sort_by(f32::total_cmp);
    let threshold = sorted[sorted.len() / 4];
    let right = found.probabilities.iter().zip(&found.targets).filter(|(p, t)| (**p >= threshold) == (**t == 1.0));
    let expected = right.count() as f32 / found.probabilities.len() as f32;
    let given = found.probabilities.iter().filter(|p| **p >= threshold).count();
    assert_ne!(expected, found.accuracy);

    let mut lower = learner().label_threshold(threshold).unwrap();
    let direct = lower.evaluate(Split::Valid).unwrap();
    let file = folder.path().join("model.safetensors");
    lower.save(&file).unwrap();
    for found in [direct, found.at_threshold(threshold)] {
        assert!((found.accuracy - expected).abs() < 1e-6);
        assert_eq!(found.counts().iter().map(|label| label.predicted).sum::<usize>(), given);
    }
    let classifier = Classifier::load(&file, Device::cpu(1).unwrap()).unwrap();
    let image = RgbImage::new(16, 16);
    let prediction = classifier.predict(&image).unwrap();
    assert!(classifier.threshold() == threshold && prediction.threshold == threshold);
    let named = |from: f32| (0..3).filter(|label| prediction.probabilities[*label] >= from).collect::<Vec<_>>();
    assert_eq!(prediction.given(), named(threshold));
    assert_eq!(classifier.label_threshold(0.999).unwrap().predict(&image).unwrap().given(), named(0.999));
    for wrong in [0.0, 1.0, f32::NAN] {
        assert!(learner().label_threshold(wrong).is_err());
    }
    let folder = table(Task::Regression, 5);
    assert!(self::learner(Task::Regression, folder.path()).label_threshold(0.2).is_err());
}

/// Losses and accuracy by their definitions, from what is predicted.
#[test]
fn evaluations_equal_their_definitions() {
    for task in [Task::MultiLabel, Task::Regression] {
        let folder = table(task, 40);
        let mut learner = learner(task, folder.path());
        let found = learner.evaluate(Split::Valid).unwrap();
        let targets = learner.data().targets().unwrap();
        let (mut loss, mut right, mut errors) = (0f64, 0, 0f64);
        let classes = learner.data().classes().len();
        for (row, label) in found.probabilities.chunks(classes).zip(&found.labels) {
            for (p, t) in row.iter().zip(targets.row(*label).unwrap()) {
                let (p, t) = (f64::from(*p), f64::from(*t));
                loss -= t * p.ln() + (1.0 - t) * (1.0 - p).ln();
                right += usize::from((p >= 0.5) == (t == 1.0));
                errors += (p - t).abs();
            }
        }
        let count = (classes * found.labels.len()) as f64;
        let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5 * b.abs().max(1.0);
        match task {
            Task::Regression => {
                assert!(close(found.loss, errors / count) && found.accuracy.is_nan(), "{found:?}");
                assert!(found.metric(Metric::Accuracy).is_none() && found.metric(Metric::LogLoss).is_none());
            }
            _ => assert!(close(found.loss, loss / count) && close(found.accuracy, right as f64 / count), "{found:?}"),
        }
    }
}

#[test]
fn labels_and_numbers_are_learned() {
    for (task, metric, least) in [(Task::MultiLabel, Metric::Accuracy, 0.9), (Task::Regression, Metric::R2, 0.5)] {
        let folder = table(task, 80);
        let mut learner = learner(task, folder.path());
        learner.precompute(true);
        learner.fit(Fit::epochs(40).lr(0.05)).unwrap();
        let records = learner.history();
        assert!(records[39].train_loss < 0.6 * records[0].train_loss, "{records:?}");
        let found = learner.evaluate(Split::Valid).unwrap();
        assert!(found.metric(metric).unwrap() > least, "{task}: {:?}", found.metric(metric));
        // What is trained goes on when the backbone is too, and is the same in a file.
        learner.unfreeze();
        learner.fit(Fit::epochs(1).lr(0.001)).unwrap();
        let file = folder.path().join("model.safetensors");
        learner.save(&file).unwrap();
        let classifier = Classifier::load(&file, Device::cpu(1).unwrap()).unwrap();
        assert_eq!((classifier.task(), classifier.classes()), (task, learner.data().classes()));
        let found = learner.evaluate(Split::Test).unwrap();
        let first = &learner.data().items(Split::Test)[found.indices[0] as usize].path;
        let alone = classifier.predict_file(first).unwrap().probabilities;
        assert!(alone.iter().zip(&found.probabilities).all(|(a, b)| (a - b).abs() < 1e-4), "{alone:?}");
    }
}

#[test]
fn the_program_trains_measures_and_predicts() {
    for task in [Task::MultiLabel, Task::Regression] {
        let folder = table(task, 60);
        let (data, run) = (folder.path().join("labels.csv"), folder.path().join("run"));
        let train = format!(
            "train {{}} --task {task} --arch resnet20 --weights random --out {{}} --size 16 --batch-size 8 --epochs 6 \
             --cycles 1 --lr 0.02{}",
            if task == Task::MultiLabel { " --threshold 0.2" } else { "" }
        );
        let shown = unfreeze(&train, &[&data, &run]).succeeded().out;
        assert_eq!(shown.contains("accuracy"), task == Task::MultiLabel, "{shown}");
        let report = fs::read_to_string(run.join("report.html")).unwrap();
        assert!(report.contains("Furthest off") && !report.contains("NaN"), "{report}");
        let measured = unfreeze("evaluate {} --json", &[&run]).succeeded().objects().remove(0);
        let of_table = unfreeze("evaluate {} {} --json", &[&run, &data]).succeeded().objects().remove(0);
        assert_eq!(measured["loss"], of_table["loss"]);
        assert_eq!(measured["images"], 12);
        let key = if task == Task::MultiLabel { "f1" } else { "rmse" };
        assert!(measured["metrics"][key].is_number(), "{measured}");
        let views = unfreeze("evaluate {} --json --tta 2", &[&run]).succeeded().objects().remove(0);
        assert_eq!(views["clean"]["loss"], measured["loss"]);
        let csv = folder.path().join("out.csv");
        unfreeze("predict {} --split test --csv {}", &[&run, &csv]).succeeded();
        let text = fs::read_to_string(&csv).unwrap();
        let head = if task == Task::MultiLabel { "file,labels,blue,green,red" } else { "file,red,blue" };
        assert!(text.starts_with(head) && text.lines().count() == 13, "{text}");
        let objects = unfreeze("predict {} --split test --json", &[&run]).succeeded().objects();
        assert_eq!(objects.len(), 12);
        if task == Task::MultiLabel {
            // At the threshold of the training, in what is printed and in the table, or at another.
            let higher = unfreeze("predict {} --split test --json --threshold 0.9", &[&run]).succeeded().objects();
            for ((object, higher), line) in objects.iter().zip(&higher).zip(text.lines().skip(1)) {
                let from = |threshold: f64| {
                    let all = object["probabilities"].as_object().unwrap().iter();
                    let given = all.filter(|(_, p)| p.as_f64().unwrap() >= threshold).map(|(label, _)| label.clone());
                    given.collect::<Vec<_>>()
                };
                assert_eq!((&object["labels"], &higher["labels"]), (&json!(from(0.2)), &json!(from(0.9))));
                assert_eq!(line.split(',').nth(1), Some(from(0.2).join(" ").as_str()), "{line}");
            }
            let by = |flags| {
                let ran = unfreeze(&format!("evaluate {{}} --json {flags}"), &[&run]).succeeded();
                ran.objects()[0]["classes"].clone()
            };
            assert!(by("") == by("--threshold 0.2") && by("") != by("--threshold 0.999999"));
        }
    }
}

#[test]
fn what_is_for_single_labels_is_refused() {
    let folder = table(Task::MultiLabel, 40);
    let make = || learner(Task::MultiLabel, folder.path());
    let smooth = CrossEntropy { label_smoothing: 0.1, ..CrossEntropy::default() };
    let error = make().loss(smooth).fit(Fit::epochs(1)).unwrap_err().to_string();
    assert!(error.contains("label_smoothing") && error.contains("multi-label"), "{error}");
    assert!(make().metrics([Metric::TopK(2)]).is_err() && make().metrics([Metric::Rmse]).is_err());
    assert!(make().interpret(Split::Valid).is_err());
    assert!(make().regression_loss(Pointwise::Squared).is_err());
    let folders = common::learning::cats_and_dogs();
    let holdout = Holdout { fraction: 0.5, seed: 0 };
    let error = ImageData::open_for(Task::MultiLabel, folders.path(), Some(holdout)).unwrap_err().to_string();
    assert!(error.contains(".csv"), "{error}");
    assert!(make().tta(Tta::views(1), Split::Valid).is_err(), "nothing is random");
    let numbers = table(Task::Regression, 40);
    assert!(learner(Task::Regression, numbers.path()).regression_loss(Pointwise::Squared).is_ok());
    assert!(learner(Task::Regression, numbers.path()).regression_loss(Pointwise::Binary).is_err());
}
