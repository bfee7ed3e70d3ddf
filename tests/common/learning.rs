//! Small image folders, a small learner on them, and what is compared of it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use unfreeze::{
    autograd::Parameters,
    checkpoint::Weights,
    data::{ImageData, RgbImage, Transforms},
    learner::{EpochRecord, Event, Flow, Learner},
    nn::{Arch, HeadSpec, Model},
    prelude::Device,
    random::Random,
};

/// Noise of a class's tint, so that classes can be told apart and no two images are equal. Square: of others, training
/// sees a random crop even without augmentation.
pub fn picture(side: u32, label: usize, seed: u64) -> RgbImage {
    let mut random = Random::stream(seed, "picture", &[label as u64]);
    let mut image = RgbImage::new(side, side);
    for pixel in image.pixels_mut() {
        pixel.0 = [random.uniform(0.0, 160.0) as u8; 3];
        pixel.0[label % 3] += 80;
    }
    image
}

/// `train/CLASS/N.png` and `valid/CLASS/N.png`, so many per class.
pub fn folders(classes: &[&str], train: usize, valid: usize, seed: u64) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (label, class) in classes.iter().enumerate() {
        for (split, count) in [("train", train), ("valid", valid)] {
            let folder = root.path().join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            for n in 0..count {
                let seed = seed * 1000 + n as u64 + if split == "valid" { 500 } else { 0 };
                picture(17 + n as u32 % 4, label, seed).save(folder.join(format!("{n}.png"))).unwrap();
            }
        }
    }
    root
}

/// Ten training and six validation images of two classes.
pub fn cats_and_dogs() -> TempDir {
    folders(&["cat", "dog"], 5, 3, 0)
}

/// Sixteen pixels, batches of four.
pub fn data(root: impl AsRef<Path>) -> ImageData {
    ImageData::from_folders(root).unwrap().transforms(Transforms::new(16)).batch_size(4)
}

/// A random ResNet-20 with a small head.
pub fn learner(data: ImageData) -> Learner {
    learner_of(Arch::ResNet20, data, &Device::cpu(2).unwrap())
}

/// A random network with a small head.
pub fn learner_of(arch: Arch, data: ImageData, device: &Device) -> Learner {
    let learner = Learner::with_head(Weights::random(arch), data, HeadSpec::fastai(vec![8])).unwrap();
    learner.device(device.clone()).and_then(|learner| learner.seed(1)).unwrap()
}

/// A random network with a linear head.
pub fn linear_head(arch: Arch, data: ImageData, device: &Device) -> Learner {
    let learner = Learner::with_head(Weights::random(arch), data, HeadSpec::Linear).unwrap();
    learner.device(device.clone()).and_then(|learner| learner.seed(1)).unwrap()
}

/// The bits of every parameter and statistic, by name.
pub fn bits(model: &Model) -> BTreeMap<String, Vec<u32>> {
    let mut bits = BTreeMap::new();
    model.visit(&mut |parameter| {
        let values = parameter.value.to_vec::<f32>().unwrap();
        bits.insert(parameter.name().to_string(), values.into_iter().map(f32::to_bits).collect());
    });
    bits
}

/// Names of what differs.
pub fn changed(before: &BTreeMap<String, Vec<u32>>, after: &BTreeMap<String, Vec<u32>>) -> Vec<String> {
    assert!(before.keys().eq(after.keys()));
    before.iter().filter(|(name, bits)| after[*name] != **bits).map(|(name, _)| name.clone()).collect()
}

/// A history without what no two runs share: how long it took, and whether the cache was used.
pub fn timeless(history: &[EpochRecord]) -> Vec<EpochRecord> {
    let clear =
        |record: &EpochRecord| EpochRecord { seconds: 0.0, images_per_second: 0.0, cached: false, ..record.clone() };
    history.iter().map(clear).collect()
}

/// What a learner told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Step { epoch: usize, step: usize, loss: f32, lrs: Vec<f32> },
    Epoch,
    Note(String),
    Other,
}

/// A learner that writes down what it tells.
pub fn listened(learner: Learner) -> (Learner, Arc<Mutex<Vec<Told>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = told.clone();
    let listen = move |event: &Event| {
        list.lock().unwrap().push(match event {
            Event::Step { epoch, step, loss, lrs, .. } => {
                Told::Step { epoch: *epoch, step: *step, loss: *loss, lrs: lrs.to_vec() }
            }
            Event::Epoch(_) => Told::Epoch,
            Event::Note(text) => Told::Note(text.to_string()),
            _ => Told::Other,
        });
        Flow::Continue
    };
    (learner.callback(listen), told)
}
