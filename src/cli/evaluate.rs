//! `unfreeze evaluate`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use unfreeze::{
    Error, Result,
    data::{Item, Loader, LoaderOptions, Split, Transforms, find_labelled},
    learner::{Classifier, Ensemble, Evaluation, PredictionRecord, RunFolder, Tta, TtaEvaluation},
    report::{Confusion, Records},
};

use super::{
    options::{Arithmetic, Compute, Mode, count, model_file, open_data, report_skipped},
    run::Config,
};

/// Measure a trained model on images whose classes are known
///
/// Without DATA the images are those of the run: `unfreeze evaluate RUN` repeats its last validation. DATA may be a
/// folder with valid/CLASS/* and the like, of which --split chooses, a folder of class folders, of which all images
/// count, or a CSV file with the columns path, label and, if --split is to choose, split.
#[derive(Args)]
pub struct Evaluate {
    /// Run folder, or model file
    model: PathBuf,
    /// Folder or CSV file [default: that of the run]
    data: Option<PathBuf>,
    /// Which part, where there are several
    #[arg(long, value_enum, default_value_t = Part::Valid)]
    split: Part,
    /// Average over N views beside the clean one, augmented as the run's training was (test-time augmentation)
    #[arg(long, value_name = "N", value_parser = count)]
    tta: Option<usize>,
    /// Average over the last snapshots of a run trained with --snapshots, such as last:3
    #[arg(long, value_name = "last:N", value_parser = last, conflicts_with = "tta")]
    ensemble: Option<usize>,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count)]
    batch_size: usize,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
    /// Print one JSON object: images, loss, accuracy, with --tta clean (loss and accuracy without), with --ensemble members (loss and accuracy of each), classes (class, images, precision, recall, f1; null where there
    /// is nothing to divide), confusion (a row per true class, a column per predicted one)
    #[arg(long)]
    json: bool,
}

fn last(text: &str) -> Result<usize, String> {
    match text.strip_prefix("last:").and_then(|count| count.parse().ok()) {
        Some(count) if count > 0 => Ok(count),
        _ => Err("give for example last:3, the number of snapshots".into()),
    }
}

