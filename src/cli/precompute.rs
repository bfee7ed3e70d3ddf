//! `unfreeze precompute`

use clap::Args;
use serde_json::json;
use unfreeze::{
    Error, Result,
    data::{Split, Transforms},
    learner::Learner,
    nn::{Grouping, Layer},
};

use super::{
    interrupt,
    options::{Arithmetic, Compute, DataSource, HeadFlags, Mode, Pretrained, TransformFlags, count, open_data},
    precompute_flags::CacheFlags,
    progress::Progress,
};

const EXAMPLES: &str = "\
Examples:
  unfreeze precompute photos --valid-fraction 0.2 --weights resnet18.pth
  unfreeze precompute photos --valid-fraction 0.2 --weights resnet18.pth --views 8 --boundary layer2";

/// Compute activations ahead of time
///
/// Fills the cache with what `train` and `lr-find` with the same weights, images, transforms, seed and device look up
/// there: the activations of the training, validation and test images. What is there already is not computed again.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Precompute {
    #[command(flatten)]
    source: DataSource,
    #[command(flatten)]
    pretrained: Pretrained,
    /// Views of each training image, as of train --precompute VIEWS: the clean one, and augmented ones
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = count)]
    views: usize,
    /// Last layer that is to stay frozen: stem, layer1 … layer4, or avgpool, with which the head alone is trained
    #[arg(long, default_value_t = Layer::AveragePool, value_name = "NAME")]
    boundary: Layer,
    /// Images per batch
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count)]
    batch_size: usize,
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    transforms: TransformFlags,
    #[command(flatten)]
    head: HeadFlags,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
    /// Print one JSON object per split: split, activations
    #[arg(long)]
    json: bool,
    /// Print nothing but errors, and JSON where that is asked for
    #[arg(long, short)]
    quiet: bool,
}

impl Precompute {
    pub fn run(self) -> Result<()> {
        if self.cache.folder().is_none() {
            return Err(Error::setting("--cache", "there is nowhere to keep what is computed; give a folder"));
        }
        let head = self.head.spec()?;
        let device = self.compute.open()?;
        let weights = self.pretrained.read(self.quiet)?;
        let size = self.transforms.size.unwrap_or(weights.arch().published_size());
        let transforms = self.transforms.set(Transforms::for_weights(&weights, size))?;
        let (source, mode) = (&self.source, Mode { json: self.json, quiet: self.quiet });
        let data =
            open_data(&source.absolute()?, source.task, source.valid_fraction, source.strict, self.compute.seed, mode)?;
        let data = data.transforms(transforms).batch_size(self.batch_size).verify_content(self.cache.verify_content);

        let learner = Learner::with_head(weights, data, head)?
            .device(device)?
            .precision(self.arithmetic.dtype)?
            .seed(self.compute.seed)?
            .grouping(Grouping::PerBlock);
        let mut learner = self.cache.keep(learner).callback(Progress::new(mode));
        interrupt::cancels(learner.cancel_token())?;
        // Groups are the stem, the blocks and the head.
        if self.boundary != Layer::AveragePool {
            let arch = learner.model().arch();
            let units = learner.model().backbone.units_through(self.boundary).ok_or_else(|| {
                let message = format!("{arch} has no {}; its stages end at layer{}", self.boundary, arch.stages());
                Error::setting("--boundary", message)
            })?;
            learner.freeze_to(units as isize)?;
        }
        learner.precompute_views(self.views)?;
        for split in [Split::Train, Split::Valid, Split::Test] {
            if learner.data().items(split).is_empty() {
                continue;
            }
            let activations = learner.fill_cache(split)?;
            if self.json {
                outln!("{}", json!({ "split": split.to_string(), "activations": activations }));
            } else if !self.quiet {
                outln!("{split} set: {activations} activations");
            }
        }
        Ok(())
    }
}
