//! A job that classifies a folder: `cargo run --release --example batch -- MODEL FOLDER OUT.csv`
//!
//! Images are decoded by several threads while the batch before is classified.

use std::{error::Error, process::ExitCode};

use unfreeze::{
    data::{Item, Loader, LoaderOptions, find_images},
    learner::Predictions,
    prelude::*,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder, out] = arguments.as_slice() else {
        eprintln!("usage: batch MODEL FOLDER OUT.csv");
        std::process::exit(2);
    };

    let classifier = Classifier::load(model, Device::auto()?)?;
    let found = find_images(folder)?;
    found.skipped.iter().for_each(|file| eprintln!("skipped {file}"));
    if found.images.is_empty() {
        return Err(format!("{folder}: holds no images").into());
    }
    let (files, order) = (&found.images, (0..found.images.len() as u32).collect());
    let options = LoaderOptions::evaluation().on(classifier.device());

    let mut skipped = found.skipped.len();
    let mut table = Predictions::new(classifier.task(), classifier.classes());
    for batch in Loader::new(Item::unlabelled(files), classifier.transforms(), order, 32, &options)? {
        let batch = batch?;
        skipped += batch.failed.len();
        batch.failed.iter().for_each(|file| eprintln!("skipped {file}"));
        for (index, prediction) in batch.indices.iter().zip(classifier.predict_batch(&batch)?) {
            table.push(files[*index as usize].display().to_string(), prediction);
        }
    }
    table.write_csv(out)?;
    println!("{out}: {} images, {skipped} skipped", table.len());
    Ok(())
}
