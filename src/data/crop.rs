//! From the scaled and changed image to the square that a network sees.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::resize::Window;
use super::warp::{Canvas, squash};
use crate::Result;
use crate::ops::augment::Patch;
use crate::random::Random;

/// How often [`Crop::GoogleNet`] draws a rectangle before it gives up.
const TRIES: usize = 10;
/// What it draws: the share of the area, the aspect, and how often the two sides change places.
const AREA: (f32, f32) = (0.08, 1.0);
const ASPECT: (f32, f32) = (0.75, 1.333);
const SWAP_CHANCE: f32 = 0.5;

/// How a square is taken from an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Crop {
    /// From anywhere in a training image; from the centre otherwise.
    #[default]
    Random,
    /// From the centre, in training too.
    Centre,
    /// The whole image, squashed to a square.
    None,
    /// A rectangle of 8 to 100 % of a training image's area and an aspect of 3:4 to 4:3, squashed to a square (Szegedy
    /// et al. 2014); from the centre otherwise. The image is not scaled before: neither zoom nor padding apply, and
    /// changes are made at the full size.
    GoogleNet,
}

impl Crop {
    /// The same for a view in which nothing is random.
    pub(super) fn evaluation(self) -> Self {
        if self == Crop::None { Crop::None } else { Crop::Centre }
    }

    /// Takes the square from `canvas`.
    pub(super) fn take(self, canvas: &Canvas, size: u32, random: &mut Random) -> Result<Patch> {
        let (width, height) = canvas.size();
        let square = |x, y| canvas.patch(Window { x, y, width: size, height: size });
        match self {
            Crop::Random => {
                let mut start = |side: u32| (f64::from(random.uniform(0.0, 1.0)) * f64::from(side - size)) as u32;
                let y = start(height);
                square(start(width), y)
            }
            Crop::Centre => square(centred(width, size), centred(height, size)),
            Crop::None => canvas.squashed(size),
            Crop::GoogleNet => {
                let part = canvas.crop(rectangle(width, height, random))?;
                squash(&part, size)
            }
        }
    }
}

/// Python's round, by which torchvision centres, takes halves to the even side.
fn centred(side: u32, size: u32) -> u32 {
    (f64::from(side - size) / 2.0).round_ties_even() as u32
}

/// [`Crop::GoogleNet`]'s rectangle; the middle square if none of those drawn fits.
fn rectangle(width: u32, height: u32, random: &mut Random) -> Window {
    let swapped = random.chance(SWAP_CHANCE);
    for _ in 0..TRIES {
        let area = f64::from(random.uniform(AREA.0, AREA.1)) * f64::from(width) * f64::from(height);
        let aspect = f64::from(random.uniform(ASPECT.0, ASPECT.1));
        let (x, y) = (random.uniform(0.0, 1.0), random.uniform(0.0, 1.0));
        let (long, short) = ((area * aspect).sqrt().round() as u32, (area / aspect).sqrt().round() as u32);
        let (across, down) = if swapped { (short, long) } else { (long, short) };
        if (1..=width).contains(&across) && (1..=height).contains(&down) {
            let start = |unit: f32, free: u32| ((f64::from(unit) * f64::from(free + 1)) as u32).min(free);
            let (x, y) = (start(x, width - across), start(y, height - down));
            return Window { x, y, width: across, height: down };
        }
    }
    let side = width.min(height);
    Window { x: centred(width, side), y: centred(height, side), width: side, height: side }
}

impl fmt::Display for Crop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Crop::Random => "random",
            Crop::Centre => "centre",
            Crop::None => "none",
            Crop::GoogleNet => "googlenet",
        })
    }
}

impl FromStr for Crop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Crop::Random),
            "centre" | "center" => Ok(Crop::Centre),
            "none" => Ok(Crop::None),
            "googlenet" => Ok(Crop::GoogleNet),
            _ => Err("there are random, centre, none and googlenet".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::noise;
    use crate::data::{Transforms, View, resize};

    #[test]
    fn text_forms_read_back() {
        for text in ["random", "centre", "none", "googlenet"] {
            assert_eq!(text.parse::<Crop>().unwrap().to_string(), text);
            assert_eq!(serde_json::to_string(&text.parse::<Crop>().unwrap()).unwrap(), format!("\"{text}\""));
        }
        assert!("middle".parse::<Crop>().unwrap_err().contains("googlenet"));
    }

    #[test]
    fn googlenets_rectangles_are_as_stated() {
        for (width, height) in [(400, 300), (300, 400), (64, 64)] {
            let (mut wide, mut areas, mut corners) = (0, Vec::new(), Vec::new());
            for n in 0..600 {
                let window = rectangle(width, height, &mut Random::stream(n, "crop", &[]));
                assert!(window.x + window.width <= width && window.y + window.height <= height);
                let aspect = f64::from(window.width) / f64::from(window.height);
                // Rounding of the smallest sides, 18 × 18, allows for a little more.
                assert!((0.69..1.45).contains(&aspect), "{window:?}");
                wide += u32::from(aspect > 1.0);
                areas.push(f64::from(window.width * window.height) / f64::from(width * height));
                if window.width < width {
                    corners.push(f64::from(window.x) / f64::from(width - window.width));
                }
            }
            assert!((200..400).contains(&wide), "{wide} of 600");
            let (low, high) = areas.iter().fold((1.0f64, 0.0f64), |(low, high), &a| (low.min(a), high.max(a)));
            assert!((0.07..0.11).contains(&low) && (0.7..=1.0).contains(&high), "{low} {high}");
            let mean = corners.iter().sum::<f64>() / corners.len() as f64;
            assert!((0.44..0.56).contains(&mean), "{mean}");
        }
    }

    #[test]
    fn where_no_rectangle_fits_the_middle_is_taken() {
        for n in 0..50 {
            let window = rectangle(1000, 10, &mut Random::stream(n, "crop", &[]));
            assert_eq!(window, Window { x: 495, y: 0, width: 10, height: 10 });
        }
    }

    #[test]
    fn none_squashes_and_googlenet_enlarges_what_it_cuts() {
        let image = noise(50, 30, 1);
        let none = Transforms::new(20).crop(Crop::None);
        for view in [View::Clean, View::Random(Random::stream(1, "augment", &[]))] {
            let expected = resize(&image, 20, 20).unwrap();
            assert_eq!(none.apply(&image, view).unwrap().pixels, expected.into_raw());
        }
        let googlenet = Transforms::new(20).crop(Crop::GoogleNet).max_zoom(3.0);
        for n in 0..20 {
            let stream = Random::stream(n, "augment", &[]);
            let w = rectangle(50, 30, &mut stream.part("crop", 0));
            let part = image::imageops::crop_imm(&image, w.x, w.y, w.width, w.height).to_image();
            let sample = googlenet.apply(&image, View::Random(stream)).unwrap();
            assert_eq!(sample.pixels, resize(&part, 20, 20).unwrap().into_raw());
        }
    }

    #[test]
    fn evaluation_is_from_the_centre_unless_squashed() {
        let image = noise(50, 30, 1);
        let clean = |crop| Transforms::new(20).crop(crop).apply(&image, View::Clean).unwrap();
        assert_eq!(clean(Crop::Random), clean(Crop::Centre));
        assert_eq!(clean(Crop::GoogleNet), clean(Crop::Centre));
        assert_ne!(clean(Crop::None), clean(Crop::Centre));
        let centre = Transforms::new(20).crop(Crop::Centre);
        let random = View::Random(Random::stream(1, "augment", &[]));
        assert_eq!(centre.apply(&image, random).unwrap(), clean(Crop::Centre));
    }
}
