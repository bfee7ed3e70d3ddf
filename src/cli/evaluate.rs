//! `unfreeze evaluate`

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use serde_json::{Map, Value, json};
use unfreeze::{
    Error, Result,
    data::{Item, Split, Task, find_labelled},
    learner::{Average, Confusion, Counts, Evaluation, Metric},
};

use super::{
    options::{absolute, count, report_skipped},
    trained::{Beside, Judged, Opened, Part, RunImages, Trained, root},
};

/// Measure a trained model on images whose classes are known
///
/// Without DATA the images are those of the run: `unfreeze evaluate RUN` repeats its last validation. DATA may be a
/// folder with valid/CLASS/* and the like, of which --split chooses, a folder of class folders, of which all images
/// count, or a CSV file with the columns path, label and, if --split is to choose, split.
#[derive(Args)]
pub struct Evaluate {
    #[command(flatten)]
    trained: Trained,
    /// Folder or CSV file [default: that of the run]
    data: Option<PathBuf>,
    /// Which part, where there are several
    #[arg(long, value_enum, default_value_t = Part::Valid)]
    split: Part,
    /// Share of images whose class is among their K most probable ones
    #[arg(long, value_name = "K", value_parser = count)]
    top_k: Option<usize>,
    /// What to measure beside loss and accuracy: topK, precision, recall, fBETA (means over classes; precision-micro
    /// and so on: over all images), auc (of each class against the rest), log_loss (of the probabilities); of numbers mae,
    /// rmse, r2 [default: precision,recall,f1,auc; of numbers all three]
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME")]
    metrics: Option<Vec<Metric>>,
    /// Print one JSON object: images, loss, accuracy, metrics (by name; null where not defined), with --tta clean (loss
    /// and accuracy without), with --ensemble members (loss and accuracy of each), classes (class, images, precision,
    /// recall, f1, auc; null where there is nothing to divide; of numbers: number, r2), confusion (a row per true class,
    /// a column per predicted one; for single labels)
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let opened = self.trained.open()?;
        let metrics = self.metrics(opened.task(), opened.classes().len())?;
        let RunImages { root, items, targets, .. } = self.images(&opened)?;
        let (items, cache): (Arc<[Item]>, _) = (items.into(), opened.cached(&root)?);
        let all = 0..items.len();
        let judged =
            opened.judge(&items, targets.as_ref(), all, cache.as_ref(), |failed| errln!("skipped {failed}"))?;
        self.print(&judged, &metrics, opened.classes());
        Ok(())
    }

    fn images(&self, opened: &Opened) -> Result<RunImages> {
        let classes = opened.classes();
        let split = Split::from(self.split);
        if let Some(path) = &self.data {
            let path = &absolute(path)?;
            let found = find_labelled(path, opened.task(), classes, split)?;
            report_skipped(&found.skipped);
            return Ok(RunImages { root: root(path), items: found.items, labelled: true, targets: found.targets });
        }
        let found = self.trained.images(split, classes)?;
        if found.items.is_empty() || !found.labelled {
            let message = format!("has no {split} images of known classes; `predict --split` does without");
            return Err(Error::data(found.root, message));
        }
        Ok(found)
    }

    /// The metrics asked for.
    fn metrics(&self, task: Task, classes: usize) -> Result<Vec<Metric>> {
        let top_k = self.top_k.map(Metric::TopK);
        if let Some(metric) = top_k
            && metric.check(task, classes).is_err()
        {
            let message = match task {
                Task::SingleLabel => format!("of {classes} classes says nothing; give 1 to {}", classes.max(2) - 1),
                task => format!("says nothing of {task}"),
            };
            return Err(Error::setting("--top-k", message));
        }
        let usual: &[Metric] = match task {
            Task::SingleLabel | Task::MultiLabel => &[
                Metric::Precision(Average::Macro),
                Metric::Recall(Average::Macro),
                Metric::FBeta(1.0, Average::Macro),
                Metric::Auc,
            ],
            Task::Regression => &[Metric::Mae, Metric::Rmse, Metric::R2],
        };
        let metrics = self.metrics.as_deref().unwrap_or(usual);
        metrics.iter().try_for_each(|metric| metric.check(task, classes))?;
        Ok(metrics.iter().copied().chain(top_k).collect())
    }

    /// Prints an evaluation, and what it is made of.
    fn print(&self, judged: &Judged, metrics: &[Metric], classes: &[String]) {
        let Judged { evaluation, beside } = judged;
        let (confusion, counts) = (evaluation.confusion(), evaluation.counts());
        let measured: Vec<_> = metrics.iter().map(|metric| (metric.to_string(), evaluation.metric(*metric))).collect();
        let (loss, accuracy) = (evaluation.loss, evaluation.accuracy);
        if self.json {
            return outln!("{}", object(judged, &confusion, &counts, measured, classes));
        }
        match beside {
            Beside::Nothing => {}
            Beside::Clean(clean, views) => {
                outln!("clean views alone: accuracy {:.4}, loss {:.4}; with {views} more:", clean.accuracy, clean.loss);
            }
            Beside::Members(members) => {
                for Evaluation { accuracy, loss, .. } in members {
                    outln!("a snapshot alone: accuracy {accuracy:.4}, loss {loss:.4}");
                }
                outln!("all {} together:", members.len());
            }
        }
        let images = evaluation.labels.len();
        match evaluation.task {
            Task::SingleLabel => {
                outln!("accuracy {accuracy:.4} ({} of {images} images), loss {loss:.4}", confusion.correct());
            }
            Task::MultiLabel => {
                outln!("accuracy {accuracy:.4} (of all labels of {images} images), loss {loss:.4}");
            }
            Task::Regression => outln!("loss {loss:.4} ({images} images)"),
        }
        let show = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
        let measured: Vec<String> =
            measured.into_iter().map(|(name, value)| format!("{name} {}", show(value))).collect();
        if !measured.is_empty() {
            outln!("{}", measured.join(", "));
        }
        let width = classes.iter().map(|class| class.chars().count()).max().unwrap_or(0).max(5);
        if evaluation.task == Task::Regression {
            outln!("\n{:<width$} {:>9}", "number", "r2");
            for (class, name) in classes.iter().enumerate() {
                outln!("{name:<width$} {:>9}", show(evaluation.r2(class)));
            }
            return;
        }
        outln!("\n{:<width$} {:>7} {:>9} {:>7} {:>7} {:>7}", "class", "images", "precision", "recall", "f1", "auc");
        for (class, name) in classes.iter().enumerate() {
            let counts = &counts[class];
            let numbers = [counts.precision(), counts.recall(), counts.f_beta(1.0), evaluation.auc(class)];
            let [precision, recall, f1, auc] = numbers.map(show);
            outln!("{name:<width$} {:>7} {precision:>9} {recall:>7} {f1:>7} {auc:>7}", counts.support);
        }
        for (number, (label, predicted, count)) in confusion.most_confused(1).into_iter().take(10).enumerate() {
            let lead = if number == 0 { "\nmost confused:\n" } else { "" };
            outln!("{lead}  {} taken for {}: {count}", classes[label], classes[predicted]);
        }
    }
}

