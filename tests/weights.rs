//! The checkpoints that this project trained: what they say of real images.

mod common;

use std::{fs, process::Command};

use unfreeze::{
    Device,
    data::{Item, Loader, LoaderOptions, Split, Task, find_labelled},
    learner::Classifier,
};

const CIFAR: &str = "weights/resnet20-cifar10.safetensors";

#[test]
fn the_cifar_network_classifies_images_that_it_has_not_seen() {
    let classifier = Classifier::load(CIFAR, Device::cpu(0).unwrap()).unwrap();
    assert_eq!(classifier.classes().len(), 10);
    let Some(archive) = common::shared("data/cifar10.tar.gz") else { return };
    let folder = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder.path()).arg("test").status();
    assert!(unpacked.unwrap().success());
    let found = find_labelled(folder.path(), Task::SingleLabel, classifier.classes(), Split::Test).unwrap();
    assert!(found.skipped.is_empty() && found.items.len() == 10_000);
    // A tenth of each class, in the order of names, which is random.
    let items: Vec<Item> = found.items.into_iter().step_by(10).collect();
    let order = (0..items.len() as u32).collect();
    let loader = Loader::new(items.into(), classifier.transforms(), order, 50, &LoaderOptions::evaluation()).unwrap();
    let evaluation = classifier.evaluate(loader, None, |failed| panic!("{failed}")).unwrap();
    assert!(evaluation.accuracy > 0.82, "{}", evaluation.accuracy);
}

#[test]
fn the_record_beside_it_is_of_the_run_that_made_it() {
    let history = fs::read_to_string("weights/resnet20-cifar10.history.jsonl").unwrap();
    let last: serde_json::Value = serde_json::from_str(history.lines().last().unwrap()).unwrap();
    assert!(last["epoch"] == 14 && last["metrics"]["accuracy"].as_f64().unwrap() > 0.84);
    let config: toml::Table = fs::read_to_string("weights/resnet20-cifar10.config.toml").unwrap().parse().unwrap();
    let classes: Vec<&str> = config["classes"].as_array().unwrap().iter().filter_map(|class| class.as_str()).collect();
    let classifier = Classifier::load(CIFAR, Device::cpu(1).unwrap()).unwrap();
    assert_eq!(classes, classifier.classes());
}
