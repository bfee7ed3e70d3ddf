//! Several views of each image, in training and at test time.

use std::fs;

use unfreeze::{
    cache::store::Store,
    data::{Augment, Crop, ImageData, Split, Transforms},
    learner::{Event, Fit, Flow, Learner, Tta},
    prelude::Device,
};

use crate::{
    Computed, checked,
    common::learning::{bits, cats_and_dogs, data, learner, picture, timeless},
    with_views,
};

#[test]
fn a_test_set_and_augmented_views_at_test_time_are_cached_too() {
    let folder = cats_and_dogs();
    for class in ["cat", "dog"] {
        fs::create_dir_all(folder.path().join("test").join(class)).unwrap();
        (0..2).for_each(|n| picture(18, 0, 40 + n).save(folder.path().join(format!("test/{class}/{n}.png"))).unwrap());
    }
    let augmented = || data(&folder).transforms(Transforms::new(16).augment(Augment::SideOn));
    for first in [1, 2] {
        let (mut learner, computed) = Computed::by(learner(augmented()));
        learner.freeze_to(first).unwrap();
        assert_eq!(checked(&mut learner, &computed, Split::Test).1, 4);
        assert_eq!(checked(&mut learner, &computed, Split::Test).1, 0);
        let mut tta = |precompute, views| {
            learner.precompute(precompute);
            let found = learner.tta(Tta::views(views), Split::Test).unwrap();
            (found.averaged.probabilities, computed.take().iter().map(|(_, count)| count).sum::<usize>())
        };
        let (first, count) = tta(true, 2);
        assert_eq!(count, 8);
        assert_eq!(tta(true, 2), (first.clone(), 0));
        assert_eq!(tta(true, 3).1, 4, "one view more");
        assert_eq!(tta(false, 2), (first, 0));
    }
}

#[test]
fn each_epoch_shows_a_view_and_computes_only_that() {
    let folder = cats_and_dogs();
    let train = |renewed_every: usize, epochs: usize, first: isize, memory: Option<u64>| {
        let (mut learner, computed) = Computed::by(with_views(&folder, first));
        learner.renew_views_every(renewed_every);
        memory.into_iter().for_each(|bytes| learner.precompute_memory(bytes));
        learner.fit(Fit::epochs(epochs).lr(1e-2)).unwrap();
        let trained: Vec<usize> =
            computed.take().iter().filter(|(split, _)| *split == Split::Train).map(|(_, count)| *count).collect();
        (bits(learner.model()), timeless(learner.history()), trained, computed.notes())
    };
    // Each of three epochs shows every image in a view that is new, those after it in one that is known.
    let cached = train(0, 5, 2, None);
    assert_eq!(cached.2, [10, 10, 10]);
    assert!(cached.3.is_empty(), "{:?}", cached.3);
    // The same from a boundary within the network, and where nothing may be kept.
    for first in [1, 2] {
        let [cached, anew] = [None, Some(0)].map(|memory| train(0, 4, first, memory));
        assert!(cached.0 == anew.0 && cached.1 == anew.1, "from {first}");
        assert!(anew.2.is_empty() && anew.3.iter().any(|note| note.contains("anew")), "{:?}", anew.3);
    }
    // Views that are drawn anew every two epochs; the clean one stays what it is.
    let renewed = train(2, 4, 2, None);
    assert_eq!(renewed.2.len(), 4);
    assert_eq!(renewed.2[..2], [10, 10]);
    assert!(renewed.2[2..].iter().all(|count| (1..=10).contains(count)), "{:?}", renewed.2);
    assert_eq!(renewed.1[..2], cached.1[..2]);
    assert!(renewed.1[2].train_loss != cached.1[2].train_loss);
    let refused = with_views(&folder, 2).precompute_views(0).unwrap_err().to_string();
    assert!(refused.contains("0 views"), "{refused}");
}

