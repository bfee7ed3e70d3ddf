//! A trained model as `evaluate` and `predict` ask it: alone, over augmented views, or with the snapshots before it.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use unfreeze::{
    Device, Error, Result,
    cache::store::Store,
    data::{Item, LoaderOptions, Skipped, Split, Targets, Task, Transforms},
    learner::{
        Classifier, Ensemble, EnsembleEvaluation, Evaluation, FeatureCache, Mean, PredictionRecord, RunFolder,
        Selection, Tta, TtaEvaluation, WeightAverage,
    },
    report::Records,
};

use super::{
    options::{Arithmetic, Compute, Mode, count, model_file, open_data},
    precompute_flags::CacheFlags,
    run::Config,
};

const NO_DATA: &str = "which does not say where its images are; give DATA too";

/// The model, and how it is asked.
#[derive(Args)]
#[command(mut_arg("cache", |arg| arg.help(
    "Folder of cached activations, or off: what training left there of the backbone is not computed again; of other \
     images, or of a backbone that was trained since, it is added if a folder is given [default: activations in \
     UNFREEZE_CACHE, or in the user's cache folder, to which nothing is added]"
)))]
pub struct Trained {
    /// Run folder, or model file
    model: PathBuf,
    /// Average over N views beside the clean one, augmented as the run's training was (test-time augmentation)
    #[arg(long, value_name = "N", value_parser = count)]
    tta: Option<usize>,
    /// With --tta: average the probabilities, or the logits, which lets no single view decide
    #[arg(long, value_enum, default_value_t = Averaged::Probabilities, value_name = "NAME", requires = "tta")]
    tta_mean: Averaged,
    /// With --tta: share of the clean view, from 0 to 1 [default: as much as any other]
    #[arg(long, value_name = "SHARE", requires = "tta")]
    tta_clean: Option<f32>,
    /// Average over the last snapshots of a run trained with --snapshots, such as last:3
    #[arg(long, value_name = "last:N", value_parser = last, conflicts_with_all = ["tta", "cache"])]
    ensemble: Option<usize>,
    /// Take the averaged weights of a run trained with --ema or --swa
    #[arg(long, value_name = "ema|swa", conflicts_with = "ensemble")]
    average: Option<WeightAverage>,
    /// Of a multi-label model: the probability from which on a label is given [default: as the model was trained]
    #[arg(long, value_name = "P")]
    threshold: Option<f32>,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count)]
    batch_size: usize,
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
}

fn last(text: &str) -> Result<usize, String> {
    match text.strip_prefix("last:").and_then(|count| count.parse().ok()) {
        Some(count) if count > 0 => Ok(count),
        _ => Err("give for example last:3, the number of snapshots".into()),
    }
}

/// What is averaged over views.
#[derive(Clone, Copy, ValueEnum)]
enum Averaged {
    Probabilities,
    Logits,
}

/// A part of a data set.
#[derive(Clone, Copy, ValueEnum)]
pub enum Part {
    Train,
    Valid,
    Test,
}

impl From<Part> for Split {
    fn from(part: Part) -> Self {
        match part {
            Part::Train => Split::Train,
            Part::Valid => Split::Valid,
            Part::Test => Split::Test,
        }
    }
}

/// Images of the run's data.
pub struct RunImages {
    /// What their names are relative to.
    pub root: PathBuf,
    pub items: Vec<Item>,
    /// Whether their classes are known.
    pub labelled: bool,
    /// What they are, where they have no single class.
    pub targets: Option<Targets>,
}

/// A model in memory.
pub struct Opened<'a> {
    asked: &'a Trained,
    networks: Networks,
}

enum Networks {
    One {
        classifier: Box<Classifier>,
        /// Which views beside the clean one, and how they are made.
        views: Option<(Tta, Transforms)>,
    },
    Several(Ensemble),
}

/// What a model says of images.
pub struct Judged {
    pub evaluation: Evaluation,
    pub beside: Beside,
}

/// What an evaluation of several is made of.
pub enum Beside {
    Nothing,
    /// The clean views alone, and how many more there are.
    Clean(Evaluation, usize),
    /// Each network.
    Members(Vec<Evaluation>),
}

