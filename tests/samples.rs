//! `unfreeze samples`, and what becomes of the flags that it shares with `train`.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::learning::cats_and_dogs;
use image::{RgbImage, imageops};
use serde_json::Value;
use unfreeze::Device;
use unfreeze::data::{Augment, Crop, Transforms, View, decode, resize};
use unfreeze::learner::Classifier;
use unfreeze::random::Random;

fn unfreeze(command: &str, data: &Path, out: &Path, flags: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_unfreeze"));
    program.arg(command).arg(data).arg("--out").arg(out).args(flags.split_whitespace());
    program.output().unwrap()
}

/// The grid drawn, with the class and file of each row.
fn samples(data: &Path, flags: &str) -> (RgbImage, Vec<(String, String)>) {
    let out = data.join("grid.png");
    let output = unfreeze("samples", data, &out, &format!("--json {flags}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        (row["class"].as_str().unwrap().to_owned(), row["file"].as_str().unwrap().to_owned())
    };
    (decode(out).unwrap(), text.lines().map(row).collect())
}

fn tile(grid: &RgbImage, size: u32, row: u32, column: u32) -> RgbImage {
    imageops::crop_imm(grid, column * (size + 2), row * (size + 2), size, size).to_image()
}

#[test]
fn the_grid_shows_the_pipelines_own_views() {
    let data = cats_and_dogs();
    let flags = "--size 12 --resize 14 --images 3 --views 2 --seed 4 --pad 2 --max-zoom 1.3 --augment top-down";
    let (grid, rows) = samples(data.path(), flags);
    assert_eq!((grid.dimensions(), rows.len()), ((3 * 14 - 2, 3 * 14 - 2), 3));
    assert_eq!(grid.get_pixel(12, 5).0, [255; 3]);
    let transforms = Transforms::new(12).resize(14).pad(2).max_zoom(1.3).augment(Augment::TopDown);
    for (row, (class, file)) in rows.iter().enumerate() {
        assert!(file.contains(&format!("train/{class}/")), "{class} {file}");
        let image = decode(file).unwrap();
        let clean = transforms.apply(&image, View::Clean).unwrap();
        assert_eq!(*tile(&grid, 12, row as u32, 0), clean.pixels);
        // Sorted by class and name: five cats, five dogs.
        let number: u64 = Path::new(file).file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let index = number + if class == "dog" { 5 } else { 0 };
        for epoch in 0..2 {
            let view = View::Random(Random::stream(4, "augment", &[epoch, index]));
            let sample = transforms.apply(&image, view).unwrap();
            let lit = |byte: &u8| {
                let x = sample.lighting.gain * f32::from(*byte) / 255.0 + sample.lighting.offset;
                (x.clamp(0.0, 1.0) * 255.0).round()
            };
            let expected: Vec<f32> = sample.pixels.iter().map(lit).collect();
            let drawn = tile(&grid, 12, row as u32, epoch as u32 + 1);
            let far = drawn.iter().zip(&expected).map(|(a, b)| (f32::from(*a) - b).abs()).fold(0.0, f32::max);
            assert!(far <= 1.0, "{far}");
            assert_ne!(drawn.into_raw(), clean.pixels);
        }
    }
}

#[test]
fn the_same_seed_draws_the_same() {
    let data = cats_and_dogs();
    let grid = |flags: &str| samples(data.path(), &format!("--size 10 --images 99 --views 1 {flags}"));
    let first = grid("--seed 1");
    assert_eq!(first.1.len(), 10, "no more than there are");
    assert_eq!(first, grid("--seed 1"));
    assert_ne!(first.1, grid("--seed 2").1);
    assert_ne!(first.0, grid("--seed 1 --augment none --max-zoom 1").0);
}

#[test]
fn squashed_and_unreadable_images() {
    let data = cats_and_dogs();
    for number in 0..4 {
        std::fs::write(data.path().join(format!("train/cat/{number}.png")), b"\x89PNG\r\n\x1A\nand no more").unwrap();
    }
    RgbImage::from_fn(40, 20, |x, _| image::Rgb([6 * x as u8; 3])).save(data.path().join("train/cat/4.png")).unwrap();
    let (grid, rows) = samples(data.path(), "--size 10 --images 10 --views 1 --crop none --augment none");
    // Every file that can be read has its row.
    assert_eq!(rows.len(), 6);
    let row = rows.iter().position(|(class, _)| class == "cat").unwrap() as u32;
    let whole = resize(&decode(data.path().join("train/cat/4.png")).unwrap(), 10, 10).unwrap();
    assert_eq!(tile(&grid, 10, row, 0), whole);
    assert_eq!(grid.height(), 6 * 12 - 2);

    let strict = unfreeze("samples", data.path(), &data.path().join("x.png"), "--size 10 --strict");
    let message = String::from_utf8(strict.stderr).unwrap();
    assert!(strict.status.code() == Some(1) && message.contains("train/cat/"), "{message}");
}

#[test]
fn wrong_usage_is_explained() {
    let data = cats_and_dogs();
    for (out, flags, words) in [
        ("grid.jpg", "", "should end in .png"),
        ("nowhere/grid.png", "", "no such folder"),
        ("grid.png", "--augment flop", "there are rotate:DEGREES"),
        ("grid.png", "--crop middle", "googlenet"),
        ("grid.png", "--crop none --pad 4", "--pad: is for images that are cropped"),
        ("grid.png", "--size 8000 --views 2000", "too large a picture"),
    ] {
        let output = unfreeze("samples", data.path(), &data.path().join(out), flags);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && message.contains(words), "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}

const TRAIN: &str = "--weights random --arch resnet20 --size 16 --recipe head --linear-head --epochs 1 --batch-size 4";

#[test]
fn a_model_trained_on_squashed_images_predicts_on_squashed_images() {
    let data = cats_and_dogs();
    for (crop, kept) in [("none", Crop::None), ("googlenet", Crop::Random)] {
        let run = data.path().join(crop);
        let output = unfreeze("train", data.path(), &run, &format!("{TRAIN} --crop {crop} --augment dihedral"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let model = Classifier::load(run.join("model.safetensors"), Device::cpu(1).unwrap()).unwrap();
        assert_eq!(model.transforms().crop, kept);
        let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(
            config.contains(&format!("crop = \"{crop}\"")) && config.contains("augment = \"dihedral\""),
            "{config}"
        );
    }
}

#[test]
fn strict_training_stops_at_a_file_that_is_damaged_deep_inside() {
    let data = cats_and_dogs();
    let path = data.path().join("train/dog/2.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
    let strict = unfreeze("train", data.path(), &data.path().join("strict"), &format!("{TRAIN} --strict"));
    let message = String::from_utf8(strict.stderr).unwrap();
    assert!(strict.status.code() == Some(1) && message.contains("train/dog/2.png: damaged"), "{message}");
    let lax = unfreeze("train", data.path(), &data.path().join("lax"), TRAIN);
    let message = String::from_utf8(lax.stderr).unwrap();
    assert!(lax.status.success() && message.contains("skipped") && message.contains("train/dog/2.png"), "{message}");
}
