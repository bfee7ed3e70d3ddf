//! Options of a training step, against steps made by hand.

mod common;

use std::{collections::BTreeMap, fs};

use common::{
    emulator::gpu,
    learning::{Told, bits, cats_and_dogs, data, folders, learner_of, listened},
    program::unfreeze,
};
use unfreeze::{
    Device, Precision, Tensor,
    autograd::{Parameters, Role, Var},
    data::{Augment, Batch, ImageData, LoaderOptions, Split, Transforms, weighted},
    learner::{ClassWeights, Fit, Learner, Mixing, Sampling, StepOptions},
    nn::{Arch, Model, Pass},
    ops::{
        loss::{CrossEntropy, Target, cross_entropy},
        mix::Mix,
    },
    optim::{OptimizerKind, Schedule},
};

/// SGD in f64 on the gradients of the tape, with the learner's batches, views and dropout (of seed 1).
struct Naive {
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    wd_bn_bias: bool,
    decoupled: bool,
    clip: f64,
    accumulate: usize,
    mixing: StepOptions,
    loss: CrossEntropy,
}

impl Default for Naive {
    fn default() -> Self {
        Self {
            lr: 0.05,
            momentum: 0.9,
            weight_decay: 0.0,
            wd_bn_bias: true,
            decoupled: false,
            clip: f64::INFINITY,
            accumulate: 1,
            mixing: StepOptions::default(),
            loss: CrossEntropy::default(),
        }
    }
}

type Values = BTreeMap<String, Vec<f64>>;

fn values(model: &Model) -> Values {
    let mut values = Values::new();
    model.visit(&mut |parameter| {
        let all = parameter.value.to_vec::<f32>().unwrap();
        values.insert(parameter.name().to_string(), all.into_iter().map(f64::from).collect());
    });
    values
}

impl Naive {
    /// Loss and gradients of a batch; batchnorm statistics move.
    fn pass(&self, model: &mut Model, data: &ImageData, batch: &Batch, number: u64) -> (f64, Values) {
        let device = model.device().clone();
        let images = batch.upload(&data.transforms, &device, Precision::F32).unwrap();
        let mut pass = Pass::training(1, number);
        let logits = model.forward(&mut pass, &Var::constant(images)).unwrap();
        let (images, target) = self.mixed(images, &batch.labels, data.classes().len(), number);
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &self.loss).unwrap();
        let statistics = pass.take_statistics();
        let value = f64::from(loss.value().scalar().unwrap());
        let gradients = pass.tape.backward(&loss).unwrap();
        model.update_statistics(statistics).unwrap();
        let wide = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
        (value, gradients.iter().map(|(name, gradient)| (name.to_string(), wide(gradient))).collect())
    }

    /// A batch of f32 images and its targets, mixed by plain loops.
    fn mixed(&self, images: Tensor, labels: &[u32], classes: usize, number: u64) -> (Tensor, Target) {
        let (device, &[n, h, w, c]) = (images.device().clone(), images.dims()) else { panic!("no images") };
        let Some(mixing) = Mixing::draw(&self.mixing, 1, number, n, Some([h, w])) else {
            return (images, Target::labels(labels.to_vec(), classes, &device).unwrap());
        };
        let values = images.to_vec::<f32>().unwrap();
        let (mut mixed, mut targets) = (values.clone(), vec![0.0; n * classes]);
        for (at, value) in mixed.iter_mut().enumerate() {
            let (sample, pixel) = (at / (h * w * c), at % (h * w * c) / c);
            let other = values[mixing.partners[sample] as usize * h * w * c + at % (h * w * c)];
            match &mixing.mix {
                Mix::Shares(shares) => *value = shares[sample] * *value + (1.0 - shares[sample]) * other,
                Mix::Box([rows, columns]) if rows.contains(&(pixel / w)) && columns.contains(&(pixel % w)) => {
                    *value = other;
                }
                Mix::Box(_) => {}
            }
        }
        for (sample, share) in mixing.shares.iter().enumerate() {
            targets[sample * classes + labels[sample] as usize] += share;
            targets[sample * classes + labels[mixing.partners[sample] as usize] as usize] += 1.0 - share;
        }
        let target = Tensor::new(targets, [n, classes], &device).unwrap();
        (Tensor::new(mixed, [n, h, w, c], &device).unwrap(), Target::Soft(target))
    }

    /// The losses of so many epochs.
    fn fit(&self, model: &mut Model, data: &ImageData, epochs: u64) -> Vec<f64> {
        let (mut losses, mut velocities) = (Vec::new(), Values::new());
        for epoch in 0..epochs {
            let loader = data.loader(Split::Train, &LoaderOptions::training(1, epoch)).unwrap();
            let batches: Vec<Batch> = loader.map(Result::unwrap).collect();
            for together in batches.chunks(self.accumulate) {
                let samples = together.iter().map(Batch::len).sum::<usize>() as f64;
                let (mut loss, mut gradients) = (0.0, Values::new());
                for (part, batch) in together.iter().enumerate() {
                    let share = batch.len() as f64 / samples;
                    let number = losses.len() as u64 + ((part as u64) << 48);
                    let (of_batch, own) = self.pass(model, data, batch, number);
                    loss += share * of_batch;
                    for (name, own) in own {
                        let sums = gradients.entry(name).or_insert(vec![0.0; own.len()]);
                        sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += share * own);
                    }
                }
                losses.push(loss);
                self.step(model, &gradients, &mut velocities);
            }
        }
        losses
    }

    fn step(&self, model: &mut Model, gradients: &Values, velocities: &mut Values) {
        let norm = gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let scale = (self.clip / (norm + 1e-6)).min(1.0);
        model.visit_mut(&mut |parameter| {
            let Some(gradient) = gradients.get(&**parameter.name()) else { return };
            let vector = !matches!(parameter.role(), Role::ConvWeight | Role::LinearWeight);
            let decay = if vector && !self.wd_bn_bias { 0.0 } else { self.weight_decay };
            let velocity = velocities.entry(parameter.name().to_string()).or_insert(vec![0.0; gradient.len()]);
            let mut moved = Vec::new();
            for ((p, g), v) in parameter.value.to_vec::<f32>().unwrap().iter().zip(gradient).zip(velocity) {
                let (mut p, g) = (f64::from(*p), scale * g);
                if self.decoupled {
                    p -= self.lr * decay * p;
                    *v = self.momentum * *v + g;
                } else {
                    *v = self.momentum * *v + (g + decay * p);
                }
                moved.push((p - self.lr * *v) as f32);
            }
            parameter.set_value(Tensor::new(moved, parameter.value.shape(), parameter.value.device()).unwrap());
        });
    }
}

