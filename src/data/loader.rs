//! Batches decoded ahead by worker threads, in an order that does not depend on how many there are.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Batch, Item, LoaderOptions, Prepared, Skipped, Transforms, View, batches, decode};
use crate::random::Random;
use crate::{Error, Result};

/// What a worker hands back for a position of the order; the outer error is a panic.
type Outcome = (usize, thread::Result<Result<Prepared>>);

/// An iterator over [`Batch`]es, decoded ahead by threads of its own.
///
/// It yields as many batches as planned, in order; a batch is smaller, even empty, where images could not be decoded.
/// An error ends it. Dropping it stops the threads after the image that each is at.
pub struct Loader {
    source: Arc<Source>,
    plan: std::vec::IntoIter<Range<usize>>,
    /// Positions for the workers; `None` when finished.
    jobs: Option<Sender<usize>>,
    /// Batches whose positions the workers have, the next to be yielded first.
    issued: VecDeque<Range<usize>>,
    outcomes: Receiver<Outcome>,
    /// Outcomes that arrived before their turn.
    early: HashMap<usize, thread::Result<Result<Prepared>>>,
    workers: Vec<JoinHandle<()>>,
    strict: bool,
}

/// Turns a sample's number, how often the order had it before, and its file into its pixels.
type Load = dyn Fn(u32, u32, &Item) -> Result<Prepared> + Send + Sync;

/// What the workers share.
struct Source {
    items: Arc<[Item]>,
    order: Vec<u32>,
    /// How often the sample at each position was met at earlier ones.
    earlier: Vec<u32>,
    load: Box<Load>,
    stop: AtomicBool,
}

impl Source {
    fn item(&self, position: usize) -> (u32, &Item) {
        let index = self.order[position];
        (index, &self.items[index as usize])
    }

    fn work(&self, jobs: &Mutex<Receiver<usize>>, outcomes: &Sender<Outcome>) {
        loop {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(position) = job else { return };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let (index, item) = self.item(position);
                (self.load)(index, self.earlier[position], item)
            }));
            if outcomes.send((position, outcome)).is_err() {
                return;
            }
        }
    }
}

impl Loader {
    /// Goes through the samples of `items` numbered in `order`, `batch_size` at a time (see [`batches`]).
    /// A sample that is there several times gets a random view each time. `options.shuffle` and `options.weighted` have no
    /// effect here: `order` decides.
    ///
    /// # Errors
    /// [`Error::Setting`] for transforms that make no sense, a batch size of 0, or a number in `order` that is not
    /// one of an item; [`Error::Io`] if the system refuses a thread.
    pub fn new(
        items: Arc<[Item]>,
        transforms: &Transforms,
        order: Vec<u32>,
        batch_size: usize,
        options: &LoaderOptions,
    ) -> Result<Self> {
        transforms.validate()?;
        let (transforms, patches) = (transforms.clone(), options.patches);
        let augment = options.augment.then_some((options.seed, options.epoch));
        let views = options.views.clone();
        let load = move |index: u32, earlier: u32, item: &Item| {
            let view = match (&views, augment) {
                (Some(views), _) => views.view(&item.path),
                (None, Some((seed, epoch))) => {
                    let first = Random::stream(seed, "augment", &[epoch, u64::from(index)]);
                    View::Random(if earlier == 0 { first } else { first.numbered(u64::from(earlier)) })
                }
                (None, None) => View::Clean,
            };
            let prepared = transforms.prepare(&decode(&item.path)?, view)?;
            Ok(if patches { prepared } else { Prepared { patch: prepared.patch.finish(), ..prepared } })
        };
        Self::start(items, order, batch_size, options, Box::new(load))
    }

