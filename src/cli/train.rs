//! `unfreeze train`

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use unfreeze::{
    Error, Result,
    data::Transforms,
    learner::{
        Course, EarlyStopping, FineTune, Learner, Metric, Parts, Recipe, ReduceLrOnPlateau, RunFolder, Unfreeze,
    },
    nn::Grouping,
    optim::{FreezeOut, PerGroup},
};

use super::{
    options::{Arithmetic, Compute, DataSource, HeadFlags, Mode, Pretrained, Switch, TransformFlags, count, side},
    precompute_flags::PrecomputeFlags,
    run::{self, Config},
    step_flags::{AverageFlags, StepFlags},
};

const EXAMPLES: &str = "\
Examples:
  unfreeze train photos --valid-fraction 0.2 --weights resnet18.pth --out run
  unfreeze train photos --weights resnet34.pth --out run --epochs 3 --cycles 2 --lr 0.005
  unfreeze train labels.csv --weights resnet50.pth --out run --augment top-down --size 128
  unfreeze train photos --weights resnet50.pth --out run --fastai2 5
  unfreeze train --resume --out run";

/// What makes no sense with fastai 2's recipe.
const ONE_CALL_CONFLICTS: [&str; 15] = [
    "recipe",
    "epochs",
    "cycles",
    "cycle_len",
    "cycle_mult",
    "schedule",
    "momentum_range",
    "warm_up",
    "snapshots",
    "freeze_to",
    "sizes",
    "unfreeze",
    "freeze_out",
    "early_stopping",
    "reduce_on_plateau",
];