impl Trained {
    /// Reads the model, and checks that it can be asked so.
    pub fn open(&self) -> Result<Opened<'_>> {
        let networks = match self.ensemble {
            Some(count) => {
                let prefix = RunFolder::snapshots_of(self.run("and snapshots are in a run folder; give that")?);
                let ensemble = Ensemble::last(prefix, count, &self.compute.open()?)?;
                let ensemble = ensemble.precision(self.arithmetic.dtype)?;
                Networks::Several(match self.threshold {
                    Some(threshold) => ensemble.label_threshold(threshold)?,
                    None => ensemble,
                })
            }
            None => {
                let classifier = Classifier::load(self.file()?, self.compute.open()?)?;
                let classifier = classifier.precision(self.arithmetic.dtype)?;
                let classifier = match self.threshold {
                    Some(threshold) => classifier.label_threshold(threshold)?,
                    None => classifier,
                };
                let views = match self.tta()? {
                    Some(tta) => Some((tta, self.augmented(&classifier)?)),
                    None => None,
                };
                Networks::One { classifier: Box::new(classifier), views }
            }
        };
        Ok(Opened { asked: self, networks })
    }

    /// Which views are averaged, and how.
    fn tta(&self) -> Result<Option<Tta>> {
        let Some(count) = self.tta else { return Ok(None) };
        let tta = Tta::views(count).mean(match self.tta_mean {
            Averaged::Probabilities => Mean::Probabilities,
            Averaged::Logits => Mean::Logits,
        });
        let tta = self.tta_clean.map_or(tta, |share| tta.clean_weight(share));
        tta.validate().map(|()| Some(tta))
    }

    fn file(&self) -> Result<PathBuf> {
        match self.average {
            None => Ok(model_file(&self.model)),
            Some(average) => {
                Ok(self.run("and averages of weights are in a run folder; give that")?.join(average.file()))
            }
        }
    }

    /// The run folder; if a model file is given instead, `reason` says why that does not do.
    fn run(&self, reason: &str) -> Result<&Path> {
        match self.model.is_dir() {
            true => Ok(&self.model),
            false => Err(Error::data(&self.model, format!("is a model file, {reason}"))),
        }
    }

    /// Whether a folder of activations was asked for.
    pub fn asks_for_cache(&self) -> bool {
        self.cache.is_given() && self.cache.folder().is_some()
    }

    fn config(&self, reason: &str) -> Result<Config> {
        RunFolder::config(self.run(reason)?)
    }

    /// The transforms of the run's training, at the model's size.
    fn augmented(&self, classifier: &Classifier) -> Result<Transforms> {
        let reason = "which does not say how its training augmented images; give its run folder";
        let mut transforms = self.config(reason)?.transforms;
        if transforms == transforms.evaluation() {
            let message = "the run's training was not augmented, so that every view is the clean one";
            return Err(Error::setting("--tta", message));
        }
        transforms.size = classifier.transforms().size;
        Ok(transforms)
    }

    /// Where the run's images are.
    pub fn data(&self) -> Result<PathBuf> {
        Ok(self.config(NO_DATA)?.data)
    }

    /// The images of a part of the run's data.
    pub fn images(&self, split: Split, classes: &[String]) -> Result<RunImages> {
        let config = self.config(NO_DATA)?;
        let records = Records::read(&self.model)?;
        if split == Split::Valid && !records.predictions.is_empty() {
            // Those of the run, even if the folder has changed and would be split otherwise now.
            let root = root(&config.data);
            let targets: Vec<f32> =
                records.predictions.iter().flat_map(|record| record.targets.iter().copied()).collect();
            let targets =
                (config.task != Task::SingleLabel).then(|| Targets::new(classes.len(), targets)).transpose()?;
            let item = |(number, record): (usize, PredictionRecord)| Item {
                path: root.join(record.file),
                label: if targets.is_some() { number as u32 } else { record.label },
            };
            let items = records.predictions.into_iter().enumerate().map(item).collect();
            return Ok(RunImages { root, items, labelled: true, targets });
        }
        let data =
            open_data(&config.data, config.task, config.valid_fraction, config.strict, config.seed, Mode::default())?;
        if data.classes() != classes {
            let message = format!("its classes {:?} are not the model's {classes:?}", data.classes());
            return Err(Error::data(data.root(), message));
        }
        let (root, items) = (data.root().to_owned(), data.items(split).to_vec());
        Ok(RunImages { root, items, labelled: data.is_labelled(split), targets: data.targets().cloned() })
    }
}

