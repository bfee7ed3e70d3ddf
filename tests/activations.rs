//! Cached activations: computed once, only where they are missing, and never to be told from those computed anew.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use common::{
    emulator::gpu,
    learning::{bits, cats_and_dogs, data, folders, learner, learner_of, picture, timeless},
    program::{names, unfreeze},
};
use unfreeze::{
    Precision,
    checkpoint::{Weights, collect, write_safetensors},
    data::{Augment, Crop, ImageData, Split, Transforms},
    learner::{EpochRecord, Evaluation, Event, Fit, Flow, Learner, Tta},
    nn::{Arch, Grouping, HeadSpec, Model},
    prelude::Device,
};

type Bits = BTreeMap<String, Vec<u32>>;

/// What a learner computed and noted.
#[derive(Clone, Default)]
struct Computed(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    /// How many activations of which split, for each time that some were computed.
    computed: Vec<(Split, usize)>,
    notes: Vec<String>,
}

impl Computed {
    fn by(learner: Learner) -> (Learner, Self) {
        let computed = Self::default();
        let list = computed.clone();
        let learner = learner.callback(move |event: &Event| {
            let mut log = list.0.lock().unwrap();
            match event {
                Event::Caching { split, done, total } if done == total => log.computed.push((*split, *total)),
                Event::Note(text) => log.notes.push(text.to_string()),
                _ => {}
            }
            Flow::Continue
        });
        (learner, computed)
    }

    /// Since this was last asked.
    fn take(&self) -> Vec<(Split, usize)> {
        std::mem::take(&mut self.0.lock().unwrap().computed)
    }

    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().notes)
    }
}

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

/// Evaluates a split from the cache and anew, which must be the same, and returns what was computed for that.
fn checked(learner: &mut Learner, computed: &Computed, split: Split) -> (Evaluation, usize) {
    learner.precompute(true);
    let cached = learner.evaluate(split).unwrap();
    let count = computed.take().iter().map(|(of, count)| if *of == split { *count } else { 1000 }).sum();
    learner.precompute(false);
    let anew = learner.evaluate(split).unwrap();
    learner.precompute(true);
    assert_eq!((&cached.probabilities, &cached.labels), (&anew.probabilities, &anew.labels));
    assert_eq!((&cached.indices, cached.loss.to_bits()), (&anew.indices, anew.loss.to_bits()));
    (cached, count)
}

