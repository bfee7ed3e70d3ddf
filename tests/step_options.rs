//! Options of a training step, against steps made by hand.

mod common;

use std::fs;

use common::{
    emulator::gpu,
    learning::{Told, bits, cats_and_dogs, learner_of, linear_head, listened},
    naive::{Naive, approach, assert_close, losses, uneven, values},
    program::unfreeze,
};
use unfreeze::{
    Device, Error, Precision, Tensor,
    autograd::{Parameters, Var},
    data::{Augment, Batch, ImageData, LoaderOptions, Split, Transforms, weighted},
    learner::{ClassWeights, Event, Fit, Flow, Learner, Sampling, StepOptions, WeightAverage},
    nn::{Arch, Pass},
    ops::loss::CrossEntropy,
    optim::{OptimizerKind, Schedule, Triangle},
};

/// Of cats and of dogs: batches of 8, 8 and 5.
const IMAGES: [usize; 2] = [15, 6];

fn learner(data: &ImageData) -> Learner {
    let mut learner = learner_of(Arch::ResNet8, data.clone(), &Device::cpu(2).unwrap());
    learner.unfreeze();
    learner
}

/// Two epochs of `fit`, a learner's, which must come to what `naive` comes to.
#[track_caller]
fn check(learner: Learner, fit: Fit, naive: &Naive) {
    let (data, mut model) = (learner.data().clone(), learner.model().clone());
    let (mut learner, told) = listened(learner);
    learner.fit(fit).unwrap();
    let expected = naive.fit(&mut model, &data, 2, &mut |_, _| {});
    let found = losses(&told.lock().unwrap());
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found / expected - 1.0).abs() < 1e-3, "losses {found} {expected}");
    }
    assert_close(&values(learner.model()), &values(&model));
}

/// With replacement, as many as there are; each time with a view of its own; the same on cached activations.
#[test]
fn classes_can_be_sampled_alike() {
    let (_root, data) = uneven(IMAGES, 8);
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
    let (_root, data) = uneven(IMAGES, 8);
    let weighted = |weights: ClassWeights| {
        let loss = CrossEntropy { label_smoothing: 0.2, ..CrossEntropy::default() };
        learner(&data).loss(loss).class_weights(&weights).unwrap()
    };
    // 21 images, 2 classes: 21 / (2 · 15) and 21 / (2 · 6).
    let weights = Tensor::new(vec![21.0f32 / 30.0, 21.0 / 12.0], [2], &Device::cpu(1).unwrap()).unwrap();
    let naive = Naive { loss: CrossEntropy { label_smoothing: 0.2, class_weights: Some(weights) }, ..Naive::default() };
    check(weighted(ClassWeights::Balanced), Fit::epochs(2).lr(0.01), &naive);
    let wrong = learner(&data).class_weights(&ClassWeights::Each(vec![1.0; 3])).err().unwrap().to_string();
    assert!(wrong.contains("3 weights given for 2 classes: cat, dog"), "{wrong}");
}

#[test]
fn weight_decay_is_what_was_asked_for() {
    let (_root, data) = uneven(IMAGES, 8);
    for (decoupled, wd_bn_bias) in [(false, false), (true, true), (true, false)] {
        let naive = Naive { weight_decay: 0.1, decoupled, wd_bn_bias, ..Naive::default() };
        let kind = OptimizerKind::Sgd { momentum: 0.9, nesterov: false, decoupled };
        let fit = Fit::epochs(2).lr(0.01).wd(0.1).optimizer(kind).wd_bn_bias(wd_bn_bias);
        check(learner(&data), fit, &naive);
    }
}

#[test]
fn the_norm_of_the_gradients_is_bounded() {
    let (_root, data) = uneven(IMAGES, 8);
    let naive = Naive { clip: 0.5, ..Naive::default() };
    check(learner(&data), Fit::epochs(2).lr(0.01).clip_grad(0.5), &naive);
    let (model, told) = listened(learner(&data));
    let (mut bounded, mut free) = (model, learner(&data));
    bounded.fit(Fit::epochs(1).clip_grad(1e9)).unwrap();
    free.fit(Fit::epochs(1)).unwrap();
    assert!(bits(bounded.model()) == bits(free.model()) && losses(&told.lock().unwrap()).len() == 3);
}