/// The folder that the names of a data set's images are relative to.
pub fn root(data: &Path) -> PathBuf {
    if data.is_file() { data.parent().unwrap_or(Path::new("")).to_owned() } else { data.to_owned() }
}

impl Opened<'_> {
    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        self.first().classes()
    }

    /// What it tells of an image.
    pub fn task(&self) -> Task {
        self.first().task()
    }

    /// The network, the first of several.
    pub fn first(&self) -> &Classifier {
        match &self.networks {
            Networks::One { classifier, .. } => classifier,
            Networks::Several(ensemble) => &ensemble.members()[0],
        }
    }

    fn device(&self) -> &Device {
        self.first().device()
    }

    /// Where features of images in the data set at `root` are looked up. None for several networks, whose backbones
    /// differ.
    pub fn cached(&self, root: &Path) -> Result<Option<FeatureCache<'_>>> {
        let Trained { cache, .. } = self.asked;
        let (Networks::One { classifier, .. }, Some(folder)) = (&self.networks, cache.folder()) else {
            return Ok(None);
        };
        let opened = if cache.is_given() { Store::open(folder, cache.budget()) } else { Store::at(folder) };
        let store = match opened {
            Ok(store) => store,
            Err(error) => {
                errln!("note: no cached activations are used: {error}");
                return Ok(None);
            }
        };
        // A run's files are known as its training knew them.
        let verify_content = cache.verify_content || self.asked.config("").is_ok_and(|config| config.verify_content);
        FeatureCache::new(classifier, store, root, verify_content).map(|found| Some(found.adds(cache.is_given())))
    }

    /// What it says of the images of `items` in `range`, whose labels name `targets` where they have no single class.
    /// What is random about a view depends on an image's place among all. Features are taken from `cache` as far as
    /// they are there. `failed` is told once of each that cannot be decoded.
    pub fn judge(
        &self,
        items: &Arc<[Item]>,
        targets: Option<&Targets>,
        range: Range<usize>,
        cache: Option<&FeatureCache>,
        failed: impl FnMut(&Skipped),
    ) -> Result<Judged> {
        let Trained { batch_size, compute, .. } = self.asked;
        let selection = |transforms: &Transforms, options: LoaderOptions| Selection {
            items: items.clone(),
            transforms: transforms.clone(),
            order: range.clone().map(|at| at as u32).collect(),
            batch_size: *batch_size,
            options: options.on(self.device()),
        };
        let clean = |transforms: &Transforms| selection(transforms, LoaderOptions::evaluation());
        let (classifier, views) = match &self.networks {
            Networks::One { classifier, views } => (classifier, views),
            Networks::Several(ensemble) => {
                let loader = |transforms: &Transforms| clean(transforms).loader();
                let EnsembleEvaluation { members, averaged } = ensemble.evaluate(loader, targets, failed)?;
                return Ok(Judged { evaluation: averaged, beside: Beside::Members(members) });
            }
        };
        let evaluate = |selection: Selection, failed: &mut dyn FnMut(&Skipped)| {
            let Some(cache) = cache else { return classifier.evaluate(selection.loader()?, targets, failed) };
            let found = cache.evaluate(&selection, targets, failed);
            cache.take_notes().iter().for_each(|note| errln!("note: {note}"));
            found
        };
        let mut failed = failed;
        let clean = evaluate(clean(classifier.transforms()), &mut failed)?;
        let Some((tta, transforms)) = views else {
            return Ok(Judged { evaluation: clean, beside: Beside::Nothing });
        };
        let view = |number| evaluate(selection(transforms, Tta::loader_options(compute.seed, number)), &mut |_| ());
        let views = (0..tta.count()).map(view).collect::<Result<Vec<Evaluation>>>()?;
        let TtaEvaluation { clean, averaged } = tta.average(clean, &views)?;
        Ok(Judged { evaluation: averaged, beside: Beside::Clean(clean, tta.count()) })
    }
}