#[test]
fn only_what_is_missing_is_computed() {
    let folder = cats_and_dogs();
    let file = |name: &str| folder.path().join("train").join(name);
    let (mut learner, computed) = Computed::by(learner(data(&folder)));
    let count = |learner: &mut Learner, data: ImageData| {
        learner.set_data(data).unwrap();
        checked(learner, &computed, Split::Train).1
    };
    let plain = || data(&folder);
    assert_eq!(count(&mut learner, plain()), 10);
    assert_eq!(count(&mut learner, plain().batch_size(3)), 0, "batches");
    picture(19, 0, 50).save(file("cat/00.png")).unwrap();
    assert_eq!(count(&mut learner, plain()), 1, "added, before all others");
    fs::remove_file(file("cat/2.png")).unwrap();
    assert_eq!(count(&mut learner, plain()), 0, "removed");
    fs::rename(file("cat/3.png"), file("dog/9.png")).unwrap();
    assert_eq!(count(&mut learner, plain()), 1, "renamed");
    let later = SystemTime::now() + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(file("dog/1.png")).unwrap().set_modified(later).unwrap();
    assert_eq!(count(&mut learner, plain()), 1, "touched");
    fs::write(folder.path().join("note.txt"), "of no concern").unwrap();
    assert_eq!(count(&mut learner, plain()), 0, "an unrelated file");

    // A damaged file is tried once, and again when it has changed.
    let whole = fs::read(file("dog/4.png")).unwrap();
    fs::write(file("dog/4.png"), &whole[..whole.len() / 2]).unwrap();
    assert_eq!(count(&mut learner, plain()), 1, "damaged");
    assert_eq!(count(&mut learner, plain()), 0, "known to be damaged");
    fs::write(file("dog/4.png"), &whole).unwrap();
    assert_eq!(count(&mut learner, plain()), 1, "repaired");
    // Where it is an error, what was passed over is not.
    fs::write(file("dog/4.png"), &whole[..whole.len() / 2]).unwrap();
    assert_eq!(count(&mut learner, plain()), 1);
    learner.set_data(plain().strict(true).unwrap()).unwrap();
    assert!(learner.evaluate(Split::Train).unwrap_err().to_string().contains("4.png"));
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
fn labels_are_no_part_of_what_is_cached() {
    let folder = cats_and_dogs();
    let table = |swapped: bool| {
        let mut text = "path,label,split\n".to_string();
        for class in ["cat", "dog"] {
            let label = if swapped { ["dog", "cat"][usize::from(class == "dog")] } else { class };
            (0..5).for_each(|n| text += &format!("train/{class}/{n}.png,{label},train\n"));
            (0..3).for_each(|n| text += &format!("valid/{class}/{n}.png,{class},valid\n"));
        }
        let path = folder.path().join("labels.csv");
        fs::write(&path, text).unwrap();
        ImageData::from_csv(path, None).unwrap().transforms(Transforms::new(16)).batch_size(4)
    };
    let (mut learner, computed) = Computed::by(learner(data(&folder)));
    let (before, count) = checked(&mut learner, &computed, Split::Train);
    assert_eq!(count, 10);
    // The same files, described by a table, then with other labels, which also changes their order.
    learner.set_data(table(false)).unwrap();
    assert_eq!(checked(&mut learner, &computed, Split::Train).1, 0);
    learner.set_data(table(true)).unwrap();
    let (after, count) = checked(&mut learner, &computed, Split::Train);
    assert_eq!(count, 0);
    let ones = |evaluation: &Evaluation| evaluation.labels.iter().sum::<u32>();
    assert!(before.loss != after.loss && ones(&before) == ones(&after));
}

/// The one thing that path, length, time of last change and end do not show.
#[test]
fn altered_content_is_seen_if_asked() {
    let folder = cats_and_dogs();
    let path = folder.path().join("train/cat/0.bmp");
    // Beyond the end that is always looked at; a bitmap begins with its last line.
    let write = |level: u8| {
        let mut picture = picture(64, 0, 70);
        (0..64).for_each(|x| (40..64).for_each(|y| picture.put_pixel(x, y, [level; 3].into())));
        picture.save(&path).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    for verify in [false, true] {
        write(0);
        let data = data(&folder).verify_content(verify);
        let (mut learner, computed) = Computed::by(learner(data));
        learner.precompute(true);
        let before = learner.evaluate(Split::Train).unwrap();
        assert_eq!(computed.take(), [(Split::Train, 11)]);
        write(255);
        let after = learner.evaluate(Split::Train).unwrap();
        assert_eq!(computed.take(), if verify { vec![(Split::Train, 1)] } else { vec![] });
        assert_eq!(before.probabilities != after.probabilities, verify);
    }
}

#[test]
fn whatever_changes_the_activations_has_all_of_them_computed() {
    let (folder, other) = (cats_and_dogs(), folders(&["cat", "dog"], 5, 3, 7));
    let (mut learner, computed) = Computed::by(learner(data(&folder)));
    let mut seen: Vec<Vec<f32>> = Vec::new();
    let mut count = |learner: &mut Learner, expected: usize, what: &str| {
        let (evaluation, count) = checked(learner, &computed, Split::Valid);
        assert_eq!(count, expected, "{what}");
        assert_eq!(!seen.contains(&evaluation.probabilities), expected > 0, "{what}");
        seen.push(evaluation.probabilities);
    };
    let of = |transforms: Transforms| data(&folder).transforms(transforms);
    count(&mut learner, 6, "at first");
    learner.set_data(of(Transforms::new(16).augment(Augment::SideOn).max_zoom(1.2))).unwrap();
    count(&mut learner, 0, "augmentation, which clean views do not have");
    learner.set_data(of(Transforms::new(18))).unwrap();
    count(&mut learner, 6, "size");
    learner.set_data(of(Transforms::new(16).resize(20))).unwrap();
    count(&mut learner, 6, "crop");
    learner.set_data(of(Transforms::new(16).normalise([0.5; 3], [0.5; 3]))).unwrap();
    count(&mut learner, 6, "normalisation");
    learner.set_data(data(&folder)).unwrap();
    count(&mut learner, 0, "what it was before");
    learner.set_data(data(&other)).unwrap();
    count(&mut learner, 6, "other images");
    // Statistics alone, then values alone; both end on a head alone, whose features are cached.
    learner.freeze_except(0).unwrap();
    learner.fit(Fit::epochs(1).lr(0.0)).unwrap();
    learner.freeze();
    computed.take();
    count(&mut learner, 6, "running statistics");
    learner.unfreeze();
    learner.bn_freeze(true);
    learner.fit(Fit::epochs(1).lr([1e-2, 1e-2, 0.0])).unwrap();
    learner.freeze();
    computed.take();
    count(&mut learner, 6, "fine-tuning");
    // What is trained behind the boundary does not change what is before it.
    learner.freeze_to(1).unwrap();
    learner.fit(Fit::epochs(2)).unwrap();
    assert_eq!(computed.take(), [(Split::Train, 10), (Split::Valid, 6)]);
    // Nor does a look at what is wholly frozen, in between.
    learner.freeze();
    learner.evaluate(Split::Valid).unwrap();
    learner.freeze_to(1).unwrap();
    computed.take();
    learner.fit(Fit::epochs(1)).unwrap();
    assert_eq!(computed.take(), []);
}

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

const VIEWS: usize = 3;

/// Three views of each image, from the first group of layers that is trained.
fn with_views(folder: impl AsRef<Path>, first: isize) -> Learner {
    let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.2);
    let mut learner = learner(data(folder).transforms(transforms));
    learner.freeze_to(first).unwrap();
    learner.precompute_views(VIEWS).unwrap();
    learner
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

const TRAIN: &str = "train {} --out {} --weights random --arch resnet8 --size 16 --hidden 8 --batch-size 4 --epochs 2 \
                     --cycles 1 --threads 1 --json";

#[test]
fn the_program_caches_views_and_goes_on_with_runs_of_before() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let cached = |run: &Path, flags: &str| -> Vec<bool> {
        let ran = unfreeze(&format!("{TRAIN} {flags}"), &[images.path(), run]).succeeded();
        ran.objects().iter().map(|record| record["cached"].as_bool().unwrap()).collect()
    };
    // The second part shows augmented images anew, unless views of them are asked for and some layers stay frozen.
    let run = |name: &str| out.path().join(name);
    assert_eq!(cached(&run("on"), "--freeze-to 1"), [true, true, false]);
    assert_eq!(cached(&run("views"), "--freeze-to 1 --precompute 3 --renew-views 2"), [true; 3]);
    assert_eq!(cached(&run("all"), "--precompute 3"), [true, true, false]);
    assert_eq!(cached(&run("off"), "--precompute off --freeze-to 1"), [false; 3]);
    assert_eq!(cached(&run("clean"), "--freeze-to 1 --augment none --max-zoom 1 --crop centre"), [true; 3]);
    unfreeze("train --resume --out {}", &[&run("views")]).succeeded();
    // A run of a version that knew no views.
    let config = run("on").join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let known = |line: &&str| !["views", "renew_views", "verify_content"].iter().any(|key| line.starts_with(key));
    let old: String = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
    assert!(old.len() < text.len() && old.contains("precompute = true"));
    fs::write(&config, old).unwrap();
    unfreeze(&format!("{TRAIN} --freeze-to 1 --resume"), &[images.path(), &run("on")]).succeeded();

    let find = "lr-find {} --out {} --weights random --arch resnet8 --size 16 --hidden 8 --batch-size 4 --steps 10";
    unfreeze(&format!("{find} --precompute 3 --freeze-to 1 --verify-content"), &[images.path(), &run("lr")])
        .succeeded();
    for (flags, named) in
        [("--precompute 0", "from 1"), ("--precompute some", "on, off"), ("--renew-views 2", "several")]
    {
        let refused = unfreeze(&format!("{TRAIN} {flags}"), &[images.path(), &run("refused")]);
        assert!(refused.code == 2 && refused.err.contains(named), "{flags}: {}", refused.err);
    }
    assert!(names(&run("refused")).is_empty());
}

/// What a learner sees that finds its activations in `cache`, and what it computed for that.
fn kept(folder: &Path, cache: &Path, first: isize) -> (Bits, Vec<EpochRecord>, Log) {
    let (learner, computed) = Computed::by(with_views(folder, first).cache_folder(cache));
    let mut learner = learner;
    learner.fit(Fit::epochs(VIEWS).lr(1e-2)).unwrap();
    (bits(learner.model()), timeless(learner.history()), Log { computed: computed.take(), notes: computed.notes() })
}

#[test]
fn activations_are_kept_from_one_run_to_the_next() {
    let (folder, cache) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    for first in [1, 2] {
        let begun = kept(folder.path(), cache.path(), first);
        assert_eq!(begun.2.computed.iter().map(|(_, count)| count).sum::<usize>(), 10 * VIEWS + 6);
        let again = kept(folder.path(), cache.path(), first);
        assert!(again.0 == begun.0 && again.1 == begun.1);
        assert!(again.2.computed.is_empty() && again.2.notes.is_empty(), "{:?}", again.2);
        // A data set that was moved, its files unchanged, is the same.
        let moved = tempfile::tempdir().unwrap();
        copy(folder.path(), moved.path());
        let moved = kept(moved.path(), cache.path(), first);
        assert!(moved.0 == begun.0 && moved.2.computed.is_empty(), "{:?}", moved.2);
        // Files that are damaged or gone are made up for.
        let chunks: Vec<_> =
            files(cache.path()).into_iter().filter(|path| fs::metadata(path).unwrap().len() > 500).collect();
        for (number, path) in chunks.iter().enumerate() {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() - 200;
            bytes[middle] ^= 1;
            match number % 2 {
                0 => fs::write(path, bytes).unwrap(),
                _ => fs::remove_file(path).unwrap(),
            }
        }
        let repaired = kept(folder.path(), cache.path(), first);
        assert!(repaired.0 == begun.0 && repaired.1 == begun.1);
        assert!(
            !repaired.2.computed.is_empty() && repaired.2.notes.iter().any(|note| note.contains("damaged")),
            "{:?}",
            repaired.2
        );
        assert!(kept(folder.path(), cache.path(), first).2.computed.is_empty());
    }
    // A cache that cannot be had is said once, and costs nothing else.
    let file = cache.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let without = kept(folder.path(), &file, 2);
    assert_eq!(without.2.notes.iter().filter(|note| note.contains("memory alone")).count(), 1, "{:?}", without.2);
    assert!(without.0 == kept(folder.path(), cache.path(), 2).0);
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A copy with the times of the original.
fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&target).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn the_program_computes_ahead_what_training_looks_up() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let (cache, weights) = (out.path().join("cache"), out.path().join("resnet8.safetensors"));
    let model = Model::new(Arch::ResNet8, HeadSpec::Linear, 10, 1, &Device::cpu(1).unwrap()).unwrap();
    write_safetensors(&weights, &collect(&model).unwrap(), &Default::default()).unwrap();
    let ahead = |flags: &str| {
        let line = format!("precompute {{}} --weights {{}} --cache {{}} --size 16 --json {flags}");
        unfreeze(&line, &[images.path(), &weights, &cache]).succeeded().objects()
    };
    let counts = |objects: &[serde_json::Value]| -> Vec<u64> {
        objects.iter().map(|object| object["activations"].as_u64().unwrap()).collect()
    };
    assert_eq!(counts(&ahead("--views 3")), [30, 6]);
    assert_eq!(counts(&ahead("--views 3 --boundary layer1")), [30, 6]);
    // Whatever is in the cache now, training adds nothing to it: neither in the first part, nor in the second.
    let listed = files(&cache);
    assert!(listed.len() > 3, "{listed:?}");
    let train = |name: &str, flags: &str| -> (Vec<EpochRecord>, Vec<u8>) {
        let line = format!(
            "train {{}} --out {{}} --weights {{}} --cache {{}} --size 16 --hidden 8 --batch-size 4 --epochs 3 \
             --cycles 1 --cycle-len 3 --freeze-to 1 --json {flags}"
        );
        let run = out.path().join(name);
        let ran = unfreeze(&line, &[images.path(), &run, &weights, &cache]).succeeded();
        let records = ran.objects().into_iter().map(|object| serde_json::from_value(object).unwrap());
        (timeless(&records.collect::<Vec<EpochRecord>>()), fs::read(run.join("model.safetensors")).unwrap())
    };
    let found = train("found", "--precompute 3");
    assert_eq!(files(&cache).len(), listed.len());
    fs::remove_dir_all(&cache).unwrap();
    assert!(found == train("anew", "--precompute 3"));
    let refused = unfreeze("precompute {} --weights {} --cache off", &[images.path(), &weights]);
    assert!(refused.code == 2 && refused.err.contains("--cache"), "{}", refused.err);
    let refused = unfreeze("precompute {} --weights {} --boundary layer4", &[images.path(), &weights]);
    assert!(refused.code == 2 && refused.err.contains("layer3"), "{}", refused.err);
}