/// Train a classifier on a folder of images
///
/// The recipe: a new head is trained on the frozen backbone, whose activations are computed once; then the whole
/// network is trained in cycles, with a learning rate for each layer group.
///
/// OUT receives model.safetensors (enough for `predict`, and it loads in PyTorch), report.html and plots/, the records
/// history.jsonl, steps.jsonl and predictions.jsonl, config.toml, and checkpoint/ from which --resume goes on. Ctrl-C
/// ends a run in good order: the model of the last finished epoch stays.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[command(group(ArgGroup::new("watched").multiple(true).args(["early_stopping", "reduce_on_plateau"])))]
#[command(mut_arg("data", |arg| arg.required(false).required_unless_present("resume")))]
#[command(mut_arg("weights", |arg| arg.required(false).required_unless_present("resume")))]
pub struct Train {
    #[command(flatten)]
    source: DataSource,
    #[command(flatten)]
    pretrained: Pretrained,
    /// Run folder to make
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Go on with the interrupted run in RUN, from its last finished epoch, with the settings that it was begun with;
    /// no other flag is needed
    #[arg(long)]
    resume: bool,
    /// full: head, then the whole network; or one of the two
    #[arg(long, value_enum, default_value_t = Part::Full)]
    recipe: Part,
    /// Instead of this recipe, fastai 2's `fine_tune(EPOCHS)`: the head, then for EPOCHS the whole network, each in one
    /// cycle of AdamW. --lr V is then its base_lr [default: 0.002], the default of --wd 0.01
    #[arg(long, value_name = "EPOCHS", conflicts_with_all = ONE_CALL_CONFLICTS)]
    fastai2: Option<usize>,
    /// Epochs of the head before those of --fastai2 [default: 1]
    #[arg(long, value_name = "N", requires = "fastai2")]
    freeze_epochs: Option<usize>,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count)]
    batch_size: usize,
    /// Epochs of the head
    #[arg(long, default_value_t = Recipe::default().epochs, value_name = "N")]
    epochs: usize,
    /// Learning rate: V is the head's, and once unfrozen the layer groups get V/1000..V/10; V,V,V gives one per layer
    /// group, LO..HI a geometric range [default: 0.01]
    #[arg(long, allow_hyphen_values = true, value_name = "V|V,V,V|LO..HI")]
    lr: Option<PerGroup>,
    /// Weight decay, in the same forms [default: 0]
    #[arg(long, allow_hyphen_values = true, value_name = "V|V,V,V|LO..HI")]
    wd: Option<PerGroup>,
    /// Cycles of the whole network's training
    #[arg(long, default_value_t = Recipe::default().cycles, value_name = "N")]
    cycles: usize,
    /// Epochs of the first cycle
    #[arg(long, default_value_t = Recipe::default().cycle_len, value_name = "N")]
    cycle_len: usize,
    /// Growth of each cycle over the one before [default: 2, or 1 for triangles]
    #[arg(long, value_name = "N")]
    cycle_mult: Option<usize>,
    /// What the rates follow while the whole network trains: in each cycle a half cosine, a triangle or one with a
    /// tail; or once over all the epochs of the cycles one cycle with its own momentum, a constant and a half cosine, a
    /// constant
    #[arg(long, value_enum, default_value_t = Shape::Restarts, value_name = "NAME")]
    schedule: Shape,
    /// Momentum at the ends of a cycle, and at its peak, of triangles or one cycle [default: that of --momentum, or for
    /// one cycle 0.95,0.85]
    #[arg(long, value_delimiter = ',', num_args = 1, value_name = "ENDS,PEAK")]
    momentum_range: Option<Vec<f64>>,
    /// Epochs, or a part of one, in which the rates of the whole network rise from a quarter to those of the schedule
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true, value_name = "EPOCHS")]
    warm_up: f64,
    /// Sides of the images: the whole network (with --recipe head: the head) is trained at each in turn, and what comes
    /// before at the first
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = side, conflicts_with_all = ["size", "resize"])]
    sizes: Vec<usize>,
    /// How the network is cut into layer groups: fastai (stem and first half, second half, head), stage or block
    /// [default: fastai, or block with --freeze-out]
    #[arg(long, value_name = "NAME")]
    groups: Option<Grouping>,
    /// Unfreeze the backbone at once, or gradually: an epoch each with one layer group more, from the last one, then
    /// the cycles
    #[arg(long, value_enum, default_value_t = Pace::AtOnce)]
    unfreeze: Pace,
    /// Freeze the layer groups one after the other while the whole network trains, over as many epochs as the cycles
    /// add up to: linear, quadratic or cubic, then :T0 (0.8) and :unscaled
    #[arg(long, value_name = "NAME", conflicts_with_all = ["schedule", "momentum_range", "snapshots"])]
    freeze_out: Option<FreezeOut>,
    /// End a part when --monitor has not been better for N epochs in a row
    #[arg(long, value_name = "N", value_parser = count)]
    early_stopping: Option<usize>,
    /// Divide the rates by 10 when --monitor has not been better for N epochs in a row
    #[arg(long, value_name = "N", value_parser = count)]
    reduce_on_plateau: Option<usize>,
    /// What these two watch: train_loss, valid_loss or a metric, such as accuracy [default: valid_loss]
    #[arg(long, value_name = "NAME", requires = "watched")]
    monitor: Option<String>,
    /// Keep the model of the epoch that is best by this as RUN/best.safetensors: as for --monitor
    #[arg(long, value_name = "NAME")]
    save_best: Option<String>,
    /// Keep the model of each cycle's end as RUN/snapshot-N.safetensors, for `evaluate --ensemble`
    #[arg(long)]
    snapshots: bool,
    #[command(flatten)]
    precompute: PrecomputeFlags,
    /// First layer group trained with the whole network; negative numbers count from the end
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_name = "N")]
    freeze_to: isize,
    /// Keep the running statistics of every batchnorm while the whole network trains [default: on after a head was
    /// trained on a pretrained backbone]; `off` suits large batches of images unlike those of the pretraining
    #[arg(long, value_enum)]
    bn_freeze: Option<Switch>,
    /// Measure these on the validation set too, after each epoch: topK, precision, recall, fBETA (means over classes;
    /// precision-micro and so on: over all images), auc, log_loss
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME")]
    metrics: Vec<Metric>,
    /// With --task multi-label: the probability from which on a label is given [default: 0.5]
    #[arg(long, value_name = "P")]
    threshold: Option<f32>,
    /// On a GPU, capture the steps as CUDA graphs and replay them: the same result, for fewer calls of the driver
    #[arg(long, value_enum, default_value_t = Switch::On)]
    graphs: Switch,
    #[command(flatten)]
    step: StepFlags,
    #[command(flatten)]
    averages: AverageFlags,
    #[command(flatten)]
    transforms: TransformFlags,
    #[command(flatten)]
    head: HeadFlags,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
    #[command(flatten)]
    mode: Mode,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Full,
    Head,
    Finetune,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pace {
    AtOnce,
    Gradual,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Shape {
    Restarts,
    OneCycle,
    FlatCosine,
    Triangular,
    TriangularTail,
    Constant,
}

impl Train {
    pub fn run(self) -> Result<()> {
        if self.resume {
            return self.go_on();
        }
        RunFolder::check_free(&self.out)?;
        let (config, learner) = self.prepare()?;
        run::execute(RunFolder::create(&self.out, &config)?, &config, learner, self.mode)
    }

    /// Takes up an interrupted run as its folder describes it.
    fn go_on(self) -> Result<()> {
        let (folder, mut config) = RunFolder::resume::<Config>(&self.out)?;
        if self.source.is_given() {
            let flags = self.prepare()?.0;
            config.check_same(&flags)?;
            (config.data, config.weights) = (flags.data, flags.weights);
        }
        let learner = config.prepare(&self.compute, self.mode)?.graphs(self.graphs == Switch::On);
        let learner = self.precompute.cache.keep(learner);
        if config.classes != learner.data().classes() {
            let message = format!("has the classes {:?}, but the run {:?}", learner.data().classes(), config.classes);
            return Err(Error::data(&config.data, message));
        }
        run::execute(folder, &config, learner, self.mode)
    }

    fn prepare(&self) -> Result<(Config, Learner)> {
        self.precompute.check()?;
        let head = self.head.spec()?;
        let weights = self.pretrained.read(self.mode.quiet)?;
        let size = self.sizes.first().copied().or(self.transforms.size);
        let size = size.unwrap_or(weights.arch().published_size());
        let transforms = self.transforms.set(Transforms::for_weights(&weights, size))?;
        let mut config = Config {
            engine_version: env!("CARGO_PKG_VERSION").into(),
            data: self.source.absolute()?,
            task: self.source.task,
            valid_fraction: self.source.valid_fraction,
            arch: weights.arch(),
            weights: self.pretrained.absolute()?,
            key: self.pretrained.key.clone(),
            classes: Vec::new(),
            batch_size: self.batch_size,
            seed: self.compute.seed,
            threads: self.compute.threads,
            device: self.compute.device.to_string(),
            dtype: self.arithmetic.dtype,
            strict: self.source.strict,
            verify_content: self.precompute.cache.verify_content,
            head,
            groups: self.groups.unwrap_or(if self.freeze_out.is_some() {
                Grouping::PerBlock
            } else {
                Grouping::Fastai
            }),
            snapshots: self.snapshots,
            learning: self.step.learning.clone(),
            metrics: self.metrics.clone(),
            threshold: self.threshold,
            transforms,
            recipe: self.recipe()?,
            save_best: self.save_best.clone(),
            fine_tune: self.fine_tune()?,
        };
        let learner = self.precompute.cache.keep(config.prepare_with(weights, &self.compute, self.mode)?);
        config.classes = learner.data().classes().to_vec();
        Ok((config, learner.graphs(self.graphs == Switch::On)))
    }

    fn fine_tune(&self) -> Result<Option<FineTune>> {
        let Some(epochs) = self.fastai2 else { return Ok(None) };
        let defaults = FineTune::epochs(epochs);
        let base_lr = match self.lr {
            None => defaults.base_lr,
            Some(PerGroup::All(lr)) => lr,
            Some(_) => return Err(Error::setting("lr", "--fastai2 takes one value, and makes a range of it itself")),
        };
        Ok(Some(FineTune {
            base_lr,
            freeze_epochs: self.freeze_epochs.unwrap_or(defaults.freeze_epochs),
            wd: self.wd.clone().unwrap_or(defaults.wd.clone()),
            ..defaults
        }))
    }

    fn momentum_range(&self) -> Result<Option<[f64; 2]>> {
        let Some(momenta) = &self.momentum_range else { return Ok(None) };
        match momenta.as_slice().try_into() {
            Ok(range) => Ok(Some(range)),
            Err(_) => Err(Error::setting("--momentum-range", "give two values, such as 0.95,0.85")),
        }
    }

    fn recipe(&self) -> Result<Recipe> {
        let monitor = self.monitor.clone().unwrap_or(EarlyStopping::default().monitor);
        let triangles = matches!(self.schedule, Shape::Triangular | Shape::TriangularTail);
        Ok(Recipe {
            parts: match self.recipe {
                Part::Full => Parts::Full,
                Part::Head => Parts::Head,
                Part::Finetune => Parts::Finetune,
            },
            epochs: self.epochs,
            lr: self.lr.clone().unwrap_or(Recipe::default().lr),
            wd: self.wd.clone().unwrap_or(Recipe::default().wd),
            cycles: self.cycles,
            cycle_len: self.cycle_len,
            cycle_mult: self.cycle_mult.unwrap_or(if triangles { 1 } else { Recipe::default().cycle_mult }),
            schedule: match self.schedule {
                Shape::Restarts => Course::Restarts,
                Shape::OneCycle => Course::OneCycle,
                Shape::FlatCosine => Course::FlatCosine,
                Shape::Triangular => Course::Triangular,
                Shape::TriangularTail => Course::TriangularTail,
                Shape::Constant => Course::Constant,
            },
            momentum_range: self.momentum_range()?,
            warm_up: self.warm_up,
            sizes: self.sizes.clone(),
            unfreeze: match self.unfreeze {
                Pace::AtOnce => Unfreeze::AtOnce,
                Pace::Gradual => Unfreeze::Gradual,
            },
            freeze_out: self.freeze_out,
            early_stopping: self.early_stopping.map(|patience| EarlyStopping {
                patience,
                monitor: monitor.clone(),
                ..EarlyStopping::default()
            }),
            reduce_on_plateau: self.reduce_on_plateau.map(|patience| ReduceLrOnPlateau {
                patience,
                monitor: monitor.clone(),
                ..ReduceLrOnPlateau::default()
            }),
            precompute: self.precompute.views() > 0,
            views: self.precompute.views().max(1),
            renew_views: self.precompute.renew_views,
            freeze_to: self.freeze_to,
            bn_freeze: self.bn_freeze.map(|switch| switch == Switch::On),
            snapshots: None,
            options: self.averages.with(self.step.options()?),
        })
    }
}
