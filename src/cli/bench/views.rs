//! `unfreeze bench views`: what cached activations buy: how good a head is after equal wall time, with and without them.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use unfreeze::{
    Error, Result,
    data::{Augment, ImageData, Transforms},
    learner::{Event, Fit, Flow, Learner},
};

use super::super::options::{Arithmetic, Compute, DataSource, HeadFlags, Mode, Pretrained, TransformFlags, open_data};

/// Trains the head of a frozen network on real images in several ways, each for the same time
///
/// The filling of the cache and the validation after each epoch count. The rate is constant.
#[derive(Args)]
pub struct Views {
    #[command(flatten)]
    source: DataSource,
    #[command(flatten)]
    pretrained: Pretrained,
    /// Wall time of each training, in seconds
    #[arg(long, default_value_t = 60.0, value_name = "S")]
    seconds: f64,
    /// Most epochs of each
    #[arg(long, default_value_t = 100, value_name = "N")]
    epochs: usize,
    /// Trainings of each way, with seeds from --seed on
    #[arg(long, default_value_t = 3, value_name = "N")]
    seeds: u64,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_name = "N")]
    batch_size: usize,
    /// Learning rate
    #[arg(long, default_value_t = 0.01, value_name = "V")]
    lr: f32,
    #[command(flatten)]
    transforms: TransformFlags,
    #[command(flatten)]
    head: HeadFlags,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
    /// Print a JSON object per training: way, seed, epochs, epoch_seconds (median), seconds, accuracy
    #[arg(long)]
    json: bool,
}

/// A way to train.
#[derive(Clone, Copy)]
enum Way {
    /// Without the cache, on clean or on augmented images.
    Live { augmented: bool },
    /// On so many cached views.
    Cached(usize),
}

const WAYS: [(&str, Way); 5] = [
    ("no cache, no augmentation", Way::Live { augmented: false }),
    ("no cache, augmentation", Way::Live { augmented: true }),
    ("1 cached view", Way::Cached(1)),
    ("4 cached views", Way::Cached(4)),
    ("16 cached views", Way::Cached(16)),
];

/// What came of a training.
struct Trained {
    epochs: usize,
    /// Median of its epochs' wall times.
    epoch_seconds: f64,
    seconds: f64,
    accuracy: f32,
}

impl Views {
    pub fn run(self) -> Result<()> {
        if !(self.seconds > 0.0 && self.seconds.is_finite() && self.seconds < 1e6) {
            return Err(Error::setting("--seconds", format!("{} is no time; give seconds above 0", self.seconds)));
        }
        let (source, seed) = (&self.source, self.compute.seed);
        let data = open_data(source.path(), source.task, source.valid_fraction, source.strict, seed, Mode::default())?;
        let arch = self.pretrained.read(false)?.arch();
        if !self.json {
            let (seconds, seeds) = (self.seconds, self.seeds);
            outln!("{arch}, {seconds} s for each of {seeds} trainings a way: median, and least to most");
            outln!("{:<26} {:>6} {:>11} {:>9}  accuracy", "", "epochs", "s an epoch", "seconds");
        }
        for (name, way) in WAYS {
            let mut all = Vec::new();
            for seed in seed..seed.saturating_add(self.seeds) {
                let trained = self.train(data.clone(), way, seed)?;
                let Trained { epochs, epoch_seconds, seconds, accuracy } = trained;
                if self.json {
                    outln!(
                        "{}",
                        json!({
                            "way": name, "seed": seed, "epochs": epochs, "epoch_seconds": epoch_seconds,
                            "seconds": seconds, "accuracy": accuracy,
                        })
                    );
                }
                all.push(trained);
            }
            if !self.json && !all.is_empty() {
                let of = |value: fn(&Trained) -> f64| sorted(all.iter().map(value).collect());
                let [epochs, epoch, seconds, accuracy] = [
                    of(|trained| trained.epochs as f64),
                    of(|trained| trained.epoch_seconds),
                    of(|trained| trained.seconds),
                    of(|trained| f64::from(trained.accuracy)),
                ];
                let (least, most) = (accuracy[0], accuracy[accuracy.len() - 1]);
                outln!(
                    "{name:<26} {:>6} {:>11.3} {:>9.1}  {:.4} ({least:.4} to {most:.4})",
                    middle(&epochs),
                    middle(&epoch),
                    middle(&seconds),
                    middle(&accuracy)
                );
            }
        }
        Ok(())
    }

    fn train(&self, data: ImageData, way: Way, seed: u64) -> Result<Trained> {
        let weights = self.pretrained.read(true)?;
        let size = self.transforms.size.unwrap_or(weights.arch().published_size());
        let transforms = self.transforms.set(Transforms::for_weights(&weights, size))?;
        let transforms = match way {
            Way::Live { augmented: false } => transforms.augment(Augment::None).max_zoom(1.0),
            Way::Live { augmented: true } | Way::Cached(_) => transforms,
        };
        let data = data.transforms(transforms).batch_size(self.batch_size);
        let learner = Learner::with_head(weights, data, self.head.spec()?)?
            .device(self.compute.open()?)?
            .precision(self.arithmetic.dtype)?
            .seed(seed)?;
        let (start, budget) = (Instant::now(), Duration::from_secs_f64(self.seconds));
        let mut learner = learner.callback(move |_: &Event| match start.elapsed() < budget {
            true => Flow::Continue,
            false => Flow::Stop,
        });
        if let Way::Cached(views) = way {
            learner.precompute_views(views)?;
        }
        let records = learner.fit(Fit::epochs(self.epochs).lr(self.lr))?;
        let epochs = sorted(records.iter().map(|record| record.seconds).collect());
        Ok(Trained {
            epochs: records.len(),
            epoch_seconds: middle(&epochs),
            seconds: start.elapsed().as_secs_f64(),
            accuracy: records.last().map_or(f32::NAN, |record| record.accuracy()),
        })
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The median of sorted values.
fn middle(values: &[f64]) -> f64 {
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