/// Twelve images of two classes, of one three times as many; batches of four, the last of them smaller.
fn uneven() -> (tempfile::TempDir, ImageData) {
    let root = folders(&["cat", "dog"], 8, 2, 0);
    for n in 3..8 {
        fs::remove_file(root.path().join(format!("train/dog/{n}.png"))).unwrap();
    }
    let images = data(&root).transforms(Transforms::new(16));
    (root, images)
}

fn learner(data: &ImageData) -> Learner {
    let mut learner = learner_of(Arch::ResNet8, data.clone(), &Device::cpu(2).unwrap());
    learner.unfreeze();
    learner
}

fn losses(told: &[Told]) -> Vec<f64> {
    let loss = |told: &Told| match told {
        Told::Step { loss, .. } => Some(f64::from(*loss)),
        _ => None,
    };
    told.iter().filter_map(loss).collect()
}

/// Two epochs of `fit`, a learner's, which must come to what `naive` comes to.
#[track_caller]
fn check(learner: Learner, fit: Fit, naive: &Naive) {
    let (data, mut model) = (learner.data().clone(), learner.model().clone());
    let (mut learner, told) = listened(learner);
    learner.fit(fit).unwrap();
    let expected = naive.fit(&mut model, &data, 2);
    let found = losses(&told.lock().unwrap());
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found / expected - 1.0).abs() < 1e-4, "losses {found} {expected}");
    }
    let (found, expected) = (values(learner.model()), values(&model));
    for (name, expected) in &expected {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let apart = norm(&mut found[name].iter().zip(expected).map(|(a, b)| a - b));
        let whole = norm(&mut expected.iter().copied());
        assert!(apart <= 1e-4 * whole.max(1e-2), "{name}: {apart:e} of {whole:e}");
    }
}

/// With replacement, as many as there are; each time with a view of its own; the same on cached activations.
#[test]
fn classes_can_be_sampled_alike() {
    let (_root, data) = uneven();
    let options = LoaderOptions { weighted: true, ..LoaderOptions::training(1, 0) };
    let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.3);
    let augmented = data.clone().transforms(transforms);
    let batches: Vec<Batch> = augmented.loader(Split::Train, &options).unwrap().map(Result::unwrap).collect();
    let indices: Vec<u32> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
    let labels: Vec<u32> = data.items(Split::Train).iter().map(|item| item.label).collect();
    assert_eq!(indices, weighted(&labels, 1, 0));
    let views: Vec<_> = batches.iter().flat_map(|batch| batch.patches.iter().zip(&batch.lighting)).collect();
    let again = (0..indices.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
    let repeated: Vec<_> = again.filter(|(first, second)| indices[*first] == indices[*second]).collect();
    assert!(!repeated.is_empty() && repeated.into_iter().all(|(first, second)| views[first] != views[second]));

    let run = |precompute: bool, sampling: Sampling| {
        let (mut learner, told) = listened(learner(&data).sampling(sampling));
        learner.freeze();
        learner.precompute(precompute);
        learner.fit(Fit::epochs(2)).unwrap();
        let losses = losses(&told.lock().unwrap());
        (bits(learner.model()), losses)
    };
    let anew = run(false, Sampling::Weighted);
    assert!(anew == run(true, Sampling::Weighted) && anew.1.len() == 6);
    assert!(anew.0 != run(false, Sampling::Shuffled).0);
}