/// What is printed as JSON.
fn object(
    judged: &Judged,
    confusion: &Confusion,
    counts: &[Counts],
    measured: Vec<(String, Option<f64>)>,
    classes: &[String],
) -> Value {
    let Judged { evaluation, beside } = judged;
    let row = |(class, name): (usize, &String)| {
        if evaluation.task == Task::Regression {
            return json!({ "number": name, "r2": evaluation.r2(class) });
        }
        let counts = &counts[class];
        let (precision, recall, f1) = (counts.precision(), counts.recall(), counts.f_beta(1.0));
        json!({
            "class": name, "images": counts.support, "precision": precision, "recall": recall, "f1": f1,
            "auc": evaluation.auc(class),
        })
    };
    let rows: Vec<Value> = classes.iter().enumerate().map(row).collect();
    let taken = |label| (0..classes.len()).map(|predicted| confusion.count(label, predicted)).collect();
    let matrix: Vec<Vec<usize>> = (0..classes.len()).map(taken).collect();
    let scores = |of: &Evaluation| json!({ "loss": of.loss, "accuracy": of.accuracy });
    let mut all = scores(evaluation);
    all["images"] = json!(evaluation.labels.len());
    all["metrics"] = measured.into_iter().map(|(name, value)| (name, json!(value))).collect::<Map<_, _>>().into();
    all["classes"] = rows.into();
    if evaluation.task == Task::SingleLabel {
        all["confusion"] = json!(matrix);
    }
    match beside {
        Beside::Nothing => {}
        Beside::Clean(clean, _) => all["clean"] = scores(clean),
        Beside::Members(members) => all["members"] = members.iter().map(scores).collect(),
    }
    all
}
