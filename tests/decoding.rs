//! Decoding of what collections of images really hold: against Pillow's pixels for the development data, and for
//! files made here against what their formats' rules say.

mod common;
#[path = "decoding/made.rs"]
mod made;
#[path = "decoding/memory.rs"]
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::shared;
use unfreeze::data::{Item, Loader, LoaderOptions, RgbImage, Transforms, decode, find_images};

/// What is done with a file otherwise than Pillow does.
enum Otherwise {
    /// Decoded, to these sides.
    Decoded(u32, u32),
    /// Refused, with these words among the reason.
    Refused(&'static str),
}
use Otherwise::{Decoded, Refused};

/// The files that do not come out as Pillow's, and why that is right or bearable.
const EXCEPTIONS: [(&str, Otherwise, &str); 14] = [
    ("exif_broken/truncated_exif_dpi.jpg", Decoded(480, 640), "only its EXIF data is cut off; Pillow gives up"),
    ("bmp/V3_R5_G6_B5.bmp", Decoded(6, 6), "Pillow 9.4 does not know this version of the header"),
    ("jpeg_variants/jpg-size-2x2.jpg", Decoded(2, 2), "two pixels of colour at half the resolution: free to choose"),
    ("jpeg_truncated_corrupt/dc-predictor-overflow.jpg", Decoded(144, 144), "numbers that overflow mean nothing"),
    ("png_corrupt/invalid_palette_index.png", Decoded(10, 10), "colours beyond the palette: black here, white there"),
    ("gif/oob.gif", Decoded(32, 32), "a frame beyond the canvas: clipped here, the canvas grows there"),
    ("webp/anim.webp", Decoded(200, 200), "what invisible pixels hide is lost in the first frame's composition"),
    ("jpeg_truncated_corrupt/truncated_app14.jpg", Refused("App14"), "the segment that says how colours are coded"),
    ("cmyk_ycck/5482a54657765056f1a94116a8dbffe7.jpg", Refused("Adobe colorspace 199"), "fuzzed: colours unknown"),
    ("tiff/ycbcr_jpeg_8bit.tif", Refused("convert it"), "the decoder has no YCbCr in TIFF"),
    ("tiff/ojpeg-strip.tif", Refused("convert it"), "the decoder has no JPEG of TIFF 6.0's first form"),
    ("tiff/12bit.cropped.tif", Refused("convert it"), "the decoder has no 12 bits"),
    ("unsupported_formats/world.jp2", Refused("is JPEG 2000"), "no decoder"),
    ("unsupported_formats/silicongraphics.sgi", Refused("is SGI"), "no decoder"),
];

/// Mean colours of 3 × 3 cells, as `decoding/pillow.py` takes them.
fn cells(image: &RgbImage) -> Vec<f64> {
    let span = |i: u32, side: u32| (i * side / 3)..((i + 1) * side / 3).max(i * side / 3 + 1);
    let mut cells = Vec::new();
    for cell in 0..9 {
        let (across, down) = (span(cell % 3, image.width()), span(cell / 3, image.height()));
        let count = f64::from((across.end - across.start) * (down.end - down.start));
        let mut sums = [0.0; 3];
        for (x, y) in across.flat_map(|x| down.clone().map(move |y| (x, y))) {
            (0..3).for_each(|k| sums[k] += f64::from(image.get_pixel(x, y)[k]));
        }
        cells.extend(sums.map(|sum| sum / count));
    }
    cells
}

/// Pillow's sides and cells for each path.
fn pillow() -> BTreeMap<&'static str, ((u32, u32), Vec<f64>)> {
    let line = |line: &'static str| {
        let [path, width, height, cells]: [&str; 4] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let level = |at: usize| f64::from(u8::from_str_radix(&cells[at..at + 2], 16).unwrap());
        let cells = (0..54).step_by(2).map(level).collect();
        (path, ((width.parse().unwrap(), height.parse().unwrap()), cells))
    };
    include_str!("decoding/pillow.tsv").lines().skip(1).map(line).collect()
}

