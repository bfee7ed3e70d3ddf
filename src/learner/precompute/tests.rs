//! What an entry and its rows are named by.

use std::collections::HashSet;

use super::*;
use crate::{
    Device, Precision,
    autograd::{Parameters, Var},
    cache::{Key, KeyBuilder},
    checkpoint::Weights,
    data::{Augment, Crop, ImageData, RgbImage, Transforms},
    nn::{Arch, HeadSpec},
};

/// Two images of each of two classes, to train and to validate on.
fn folder() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (split, class) in [("train", "a"), ("train", "b"), ("valid", "a"), ("valid", "b")] {
        let folder = root.path().join(split).join(class);
        std::fs::create_dir_all(&folder).unwrap();
        (0..2).for_each(|n| RgbImage::new(8, 8).save(folder.join(format!("{n}.png"))).unwrap());
    }
    root
}

fn transforms() -> Transforms {
    Transforms::new(16).augment(Augment::SideOn)
}

fn learner_of(folder: &tempfile::TempDir, arch: Arch, head: HeadSpec, seed: u64) -> Learner {
    let data = ImageData::from_folders(folder.path()).unwrap().transforms(transforms());
    let mut learner = Learner::with_head(Weights::random(arch), data, head).unwrap().seed(seed).unwrap();
    learner.precompute(true);
    learner
}

#[test]
fn each_part_alone_decides_the_name_of_an_entry() {
    let views = |seed, generation| {
        let views = Views { seed, count: 4, generation, pass: 0, root: "data".into() };
        LoaderOptions { views: Some(views), ..LoaderOptions::evaluation() }
    };
    let key = |text: &str| KeyBuilder::new("").text(text).finish();
    let transforms = transforms();
    let other = [
        transforms.clone().at_size(17),
        transforms.clone().resize(18),
        transforms.clone().crop(Crop::None),
        transforms.clone().normalise([0.5; 3], transforms.std),
        transforms.clone().normalise(transforms.mean, [0.25; 3]),
    ];
    // These show in views alone.
    let augmented =
        [transforms.clone().augment(Augment::Basic), transforms.clone().max_zoom(1.1), transforms.clone().pad(2)];
    let clean = LoaderOptions::evaluation();
    let options = [views(1, 0), views(2, 0), views(1, 1), LoaderOptions::training(1, 0), LoaderOptions::training(2, 0)];
    let whole = Decisive {
        arithmetic: "cpu",
        precision: Precision::F32,
        prefix: key("one"),
        arch: Arch::ResNet18,
        boundary: Boundary::Pool,
        pool: "average",
        transforms: &transforms,
        options: &clean,
    };
    let mut all = vec![
        whole,
        Decisive { arithmetic: "another gpu, 9.0", ..whole },
        Decisive { precision: Precision::Tf32, ..whole },
        Decisive { precision: Precision::Bf16, ..whole },
        Decisive { prefix: key("two"), ..whole },
        Decisive { arch: Arch::ResNet34, ..whole },
        Decisive { boundary: Boundary::Units(3), ..whole },
        Decisive { boundary: Boundary::Units(4), ..whole },
        Decisive { pool: "both", ..whole },
    ];
    all.extend(other.iter().map(|transforms| Decisive { transforms, ..whole }));
    all.extend(options.iter().map(|options| Decisive { options, ..whole }));
    all.extend(augmented.iter().map(|transforms| Decisive { transforms, options: &options[0], ..whole }));
    let names: HashSet<Key> = all.iter().map(Decisive::key).collect();
    assert_eq!(names.len(), all.len());
    // Of no concern: augmentation for clean views, the pool for what comes before it, which epoch it is.
    let same = |one: Decisive, other: Decisive| assert_eq!(one.key(), other.key());
    augmented.iter().for_each(|transforms| same(whole, Decisive { transforms, ..whole }));
    same(all[6], Decisive { pool: "both", ..all[6] });
    same(whole, Decisive { options: &LoaderOptions { epoch: 9, seed: 9, shuffle: true, ..clean.clone() }, ..whole });
}

