//! `unfreeze train`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use unfreeze::{
    Result,
    data::{Augment, Split, Transforms},
    learner::{Learner, Parts, Recipe, RunFolder},
    nn::HeadSpec,
    optim::PerGroup,
};

use super::{
    options::{Compute, DataSource, Pretrained, count},
    progress::Progress,
};

/// Train a classifier on a folder of images
///
/// DATA holds train/CLASS/* and valid/CLASS/* (or val/CLASS/*). The recipe: a new head is trained on the frozen
/// backbone, whose activations are computed once; then the whole network is trained in cycles, with a learning rate
/// for each layer group. OUT receives model.safetensors (enough for `predict`, and it loads in PyTorch),
/// history.jsonl and config.toml.
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    source: DataSource,
    #[command(flatten)]
    pretrained: Pretrained,
    /// Run folder to make
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// full: head, then the whole network; or one of the two
    #[arg(long, value_enum, default_value_t = Part::Full)]
    recipe: Part,
    /// Side of the square that the network sees, in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Short side before the crop, in pixels [default: the size]
    #[arg(long, value_name = "N")]
    resize: Option<usize>,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count)]
    batch_size: usize,
    /// Epochs of the head
    #[arg(long, default_value_t = Recipe::default().epochs, value_name = "N")]
    epochs: usize,
    /// Learning rate: V is the head's, and once unfrozen the layer groups get V/1000..V/10; V,V,V gives one per layer
    /// group, LO..HI a geometric range
    #[arg(long, default_value_t = Recipe::default().lr, allow_hyphen_values = true, value_name = "V|V,V,V|LO..HI")]
    lr: PerGroup,
    /// Weight decay, in the same forms
    #[arg(long, default_value_t = Recipe::default().wd, allow_hyphen_values = true, value_name = "V|V,V,V|LO..HI")]
    wd: PerGroup,
    /// Cycles of the whole network's training
    #[arg(long, default_value_t = Recipe::default().cycles, value_name = "N")]
    cycles: usize,
    /// Epochs of the first cycle
    #[arg(long, default_value_t = Recipe::default().cycle_len, value_name = "N")]
    cycle_len: usize,
    /// Growth of each cycle over the one before
    #[arg(long, default_value_t = Recipe::default().cycle_mult, value_name = "N")]
    cycle_mult: usize,
    /// Train the head on activations computed once (clean views), or on augmented images anew each epoch
    #[arg(long, value_enum, default_value_t = Switch::On)]
    precompute: Switch,
    /// First layer group trained with the whole network; negative numbers count from the end
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_name = "N")]
    freeze_to: isize,
    /// Keep the running statistics of every batchnorm while the whole network trains [default: on after a head was
    /// trained on a pretrained backbone]; `off` suits large batches of images unlike those of the pretraining
    #[arg(long, value_enum)]
    bn_freeze: Option<Switch>,
    /// Random changes to training images: side-on (flip, rotate, lighting), basic (no flip), none, or a list such as
    /// rotate:10,lighting:0.05:0.05,flip
    #[arg(long, default_value_t = Augment::SideOn, value_name = "NAME|LIST")]
    augment: Augment,
    /// Largest random zoom of training images
    #[arg(long, default_value_t = 1.1, value_name = "X")]
    max_zoom: f32,
    /// Pixels by which training images are continued on each side, by reflection, before the random crop
    #[arg(long, default_value_t = 0, value_name = "N")]
    pad: usize,
    /// Hidden layer sizes of the head, such as 512 or 512,128; `none` for none
    #[arg(long, default_value = "512", value_name = "N,N|none")]
    hidden: String,
    /// Dropout before each linear layer of the head (fastai's ps): one value, or one each [default: .25 … .5]
    #[arg(long, value_delimiter = ',', value_name = "P,P")]
    ps: Option<Vec<f32>>,
    /// A plain linear head instead of fastai's
    #[arg(long, conflicts_with_all = ["hidden", "ps"])]
    linear_head: bool,
    #[command(flatten)]
    compute: Compute,
    /// Print one JSON object per epoch: phase, epoch, train_loss, valid_loss, metrics, lrs, seconds,
    /// images_per_second, device, cached
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Full,
    Head,
    Finetune,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// All that is needed to repeat a run.
