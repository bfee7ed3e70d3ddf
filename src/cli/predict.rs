//! `unfreeze predict`

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Map, json};
use unfreeze::{
    Error, Result,
    data::{Item, Split, Task, decode, find_split, save_png},
    learner::{Classifier, Prediction, Predictions},
    nn::Layer,
};

use super::{
    options::{Failed, absolute, check_output, count, images, report_skipped},
    trained::{Opened, Part, RunImages, Trained, root},
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
    /// Write a table instead of printing: file, class, probability, then a column per class with its probability; for
    /// labels file, labels, then a column for each; for numbers file and a column for each
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Write to DIR pictures of where in each image the network finds the class predicted (Grad-CAM), named after the
    /// image with its number in front
    #[arg(long, value_name = "DIR", conflicts_with = "ensemble")]
    grad_cam: Option<PathBuf>,
    /// With --grad-cam: the layer looked at, layer1 … layer4; the earlier, the finer, and the less about the class
    /// [default: the last]
    #[arg(long, value_name = "NAME", requires = "grad_cam")]
    grad_cam_layer: Option<Layer>,
    /// Print one JSON object per image: file, class, probability, top (list of class and probability), probabilities
    /// (of every class); of labels file, labels (those at the threshold and above), probabilities; of numbers
    /// file, numbers; with --grad-cam that picture's path
    #[arg(long)]
    json: bool,
}

impl Predict {
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.csv {
            check_output("--csv", path, "csv")?;
        }
        if self.split.is_none() && self.trained.asks_for_cache() {
            let message = "knows images by the data set that they are of; give --split";
            return Err(Error::setting("--cache", message));
        }
        let opened = self.trained.open()?;
        let classes = opened.classes();
        let (root, files) = self.files(&opened)?;
        let cache = if self.split.is_some() { opened.cached(&root)? } else { None };
        if let Some(folder) = &self.grad_cam {
            fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
            check_output("--grad-cam", &folder.join("1.png"), "png")?;
        }
        let items = Item::unlabelled(&files);
        let (mut failed, mut table) = (Failed::default(), Predictions::new(opened.task(), classes));
        for start in (0..items.len()).step_by(CHUNK) {
            let range = start..items.len().min(start + CHUNK);
            let mut skipped = Vec::new();
            let judged = opened.judge(&items, None, range.clone(), cache.as_ref(), |file| skipped.push(file.clone()));
            let all = skipped.len() == range.len();
            failed.report(skipped);
            // That there was nothing to judge has just been said.
            let evaluation = if all { continue } else { judged?.evaluation };
            for (index, row) in evaluation.indices.iter().zip(evaluation.probabilities.chunks(classes.len())) {
                let prediction = Prediction::new(classes, row.to_vec()).at_threshold(evaluation.threshold);
                let path = &files[*index as usize];
                let picture = self.grad_cam.as_ref().map(|folder| {
                    let digits = files.len().to_string().len();
                    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                    let picture = folder.join(format!("{:0digits$}-{stem}.png", index + 1));
                    self.explain(opened.first(), path, &prediction, &picture).map(|()| picture)
                });
                let picture = picture.transpose()?;
                let file = path.strip_prefix(&root).unwrap_or(path).display().to_string();
                self.print(&file, &prediction, picture, opened.task(), classes);
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
    fn files(&self, opened: &Opened) -> Result<(PathBuf, Vec<PathBuf>)> {
        let Some(split) = self.split.map(Split::from) else { return Ok((PathBuf::new(), images(&self.images)?)) };
        let data = match (self.images.as_slice(), split) {
            ([], Split::Train | Split::Valid) => {
                // What was held out is not to be seen in the folder.
                let RunImages { root, items, .. } = self.trained.images(split, opened.classes())?;
                return Ok((root, items.into_iter().map(|item| item.path).collect()));
            }
            ([], _) => self.trained.data()?,
            ([data], _) => absolute(data)?,
            _ => {
                let message = format!("is a part of one data set, and {} paths are given", self.images.len());
                return Err(Error::setting("--split", message));
            }
        };
        let found = find_split(&data, opened.task(), split)?;
        report_skipped(&found.skipped);
        Ok((root(&data), found.images))
    }

    /// Draws where in an image the class is found that is predicted of it.
    fn explain(&self, classifier: &Classifier, image: &Path, prediction: &Prediction, picture: &Path) -> Result<()> {
        let class = prediction.top(1).first().copied();
        let found = classifier.grad_cam(&decode(image)?, class, self.grad_cam_layer)?;
        save_png(&found.overlay(), picture)
    }

    fn print(&self, file: &str, prediction: &Prediction, picture: Option<PathBuf>, task: Task, classes: &[String]) {
        let named = |class: usize| (&classes[class], prediction.probabilities[class]);
        let all =
            || classes.iter().cloned().zip(prediction.probabilities.iter().map(|p| json!(p))).collect::<Map<_, _>>();
        let shown = match task {
            Task::SingleLabel => prediction.top(self.top),
            Task::MultiLabel => prediction.given(),
            Task::Regression => (0..classes.len()).collect(),
        };
        let top: Vec<_> = shown.into_iter().map(named).collect();
        if self.json {
            let mut object = match task {
                Task::MultiLabel => {
                    let labels: Vec<_> = top.iter().map(|(label, _)| label).collect();
                    json!({ "file": file, "labels": labels, "probabilities": all() })
                }
                Task::Regression => json!({ "file": file, "numbers": all() }),
                Task::SingleLabel => {
                    let (class, probability) = (&prediction.class, prediction.probability);
                    let top: Vec<_> =
                        top.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
                    json!({
                        "file": file, "class": class, "probability": probability, "top": top, "probabilities": all(),
                    })
                }
            };
            if let Some(picture) = picture {
                object["grad_cam"] = json!(picture.display().to_string());
            }
            outln!("{object}");
        } else if self.csv.is_none() {
            let top: Vec<_> = top.iter().map(|(class, p)| format!("{class} {p:.4}")).collect();
            outln!("{file}\t{}", top.join("\t"));
        }
    }
}
