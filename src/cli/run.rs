//! A training run as its folder describes it: begun by `train`, gone on with by `train --resume`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unfreeze::{
    Error, Precision, Result,
    checkpoint::Weights,
    data::{Split, Task, Transforms},
    learner::{FineTune, Learner, Metric, Recipe, RunFolder, SaveModel},
    nn::{Arch, Grouping, HeadSpec},
    report,
};

use super::{
    interrupt,
    options::{Compute, Mode, open_data, read_weights},
    progress::Progress,
    step_flags::Learning,
};

/// Validation images of the largest losses of which the report shows where the network finds what it says.
const EXPLAINED: usize = 12;

/// All that is needed to repeat a run: `config.toml`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Config {
    pub engine_version: String,
    pub data: PathBuf,
    #[serde(default)]
    pub task: Task,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_fraction: Option<f32>,
    pub arch: Arch,
    pub weights: String,
    /// Which of several sets of weights in their file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub classes: Vec<String>,
    pub batch_size: usize,
    pub seed: u64,
    pub threads: usize,
    pub device: String,
    #[serde(default)]
    pub dtype: Precision,
    pub strict: bool,
    #[serde(default)]
    pub verify_content: bool,
    pub head: HeadSpec,
    #[serde(default)]
    pub groups: Grouping,
    #[serde(default)]
    pub snapshots: bool,
    pub learning: Learning,
    #[serde(default)]
    pub metrics: Vec<Metric>,
    /// From which probability on a label is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// The metric by which the best epoch is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_best: Option<String>,
    pub transforms: Transforms,
    pub recipe: Recipe,
    /// fastai 2's recipe instead, which shares the settings of precompute and batchnorms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fine_tune: Option<FineTune>,
}

impl Config {
    /// The learner that these settings describe.
    pub fn prepare(&self, compute: &Compute, mode: Mode) -> Result<Learner> {
        let weights = read_weights(&self.weights, self.key.as_deref(), Some(self.arch), mode.quiet)?;
        self.prepare_with(weights, compute, mode)
    }

    /// As [`Config::prepare`], with weights that were read already.
    pub fn prepare_with(&self, weights: Weights, compute: &Compute, mode: Mode) -> Result<Learner> {
        let device = compute.open()?;
        self.transforms.validate()?;
        let data = open_data(&self.data, self.task, self.valid_fraction, self.strict, self.seed, mode)?
            .transforms(self.transforms.clone())
            .verify_content(self.verify_content)
            .batch_size(self.batch_size);
        if !mode.quiet {
            errln!(
                "{}: {} training and {} validation images in {} classes; {} on {device}",
                self.data.display(),
                data.items(Split::Train).len(),
                data.items(Split::Valid).len(),
                data.classes().len(),
                self.arch,
            );
        }
        let learner = Learner::with_head(weights, data, self.head.clone())?
            .device(device)?
            .precision(self.dtype)?
            .seed(self.seed)?
            .metrics(self.metrics.iter().copied())?
            .grouping(self.groups);
        let learner = self.learning.set(learner)?;
        let learner = match self.threshold {
            Some(threshold) => learner.label_threshold(threshold)?,
            None => learner,
        };
        // Before there is a folder for it.
        self.save_best("").map_or(Ok(()), |options| {
            options.validate()?;
            learner.check_monitor("save_best", &options.monitor)
        })?;
        match &self.fine_tune {
            Some(options) => options.validate(&learner)?,
            None => self.recipe.validate(&learner)?,
        }
        Ok(learner.callback(Progress::new(mode)))
    }

    /// What is kept of the best epoch, and where.
    fn save_best(&self, path: impl Into<PathBuf>) -> Option<SaveModel> {
        let monitor = self.save_best.clone()?;
        Some(SaveModel { monitor, ..SaveModel::new(path) })
    }

    /// Whether `flags` ask for the run that this describes; threads, device and places may differ.
    pub fn check_same(&self, flags: &Config) -> Result<()> {
        let table = |config: &Config| {
            toml::Table::try_from(config)
                .map_err(|error| Error::setting("config", format!("cannot be written as TOML: {error}")))
        };
        let (mut begun, mut asked) = (table(self)?, table(flags)?);
        // Data and weights may have been moved; that the images are the same is checked by their names.
        for free in ["engine_version", "threads", "device", "data", "weights"] {
            begun.remove(free);
            asked.remove(free);
        }
        let differs = |key: &&String| begun.get(*key) != asked.get(*key);
        match begun.keys().chain(asked.keys()).find(differs) {
            None => Ok(()),
            Some(key) => {
                let show = |table: &toml::Table| table.get(key).map_or("absent".to_string(), toml::Value::to_string);
                let message = format!(
                    "the run was begun with {key} = {}, not {}; leave the other flags out to go on as it was begun",
                    show(&begun),
                    show(&asked)
                );
                Err(Error::setting("resume", message))
            }
        }
    }
}

/// Runs the recipe in `folder`, from the beginning or from where it was interrupted.
pub fn execute(folder: RunFolder, config: &Config, learner: Learner, mode: Mode) -> Result<()> {
    let learner = match config.save_best(folder.best()) {
        Some(options) => learner.save_best(options)?,
        None => learner,
    };
    let mut learner = folder.attach(learner)?;
    interrupt::cancels(learner.cancel_token())?;
    let snapshots = config.snapshots.then(|| folder.snapshots());
    let recipe = Recipe { snapshots, ..config.recipe.clone() };
    let outcome = match &config.fine_tune {
        None => learner.run(&recipe, |learner| folder.save(learner)),
        Some(options) => {
            learner.precompute(recipe.precompute);
            learner.bn_freeze(recipe.bn_freeze.unwrap_or(false));
            learner.fine_tune(options).map(drop).and_then(|()| folder.save(&mut learner))
        }
    };
    if let Err(error) = outcome {
        let path = folder.path().to_owned();
        // What happened first matters more than what rescuing it may meet, and that is often the same.
        let rescued = folder.rescue(&mut learner).is_ok();
        advise(&path, rescued);
        return Err(error);
    }
    folder.explain(&learner, EXPLAINED)?;
    let report = report::write(folder.path())?;
    if !mode.quiet {
        errln!("model:  {}", folder.file("model.safetensors").display());
        errln!("report: {}", report.display());
    }
    Ok(())
}

/// Says what is left of a run that failed, and how to go on.
fn advise(run: &Path, rescued: bool) {
    if !run.join("config.toml").exists() {
        return;
    }
    let model = run.join("model.safetensors");
    if rescued {
        errln!("{} is the model of the last finished epoch", model.display());
    }
    let run = run.display().to_string();
    let run = if run.contains(char::is_whitespace) { format!("'{run}'") } else { run };
    errln!("go on from the last finished epoch with: unfreeze train --resume --out {run}");
}