#[derive(Serialize)]
struct Config<'a> {
    engine_version: &'a str,
    data: &'a PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_fraction: Option<f32>,
    arch: &'a str,
    weights: &'a str,
    classes: &'a [String],
    batch_size: usize,
    seed: u64,
    threads: usize,
    device: String,
    strict: bool,
    head: &'a HeadSpec,
    transforms: &'a Transforms,
    recipe: &'a Recipe,
}

impl Train {
    pub fn run(self) -> Result<()> {
        RunFolder::check_free(&self.out)?;
        let head = self.head()?;
        let device = self.compute.open()?;
        let weights = self.pretrained.read()?;
        let size = self.size.unwrap_or(weights.arch().published_size());
        let transforms = Transforms::for_weights(&weights, size)
            .resize(self.resize.unwrap_or(size))
            .augment(self.augment.clone())
            .max_zoom(self.max_zoom)
            .pad(self.pad);
        transforms.validate()?;
        let data = self.source.open(self.compute.seed)?.transforms(transforms).batch_size(self.batch_size);
        eprintln!(
            "{}: {} training and {} validation images in {} classes; {} on {device}",
            self.source.data.display(),
            data.items(Split::Train).len(),
            data.items(Split::Valid).len(),
            data.classes().len(),
            weights.arch(),
        );

        let arch = weights.arch();
        let recipe = self.recipe();
        let learner = Learner::with_head(weights, data, head.clone())?.device(device).seed(self.compute.seed);
        let learner = learner.callback(Progress::new(self.json));
        recipe.validate(&learner)?;
        let config = Config {
            engine_version: env!("CARGO_PKG_VERSION"),
            data: &self.source.data,
            valid_fraction: self.source.valid_fraction,
            arch: arch.name(),
            weights: &self.pretrained.weights,
            classes: learner.data().classes(),
            batch_size: self.batch_size,
            seed: self.compute.seed,
            threads: self.compute.threads,
            device: self.compute.device.to_string(),
            strict: self.source.strict,
            head: &head,
            transforms: &learner.data().transforms,
            recipe: &recipe,
        };
        let folder = RunFolder::create(&self.out, &config)?;
        let mut learner = learner.callback(folder.recorder());
        if let Err(error) = learner.run(&recipe, |learner| folder.save(learner)) {
            folder.close_failed()?;
            return Err(error);
        }
        eprintln!("model: {}", folder.file("model.safetensors").display());
        Ok(())
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            parts: match self.recipe {
                Part::Full => Parts::Full,
                Part::Head => Parts::Head,
                Part::Finetune => Parts::Finetune,
            },
            epochs: self.epochs,
            lr: self.lr.clone(),
            wd: self.wd.clone(),
            cycles: self.cycles,
            cycle_len: self.cycle_len,
            cycle_mult: self.cycle_mult,
            precompute: self.precompute == Switch::On,
            freeze_to: self.freeze_to,
            bn_freeze: self.bn_freeze.map(|switch| switch == Switch::On),
        }
    }

    fn head(&self) -> Result<HeadSpec> {
        if self.linear_head {
            return Ok(HeadSpec::Linear);
        }
        let hidden = match self.hidden.as_str() {
            "none" => Vec::new(),
            text => text.split(',').map(|size| size.trim().parse()).collect::<Result<_, _>>().map_err(|_| {
                let message = format!("'{text}' is no list of sizes; give for example 512 or 512,128 or none");
                unfreeze::Error::setting("--hidden", message)
            })?,
        };
        let head = match (HeadSpec::fastai(hidden), &self.ps) {
            (HeadSpec::Fastai { hidden, .. }, Some(ps)) => HeadSpec::Fastai { hidden, dropout: ps.clone() },
            (head, _) => head,
        };
        head.validate()?;
        Ok(head)
    }
}