#[test]
fn a_step_takes_the_gradients_of_several_batches() {
    let (_root, data) = uneven(IMAGES, 8);
    // Three batches: steps of two and of one.
    let naive = Naive { accumulate: 2, clip: 1.0, ..Naive::default() };
    check(learner(&data), Fit::epochs(2).lr(0.01).accumulate(2).clip_grad(1.0), &naive);
    let (mut learner, told) = listened(learner(&data));
    learner.fit(Fit::cycles(1).lr(0.01).accumulate(2)).unwrap();
    let halved = Schedule::Restarts { cycle_steps: 2, cycle_mult: 1, cycles: 1 };
    let rates: Vec<f64> = told.lock().unwrap().iter().filter_map(rate).collect();
    assert_eq!(rates.len(), 2);
    for (step, lr) in rates.iter().enumerate() {
        assert!((lr - 0.01 * halved.at(step).lr).abs() < 1e-8, "the schedule counts steps: {rates:?}");
    }
    let error = learner.fit(Fit::epochs(1).accumulate(0)).unwrap_err().to_string();
    assert!(error.contains("accumulate"), "{error}");
}

#[test]
fn samples_and_labels_are_mixed() {
    let (_root, data) = uneven(IMAGES, 8);
    let options = |mixup, cutmix| StepOptions { mixup, cutmix, ..StepOptions::default() };
    for mixing in [options(Some(0.4), None), options(None, Some(1.0)), options(Some(0.4), Some(1.0))] {
        let naive = Naive { mixing: mixing.clone(), lr: 1e-3, ..Naive::default() };
        check(learner(&data), Fit::epochs(2).lr(1e-3).options(mixing), &naive);
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

#[test]
fn a_moving_average_follows_each_step() {
    let (_root, data) = uneven(IMAGES, 8);
    let (mut plain, mut averaged) = (learner(&data), learner(&data));
    let (mut model, mut expected) = (plain.model().clone(), values(plain.model()));
    Naive::default().fit(&mut model, &data, 2, &mut |model, _| approach(&mut expected, &values(model), 0.3));
    plain.fit(Fit::epochs(2).lr(0.01)).unwrap();
    averaged.fit(Fit::epochs(2).lr(0.01).ema(0.7)).unwrap();
    let last = bits(averaged.model());
    assert!(last == bits(plain.model()), "to average changes nothing");
    averaged.swap_average(WeightAverage::Ema).unwrap();
    assert_close(&values(averaged.model()), &expected);
    averaged.swap_average(WeightAverage::Ema).unwrap();
    assert!(last == bits(averaged.model()));
    for learner in [&mut plain, &mut averaged] {
        let error = learner.swap_average(WeightAverage::Swa).unwrap_err().to_string();
        assert!(error.contains("made no swa"), "{error}");
    }
    averaged.fit(Fit::epochs(1)).unwrap();
    assert_eq!(averaged.averages(), [], "they are those of the last fit");
}

/// The mean of weights at the ends of these epochs, with statistics of one pass over the training set.
#[test]
fn weights_are_averaged_and_their_statistics_estimated_anew() {
    let (_root, data) = uneven(IMAGES, 8);
    let constant = Fit::epochs(3).lr(0.01).swa(2);
    let flat = Fit::cycles(2).cycle_len(2).triangular(Triangle { div: 1.0, ..Triangle::default() }).lr(0.01).swa(1);
    for (fit, epochs, ends) in [(constant, 3, &[2u64, 3][..]), (flat, 4, &[2, 4])] {
        let mut averaged = learner(&data);
        let (mut model, mut mean, mut epoch, mut count) = (averaged.model().clone(), None, 0, 0.0);
        Naive::default().fit(&mut model, &data, epochs, &mut |model, end| {
            epoch += u64::from(end);
            if end && ends.contains(&epoch) {
                count += 1.0;
                approach(mean.get_or_insert_with(|| values(model)), &values(model), 1.0 / count);
            }
        });
        let mut expected = mean.unwrap();
        // Its batchnorms meet each batch.
        let device = Device::cpu(2).unwrap();
        model.visit_mut(&mut |parameter| {
            let mean = expected[&**parameter.name()].iter().map(|value| *value as f32).collect();
            parameter.set_value(Tensor::new(mean, parameter.value.shape(), &device).unwrap());
        });
        model.norms_mut().for_each(|norm| norm.momentum = 1.0);
        let (mut seen, mut statistics) = (0.0, None);
        let loader = data.loader(Split::Train, &LoaderOptions::training(1, epochs)).unwrap();
        for (number, batch) in loader.map(Result::unwrap).enumerate() {
            let images = batch.upload(&data.transforms, &device, Precision::F32).unwrap();
            let mut pass = Pass::training(1, 3 * epochs + number as u64);
            model.forward(&mut pass, &Var::constant(images)).unwrap();
            model.update_statistics(pass.take_statistics()).unwrap();
            seen += batch.len() as f64;
            let own = values(&model);
            approach(statistics.get_or_insert(own.clone()), &own, batch.len() as f64 / seen);
        }
        let statistics = statistics.unwrap();
        expected.iter_mut().filter(|(name, _)| name.contains("running")).for_each(|(name, values)| {
            *values = statistics[name].clone();
        });
        averaged.fit(fit).unwrap();
        averaged.swap_average(WeightAverage::Swa).unwrap();
        assert_close(&values(averaged.model()), &expected);
    }
}

/// What is left of a run that was cut off, taken up again, is the run that was not, averages included.
#[test]
fn resumed_runs_average_and_mix_as_if_they_had_not_been_cut_off() {
    let (_root, data) = uneven(IMAGES, 8);
    let folder = tempfile::tempdir().unwrap();
    let ends = |cut: Option<usize>, name: &str| {
        let path = folder.path().join(name);
        let program = |learner: &mut Learner| -> unfreeze::Result<()> {
            let options = StepOptions {
                clip_grad: Some(1.0),
                accumulate: 2,
                mixup: Some(0.4),
                cutmix: Some(1.0),
                ema: Some(0.8),
                swa: Some(1),
                ..StepOptions::default()
            };
            learner.fit(Fit::epochs(1).phase("first").lr(0.02).ema(0.5))?;
            learner.fit(Fit::epochs(3).phase("second").lr(0.02).options(options)).map(drop)
        };
        let start = || learner(&data).sampling(Sampling::Weighted).checkpoints(&path);
        if let Some(cut) = cut {
            let cut_off = move |event: &Event| match event {
                Event::Step { phase: "second", epoch, .. } if *epoch == cut => Flow::Fail(Error::Cancelled),
                _ => Flow::Continue,
            };
            program(&mut start().callback(cut_off)).unwrap_err();
        }
        let mut learner = start();
        if cut.is_some() {
            learner.resume(&path).unwrap();
        }
        program(&mut learner).unwrap();
        let mut all = vec![bits(learner.model())];
        for average in learner.averages() {
            learner.swap_average(average).unwrap();
            all.push(bits(learner.model()));
            learner.swap_average(average).unwrap();
        }
        // A finished run still has them.
        let mut finished = start();
        finished.resume(&path).unwrap();
        program(&mut finished).unwrap();
        assert_eq!(finished.averages(), WeightAverage::ALL);
        finished.swap_average(WeightAverage::Swa).unwrap();
        assert!(bits(finished.model()) == all[2]);
        all
    };
    let whole = ends(None, "whole");
    assert!(whole.len() == 3 && whole[0] != whole[1] && whole[1] != whole[2]);
    for cut in [0, 1, 2] {
        assert!(ends(Some(cut), &format!("cut-{cut}")) == whole, "cut off in epoch {cut}");
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
    let (_root, data) = uneven([8, 3], 4);
    let kind = OptimizerKind::Sgd { momentum: 0.8, nesterov: true, decoupled: true };
    let options = [
        StepOptions { optimizer: kind, wd_bn_bias: false, ..StepOptions::default() },
        StepOptions { clip_grad: Some(0.5), accumulate: 2, ..StepOptions::default() },
        StepOptions {
            clip_grad: Some(0.5),
            mixup: Some(0.4),
            cutmix: Some(1.0),
            ema: Some(0.9),
            swa: Some(1),
            ..StepOptions::default()
        },
    ];
    for options in options {
        let run = |device: &Device, graphs: bool, linear: bool| {
            let (learner, told) = listened(match linear {
                true => linear_head(Arch::ResNet8, data.clone(), device),
                false => learner_of(Arch::ResNet8, data.clone(), device),
            });
            let mut learner = learner.graphs(graphs);
            match linear {
                true => learner.precompute(true),
                false => learner.unfreeze(),
            }
            learner.fit(Fit::epochs(2).lr(0.005).wd(0.1).options(options.clone())).unwrap();
            let told = losses(&told.lock().unwrap());
            let last = bits(learner.model());
            learner.averages().into_iter().for_each(|average| learner.swap_average(average).unwrap());
            (last, bits(learner.model()), told)
        };
        for linear in [false, true] {
            let replayed = run(&gpu, true, linear);
            assert!(replayed == run(&gpu, false, linear), "graphs show, linear {linear}: {options:?}");
            let expected = run(&Device::cpu(2).unwrap(), true, linear).2;
            for (found, expected) in replayed.2.iter().zip(&expected) {
                assert!((found / expected - 1.0).abs() < 2e-3, "{options:?}: losses {found} {expected}");
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
                 --wd 0.01 --wd-bn-bias off --clip-grad 3.5 --accumulate 2 --mixup 0.4 --cutmix 1 --sample weighted --ema 0.9 --swa 1";
    unfreeze(&format!("{TRAIN} {flags}"), &[root, &run]).succeeded();
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["learning"]["class_weights"].as_str(), Some("balanced"));
    assert_eq!(config["learning"]["sample"].as_str(), Some("weighted"));
    let options: StepOptions = config["recipe"]["options"].clone().try_into().unwrap();
    let optimizer = OptimizerKind::Sgd { momentum: 0.8, nesterov: true, decoupled: true };
    let clip_grad = Some(3.5);
    let (mixup, cutmix) = (Some(0.4), Some(1.0));
    let (ema, swa) = (Some(0.9), Some(1));
    let expected = StepOptions { optimizer, wd_bn_bias: false, clip_grad, accumulate: 2, mixup, cutmix, ema, swa };
    assert_eq!(options, expected);
    for average in ["ema", "swa"] {
        let measured = unfreeze(&format!("evaluate {{}} --average {average} --json"), &[&run]).succeeded().objects();
        let file = run.join(format!("{average}.safetensors"));
        let alone = unfreeze("evaluate {} {} --json", &[&file, &root.join("valid")]).succeeded().objects();
        assert_eq!((&measured[0]["loss"], measured[0]["images"].as_u64()), (&alone[0]["loss"], Some(6)));
    }
    let file = unfreeze("evaluate {} --average ema", &[&run.join("model.safetensors")]);
    assert!(file.code == 1 && file.err.contains("averages of weights are in a run folder"), "{}", file.err);
    for (flags, named) in [
        ("--class-weights 1,2,3", "--class-weights: 3 weights given for 2 classes: cat, dog"),
        ("--class-weights even", "balanced"),
        ("--label-smoothing 1", "from 0 to below 1"),
        ("--clip-grad 0", "--clip-grad: 0 is no norm"),
        ("--mixup 0", "--mixup: 0 is no alpha"),
        ("--sample even", "neither shuffled nor weighted"),
        ("--ema 1", "--ema: 1 is no decay"),
        ("--momentum 1", "from 0 to below 1"),
        ("--optimizer adamw --nesterov", "--optimizer: adamw has no Nesterov step"),
    ] {
        let refused = unfreeze(&format!("{TRAIN} {flags}"), &[root, &root.join("refused")]);
        assert!(refused.code == 2 && refused.err.contains(named), "{flags}: {}", refused.err);
        assert!(!root.join("refused").exists());
    }
}
