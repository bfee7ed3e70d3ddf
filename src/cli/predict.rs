//! `unfreeze predict`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use unfreeze::{
    Result,
    data::{Item, Loader, LoaderOptions},
    learner::Classifier,
};

use super::options::{Arithmetic, Compute, Failed, count, images, model_file};

/// Classify images with a trained model
#[derive(Args)]
pub struct Predict {
    /// Run folder, or model file
    model: PathBuf,
    /// Images, or folders of images
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// How many classes to print for each image
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = count)]
    top: usize,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count)]
    batch_size: usize,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
    /// Print one JSON object per image: file, class, probability, top (list of class and probability)
    #[arg(long)]
    json: bool,
}

impl Predict {
    pub fn run(self) -> Result<()> {
        let classifier =
            Classifier::load(model_file(&self.model), self.compute.open()?)?.precision(self.arithmetic.dtype)?;
        let files = images(&self.images)?;
        let order = (0..files.len() as u32).collect();
        let items = Item::unlabelled(&files);
        let options = LoaderOptions::evaluation().on(classifier.device());
        let mut failed = Failed::default();
        for batch in Loader::new(items, classifier.transforms(), order, self.batch_size, &options)? {
            let mut batch = batch?;
            failed.report(std::mem::take(&mut batch.failed));
            let predictions = classifier.predict_batch(&batch)?;
            for (prediction, index) in predictions.iter().zip(batch.indices) {
                let file = files[index as usize].display().to_string();
                let named = |class: usize| (&classifier.classes()[class], prediction.probabilities[class]);
                let top: Vec<_> = prediction.top(self.top).into_iter().map(named).collect();
                if self.json {
                    let top: Vec<_> =
                        top.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
                    let (class, probability) = (&prediction.class, prediction.probability);
                    outln!("{}", json!({ "file": file, "class": class, "probability": probability, "top": top }));
                } else {
                    let top: Vec<_> = top.iter().map(|(class, p)| format!("{class} {p:.4}")).collect();
                    outln!("{file}\t{}", top.join("\t"));
                }
            }
        }
        failed.check(files.len())
    }
}
