//! `unfreeze lr-find`

use std::{fs, path::PathBuf};

use clap::Args;
use unfreeze::{
    Error, Result,
    data::{Split, Transforms},
    learner::{Learner, LrFind, Suggestion},
    nn::Grouping,
    optim::PerGroup,
};

use super::{
    options::{Arithmetic, Compute, DataSource, HeadFlags, Mode, Pretrained, Switch, TransformFlags, count, open_data},
    precompute_flags::PrecomputeFlags,
    progress::Progress,
    step_flags::StepFlags,
};

/// Search for a learning rate
///
/// Trains for some steps with a rate that grows from start to end, and suggests the one to train with. Nothing is kept
/// of the training. OUT receives lr_find.png and lr_find.json; what was there under these names is replaced.
#[derive(Args)]
pub struct Find {
    #[command(flatten)]
    source: DataSource,
    #[command(flatten)]
    pretrained: Pretrained,
    /// Folder to write to
    #[arg(long)]
    out: PathBuf,
    /// Rate of the first step
    #[arg(long, default_value_t = 1e-5, allow_hyphen_values = true, value_name = "V")]
    start: f32,
    /// Rate of the last step; the search ends before where the loss explodes
    #[arg(long, default_value_t = 10.0, allow_hyphen_values = true, value_name = "V")]
    end: f32,
    /// Steps from start to end, for which a small set is gone through several times; or `epoch`: those of one
    #[arg(long, default_value = "100", value_name = "N|epoch", value_parser = steps)]
    steps: Steps,
    /// Which rate is suggested: minimum, a tenth of the one where the smoothed loss is lowest (where it still falls at
    /// the end: steepest); steepest, where it falls fastest; valley, fastai 2's, the middle of the longest fall
    #[arg(long, default_value_t, value_name = "RULE")]
    suggest: Suggestion,
    /// How the layer groups' rates relate, in the forms of `train`; only ratios count, the last group's rate runs from
    /// start to end
    #[arg(long, default_value = "1", allow_hyphen_values = true, value_name = "V|V,V,V|LO..HI")]
    lr: PerGroup,
    /// Weight decay, in the same forms
    #[arg(long, default_value = "0", allow_hyphen_values = true, value_name = "V|V,V,V|LO..HI")]
    wd: PerGroup,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count)]
    batch_size: usize,
    /// How the network is cut into layer groups: fastai (stem and first half, second half, head), stage or block
    #[arg(long, default_value_t, value_name = "NAME")]
    groups: Grouping,
    /// First layer group trained; negative numbers count from the end, so -1 is the head alone
    #[arg(long, default_value_t = -1, allow_hyphen_values = true, value_name = "N")]
    freeze_to: isize,
    /// Keep the running statistics of every batchnorm
    #[arg(long, value_enum, default_value_t = Switch::Off)]
    bn_freeze: Switch,
    #[command(flatten)]
    step: StepFlags,
    #[command(flatten)]
    precompute: PrecomputeFlags,
    #[command(flatten)]
    transforms: TransformFlags,
    #[command(flatten)]
    head: HeadFlags,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
    /// Print a JSON object: suggestion, minimum, steepest and valley (null where the loss never falls), lrs, losses,
    /// smoothed
    #[arg(long)]
    json: bool,
    /// Print nothing but errors and the rate, or JSON where that is asked for
    #[arg(long, short)]
    quiet: bool,
}

/// How many steps to make.
#[derive(Clone, Copy)]
enum Steps {
    Count(usize),
    /// Those of an epoch.
    Epoch,
}

fn steps(text: &str) -> Result<Steps, String> {
    match text {
        "epoch" => Ok(Steps::Epoch),
        _ => text.parse().map(Steps::Count).map_err(|_| "give a whole number, or `epoch`".into()),
    }
}

impl Find {
    pub fn run(self) -> Result<()> {
        self.precompute.check()?;
        let find = LrFind::default().start(self.start).end(self.end).suggest(self.suggest);
        let find = match self.steps {
            Steps::Count(steps) => find.steps(steps),
            Steps::Epoch => find.one_epoch(),
        };
        let find = find.ratios(self.lr.clone()).wd(self.wd.clone()).options(self.step.options()?);
        let head = self.head.spec()?;
        let device = self.compute.open()?;
        let weights = self.pretrained.read(self.quiet)?;
        let size = self.transforms.size.unwrap_or(weights.arch().published_size());
        let transforms = self.transforms.set(Transforms::for_weights(&weights, size))?;
        let (source, mode) = (&self.source, Mode { json: self.json, quiet: self.quiet });
        let path = source.absolute()?;
        let data = open_data(&path, source.task, source.valid_fraction, source.strict, self.compute.seed, mode)?;
        let data = data.transforms(transforms).batch_size(self.batch_size);
        let data = data.verify_content(self.precompute.cache.verify_content);
        if !self.quiet {
            let (images, arch) = (data.items(Split::Train).len(), weights.arch());
            errln!("{}: {images} training images; {arch} on {device}", path.display());
        }

        let learner = Learner::with_head(weights, data, head)?
            .device(device)?
            .precision(self.arithmetic.dtype)?
            .seed(self.compute.seed)?
            .grouping(self.groups);
        let learner = self.step.learning.set(learner)?;
        let mut learner = self.precompute.cache.keep(learner).callback(Progress::new(mode));
        learner.freeze_to(self.freeze_to)?;
        learner.bn_freeze(self.bn_freeze == Switch::On);
        self.precompute.set(&mut learner)?;
        // Asked before the work, not after it.
        fs::create_dir_all(&self.out).map_err(|error| Error::io(&self.out, error))?;
        let found = learner.lr_find(find)?;
        let plot = found.write(&self.out)?;
        if !self.quiet {
            errln!("plot: {}", plot.display());
        }
        match found.suggestion {
            _ if self.json => outln!("{}", found.to_json()),
            Some(lr) => outln!("{lr:.1e}"),
            None => {
                let last = found.lrs.last().copied().unwrap_or(self.start);
                outln!("none: the loss does not fall between {:.1e} and {last:.1e}", self.start);
            }
        }
        Ok(())
    }
}
