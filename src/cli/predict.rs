//! `unfreeze predict`

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, json};
use unfreeze::{
    Error, Result,
    data::{Item, Split, find_split},
    learner::{Prediction, Predictions},
};

use super::{
    options::{Failed, check_output, count, images, report_skipped},
    trained::{Part, RunImages, Trained, root},
};

/// Images of which the results are printed together.
const CHUNK: usize = 512;

const EXAMPLES: &str = "\
Examples:
  unfreeze predict run some/images --top 3
  unfreeze predict run --split test --tta 4 --csv predictions.csv
  unfreeze predict model.safetensors data --split test --json";

/// Classify images with a trained model
///
/// Results are in the order of the files: as given, those of a folder sorted by name.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Predict {
    #[command(flatten)]
    trained: Trained,
    /// Images, or folders of images; with --split a data folder or CSV file
    #[arg(required_unless_present = "split", value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// Predict this part of a data set, whether its classes are known or not: of the folder or CSV file given (as for
    /// `train`), else of the run's. Files are named relative to the data set
    #[arg(long, value_enum)]
    split: Option<Part>,
    /// How many classes to print for each image
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = count)]
    top: usize,
    /// Write a table instead of printing: file, class, probability, then a column per class with its probability
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Print one JSON object per image: file, class, probability, top (list of class and probability), probabilities
    /// (of every class)
    #[arg(long)]
    json: bool,
}

impl Predict {
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.csv {
            check_output("--csv", path, "csv")?;
        }
        let opened = self.trained.open()?;
        let classes = opened.classes();
        let (root, files) = self.files(classes)?;
        let items = Item::unlabelled(&files);
        let (mut failed, mut table) = (Failed::default(), Predictions::new(classes));
        for start in (0..items.len()).step_by(CHUNK) {
            let range = start..items.len().min(start + CHUNK);
            let mut skipped = Vec::new();
            let judged = opened.judge(&items, range.clone(), |file| skipped.push(file.clone()));
            let all = skipped.len() == range.len();
            failed.report(skipped);
            // That there was nothing to judge has just been said.
            let evaluation = if all { continue } else { judged?.evaluation };
            for (index, row) in evaluation.indices.iter().zip(evaluation.probabilities.chunks(classes.len())) {
                let file = &files[*index as usize];
                let file = file.strip_prefix(&root).unwrap_or(file).display().to_string();
                let prediction = Prediction::new(classes, row.to_vec());
                self.print(&file, &prediction, classes);
                if self.csv.is_some() {
                    table.push(file, prediction);
                }
            }
        }
        if let Some(path) = &self.csv {
            table.write_csv(path)?;
            errln!("{}: predictions for {} images", path.display(), table.len());
        }
        failed.check(files.len())
    }

    /// The files, and the folder that they are named relative to.
    fn files(&self, classes: &[String]) -> Result<(PathBuf, Vec<PathBuf>)> {
        let Some(split) = self.split.map(Split::from) else { return Ok((PathBuf::new(), images(&self.images)?)) };
        let data = match (self.images.as_slice(), split) {
            ([], Split::Train | Split::Valid) => {
                // What was held out is not to be seen in the folder.
                let RunImages { root, items, .. } = self.trained.images(split, classes)?;
                return Ok((root, items.into_iter().map(|item| item.path).collect()));
            }
            ([], _) => self.trained.data()?,
            ([data], _) => data.clone(),
            _ => {
                let message = format!("is a part of one data set, and {} paths are given", self.images.len());
                return Err(Error::setting("--split", message));
            }
        };
        let found = find_split(&data, split)?;
        report_skipped(&found.skipped);
        Ok((root(&data), found.images))
    }

    fn print(&self, file: &str, prediction: &Prediction, classes: &[String]) {
        let named = |class: usize| (&classes[class], prediction.probabilities[class]);
        let top: Vec<_> = prediction.top(self.top).into_iter().map(named).collect();
        if self.json {
            let top: Vec<_> = top.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
            let all: Map<_, _> =
                classes.iter().cloned().zip(prediction.probabilities.iter().map(|p| json!(p))).collect();
            let (class, probability) = (&prediction.class, prediction.probability);
            outln!(
                "{}",
                json!({ "file": file, "class": class, "probability": probability, "top": top, "probabilities": all })
            );
        } else if self.csv.is_none() {
            let top: Vec<_> = top.iter().map(|(class, p)| format!("{class} {p:.4}")).collect();
            outln!("{file}\t{}", top.join("\t"));
        }
    }
}
