//! From any boundary, on any device: the cache shows in no bit.

use std::fs;

use unfreeze::{
    Precision,
    checkpoint::Weights,
    data::{Crop, Split, Transforms},
    learner::{EpochRecord, Evaluation, Fit, Learner},
    nn::{Arch, Grouping, HeadSpec},
};

use crate::{
    Bits,
    common::{
        emulator::gpu,
        learning::{bits, cats_and_dogs, data, folders, learner, learner_of, timeless},
    },
};

/// From every cut, in groups of every kind, with and without statistics of batches: the cache shows in no bit.
#[test]
fn training_from_any_boundary_ends_on_the_same_bits() {
    let folder = cats_and_dogs();
    let cases = [
        // The grouping, the first group trained, whether batchnorms are frozen, and the first unit of ten that is not.
        (Grouping::Fastai, 0, false, 0),
        (Grouping::Fastai, 0, true, 0),
        (Grouping::Fastai, 1, false, 4),
        (Grouping::Fastai, 2, true, 10),
        (Grouping::PerStage, 1, false, 1),
        (Grouping::PerBlock, 6, true, 6),
        (Grouping::PerBlock, 9, false, 9),
    ];
    for (grouping, first, freeze_norms, units) in cases {
        let train = |precompute: bool| -> (Bits, Vec<EpochRecord>, [Evaluation; 2]) {
            let mut learner = learner(data(&folder)).grouping(grouping);
            learner.freeze_to(first).unwrap();
            learner.bn_freeze(freeze_norms);
            learner.precompute(precompute);
            assert_eq!(learner.model().backbone.frozen_units(), units);
            let records = learner.fit(Fit::epochs(2).lr(1e-2)).unwrap().to_vec();
            assert!(records.iter().all(|record| record.cached == (precompute && units > 0)));
            let evaluations = [Split::Train, Split::Valid].map(|split| learner.evaluate(split).unwrap());
            (bits(learner.model()), timeless(&records), evaluations)
        };
        let [cached, anew] = [true, false].map(train);
        let what = format!("{grouping:?} from {first}");
        assert!(cached.0 == anew.0 && cached.1 == anew.1, "{what}");
        for (cached, anew) in cached.2.iter().zip(&anew.2) {
            assert_eq!((cached.loss.to_bits(), &cached.probabilities), (anew.loss.to_bits(), &anew.probabilities));
            assert_eq!((&cached.labels, &cached.indices), (&anew.labels, &anew.indices), "{what}");
        }
    }
}

/// In bf16 what is kept is what the network passes on, and steps that are replayed know where they start.
#[test]
fn on_a_gpu_too() {
    let Some(gpu) = gpu() else { return };
    let folder = folders(&["cat", "dog"], 2, 1, 0);
    for precision in [Precision::F32, Precision::Bf16] {
        let train = |precompute: bool| -> (Bits, Vec<EpochRecord>) {
            let data = data(&folder).transforms(Transforms::new(8)).batch_size(2);
            let mut learner = learner_of(Arch::ResNet8, data, &gpu).precision(precision).unwrap();
            learner.precompute(precompute);
            // The head first: steps of two kinds.
            learner.fit(Fit::epochs(1).lr(1e-2)).unwrap();
            learner.freeze_to(1).unwrap();
            let records = learner.fit(Fit::epochs(2).lr(1e-2)).unwrap().to_vec();
            assert!(records.iter().all(|record| record.cached == precompute));
            (bits(learner.model()), timeless(learner.history()))
        };
        assert!(train(true) == train(false), "{precision}");
    }
}

/// Batches that a damaged image leaves smaller, and a last one that would have held one sample.
#[test]
fn an_image_that_cannot_be_decoded_leaves_the_batches_as_they_are_without_a_cache() {
    let folder = cats_and_dogs();
    let file = folder.path().join("train/cat/0.png");
    let whole = fs::read(&file).unwrap();
    for damaged in [false, true] {
        fs::write(&file, &whole[..if damaged { whole.len() / 2 } else { whole.len() }]).unwrap();
        let trained = |precompute: bool| {
            let plain = Transforms::new(16).crop(Crop::Centre);
            let mut learner = learner(data(&folder).transforms(plain).batch_size(3));
            learner.precompute(precompute);
            learner.fit(Fit::epochs(2).lr(0.05)).unwrap();
            (bits(learner.model()), timeless(learner.history()))
        };
        assert!(trained(true) == trained(false), "damaged: {damaged}");
    }
}

#[test]
fn heads_of_both_pools_have_entries_of_their_own() {
    let folder = cats_and_dogs();
    let train = |precompute| {
        let mut learner = Learner::with_head(Weights::random(Arch::ResNet8), data(&folder), HeadSpec::Linear).unwrap();
        learner.precompute(precompute);
        learner.freeze_to(1).unwrap();
        learner.fit(Fit::epochs(1)).unwrap();
        learner.freeze();
        learner.fit(Fit::epochs(1)).unwrap();
        (bits(learner.model()), timeless(learner.history()))
    };
    assert!(train(true) == train(false));
}
