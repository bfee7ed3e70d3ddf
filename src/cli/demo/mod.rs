//! `unfreeze demo`: transfer learning from beginning to end on pictures that the program draws itself.

mod linear;
pub(super) mod pictures;
mod shapes;

use std::{fs, path::PathBuf, time::Instant};

use clap::{Args, ValueEnum};
use unfreeze::{
    Error, Result,
    checkpoint::Weights,
    data::{Augment, ImageData, Split, Transforms},
    learner::{CancelToken, Classifier, EpochRecord, Learner, Parts, Recipe, RunFolder},
    nn::{Arch, Grouping, HeadSpec},
    optim::PerGroup,
    report::Records,
};

pub(super) use self::{pictures::Counts, shapes::SIDE};

use self::shapes::SHAPES;
use super::{
    interrupt,
    options::{Arithmetic, Compute, Mode, absolute},
    progress::Progress,
    run::{self, Config},
    step_flags::Learning,
};

/// What is transferred: a ResNet-20 that this program trained on the photographs of CIFAR-10 (see weights/README.md).
const CHECKPOINT: &[u8] = include_bytes!("../../../weights/resnet20-cifar10.safetensors");
const ARCH: Arch = Arch::ResNet20;
const BATCH_SIZE: usize = 16;
/// The head's learning rate; when everything is trained, the first layers get a tenth of it.
const LR: f32 = 3e-3;
/// The learning rate of a whole network that starts from random weights.
const SCRATCH_LR: f32 = 1e-2;

/// See transfer learning at work: nothing to download, done in about a minute
///
/// The program draws pictures of eight shapes, a few of each, and transfers a network to them that was trained on
/// photographs (a ResNet-20 for CIFAR-10, part of the program): a new head on the frozen backbone, whose activations
/// are computed once, then the whole network with a learning rate for each layer group. What it is worth is told by
/// three comparisons: a linear classifier of the pixels, a head on a random backbone, and the whole network trained
/// from random weights. RUN becomes a run folder as `train` makes it, with the report, the pictures in data/, the
/// pretrained weights, and the runs compared with in comparison/.
#[derive(Args)]
pub struct Demo {
    /// Run folder to make
    #[arg(long, default_value = "unfreeze-demo", value_name = "RUN")]
    out: PathBuf,
    /// full, or small: fewer pictures and epochs, done in seconds but less accurate
    #[arg(long, value_enum, default_value_t = Budget::Full)]
    budget: Budget,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
}

#[derive(Clone, Copy, ValueEnum)]
enum Budget {
    Full,
    Small,
}

/// How much is drawn and trained.
struct Plan {
    counts: Counts,
    head_epochs: usize,
    finetune_epochs: usize,
    scratch_epochs: usize,
}

impl Budget {
    fn plan(self) -> Plan {
        match self {
            Budget::Full => Plan {
                counts: Counts { train: 30, valid: 50 },
                head_epochs: 20,
                finetune_epochs: 10,
                scratch_epochs: 20,
            },
            Budget::Small => {
                Plan { counts: Counts { train: 20, valid: 20 }, head_epochs: 15, finetune_epochs: 4, scratch_epochs: 4 }
            }
        }
    }
}

/// A line of the table at the end.
struct Row {
    name: &'static str,
    accuracy: f32,
    seconds: f64,
}

impl Row {
    fn of(name: &'static str, epochs: &[EpochRecord]) -> Self {
        let accuracy = epochs.last().map_or(f32::NAN, EpochRecord::accuracy);
        Self { name, accuracy, seconds: seconds(epochs) }
    }
}