/// What an evaluation of several is made of.
enum Beside<'a> {
    Nothing,
    /// The clean views alone.
    Clean(&'a Evaluation),
    /// Each network.
    Members(&'a [Evaluation]),
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
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

impl Evaluate {
    pub fn run(self) -> Result<()> {
        if let Some(count) = self.ensemble {
            return self.run_ensemble(count);
        }
        let classifier =
            Classifier::load(model_file(&self.model), self.compute.open()?)?.precision(self.arithmetic.dtype)?;
        let items = self.items(classifier.classes())?;
        let evaluate = |transforms: &Transforms, options: LoaderOptions, told: bool| {
            let order = (0..items.len() as u32).collect();
            let options = options.on(classifier.device());
            let loader = Loader::new(items.clone().into(), transforms, order, self.batch_size, &options)?;
            classifier.evaluate(loader, |failed| {
                if !told {
                    errln!("skipped {failed}")
                }
            })
        };
        let clean = evaluate(classifier.transforms(), LoaderOptions::evaluation(), false)?;
        let Some(count) = self.tta else {
            self.print(&clean, Beside::Nothing, classifier.classes());
            return Ok(());
        };
        let transforms = self.augmented(&classifier)?;
        let view = |number| evaluate(&transforms, Tta::loader_options(self.compute.seed, number), true);
        let views = (0..count).map(view).collect::<Result<Vec<Evaluation>>>()?;
        let TtaEvaluation { clean, averaged } = Tta::views(count).average(clean, &views)?;
        self.print(&averaged, Beside::Clean(&clean), classifier.classes());
        Ok(())
    }

    fn run_ensemble(&self, count: usize) -> Result<()> {
        if !self.model.is_dir() {
            let message = "is a model file, and snapshots are in a run folder; give that";
            return Err(Error::data(&self.model, message));
        }
        let (device, prefix) = (self.compute.open()?, RunFolder::snapshots_of(&self.model));
        let ensemble = Ensemble::last(prefix, count, &device)?.precision(self.arithmetic.dtype)?;
        let classes = ensemble.members()[0].classes().to_vec();
        let items = self.items(&classes)?;
        let loader = |transforms: &Transforms| {
            let (order, options) = ((0..items.len() as u32).collect(), LoaderOptions::evaluation().on(&device));
            Loader::new(items.clone().into(), transforms, order, self.batch_size, &options)
        };
        let found = ensemble.evaluate(loader, |failed| errln!("skipped {failed}"))?;
        self.print(&found.averaged, Beside::Members(&found.members), &classes);
        Ok(())
    }

    /// The transforms of the run's training, at the model's size.
    fn augmented(&self, classifier: &Classifier) -> Result<Transforms> {
        if !self.model.is_dir() {
            let message = "is a model file, which does not say how its training augmented images; give its run folder";
            return Err(Error::data(&self.model, message));
        }
        let mut transforms = RunFolder::config::<Config>(&self.model)?.transforms;
        if transforms == transforms.evaluation() {
            let message = "the run's training was not augmented, so that every view is the clean one";
            return Err(Error::setting("--tta", message));
        }
        transforms.size = classifier.transforms().size;
        Ok(transforms)
    }

    fn items(&self, classes: &[String]) -> Result<Vec<Item>> {
        let split = Split::from(self.split);
        if let Some(path) = &self.data {
            let found = find_labelled(path, classes, split)?;
            report_skipped(&found.skipped);
            return Ok(found.items);
        }
        if !self.model.is_dir() {
            let message = "is a model file, which does not say where its images are; give DATA too";
            return Err(Error::data(&self.model, message));
        }
        let config = RunFolder::config::<Config>(&self.model)?;
        let records = Records::read(&self.model)?;
        if split == Split::Valid && !records.predictions.is_empty() {
            // Those of the run, even if the folder has changed and would be split otherwise now.
            let is_table = config.data.is_file();
            let root = if is_table { config.data.parent().unwrap_or(Path::new("")) } else { &config.data };
            let item = |record: PredictionRecord| Item { path: root.join(record.file), label: record.label };
            return Ok(records.predictions.into_iter().map(item).collect());
        }
        let data = open_data(&config.data, config.valid_fraction, config.strict, config.seed, Mode::default())?;
        if data.classes() != classes {
            let message = format!("its classes {:?} are not the model's {classes:?}", data.classes());
            return Err(Error::data(data.root(), message));
        }
        if data.items(split).is_empty() || !data.is_labelled(split) {
            let message = format!("has no {split} images of known classes; `predict` does without");
            return Err(Error::data(data.root(), message));
        }
        Ok(data.items(split).to_vec())
    }

    /// Prints an evaluation, and what it is made of.
    fn print(&self, evaluation: &Evaluation, beside: Beside, classes: &[String]) {
        let rows = evaluation.probabilities.chunks_exact(classes.len()).zip(&evaluation.labels);
        let records: Vec<PredictionRecord> = rows
            .map(|(row, label)| PredictionRecord { file: String::new(), label: *label, probabilities: row.to_vec() })
            .collect();
        let confusion = Confusion::new(classes.len(), &records);
        let (loss, accuracy) = (evaluation.loss, evaluation.accuracy);
        if self.json {
            let rows: Vec<_> = classes
                .iter()
                .enumerate()
                .map(|(class, name)| {
                    let of = confusion.metrics(class);
                    let (images, precision, recall, f1) = (of.support, of.precision, of.recall, of.f1);
                    json!({ "class": name, "images": images, "precision": precision, "recall": recall, "f1": f1 })
                })
                .collect();
            let counts = |label| (0..classes.len()).map(|predicted| confusion.count(label, predicted)).collect();
            let matrix: Vec<Vec<usize>> = (0..classes.len()).map(counts).collect();
            let images = confusion.samples();
            let mut all =
                json!({ "images": images, "loss": loss, "accuracy": accuracy, "classes": rows, "confusion": matrix });
            let scores = |of: &Evaluation| json!({ "loss": of.loss, "accuracy": of.accuracy });
            match beside {
                Beside::Nothing => {}
                Beside::Clean(clean) => all["clean"] = scores(clean),
                Beside::Members(members) => all["members"] = members.iter().map(scores).collect(),
            }
            return outln!("{all}");
        }
        match beside {
            Beside::Nothing => {}
            Beside::Clean(clean) => {
                let views = self.tta.unwrap_or_default();
                outln!("clean views alone: accuracy {:.4}, loss {:.4}; with {views} more:", clean.accuracy, clean.loss);
            }
            Beside::Members(members) => {
                for Evaluation { accuracy, loss, .. } in members {
                    outln!("a snapshot alone: accuracy {accuracy:.4}, loss {loss:.4}");
                }
                outln!("all {} together:", members.len());
            }
        }
        outln!("accuracy {accuracy:.4} ({} of {} images), loss {loss:.4}", confusion.correct(), confusion.samples());
        let width = classes.iter().map(|class| class.chars().count()).max().unwrap_or(0).max(5);
        outln!("\n{:<width$} {:>7} {:>9} {:>7} {:>7}", "class", "images", "precision", "recall", "f1");
        let show = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
        for (class, name) in classes.iter().enumerate() {
            let of = confusion.metrics(class);
            let (precision, recall, f1) = (show(of.precision), show(of.recall), show(of.f1));
            outln!("{name:<width$} {:>7} {precision:>9} {recall:>7} {f1:>7}", of.support);
        }
        for (number, (label, predicted, count)) in confusion.most_confused().into_iter().take(10).enumerate() {
            let lead = if number == 0 { "\nmost confused:\n" } else { "" };
            outln!("{lead}  {} taken for {}: {count}", classes[label], classes[predicted]);
        }
    }
}
