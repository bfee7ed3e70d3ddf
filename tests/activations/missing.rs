//! What is computed: all that is missing, and nothing else.

use std::{fs, time::SystemTime};

use unfreeze::{
    data::{Augment, ImageData, Split, Transforms},
    learner::{Evaluation, Fit, Learner},
};

use crate::{
    Computed, checked,
    common::learning::{cats_and_dogs, data, folders, learner, picture},
    write_alterable,
};

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
    for verify in [false, true] {
        write_alterable(&path, 0);
        let data = data(&folder).verify_content(verify);
        let (mut learner, computed) = Computed::by(learner(data));
        learner.precompute(true);
        let before = learner.evaluate(Split::Train).unwrap();
        assert_eq!(computed.take(), [(Split::Train, 11)]);
        write_alterable(&path, 255);
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