/// What was done before the transfer.
struct Prepared {
    rows: Vec<Row>,
    /// Time of an epoch of the head without cached activations.
    uncached: f64,
    learner: Learner,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        let made = !self.out.exists();
        let config = self.config()?;
        // From here on an interruption leaves things in order; what it ends is the next learner, or the one at work.
        interrupt::cancels(CancelToken::default())?;
        let folder = RunFolder::create(&self.out, &config)?;
        let outcome = self.perform(folder, &config);
        if outcome.is_err() && !Learner::can_resume(self.out.join("checkpoint")) {
            self.tidy(made);
        }
        outcome
    }

    fn perform(&self, folder: RunFolder, config: &Config) -> Result<()> {
        let start = Instant::now();
        let Prepared { mut rows, uncached, learner } = match self.prepare(config) {
            Ok(prepared) => prepared,
            Err(error) => {
                // The first failure says more than that of tidying up.
                let _ = folder.close_failed();
                return Err(error);
            }
        };
        run::execute(folder, config, learner, Mode { quiet: true, json: false })?;
        let epochs = Records::read(&self.out)?.epochs;
        let (head, finetune) = epochs.split_at(config.recipe.epochs.min(epochs.len()));
        rows.push(Row::of("pretrained backbone, new head", head));
        rows.push(Row::of("then unfrozen, a rate per layer group", finetune));

        let valid = config.classes.len() * self.budget.plan().counts.valid;
        outln!("\n{:<40} accuracy  seconds", format!("{valid} pictures not trained on"));
        outln!("  {:<38} {:>8.3}", "chance", 1.0 / config.classes.len() as f32);
        for Row { name, accuracy, seconds } in &rows {
            outln!("  {name:<38} {accuracy:>8.3} {seconds:>8.1}");
        }
        let (cached, without) = (seconds(head), head.len() as f64 * uncached);
        outln!(
            "\n{} epochs of the head took {cached:.1} s, caching included. One without the cache took {uncached:.1} s, so",
            head.len(),
        );
        outln!("all would take {without:.0} s: the cache saved {:.0} % of the time.", 100.0 * (1.0 - cached / without));
        self.classify()?;
        self.advise(start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Draws the pictures, measures what is compared with, and makes the learner that is transferred.
    fn prepare(&self, config: &Config) -> Result<Prepared> {
        let plan = self.budget.plan();
        let weights = self.weights();
        fs::write(&weights, CHECKPOINT).map_err(|error| Error::io(&weights, error))?;
        let data = pictures::write(&self.data(), plan.counts, config.seed)?;
        let data = data.transforms(config.transforms.clone()).batch_size(config.batch_size);
        let few = data.items(Split::Train).len();
        let mut rows = Vec::new();

        heading(1, &format!("A linear classifier of the pixels of {few} pictures of {} shapes", SHAPES.len()));
        let start = Instant::now();
        let accuracy = linear::best_accuracy(&data, &self.compute.open()?)?;
        rows.push(Row { name: "linear classifier of the pixels", accuracy, seconds: start.elapsed().as_secs_f64() });
        outln!("accuracy {accuracy:.3}, the best of several weight decays and of all steps");

        heading(2, "A new head on a random backbone");
        let head = Recipe { parts: Parts::Head, ..config.recipe.clone() };
        let random = Config { weights: "random".into(), recipe: head.clone(), ..config.clone() };
        rows.push(Row::of("random backbone, new head", &self.compare("random-backbone", &random, &data)?));

        heading(3, "The whole network from random weights");
        // There is nothing to preserve in random layers: all of them get the same, higher rate.
        let recipe = Recipe {
            parts: Parts::Finetune,
            lr: PerGroup::Range(SCRATCH_LR, SCRATCH_LR),
            cycle_len: plan.scratch_epochs,
            ..config.recipe.clone()
        };
        let scratch = Config { recipe, ..random };
        rows.push(Row::of("random weights, everything trained", &self.compare("from-scratch", &scratch, &data)?));

        heading(4, "Transfer: a new head on the pretrained backbone, then everything, with a rate per layer group");
        // On clean views, as cached activations are: the same work but for the cache.
        let recipe = Recipe { epochs: 1, precompute: false, ..head };
        let clean = data.transforms(config.transforms.evaluation());
        let mut learner = self.learner(Weights::file(&weights)?, clean, Mode { quiet: true, json: false })?;
        learner.run(&recipe, |_| Ok(()))?;
        let uncached = seconds(learner.history());
        Ok(Prepared { rows, uncached, learner: config.prepare(&self.compute, Mode::default())? })
    }

    /// Runs what `config` says in a run folder of its own.
    fn compare(&self, name: &str, config: &Config, data: &ImageData) -> Result<Vec<EpochRecord>> {
        let folder = RunFolder::create(self.comparison().join(name), config)?;
        let learner = self.learner(Weights::random(ARCH), data.clone(), Mode::default())?;
        let mut learner = folder.attach(learner)?;
        learner.run(&config.recipe, |learner| folder.save(learner))?;
        Ok(learner.history().to_vec())
    }

    fn learner(&self, weights: Weights, data: ImageData, mode: Mode) -> Result<Learner> {
        let learner = Learner::pretrained(weights, data)?
            .device(self.compute.open()?)?
            .precision(self.arithmetic.dtype)?
            .seed(self.compute.seed)?;
        interrupt::cancels(learner.cancel_token())?;
        Ok(learner.callback(Progress::new(mode)))
    }

    /// Shows what the finished model says of some pictures, the first of several classes.
    fn classify(&self) -> Result<()> {
        let classifier = Classifier::load(self.out.join("model.safetensors"), self.compute.open()?)?
            .precision(self.arithmetic.dtype)?;
        outln!("\nsome of them");
        for shape in SHAPES.iter().take(4) {
            let file = self.data().join("valid").join(shape.name).join("0000.png");
            let prediction = classifier.predict_file(&file)?;
            outln!("  {}: {} ({:.0} %)", file.display(), prediction.class, 100.0 * prediction.probability);
        }
        Ok(())
    }

    fn advise(&self, seconds: f64) {
        let (out, data, weights) = (self.out.display(), self.data(), self.weights());
        let arrows = data.join("valid").join(SHAPES[0].name);
        outln!("\nreport: {}", self.out.join("report.html").display());
        outln!("{seconds:.0} seconds. Next:");
        outln!("  unfreeze predict {out} {} --top 3", arrows.display());
        outln!("  unfreeze evaluate {out}");
        outln!("  unfreeze samples {} --size {SIDE} --out samples.png", data.display());
        outln!("  unfreeze train {} --weights {} --out my-run", data.display(), weights.display());
    }

    /// Takes away what a demo that failed has written beside the records of its run, so that it can be tried again.
    fn tidy(&self, made: bool) {
        // What stays is named by the next attempt.
        let _ = fs::remove_dir_all(self.data());
        let _ = fs::remove_dir_all(self.comparison());
        let _ = fs::remove_file(self.weights());
        if made {
            // It may hold what others put there meanwhile.
            let _ = fs::remove_dir(&self.out);
        }
    }

    fn config(&self) -> Result<Config> {
        let plan = self.budget.plan();
        Ok(Config {
            engine_version: env!("CARGO_PKG_VERSION").into(),
            data: absolute(&self.data())?,
            task: unfreeze::data::Task::default(),
            valid_fraction: None,
            arch: ARCH,
            weights: absolute(&self.weights())?.to_string_lossy().into_owned(),
            key: None,
            classes: SHAPES.iter().map(|shape| shape.name.to_string()).collect(),
            batch_size: BATCH_SIZE,
            seed: self.compute.seed,
            threads: self.compute.threads,
            device: self.compute.device.to_string(),
            dtype: self.arithmetic.dtype,
            strict: false,
            verify_content: false,
            head: HeadSpec::default(),
            groups: Grouping::default(),
            snapshots: false,
            learning: Learning::default(),
            metrics: Vec::new(),
            threshold: None,
            save_best: None,
            transforms: Transforms::new(SIDE as usize).augment(Augment::SideOn).max_zoom(1.1),
            recipe: Recipe {
                epochs: plan.head_epochs,
                lr: PerGroup::Range(LR / 10.0, LR),
                cycles: 1,
                cycle_len: plan.finetune_epochs,
                // Statistics of photographs do not suit drawings: they should move.
                bn_freeze: Some(false),
                ..Recipe::default()
            },
            fine_tune: None,
        })
    }

    fn data(&self) -> PathBuf {
        self.out.join("data")
    }

    fn comparison(&self) -> PathBuf {
        self.out.join("comparison")
    }

    fn weights(&self) -> PathBuf {
        self.out.join("resnet20-cifar10.safetensors")
    }
}

fn seconds(epochs: &[EpochRecord]) -> f64 {
    epochs.iter().map(|epoch| epoch.seconds).sum()
}

fn heading(number: usize, text: &str) {
    outln!("{}{number}. {text}", if number > 1 { "\n" } else { "" });
}
