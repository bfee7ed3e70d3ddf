//! `unfreeze bench data`: from image files to batches, each stage on one core and the whole on all of them.

mod pictures;

use std::{hint::black_box, path::PathBuf, sync::Arc};

use clap::Args;
use serde_json::json;
use unfreeze::{
    Device, Error, Precision, Result,
    data::{Batch, Item, Loader, LoaderOptions, Prepared, RgbImage, Transforms, View, decode},
    random::Random,
};

use super::{
    measure::{Sorted, Timer},
    network::Timing,
};
use crate::cli::options::{TransformFlags, count, images};

/// The short side before the crop, in shares of the crop: torchvision's 256 for 224.
const RESIZE: (usize, usize) = (256, 224);

/// Images to a batch, where there are batches.
const BATCH_SIZE: usize = 16;

/// Decodes, resizes, crops, augments and normalises image files
///
/// Stages alone and whole pipelines, each on one core; then the pipelines by the loader that a training has, on all
/// threads. Files are read again each time, and so from the system's cache. Stages take turns from round to round.
#[derive(Args)]
#[command(mut_arg("resize", |arg| arg.help("Short side before the crop, in pixels [default: 256 for a size of 224]")))]
#[command(mut_arg("size", |arg| arg.help("Side of the square that the network sees, in pixels [default: 224]")))]
pub struct Data {
    /// Folder of images, searched in depth [default: pictures drawn for it, JPEG files of 500 × 375 pixels]
    folder: Option<PathBuf>,
    /// Write the pictures drawn here, to be measured by others too, instead of to a temporary folder
    #[arg(long, value_name = "DIR", conflicts_with = "folder")]
    draw: Option<PathBuf>,
    /// Images, the first by name
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count)]
    images: usize,
    #[command(flatten)]
    transforms: TransformFlags,
    #[command(flatten)]
    timing: Timing,
    /// Threads of the loader; 0 means one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Decides every random choice
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print a JSON object per stage: stage, threads, images_per_second (the median), low and high (the 5th and 95th
    /// percentile), images, pixels and bytes (means of the files), rounds
    #[arg(long)]
    json: bool,
}

/// What is measured. `training` says whether the view is a training's or that of evaluation.
#[derive(Clone, Copy)]
enum Stage {
    /// From a file to pixels.
    Decode,
    /// From pixels to the square of a view.
    View { training: bool },
    /// From its bytes to normalised floats.
    Normalise,
    /// All of it, on one core.
    Whole { training: bool },
    /// All of it, by the loader.
    Loader { training: bool },
}

const STAGES: [Stage; 8] = [
    Stage::Decode,
    Stage::View { training: false },
    Stage::View { training: true },
    Stage::Normalise,
    Stage::Whole { training: false },
    Stage::Whole { training: true },
    Stage::Loader { training: false },
    Stage::Loader { training: true },
];

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::View { training: false } => "resize, crop",
            Stage::View { training: true } => "resize, augment, crop",
            Stage::Normalise => "normalise",
            Stage::Whole { training: false } | Stage::Loader { training: false } => "evaluation",
            Stage::Whole { training: true } | Stage::Loader { training: true } => "training",
        }
    }
}

/// The files, and what is made of them.
struct Source {
    items: Arc<[Item]>,
    decoded: Vec<RgbImage>,
    /// Clean views.
    prepared: Vec<Prepared>,
    transforms: Transforms,
    seed: u64,
    one: Device,
    all: Device,
}

impl Data {
    pub fn run(self) -> Result<()> {
        let own = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => {
                let folder = self.draw.clone().unwrap_or(own.path().to_owned());
                pictures::write(&folder, self.images, self.seed)?;
                folder
            }
        };
        let mut files = images(&[folder])?;
        files.truncate(self.images);
        let size = self.transforms.size.unwrap_or(224);
        let transforms = self.transforms.set(Transforms::new(size).resize(size * RESIZE.0 / RESIZE.1))?;
        let source = Source::new(files, transforms, self.seed, Device::cpu(self.threads)?)?;