#[test]
fn weights_and_smoothing_reach_the_loss() {
    let (_root, data) = uneven();
    let weighted = |weights: ClassWeights| {
        let loss = CrossEntropy { label_smoothing: 0.2, ..CrossEntropy::default() };
        learner(&data).loss(loss).class_weights(&weights).unwrap()
    };
    // 11 images, 2 classes: 11 / (2 · 8) and 11 / (2 · 3).
    let weights = Tensor::new(vec![11.0f32 / 16.0, 11.0 / 6.0], [2], &Device::cpu(1).unwrap()).unwrap();
    let naive = Naive { loss: CrossEntropy { label_smoothing: 0.2, class_weights: Some(weights) }, ..Naive::default() };
    check(weighted(ClassWeights::Balanced), Fit::epochs(2).lr(0.05), &naive);
    let wrong = learner(&data).class_weights(&ClassWeights::Each(vec![1.0; 3])).err().unwrap().to_string();
    assert!(wrong.contains("3 weights given for 2 classes: cat, dog"), "{wrong}");
}

#[test]
fn weight_decay_is_what_was_asked_for() {
    let (_root, data) = uneven();
    for (decoupled, wd_bn_bias) in [(false, false), (true, true), (true, false)] {
        let naive = Naive { weight_decay: 0.1, decoupled, wd_bn_bias, ..Naive::default() };
        let kind = OptimizerKind::Sgd { momentum: 0.9, nesterov: false, decoupled };
        let fit = Fit::epochs(2).lr(0.05).wd(0.1).optimizer(kind).wd_bn_bias(wd_bn_bias);
        check(learner(&data), fit, &naive);
    }
}

#[test]
fn the_norm_of_the_gradients_is_bounded() {
    let (_root, data) = uneven();
    let naive = Naive { clip: 0.5, ..Naive::default() };
    check(learner(&data), Fit::epochs(2).lr(0.05).clip_grad(0.5), &naive);
    let (model, told) = listened(learner(&data));
    let (mut bounded, mut free) = (model, learner(&data));
    bounded.fit(Fit::epochs(1).clip_grad(1e9)).unwrap();
    free.fit(Fit::epochs(1)).unwrap();
    assert!(bits(bounded.model()) == bits(free.model()) && losses(&told.lock().unwrap()).len() == 3);
}

#[test]
fn a_step_takes_the_gradients_of_several_batches() {
    let (_root, data) = uneven();
    // Batches of 4, 4 and 3: steps of two and of one.
    let naive = Naive { accumulate: 2, clip: 1.0, ..Naive::default() };
    check(learner(&data), Fit::epochs(2).lr(0.05).accumulate(2).clip_grad(1.0), &naive);
    let (mut learner, told) = listened(learner(&data));
    learner.fit(Fit::cycles(1).lr(0.05).accumulate(2)).unwrap();
    let halved = Schedule::Restarts { cycle_steps: 2, cycle_mult: 1, cycles: 1 };
    let rates: Vec<f64> = told.lock().unwrap().iter().filter_map(rate).collect();
    assert_eq!(rates.len(), 2);
    for (step, lr) in rates.iter().enumerate() {
        assert!((lr - 0.05 * halved.at(step).lr).abs() < 1e-8, "the schedule counts steps: {rates:?}");
    }
    let error = learner.fit(Fit::epochs(1).accumulate(0)).unwrap_err().to_string();
    assert!(error.contains("accumulate"), "{error}");
}

#[test]
fn samples_and_labels_are_mixed() {
    let (_root, data) = uneven();
    let options = |mixup, cutmix| StepOptions { mixup, cutmix, ..StepOptions::default() };
    for mixing in [options(Some(0.4), None), options(None, Some(1.0)), options(Some(0.4), Some(1.0))] {
        let naive = Naive { mixing: mixing.clone(), ..Naive::default() };
        check(learner(&data), Fit::epochs(2).lr(0.05).options(mixing), &naive);
    }
    // Of cached activations there is MixUp alone.
    let cached = |fit: Fit| {
        let (mut learner, told) = listened(learner(&data));
        learner.freeze();
        learner.precompute(true);
        learner.fit(fit).unwrap();
        let notes = told.lock().unwrap().iter().filter(|told| matches!(told, Told::Note(_))).count();
        (bits(learner.model()), notes)
    };
    let [plain, cut, mixed] = [Fit::epochs(1), Fit::epochs(1).cutmix(1.0), Fit::epochs(1).mixup(0.4)].map(cached);
    assert!(cut.0 == plain.0 && (plain.1, cut.1, mixed.1) == (0, 1, 0) && mixed.0 != plain.0);
    for fit in [Fit::epochs(1).mixup(0.0), Fit::epochs(1).cutmix(f32::NAN)] {
        assert!(learner(&data).fit(fit).unwrap_err().to_string().contains("is no alpha"));
    }
}

