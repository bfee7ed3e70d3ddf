//! Pictures that cost a decoder what photographs do: noise of all scales, weaker the finer it is.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use image::codecs::jpeg::JpegEncoder;
use unfreeze::{
    Error, Result,
    data::{RgbImage, resize},
    random::Random,
};

/// Width and height, of many a photograph in a data set.
const SIDES: (u32, u32) = (500, 375);

/// Of a JPEG file, from 1 to 100.
const QUALITY: u8 = 90;

/// How often the scale is halved, from half the width on.
const SCALES: i32 = 8;

/// Levels, of 256, by which the coarsest scale changes a pixel at most.
const STRENGTH: f32 = 80.0;

/// Strength of a scale to that of the next coarser one. At this share a file has 0.2 bytes to a pixel; photographs of
/// cats and dogs from the web have 0.13 to 0.17.
const DECAY: f32 = 0.6;

/// Writes `0000.jpg` and so on into `folder`, which is made where it is missing; `seed` decides every picture.
pub fn write(folder: &Path, count: usize, seed: u64) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    for number in 0..count {
        let path = folder.join(format!("{number:04}.jpg"));
        let picture = draw(&mut Random::stream(seed, "bench picture", &[number as u64]))?;
        let mut file = BufWriter::new(fs::File::create(&path).map_err(|error| Error::io(&path, error))?);
        JpegEncoder::new_with_quality(&mut file, QUALITY)
            .encode_image(&picture)
            .map_err(|error| Error::io(&path, std::io::Error::other(error)))?;
        file.flush().map_err(|error| Error::io(&path, error))?;
    }
    Ok(())
}

fn draw(random: &mut Random) -> Result<RgbImage> {
    let (width, height) = SIDES;
    let mut levels = vec![128.0; (3 * width * height) as usize];
    for scale in 0..SCALES {
        let mut noise = RgbImage::new(2 << scale, 2 << scale);
        noise.iter_mut().for_each(|byte| *byte = random.uniform(0.0, 256.0) as u8);
        let strength = STRENGTH * DECAY.powi(scale) / 128.0;
        for (level, byte) in levels.iter_mut().zip(resize(&noise, width, height)?.iter()) {
            *level += strength * (f32::from(*byte) - 128.0);
        }
    }
    let mut picture = RgbImage::new(width, height);
    picture.iter_mut().zip(&levels).for_each(|(byte, level)| *byte = level.round().clamp(0.0, 255.0) as u8);
    Ok(picture)
}
