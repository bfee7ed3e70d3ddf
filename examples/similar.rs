//! Search for similar pictures by a network's features: `cargo run --release --example similar -- WEIGHTS FOLDER
//! IMAGE...`

use std::{error::Error, path::PathBuf, process::ExitCode};

use unfreeze::{
    autograd::Var,
    data::{Item, Loader, LoaderOptions, find_images},
    nn::{Model, Pass},
    ops::pool::average_forward,
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
    let (places, images) = arguments.split_at(arguments.len().min(2));
    let ([weights, folder], [_, ..]) = (places, images) else {
        eprintln!("usage: similar WEIGHTS FOLDER IMAGE...");
        std::process::exit(2);
    };

    let weights = Weights::file(weights)?;
    let found = find_images(folder)?;
    found.skipped.iter().for_each(|file| eprintln!("skipped {file}"));
    if found.images.is_empty() {
        return Err(format!("{folder}: holds no images").into());
    }
    let device = Device::auto()?;
    // A head is needed to make a network; it is not used.
    let model = weights.with_head(HeadSpec::Linear, 1, 0, &device)?;
    let transforms = Transforms::for_weights(&weights, weights.arch().published_size());
    // The same picture, asked for by another path, is no neighbour of itself.
    let same = |a: &PathBuf, b: &PathBuf| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    let index = features(&model, &transforms, &device, &found.images)?;
    let images: Vec<PathBuf> = images.iter().map(PathBuf::from).collect();
    for (image, wanted) in features(&model, &transforms, &device, &images)? {
        println!("{}", image.display());
        let cosine = |feature: &[f32]| feature.iter().zip(&wanted).map(|(a, b)| a * b).sum::<f32>();
        let mut near: Vec<_> = index.iter().map(|(file, feature)| (cosine(feature), file)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.iter()
            .filter(|(_, file)| !same(file, &image))
            .take(5)
            .for_each(|(cosine, file)| println!("  {cosine:.3} {}", file.display()));
    }
    Ok(())
}

/// What the backbone makes of each file that can be read, averaged over the picture and scaled to length 1.
fn features(
    model: &Model,
    transforms: &Transforms,
    device: &Device,
    files: &[PathBuf],
) -> unfreeze::Result<Vec<(PathBuf, Vec<f32>)>> {
    let (options, order) = (LoaderOptions::evaluation().on(device), (0..files.len() as u32).collect());
    let mut features = Vec::new();
    for batch in Loader::new(Item::unlabelled(files), transforms, order, 32, &options)? {
        let batch = batch?;
        batch.failed.iter().for_each(|file| eprintln!("skipped {file}"));
        if batch.is_empty() {
            continue;
        }
        let images = Var::constant(batch.upload(transforms, device, Precision::F32)?);
        let backbone = &model.backbone;
        let activation = backbone.forward_units(&mut Pass::evaluation(), &images, 0..backbone.units())?;
        let values = average_forward(activation.value())?.to_vec::<f32>()?;
        for (index, values) in batch.indices.iter().zip(values.chunks_exact(model.arch().features())) {
            let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            features.push((files[*index as usize].clone(), values.iter().map(|value| value / norm).collect()));
        }
    }
    Ok(features)
}
