//! `unfreeze demo`: transfer learning from beginning to end on pictures that the program draws itself.

mod pictures;
mod shapes;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use unfreeze::{
    Device, Result,
    checkpoint::Weights,
    data::{Augment, ImageData, Split, Transforms},
    learner::{Classifier, Fit, Learner, Parts, Recipe, RunFolder},
    nn::{Arch, HeadSpec},
    optim::{OptimizerKind, PerGroup},
};

use self::{
    pictures::Counts,
    shapes::{PRETRAINING, SIDE, TRANSFER},
};
use super::{
    options::{Compute, Mode},
    progress::Progress,
};

const ARCH: Arch = Arch::ResNet20;
const BATCH_SIZE: usize = 16;
/// The head's learning rate in the transfer.
const LR: f32 = 3e-3;
/// The learning rate of a whole network that starts from random weights on the few pictures.
const SCRATCH_LR: f32 = 1e-2;
/// AdamW's learning rate and weight decay in pretraining.
const PRETRAINING_RATES: (f32, f32) = (3e-3, 1e-2);

/// See transfer learning at work: nothing to download, done in about a minute
///
/// The program draws its own pictures. A small network is pretrained on some kinds of shapes, then transferred to
/// others of which it sees few pictures: a new head on the frozen backbone, whose activations are computed once, then
/// the whole network with a learning rate for each layer group. Two runs without pretraining show what it was worth.
/// RUN becomes a run folder as `train` makes it, with the pictures in data/, pretrained.safetensors, and the two runs
/// in comparison/.
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
}

#[derive(Clone, Copy, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Budget {
    Full,
    Small,
}

/// How much is drawn and trained.
struct Plan {
    pretraining: Counts,
    pretraining_epochs: usize,
    transfer: Counts,
    recipe: Recipe,
}

impl Budget {
    fn plan(self) -> Plan {
        let lr = PerGroup::Range(LR / 10.0, LR);
        // Minutes of pretraining on other shapes leave statistics that do not suit these pictures: they should move.
        let recipe = Recipe { lr, cycles: 1, bn_freeze: Some(false), ..Recipe::default() };
        match self {
            Budget::Full => Plan {
                pretraining: Counts { train: 180, valid: 25 },
                pretraining_epochs: 6,
                transfer: Counts { train: 30, valid: 50 },
                recipe: Recipe { epochs: 20, cycle_len: 10, ..recipe },
            },
            Budget::Small => Plan {
                pretraining: Counts { train: 50, valid: 5 },
                pretraining_epochs: 4,
                transfer: Counts { train: 20, valid: 20 },
                recipe: Recipe { epochs: 10, cycle_len: 3, ..recipe },
            },
        }
    }
}