fn compare(image: &RgbImage, (sides, expected): &((u32, u32), Vec<f64>)) -> Result<(), String> {
    if image.dimensions() != *sides {
        return Err(format!("{:?}, not {sides:?}", image.dimensions()));
    }
    let far = cells(image).iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    // Half a level is the table's rounding; the rest is left to inverse cosine transforms and the conversion of
    // colours, which the standards let differ.
    if far <= 1.6 { Ok(()) } else { Err(format!("a cell is {far:.2} grey levels off")) }
}

/// The paths of the manifest.
fn manifest(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("MANIFEST.tsv")).unwrap();
    text.lines().skip(1).map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn every_nasty_file_is_as_pillow_has_it_or_refused_with_a_reason() {
    let Some(folder) = shared("data/nasty") else { return };
    let pillow = pillow();
    let mut wrong = Vec::new();
    for path in manifest(&folder) {
        let outcome = decode(folder.join(&path));
        if let Err(error) = &outcome {
            // A reason names the file, and says what it is or what to do.
            let error = error.to_string();
            let told = ["fetch it again", "convert it", "scale it down", "not an image"];
            assert!(error.contains(&path) && told.iter().any(|told| error.contains(told)), "{error}");
        }
        let as_pillow = match (&outcome, pillow.get(&*path)) {
            (Ok(image), Some(expected)) => compare(image, expected),
            (Ok(_), None) => Err("decoded, but Pillow refuses it".into()),
            (Err(error), Some(_)) => Err(format!("refused: {error}")),
            (Err(_), None) => Ok(()),
        };
        let exception = EXCEPTIONS.iter().find(|(name, ..)| *name == path);
        match (exception, as_pillow) {
            (None, Ok(())) => {}
            (None, Err(difference)) => wrong.push(format!("{path}: {difference}")),
            (Some(_), Ok(())) => wrong.push(format!("{path}: no exception any more")),
            (Some((_, Decoded(width, height), _)), Err(_)) => {
                let sides = outcome.map(|image| image.dimensions()).ok();
                assert_eq!(sides, Some((*width, *height)), "{path}");
            }
            (Some((_, Refused(words), _)), Err(_)) => {
                let error = outcome.unwrap_err().to_string();
                assert!(error.contains(words), "{error}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn reference_decodings_agree_to_the_pixel() {
    let Some(folder) = shared("data/nasty") else { return };
    let mut compared = 0;
    for entry in fs::read_dir(folder.join("reference_png")).unwrap() {
        let reference = entry.unwrap().path();
        let stem = reference.file_stem().unwrap().to_str().unwrap().replacen("__", "/", 1);
        let Ok(image) = decode(folder.join(format!("{stem}.jpg"))) else { continue };
        let expected = decode(&reference).unwrap();
        assert_eq!(image.dimensions(), expected.dimensions(), "{stem}");
        let far = image.as_raw().iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(far <= Some(6), "{stem}: {far:?} grey levels");
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
}

#[test]
fn the_loader_takes_what_decodes_and_names_the_rest() {
    let Some(folder) = shared("data/nasty") else { return };
    let images = find_images(&folder).unwrap().images;
    let refused: BTreeSet<PathBuf> = images.iter().filter(|path| decode(path).is_err()).cloned().collect();
    assert!(!refused.is_empty() && refused.len() < images.len() / 2);
    let items = Item::unlabelled(images);
    let order: Vec<u32> = (0..items.len() as u32).collect();
    for options in [LoaderOptions::evaluation(), LoaderOptions { augment: true, ..LoaderOptions::evaluation() }] {
        let loader = Loader::new(items.clone(), &Transforms::new(16), order.clone(), 8, &options).unwrap();
        let (mut loaded, mut failed) = (0, BTreeSet::new());
        for batch in loader {
            let batch = batch.unwrap();
            loaded += batch.len();
            failed.extend(batch.failed.into_iter().map(|skipped| skipped.path));
        }
        assert_eq!(failed, refused);
        assert_eq!(loaded + failed.len(), items.len());
    }
    let strict = LoaderOptions { strict: true, ..LoaderOptions::evaluation() };
    let error = Loader::new(items, &Transforms::new(16), order, 8, &strict).unwrap().find_map(Result::err).unwrap();
    assert!(refused.iter().any(|path| error.to_string().starts_with(&*path.to_string_lossy())), "{error}");
}