#[test]
fn an_entry_is_named_by_all_that_decides_it() -> Result<()> {
    let folder = folder();
    let new = || learner_of(&folder, Arch::ResNet8, HeadSpec::fastai(vec![8]), 1);
    let clean = LoaderOptions::evaluation();
    let key = |mut learner: Learner, options: &LoaderOptions| {
        let boundary = learner.boundary().unwrap();
        learner.entry_key(boundary, options)
    };
    let with = |transforms: Transforms| {
        let mut learner = new();
        learner.data.transforms = transforms;
        learner
    };
    let altered = |name: &'static str| {
        let mut learner = new();
        learner.model.visit_mut(&mut |parameter| {
            if &**parameter.name() == name {
                let mut values = parameter.value.to_vec::<f32>().unwrap();
                values[3] += 1e-6;
                parameter.set_value(Tensor::new(values, parameter.value.shape(), &Device::cpu(1).unwrap()).unwrap());
            }
        });
        learner
    };
    let to = |first: isize| {
        let mut learner = new();
        learner.freeze_to(first).unwrap();
        learner
    };
    let views = |seed, generation| {
        let views = Views { seed, count: 4, generation, pass: 0, root: folder.path().to_owned() };
        LoaderOptions { views: Some(views), ..LoaderOptions::evaluation() }
    };
    let keys = [
        ("itself", key(new(), &clean)?),
        ("weights", key(altered("layer2.0.conv1.weight"), &clean)?),
        ("all weights", key(learner_of(&folder, Arch::ResNet8, HeadSpec::fastai(vec![8]), 2), &clean)?),
        ("statistics", key(altered("layer3.0.bn2.running_mean"), &clean)?),
        ("architecture", key(learner_of(&folder, Arch::ResNet20, HeadSpec::fastai(vec![8]), 1), &clean)?),
        ("pool", key(learner_of(&folder, Arch::ResNet8, HeadSpec::Linear, 1), &clean)?),
        ("boundary", key(to(1), &clean)?),
        ("size", key(with(Transforms::new(17)), &clean)?),
        ("resize", key(with(Transforms::new(16).resize(18)), &clean)?),
        ("crop", key(with(Transforms::new(16).crop(Crop::None)), &clean)?),
        ("normalisation", key(with(Transforms::new(16).normalise([0.5; 3], [0.25; 3])), &clean)?),
        ("views", key(new(), &views(1, 0))?),
        ("seed of views", key(new(), &views(2, 0))?),
        ("generation of views", key(new(), &views(1, 1))?),
        ("augmentation of views", key(with(Transforms::new(16).augment(Augment::Basic)), &views(1, 0))?),
        ("zoom of views", key(with(transforms().max_zoom(1.1)), &views(1, 0))?),
        ("views by position", key(new(), &LoaderOptions::training(1, 0))?),
        ("seed of views by position", key(new(), &LoaderOptions::training(2, 0))?),
    ];
    for (number, (name, key)) in keys.iter().enumerate() {
        for (other, other_key) in &keys[..number] {
            assert_ne!(key, other_key, "{name} and {other}");
        }
    }
    // Of no concern: augmentation, for clean views; what is behind the boundary; batches, the seed of a fit, the pass.
    let itself = keys[0].1;
    assert_eq!(key(with(Transforms::new(16)), &clean)?, itself);
    assert_eq!(key(altered("head.1.weight"), &clean)?, itself);
    assert_eq!(key(new(), &LoaderOptions { seed: 9, epoch: 9, shuffle: true, ..clean.clone() })?, itself);
    let behind = |name: &'static str| {
        let mut learner = altered(name);
        learner.freeze_to(1).unwrap();
        key(learner, &clean)
    };
    assert_eq!(behind("layer2.0.bn1.running_var")?, keys[6].1);
    assert_ne!(behind("layer1.0.bn1.running_var")?, keys[6].1);
    Ok(())
}

#[test]
fn a_row_is_named_by_its_file_and_its_view() -> Result<()> {
    let folder = folder();
    let mut learner = learner_of(&folder, Arch::ResNet8, HeadSpec::Linear, 1);
    let rows = |learner: &mut Learner, options: &LoaderOptions| -> Result<Vec<Key>> {
        let sought = learner.sought(Split::Train, Boundary::Pool, options)?;
        assert!(sought.iter().map(|sought| (sought.index, sought.label)).eq([(0, 0), (1, 0), (2, 1), (3, 1)]));
        Ok(sought.iter().filter_map(|sought| sought.row).collect())
    };
    let clean = rows(&mut learner, &LoaderOptions::evaluation())?;
    learner.precompute_views(3)?;
    let mut known: HashSet<(Key, Key)> = HashSet::new();
    for pass in 0..3 {
        let options = learner.training_options(pass)?;
        let sought = learner.sought(Split::Train, Boundary::Pool, &options)?;
        known.extend(sought.iter().filter_map(|sought| Some((sought.entry, sought.row?))));
        // Views that come round again.
        assert_eq!(rows(&mut learner, &options)?, rows(&mut learner, &learner_options(&options, pass + 3))?);
    }
    // Each of four files in each of three views, in two entries; the clean ones are those of other splits' entry.
    assert_eq!((known.len(), known.iter().map(|(entry, _)| *entry).collect::<HashSet<Key>>().len()), (12, 2));
    let entry = learner.entry_key(Boundary::Pool, &LoaderOptions::evaluation())?;
    assert!(clean.iter().all(|row| known.contains(&(entry, *row))));
    let drawn = |epoch| LoaderOptions { shuffle: false, ..LoaderOptions::training(1, epoch) };
    let [first, second] = [1, 2].map(|epoch| rows(&mut learner, &drawn(epoch)).unwrap());
    assert!(first.iter().zip(&second).all(|(first, second)| first != second));
    Ok(())
}

fn learner_options(options: &LoaderOptions, pass: u64) -> LoaderOptions {
    let views = options.views.clone().map(|views| Views { pass, ..views });
    LoaderOptions { views, ..options.clone() }
}

#[test]
fn the_size_of_a_row_is_known_before_it_is_computed() -> Result<()> {
    let (folder, device) = (folder(), Device::cpu(1)?);
    for head in [HeadSpec::fastai(vec![8]), HeadSpec::Linear] {
        let learner = learner_of(&folder, Arch::ResNet8, head, 1);
        let images = Var::constant(Tensor::zeros([1, 16, 16, 3], &device)?);
        for boundary in [1, 2, 3, 4].map(Boundary::Units).into_iter().chain([Boundary::Pool]) {
            let bytes = learner.prefix(boundary, &images)?.value().shape().elements() * size_of::<f32>();
            assert_eq!(learner.row_bytes(boundary), bytes as u64, "{boundary}");
        }
        assert_eq!(learner.model.backbone.units(), 4);
    }
    Ok(())
}