/// The last group's rate.
fn rate(told: &Told) -> Option<f64> {
    match told {
        Told::Step { lrs, .. } => lrs.last().map(|lr| f64::from(*lr)),
        _ => None,
    }
}

/// Steps on a GPU, as graphs and launch by launch, are those of the processor; those of a linear head on cached
/// activations, many to a launch, too.
#[test]
fn options_mean_the_same_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let (_root, data) = uneven();
    let kind = OptimizerKind::Sgd { momentum: 0.8, nesterov: true, decoupled: true };
    let options = [
        StepOptions { optimizer: kind, wd_bn_bias: false, ..StepOptions::default() },
        StepOptions { clip_grad: Some(0.5), ..StepOptions::default() },
        StepOptions { clip_grad: Some(0.5), accumulate: 2, ..StepOptions::default() },
        StepOptions { mixup: Some(0.4), cutmix: Some(1.0), ..StepOptions::default() },
    ];
    for options in options {
        let run = |device: &Device, graphs: bool, linear: bool| {
            let (learner, told) = listened(match linear {
                true => common::learning::linear_head(Arch::ResNet8, data.clone(), device),
                false => learner_of(Arch::ResNet8, data.clone(), device),
            });
            let mut learner = learner.graphs(graphs);
            match linear {
                true => learner.precompute(true),
                false => learner.unfreeze(),
            }
            learner.fit(Fit::epochs(3).lr(0.02).wd(0.1).options(options.clone())).unwrap();
            let told = losses(&told.lock().unwrap());
            (bits(learner.model()), told)
        };
        for linear in [false, true] {
            let replayed = run(&gpu, true, linear);
            assert!(replayed == run(&gpu, false, linear), "graphs show, linear {linear}: {options:?}");
            let expected = run(&Device::cpu(2).unwrap(), true, linear).1;
            for (found, expected) in replayed.1.iter().zip(&expected) {
                assert!((found / expected - 1.0).abs() < 1e-4, "{options:?}: losses {found} {expected}");
            }
        }
    }
}

const TRAIN: &str = "train {} --out {} --weights random --arch resnet20 --size 16 --hidden 8 --batch-size 4 --epochs 1 \
                     --recipe head --quiet";

#[test]
fn flags_are_kept_in_the_run_and_odd_ones_are_refused() {
    let folder = cats_and_dogs();
    let (root, run) = (folder.path(), folder.path().join("run"));
    let flags = "--class-weights balanced --label-smoothing 0.1 --optimizer sgd --momentum 0.8 --nesterov --decouple-wd \
                 --wd 0.01 --wd-bn-bias off --clip-grad 3.5 --accumulate 2 --mixup 0.4 --cutmix 1 --sample weighted";
    unfreeze(&format!("{TRAIN} {flags}"), &[root, &run]).succeeded();
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["learning"]["class_weights"].as_str(), Some("balanced"));
    assert_eq!(config["learning"]["sample"].as_str(), Some("weighted"));
    let options: StepOptions = config["recipe"]["options"].clone().try_into().unwrap();
    let optimizer = OptimizerKind::Sgd { momentum: 0.8, nesterov: true, decoupled: true };
    let clip_grad = Some(3.5);
    let (mixup, cutmix) = (Some(0.4), Some(1.0));
    assert_eq!(options, StepOptions { optimizer, wd_bn_bias: false, clip_grad, accumulate: 2, mixup, cutmix });
    for (flags, named) in [
        ("--class-weights 1,2,3", "--class-weights: 3 weights given for 2 classes: cat, dog"),
        ("--class-weights even", "balanced"),
        ("--label-smoothing 1", "from 0 to below 1"),
        ("--clip-grad 0", "--clip-grad: 0 is no norm"),
        ("--mixup 0", "--mixup: 0 is no alpha"),
        ("--sample even", "neither shuffled nor weighted"),
        ("--momentum -1", "--momentum"),
        ("--optimizer adamw --nesterov", "--optimizer: adamw has no Nesterov step"),
    ] {
        let refused = unfreeze(&format!("{TRAIN} {flags}"), &[root, &root.join("refused")]);
        assert!(refused.code == 2 && refused.err.contains(named), "{flags}: {}", refused.err);
        assert!(!root.join("refused").exists());
    }
}
