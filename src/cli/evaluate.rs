//! `unfreeze evaluate`

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use serde_json::json;
use unfreeze::{
    Error, Result,
    data::{Item, Split, find_labelled},
    learner::{Evaluation, PredictionRecord},
    report::Confusion,
};

use super::{
    options::report_skipped,
    trained::{Beside, Judged, Part, Trained},
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
    /// Print one JSON object: images, loss, accuracy, with --tta clean (loss and accuracy without), with --ensemble
    /// members (loss and accuracy of each), classes (class, images, precision, recall, f1; null where there is nothing
    /// to divide), confusion (a row per true class, a column per predicted one)
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    pub fn run(self) -> Result<()> {
        let opened = self.trained.open()?;
        let items: Arc<[Item]> = self.items(opened.classes())?.into();
        let Judged { evaluation, beside } =
            opened.judge(&items, 0..items.len(), |failed| errln!("skipped {failed}"))?;
        self.print(&evaluation, beside, opened.classes());
        Ok(())
    }

    fn items(&self, classes: &[String]) -> Result<Vec<Item>> {
        let split = Split::from(self.split);
        if let Some(path) = &self.data {
            let found = find_labelled(path, classes, split)?;
            report_skipped(&found.skipped);
            return Ok(found.items);
        }
        let found = self.trained.images(split, classes)?;
        if found.items.is_empty() || !found.labelled {
            let message = format!("has no {split} images of known classes; `predict --split` does without");
            return Err(Error::data(found.root, message));
        }
        Ok(found.items)
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
                Beside::Clean(clean, _) => all["clean"] = scores(&clean),
                Beside::Members(members) => all["members"] = members.iter().map(scores).collect(),
            }
            return outln!("{all}");
        }
        match beside {
            Beside::Nothing => {}
            Beside::Clean(clean, views) => {
                outln!("clean views alone: accuracy {:.4}, loss {:.4}; with {views} more:", clean.accuracy, clean.loss);
            }
            Beside::Members(members) => {
                for Evaluation { accuracy, loss, .. } in &members {
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
