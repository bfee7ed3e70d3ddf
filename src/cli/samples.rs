//! `unfreeze samples`

use std::path::PathBuf;

use clap::Args;
use image::imageops;
use serde_json::json;
use unfreeze::{
    Device, Error, Precision, Result,
    data::{Batch, Loader, LoaderOptions, RgbImage, Split, Transforms, save_png, shuffled},
};

use super::options::{DataSource, Failed, Mode, TransformFlags, check_output, count, open_data};

/// White pixels between pictures.
const GAP: usize = 2;
/// Most pixels of the picture drawn.
const MAX_PIXELS: usize = 1 << 28;

/// Draw what the network sees of training images
///
/// The picture has a row for each of some training images: first the clean view, as in validation, then random ones,
/// drawn as a training draws them in its first epochs with the same flags. They are the network's input after lighting
/// and before normalisation. The class and file of each row are printed.
#[derive(Args)]
#[command(mut_arg("size", |arg| arg.help("Side of the square that the network sees, in pixels [default: 224]")))]
pub struct Samples {
    #[command(flatten)]
    source: DataSource,
    /// Picture to write
    #[arg(long, value_name = "FILE.png")]
    out: PathBuf,
    /// Training images, one per row
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = count)]
    images: usize,
    /// Random views of each
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = count)]
    views: usize,
    #[command(flatten)]
    transforms: TransformFlags,
    /// Decides which images and views are drawn
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print one JSON object per row: row, class, file
    #[arg(long)]
    json: bool,
}

impl Samples {
    pub fn run(self) -> Result<()> {
        check_output("--out", &self.out, "png")?;
        let transforms = self.transforms.set(Transforms::new(self.transforms.size.unwrap_or(224)))?;
        let data = open_data(
            self.source.path(),
            self.source.task,
            self.source.valid_fraction,
            self.source.strict,
            self.seed,
            Mode::default(),
        )?;
        let items = data.items(Split::Train);
        let (rows, columns) = (self.images.min(items.len()), self.views + 1);
        let side = transforms.size + GAP;
        if rows * columns > MAX_PIXELS / (side * side) {
            let message =
                format!("{rows} rows of {columns} views of {} pixels are too large a picture", transforms.size);
            return Err(Error::setting("--images", message));
        }

        let device = Device::cpu(1)?;
        let load =
            |order: Vec<u32>, batch_size, options| Loader::new(items.clone(), &transforms, order, batch_size, &options);
        let strict = self.source.strict;
        let clean = LoaderOptions { strict, prefetch: 1, ..LoaderOptions::evaluation() };
        let mut grid =
            RgbImage::from_pixel((side * columns - GAP) as u32, (side * rows - GAP) as u32, image::Rgb([255; 3]));
        let mut place = |tile: &RgbImage, row: usize, column: usize| {
            imageops::replace(&mut grid, tile, (side * column) as i64, (side * row) as i64);
        };

        // In a random order, until enough were readable.
        let (mut drawn, mut failed) = (Vec::new(), Failed::default());
        for batch in load(shuffled(items.len() as u32, self.seed, 0), rows, clean)? {
            let mut batch = batch?;
            failed.report(std::mem::take(&mut batch.failed));
            for (tile, index) in tiles(batch, &transforms, &device)?.take(rows - drawn.len()) {
                place(&tile, drawn.len(), 0);
                drawn.push(index);
            }
            if drawn.len() == rows {
                break;
            }
        }
        if drawn.is_empty() {
            return failed.check(items.len());
        }
        for epoch in 0..self.views {
            let options = LoaderOptions { strict, shuffle: false, ..LoaderOptions::training(self.seed, epoch as u64) };
            for batch in load(drawn.clone(), rows, options)? {
                for (row, (tile, _)) in tiles(batch?, &transforms, &device)?.enumerate() {
                    place(&tile, row, epoch + 1);
                }
            }
        }

        // Shorter where too few could be read.
        let height = (side * drawn.len() - GAP) as u32;
        let grid = imageops::crop_imm(&grid, 0, 0, grid.width(), height).to_image();
        save_png(&grid, &self.out)?;
        for (row, &index) in drawn.iter().enumerate() {
            let item = &items[index as usize];
            let (row, class, file) = (row + 1, data.describe(item), item.path.display());
            if self.json {
                outln!("{}", json!({ "row": row, "class": class, "file": file.to_string() }));
            } else {
                outln!("{row}\t{class}\t{file}");
            }
        }
        Ok(())
    }
}

/// The pictures of a batch as the network receives them, but not normalised, and their numbers.
fn tiles(batch: Batch, transforms: &Transforms, device: &Device) -> Result<impl Iterator<Item = (RgbImage, u32)>> {
    let size = transforms.size;
    let seen =
        batch.upload(&transforms.clone().normalise([0.0; 3], [1.0; 3]), device, Precision::F32)?.to_vec::<f32>()?;
    let tile = move |number: usize| {
        let values = &seen[number * size * size * 3..][..size * size * 3];
        let mut tile = RgbImage::new(size as u32, size as u32);
        tile.iter_mut().zip(values).for_each(|(byte, value)| *byte = (255.0 * value).round() as u8);
        tile
    };
    Ok(batch.indices.into_iter().enumerate().map(move |(number, index)| (tile(number), index)))
}