    fn start(
        items: Arc<[Item]>,
        order: Vec<u32>,
        batch_size: usize,
        options: &LoaderOptions,
        load: Box<Load>,
    ) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::setting("batch_size", "0 is not a size; 64 is usual"));
        }
        if let Some(index) = order.iter().find(|&&index| index as usize >= items.len()) {
            return Err(Error::setting("order", format!("there is no sample {index} among {}", items.len())));
        }
        let mut met = HashMap::new();
        let before = |index: &u32| {
            let times = met.entry(*index).or_insert(0);
            *times += 1;
            *times - 1
        };
        let earlier = order.iter().map(before).collect();
        let plan = batches(order.len(), batch_size).into_iter();
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let count = if options.workers == 0 { cores } else { options.workers }.clamp(1, order.len().max(1));

        let (jobs, waiting) = mpsc::channel();
        let (finished, outcomes) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut loader = Self {
            source: Arc::new(Source { items, order, earlier, load, stop: AtomicBool::new(false) }),
            plan,
            jobs: Some(jobs),
            issued: VecDeque::new(),
            outcomes,
            early: HashMap::new(),
            workers: Vec::with_capacity(count),
            strict: options.strict,
        };
        for number in 0..count {
            let (source, waiting, finished) = (loader.source.clone(), waiting.clone(), finished.clone());
            let worker = thread::Builder::new()
                .name(format!("unfreeze-data-{number}"))
                .spawn(move || source.work(&waiting, &finished))
                .map_err(|e| Error::io("a thread to decode images", e))?;
            loader.workers.push(worker);
        }
        for _ in 0..options.prefetch {
            loader.issue();
        }
        Ok(loader)
    }

    /// Lets the workers begin the next batch of the plan, if there is one.
    fn issue(&mut self) {
        if let (Some(range), Some(jobs)) = (self.plan.next(), &self.jobs) {
            for position in range.clone() {
                // Fails only if every worker is gone, which `outcome` reports.
                let _ = jobs.send(position);
            }
            self.issued.push_back(range);
        }
    }

    fn outcome(&mut self, position: usize) -> Result<Result<Prepared>> {
        let panicked = |path| Error::data(path, "decoding ended in an internal error; please report it with this file");
        let path = || &self.source.item(position).1.path;
        loop {
            if let Some(outcome) = self.early.remove(&position) {
                return outcome.map_err(|_| panicked(path()));
            }
            let (arrived, outcome) = self.outcomes.recv().map_err(|_| panicked(path()))?;
            self.early.insert(arrived, outcome);
        }
    }

    fn assemble(&mut self, range: Range<usize>) -> Result<Batch> {
        let mut batch = Batch::default();
        for position in range {
            let outcome = self.outcome(position)?;
            let (index, item) = self.source.item(position);
            match outcome {
                Ok(sample) => batch.push(sample, item.label, index),
                Err(error) if self.strict => return Err(error),
                Err(error) => batch.failed.push(Skipped::new(&item.path, &error)),
            }
        }
        Ok(batch)
    }

    fn finish(&mut self) {
        self.source.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        self.issued.clear();
        self.plan = Vec::new().into_iter();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, and those are reported already.
            let _ = worker.join();
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.issue();
        let range = self.issued.pop_front()?;
        let batch = self.assemble(range);
        if batch.is_err() {
            self.finish();
        }
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.issued.len() + self.plan.len();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Loader {}

impl Drop for Loader {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Lighting;
    use crate::ops::augment::Patch;
    use std::sync::atomic::AtomicUsize;

    fn start(n: u32, workers: usize, load: Box<Load>) -> Loader {
        let items = Item::unlabelled((0..n).map(|i| format!("{i}.png")));
        let options = LoaderOptions { workers, ..LoaderOptions::default() };
        Loader::start(items, (0..n).collect(), 4, &options, load).unwrap()
    }

    fn sample(index: u32) -> Prepared {
        Prepared { patch: Patch::whole(vec![index as u8; 3], 1, 1), lighting: Lighting::NONE }
    }

    #[test]
    fn a_panic_is_an_error_that_ends_the_iteration() {
        let mut loader =
            start(20, 2, Box::new(|index, _, _| if index == 9 { panic!("as asked") } else { Ok(sample(index)) }));
        let results: Vec<_> = loader.by_ref().collect();
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
        assert!(results[2].as_ref().unwrap_err().to_string().contains("9.png"));
        assert!(loader.next().is_none() && loader.workers.is_empty());
    }

    #[test]
    fn no_more_than_the_prefetch_is_decoded_ahead() {
        let decoded = Arc::new(AtomicUsize::new(0));
        let counter = decoded.clone();
        let count = move |index, _: u32, _: &Item| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(sample(index))
        };
        let mut loader = start(100, 3, Box::new(count));
        for asked in 0..5 {
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(decoded.load(Ordering::SeqCst) <= 4 * (asked + 2));
            assert_eq!(loader.len(), 25 - asked);
            loader.next().unwrap().unwrap();
        }
    }

    #[test]
    fn order_holds_when_early_samples_are_slow() {
        let slow_start = |index: u32, _: u32, _: &Item| {
            thread::sleep(std::time::Duration::from_millis(if index.is_multiple_of(4) { 8 } else { 0 }));
            Ok(sample(index))
        };
        let indices: Vec<u32> = start(21, 4, Box::new(slow_start)).flat_map(|batch| batch.unwrap().indices).collect();
        assert!(indices.into_iter().eq(0..21));
    }
}