#[test]
fn views_depend_on_neither_threads_nor_interruptions_and_validation_is_clean() {
    let folder = cats_and_dogs();
    let train = |threads: usize| {
        let mut learner = with_views(&folder, 2).device(Device::cpu(threads).unwrap()).unwrap();
        learner.fit(Fit::epochs(4).lr(1e-2)).unwrap();
        learner
    };
    let mut whole = train(1);
    assert!(bits(whole.model()) == bits(train(3).model()));
    let valid = whole.evaluate(Split::Valid).unwrap();
    whole.precompute(false);
    assert_eq!(valid.probabilities, whole.evaluate(Split::Valid).unwrap().probabilities);

    for ended_after in [1, 2] {
        let state = tempfile::tempdir().unwrap();
        let first = with_views(&folder, 2).checkpoints(state.path());
        let token = first.cancel_token();
        let mut first = first.callback(move |event: &Event| {
            if matches!(event, Event::Step { epoch, step: 1, .. } if *epoch == ended_after) {
                token.cancel();
            }
            Flow::Continue
        });
        first.fit(Fit::epochs(4).lr(1e-2)).unwrap_err();
        let mut second = with_views(&folder, 2);
        second.resume(state.path()).unwrap();
        second.fit(Fit::epochs(4).lr(1e-2)).unwrap();
        assert!(bits(second.model()) == bits(whole.model()) && timeless(second.history()) == timeless(whole.history()));
    }
}

#[test]
fn what_precompute_cannot_do_is_said_and_changes_nothing() {
    let folder = cats_and_dogs();
    let augmented = data(&folder).transforms(Transforms::new(16).augment(Augment::SideOn));
    let fit = |data: ImageData, set: &dyn Fn(&mut Learner)| {
        let (mut learner, computed) = Computed::by(learner(data));
        learner.freeze_to(1).unwrap();
        set(&mut learner);
        learner.fit(Fit::epochs(2).lr(1e-2)).unwrap();
        (bits(learner.model()), timeless(learner.history()), computed.notes(), learner.history()[0].cached)
    };
    // Too large, to the byte: 16 activations of 16 · 16 · 16 floats. Clean views all the same.
    let whole = fit(augmented.clone(), &|learner| {
        learner.precompute(true);
        learner.precompute_memory(16 * 16384);
    });
    assert!(whole.3 && whole.2.len() == 1 && whole.2[0].contains("augmentation has no effect"), "{:?}", whole.2);
    let refused = fit(augmented, &|learner| {
        learner.precompute(true);
        learner.precompute_memory(16 * 16384 - 1);
    });
    assert!(!refused.3 && refused.2.iter().any(|note| note.contains("would take 0.2 MiB")), "{:?}", refused.2);
    assert!(whole.0 == refused.0 && whole.1 == refused.1);
    // Nothing random to draw.
    let plain = data(&folder).transforms(Transforms::new(16).crop(Crop::Centre));
    let several = fit(plain.clone(), &|learner| learner.precompute_views(4).unwrap());
    assert!(several.2.len() == 1 && several.2[0].contains("nothing is random"), "{:?}", several.2);
    assert!(several.0 == fit(plain, &|learner| learner.precompute(true)).0);
}

/// In memory and on disk, where there is room for one set of views and not for two.
#[test]
fn views_that_are_renewed_take_the_room_of_those_before() {
    let (folder, cache) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let train = |memory: Option<u64>, disk: Option<u64>| {
        let (mut learner, computed) = Computed::by(with_views(&folder, 2));
        if let Some(budget) = disk {
            learner = learner.cache_folder(cache.path()).cache_budget(budget);
        }
        memory.into_iter().for_each(|bytes| learner.precompute_memory(bytes));
        learner.renew_views_every(2);
        learner.fit(Fit::epochs(6).lr(1e-2)).unwrap();
        let cached = learner.history().iter().filter(|record| record.cached).count();
        (bits(learner.model()), timeless(learner.history()), cached, computed.take(), computed.notes())
    };
    // Three views of ten images, and six to validate on, of 512 bytes.
    let (room, budget) = (36 * 512, 30_000);
    let plenty = train(None, None);
    for (memory, disk, cached) in [(room, None, 6), (room - 1, None, 0), (0, Some(budget), 6)] {
        let tight = train(Some(memory), disk);
        assert!(tight.0 == plenty.0 && tight.1 == plenty.1, "{memory}: {:?}", tight.4);
        assert_eq!(tight.2, cached, "{memory}: {:?}", tight.4);
        assert!(cached == 0 || tight.3 == plenty.3, "{:?} {:?}", tight.3, plenty.3);
    }
    let listed = Store::at(cache.path()).unwrap().list().unwrap();
    let computed: usize = plenty.3.iter().map(|(_, count)| count).sum();
    assert!(listed.iter().map(|entry| entry.rows).sum::<usize>() < computed, "{listed:?}");
    assert!(listed.iter().map(|entry| entry.bytes).sum::<u64>() <= budget, "{listed:?}");
}
