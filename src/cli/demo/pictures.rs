//! The demo's data set: pictures drawn into folders, as `train` expects them.

use std::{fs, io::Cursor, path::Path};

use unfreeze::{
    Error, Result,
    data::{ImageData, RgbImage},
    random::Random,
};

use super::shapes::{SHAPES, draw};

/// Pictures per class.
#[derive(Clone, Copy)]
pub struct Counts {
    /// Learned from.
    pub train: usize,
    /// Measured on.
    pub valid: usize,
}

/// Draws the data set into `folder`: `train/CLASS/0000.png` and so on, and `valid/` likewise. `seed` decides every
/// picture; no two pictures share a random stream.
pub fn write(folder: &Path, counts: Counts, seed: u64) -> Result<ImageData> {
    for (split, count) in [("train", counts.train), ("valid", counts.valid)] {
        for shape in &SHAPES {
            let class = folder.join(split).join(shape.name);
            fs::create_dir_all(&class).map_err(|error| Error::io(&class, error))?;
            for number in 0..count {
                let mut random = Random::stream(seed, &format!("demo {split} {}", shape.name), &[number as u64]);
                write_png(&class.join(format!("{number:04}.png")), &draw(shape, &mut random))?;
            }
        }
    }
    ImageData::from_folders(folder)
}

fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|error| Error::io(path, std::io::Error::other(error)))?;
    fs::write(path, bytes.into_inner()).map_err(|error| Error::io(path, error))
}