        let mut timers = Vec::new();
        for stage in STAGES {
            let mut made = 0;
            let source = &source;
            let step = move |most| {
                let count = source.step(stage, made, most)?;
                made += count;
                Ok(count)
            };
            let threads = if let Stage::Loader { .. } = stage { source.all.threads() } else { 1 };
            timers.push((stage.name(), threads, Timer::new(&source.one, self.timing.warm_up, step)?, Vec::new()));
        }
        for _ in 0..self.timing.rounds {
            for (.., timer, rates) in &mut timers {
                let block = timer.block(self.timing.seconds)?;
                rates.push(block.steps as f64 / block.seconds);
            }
        }
        let [pixels, bytes] = source.means()?;
        if !self.json {
            let (count, kilobytes) = (source.items.len(), bytes / 1e3);
            outln!("{count} files of {kilobytes:.1} kB and {pixels:.0} pixels (means), to {size} × {size}");
            outln!("{:<26} {:>7} {:>10} {:>9} {:>9} {:>9}", "", "threads", "images/s", "5 %", "95 %", "ms/image");
        }
        for (stage, threads, _, rates) in timers {
            let rates = Sorted::new(rates);
            let (rate, low, high) = (rates.median(), rates.quantile(0.05), rates.quantile(0.95));
            if self.json {
                outln!(
                    "{}",
                    json!({
                        "bench": "data", "stage": stage, "threads": threads, "images_per_second": rate, "low": low,
                        "high": high, "images": source.items.len(), "pixels": pixels, "bytes": bytes,
                        "rounds": self.timing.rounds,
                    })
                );
            } else {
                outln!("{stage:<26} {threads:>7} {rate:>10.1} {low:>9.1} {high:>9.1} {:>9.3}", 1e3 / rate);
            }
        }
        Ok(())
    }
}

impl Source {
    fn new(files: Vec<PathBuf>, transforms: Transforms, seed: u64, all: Device) -> Result<Self> {
        let decoded: Vec<RgbImage> = files.iter().map(decode).collect::<Result<_>>()?;
        let clean = |image| transforms.prepare(image, View::Clean);
        let prepared = decoded.iter().map(clean).collect::<Result<_>>()?;
        Ok(Self { items: Item::unlabelled(files), decoded, prepared, transforms, seed, one: Device::cpu(1)?, all })
    }

    /// Pixels and bytes of a file, on average.
    fn means(&self) -> Result<[f64; 2]> {
        let mut bytes = 0;
        for item in self.items.iter() {
            bytes += item.path.metadata().map_err(|error| Error::io(&item.path, error))?.len();
        }
        let pixels: u64 = self.decoded.iter().map(|image| u64::from(image.width()) * u64::from(image.height())).sum();
        Ok([pixels, bytes].map(|sum| sum as f64 / self.items.len() as f64))
    }

    /// Does its work on one image, or on as many as `most` where the loader does it; `made` were before.
    fn step(&self, stage: Stage, made: usize, most: usize) -> Result<usize> {
        let at = made % self.items.len();
        match stage {
            Stage::Decode => drop(black_box(decode(&self.items[at].path)?)),
            Stage::View { training } => drop(black_box(self.view(&self.decoded[at], training, made)?)),
            Stage::Normalise => self.normalise(self.prepared[at].clone())?,
            Stage::Whole { training } => {
                self.normalise(self.view(&decode(&self.items[at].path)?, training, made)?)?;
            }
            Stage::Loader { training } => {
                let order = (made..made + most).map(|number| (number % self.items.len()) as u32).collect();
                let options = if training {
                    LoaderOptions::training(self.seed, made as u64)
                } else {
                    LoaderOptions::evaluation()
                };
                let options = LoaderOptions { strict: true, ..options.on(&self.all) };
                for batch in Loader::new(self.items.clone(), &self.transforms, order, BATCH_SIZE, &options)? {
                    black_box(batch?.upload(&self.transforms, &self.all, Precision::F32)?);
                }
                return Ok(most);
            }
        }
        Ok(1)
    }

    /// The square that a network sees, drawn by `number` in training.
    fn view(&self, image: &RgbImage, training: bool, number: usize) -> Result<Prepared> {
        let random = || View::Random(Random::stream(self.seed, "augment", &[number as u64]));
        let view = if training { random() } else { View::Clean };
        let prepared = self.transforms.prepare(image, view)?;
        Ok(Prepared { patch: prepared.patch.finish(), ..prepared })
    }

    fn normalise(&self, sample: Prepared) -> Result<()> {
        let mut batch = Batch::default();
        batch.push(sample, 0, 0);
        black_box(batch.upload(&self.transforms, &self.one, Precision::F32)?);
        Ok(())
    }
}