/// What a run folder records.
#[derive(Serialize)]
struct Config<'a> {
    engine_version: &'a str,
    budget: Budget,
    data: &'a Path,
    arch: &'a str,
    weights: &'a str,
    classes: [&'a str; TRANSFER.len()],
    batch_size: usize,
    seed: u64,
    threads: usize,
    device: String,
    head: HeadSpec,
    transforms: Transforms,
    recipe: &'a Recipe,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        RunFolder::check_free(&self.out)?;
        let start = Instant::now();
        let device = self.compute.open()?;
        let plan = self.budget.plan();
        let recipe = plan.recipe.clone();
        let pretrained = self.out.join("pretrained.safetensors");
        let run = self.folder(&self.out, &pretrained.display().to_string(), &recipe)?;

        let count = plan.pretraining.train;
        heading(
            1,
            &format!("{ARCH} learns {} shapes from random weights, {count} pictures of each", PRETRAINING.len()),
        );
        self.pretrain(&plan, &pretrained, &device)?;

        let data = pictures::write(&self.transfer(), &TRANSFER, plan.transfer, self.compute.seed)?;
        let data = data.transforms(transforms()).batch_size(BATCH_SIZE);
        let few = data.items(Split::Train).len();
        heading(2, &format!("For comparison, {} other shapes: a head on the random backbone", TRANSFER.len()));
        let head = Recipe { parts: Parts::Head, ..recipe.clone() };
        let random_head = self.compare("random-backbone", &head, &data, &device)?;
        heading(3, &format!("For comparison: the whole network from random weights on these {few} pictures"));
        // There is nothing to preserve in random layers: all of them get the same, higher rate.
        let whole = Recipe { parts: Parts::Finetune, lr: PerGroup::Range(SCRATCH_LR, SCRATCH_LR), ..recipe.clone() };
        let from_scratch = self.compare("from-scratch", &whole, &data, &device)?;

        heading(4, "Transfer: a head on the pretrained backbone, then everything, with a rate for each layer group");
        let learner = self.learner(Weights::file(&pretrained)?, HeadSpec::default(), data, &device)?;
        let mut learner = run.attach(learner)?;
        let mut accuracies = Vec::new();
        learner.run(&recipe, |learner| {
            accuracies.push(accuracy(learner));
            run.save(learner)
        })?;

        outln!("\naccuracy on {} pictures not trained on", learner.data().items(Split::Valid).len());
        let names = ["pretrained, new head on cached activations", "pretrained, then fine-tuned"];
        let others = [
            ("chance", 1.0 / TRANSFER.len() as f32),
            ("random backbone, new head", random_head),
            ("random weights, everything trained", from_scratch),
        ];
        for (name, accuracy) in others.into_iter().chain(names.into_iter().zip(accuracies)) {
            outln!("  {name:<44} {accuracy:.3}");
        }
        self.classify(&device)?;
        let (out, some) = (self.out.display(), self.transfer().join("valid").join(TRANSFER[0].name));
        outln!("\n{:.0} seconds on {device} with {} threads. Next:", start.elapsed().as_secs_f64(), device.threads());
        outln!("  unfreeze predict {out} {} --top 3", some.display());
        outln!("  unfreeze inspect {}", run.file("model.safetensors").display());
        outln!("  unfreeze train {} --weights {} --out my-run", self.transfer().display(), pretrained.display());
        Ok(())
    }

    /// Trains the network on the first shapes and saves it.
    fn pretrain(&self, plan: &Plan, file: &Path, device: &Device) -> Result<()> {
        let folder = self.out.join("data").join("pretrain");
        let data = pictures::write(&folder, &PRETRAINING, plan.pretraining, self.compute.seed)?;
        let data = data.transforms(transforms()).batch_size(2 * BATCH_SIZE);
        let mut learner = self.learner(Weights::random(ARCH), HeadSpec::Linear, data, device)?;
        learner.unfreeze();
        let (lr, wd) = PRETRAINING_RATES;
        let fit = Fit::cycles(1).cycle_len(plan.pretraining_epochs).lr(lr).wd(wd);
        learner.fit(fit.optimizer(OptimizerKind::adamw()).phase("pretrain"))?;
        learner.save(file)
    }

    /// Runs `recipe` without pretraining, in a run folder of its own.
    fn compare(&self, name: &str, recipe: &Recipe, data: &ImageData, device: &Device) -> Result<f32> {
        let folder = self.folder(&self.out.join("comparison").join(name), "random", recipe)?;
        let learner = self.learner(Weights::random(ARCH), HeadSpec::default(), data.clone(), device)?;
        let mut learner = folder.attach(learner)?;
        learner.run(recipe, |learner| folder.save(learner))?;
        Ok(accuracy(&learner))
    }

    /// Shows what the finished model says of some pictures, the first of several classes.
    fn classify(&self, device: &Device) -> Result<()> {
        let classifier = Classifier::load(self.out.join("model.safetensors"), device.clone())?;
        outln!("\nsome of them");
        for shape in TRANSFER.iter().take(4) {
            let file = self.transfer().join("valid").join(shape.name).join("0000.png");
            let prediction = classifier.predict_file(&file)?;
            outln!("  {}: {} ({:.0} %)", file.display(), prediction.class, 100.0 * prediction.probability);
        }
        Ok(())
    }

    fn learner(&self, weights: Weights, head: HeadSpec, data: ImageData, device: &Device) -> Result<Learner> {
        let learner = Learner::with_head(weights, data, head)?.device(device.clone()).seed(self.compute.seed);
        Ok(learner.callback(Progress::new(Mode::default())))
    }

    fn folder(&self, path: &Path, weights: &str, recipe: &Recipe) -> Result<RunFolder> {
        let config = Config {
            engine_version: env!("CARGO_PKG_VERSION"),
            budget: self.budget,
            data: &self.transfer(),
            arch: ARCH.name(),
            weights,
            classes: TRANSFER.map(|shape| shape.name),
            batch_size: BATCH_SIZE,
            seed: self.compute.seed,
            threads: self.compute.threads,
            device: self.compute.device.to_string(),
            head: HeadSpec::default(),
            transforms: transforms(),
            recipe,
        };
        RunFolder::create(path, &config)
    }

    fn transfer(&self) -> PathBuf {
        self.out.join("data").join("transfer")
    }
}

fn transforms() -> Transforms {
    Transforms::new(SIDE as usize).augment(Augment::SideOn).max_zoom(1.1)
}

fn accuracy(learner: &Learner) -> f32 {
    learner.history().last().map_or(f32::NAN, |record| record.accuracy())
}

fn heading(number: usize, text: &str) {
    outln!("{}{number}. {text}", if number > 1 { "\n" } else { "" });
}
