//! Cached activations: computed once, only where they are missing, and never to be told from those computed anew.

#[path = "activations/boundaries.rs"]
mod boundaries;
mod common;
#[path = "activations/disk.rs"]
mod disk;
#[path = "activations/missing.rs"]
mod missing;
#[path = "activations/program.rs"]
mod program;
#[path = "activations/views.rs"]
mod views;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use common::learning::{data, learner, picture};
use unfreeze::{
    data::{Augment, Split, Transforms},
    learner::{Evaluation, Event, Flow, Learner},
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

const VIEWS: usize = 3;

/// Three views of each image, from the first group of layers that is trained.
fn with_views(folder: impl AsRef<Path>, first: isize) -> Learner {
    let transforms = Transforms::new(16).augment(Augment::SideOn).max_zoom(1.2);
    let mut learner = learner(data(folder).transforms(transforms));
    learner.freeze_to(first).unwrap();
    learner.precompute_views(VIEWS).unwrap();
    learner
}

/// Writes an image whose level shows in no more of it than what is looked at of a file's content alone.
fn write_alterable(path: &Path, level: u8) {
    // Beyond the end that is always looked at; a bitmap begins with its last line.
    let mut picture = picture(64, 0, 70);
    (0..64).for_each(|x| (40..64).for_each(|y| picture.put_pixel(x, y, [level; 3].into())));
    picture.save(path).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
