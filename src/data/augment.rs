//! What is changed at random in training images: the list, its text form, and how each change is drawn.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::pixels::{blur, cutout, light, mean_level};
use super::transforms::Lighting;
use super::warp::Canvas;
use crate::Result;
use crate::random::Random;

/// How often [`Change::Rotate`] acts.
const ROTATE_CHANCE: f32 = 0.75;
/// How often [`Change::Flip`], [`Change::Blur`] and [`Change::Cutout`] act, and [`Change::Dihedral`] mirrors.
const CHANCE: f32 = 0.5;

/// One random change of a training image; all are fastai 0.7's, with its chances.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// Three images in four are rotated by up to so many degrees either way; the border is reflected.
    Rotate {
        /// Largest angle.
        degrees: f32,
    },
    /// Brightness and contrast change, each by up to its share of the full range either way.
    Lighting {
        /// Largest change of brightness.
        balance: f32,
        /// Largest change of contrast.
        contrast: f32,
    },
    /// Every other image is mirrored, left to right.
    Flip,
    /// One of the eight symmetries of the square: quarter turns, mirrored every other time.
    Dihedral,
    /// One image in four each is rotated, enlarged about its centre, stretched along one side, or left as it is.
    RotateZoom {
        /// Largest angle, either way.
        degrees: f32,
        /// Largest enlargement: 0.5 is to one and a half times the size.
        zoom: f32,
        /// Largest stretching of a side.
        stretch: f32,
    },
    /// Every other image is blurred by a Gaussian of `2 · strength − 1` pixels across.
    Blur {
        /// From 1, which does nothing.
        strength: u32,
    },
    /// In every other image, squares about random pixels are set to black.
    Cutout {
        /// Number of squares.
        count: u32,
        /// Their side, in pixels of the scaled image.
        length: u32,
    },
}

/// What is changed at random in training images, in order, besides the zoom and the crop: one of fastai 0.7's lists, or
/// one of the caller's. Its text form is a preset's name or a list such as `rotate:10,lighting,flip`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum Augment {
    /// Nothing.
    #[default]
    None,
    /// Rotation up to ±10° and lighting: brightness ±0.05, contrast ±5 %.
    Basic,
    /// As `Basic`, and every other image mirrored: for photographs taken from the side.
    SideOn,
    /// As `Basic`, and turned and mirrored in all eight ways: for pictures from above, or through a microscope.
    TopDown,
    /// These changes.
    Custom(Vec<Change>),
}

const ROTATE: Change = Change::Rotate { degrees: 10.0 };
const LIGHTING: Change = Change::Lighting { balance: 0.05, contrast: 0.05 };
const BLUR: Change = Change::Blur { strength: 5 };

/// The forms of a change in text.
const FORMS: &str = "rotate:DEGREES, lighting:BRIGHTNESS:CONTRAST, flip, dihedral, rotate-zoom:DEGREES:ZOOM:STRETCH, \
                     blur:STRENGTH, cutout:COUNT:LENGTH";

impl Augment {
    /// The changes, in order.
    pub fn changes(&self) -> &[Change] {
        match self {
            Augment::None => &[],
            Augment::Basic => &[ROTATE, LIGHTING],
            Augment::SideOn => &[ROTATE, LIGHTING, Change::Flip],
            Augment::TopDown => &[ROTATE, LIGHTING, Change::Dihedral],
            Augment::Custom(changes) => changes,
        }
    }

    /// Draws each change and makes it. Lighting that no later change depends on is left to the device.
    pub(super) fn apply(&self, canvas: &mut Canvas, random: &Random) -> Result<Lighting> {
        let mut deferred = Lighting::NONE;
        for (at, change) in self.changes().iter().enumerate() {
            // Numbered among its kind, so that the others draw the same with and without it.
            let number = self.changes()[..at].iter().filter(|other| other.name() == change.name()).count();
            let random = &mut random.part(change.name(), number as u64);
            match *change {
                Change::Lighting { balance, contrast } => {
                    let (brighter, stronger) = (random.uniform(-1.0, 1.0), random.uniform(-1.0, 1.0));
                    let light_by = |mean| Lighting::new(brighter * balance, stronger * contrast, mean);
                    // What is black by cutout stays black; a second lighting goes by the first one's mean.
                    let seen = |later: &Change| matches!(later, Change::Lighting { .. } | Change::Cutout { .. });
                    if self.changes()[at + 1..].iter().any(seen) {
                        let pixels = canvas.pixels()?;
                        light(pixels, light_by(mean_level(pixels)));
                    } else {
                        deferred = light_by(mean_level(canvas.source()));
                    }
                }
                _ => change.apply(canvas, random)?,
            }
        }
        Ok(deferred)
    }
}

impl Change {
    /// The name in text.
    fn name(&self) -> &'static str {
        match self {
            Change::Rotate { .. } => "rotate",
            Change::Lighting { .. } => "lighting",
            Change::Flip => "flip",
            Change::Dihedral => "dihedral",
            Change::RotateZoom { .. } => "rotate-zoom",
            Change::Blur { .. } => "blur",
            Change::Cutout { .. } => "cutout",
        }
    }

    /// The numbers in text, each with the most that it may be.
    fn numbers(&self) -> Vec<(f32, f32)> {
        match *self {
            Change::Rotate { degrees } => vec![(degrees, 180.0)],
            Change::Lighting { balance, contrast } => vec![(balance, 1.0), (contrast, 1.0)],
            Change::Flip | Change::Dihedral => vec![],
            Change::RotateZoom { degrees, zoom, stretch } => vec![(degrees, 180.0), (zoom, 10.0), (stretch, 10.0)],
            Change::Blur { strength } => vec![(strength as f32, 100.0)],
            Change::Cutout { count, length } => vec![(count as f32, 1000.0), (length as f32, 8192.0)],
        }
    }

    /// Whether every number lies in its range; if not, why.
    pub(super) fn check(&self) -> Result<(), String> {
        if matches!(self, Change::Blur { strength: 0 }) {
            return Err(format!("'{self}': a blur's strength is 1, none, or more"));
        }
        match self.numbers().into_iter().find(|(number, most)| !(0.0..=*most).contains(number)) {
            Some((number, most)) => Err(format!("'{self}': {number} is not between 0 and {most}")),
            None => Ok(()),
        }
    }

    /// All but lighting.
    fn apply(&self, canvas: &mut Canvas, random: &mut Random) -> Result<()> {
        match *self {
            Change::Rotate { degrees } => {
                let (rotated, turn) = (random.chance(ROTATE_CHANCE), random.uniform(-1.0, 1.0));
                if rotated && degrees > 0.0 {
                    canvas.rotate(turn * degrees)?;
                }
            }
            Change::Flip => {
                if random.chance(CHANCE) {
                    canvas.flip();
                }
            }
            Change::Dihedral => {
                let turns = random.uniform(0.0, 4.0) as u32;
                (0..turns).for_each(|_| canvas.quarter_turn());
                if random.chance(CHANCE) {
                    canvas.flip();
                }
            }
            Change::RotateZoom { degrees, zoom, stretch } => {
                let (choice, amount, across) = (random.uniform(0.0, 4.0), random.uniform(0.0, 1.0), random.chance(0.5));
                let larger = |most: f32| 1.0 + f64::from(amount * most);
                match choice as u32 {
                    0 => canvas.rotate((2.0 * amount - 1.0) * degrees)?,
                    1 => canvas.zoom(larger(zoom)),
                    2 if across => canvas.stretch(larger(stretch), 1.0),
                    2 => canvas.stretch(1.0, larger(stretch)),
                    _ => {}
                }
            }
            Change::Blur { strength } => {
                if random.chance(CHANCE) && strength > 1 {
                    blur(canvas.pixels()?, strength);
                }
            }
            Change::Cutout { count, length } => {
                if random.chance(CHANCE) {
                    cutout(canvas.pixels()?, count, length, random);
                }
            }
            Change::Lighting { .. } => {}
        }
        Ok(())
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Augment::Basic => f.write_str("basic"),
            Augment::SideOn => f.write_str("side-on"),
            Augment::TopDown => f.write_str("top-down"),
            other if other.changes().is_empty() => f.write_str("none"),
            other => f.write_str(&other.changes().iter().map(Change::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

impl FromStr for Augment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "none" => Ok(Augment::None),
            "basic" => Ok(Augment::Basic),
            "side-on" => Ok(Augment::SideOn),
            "top-down" => Ok(Augment::TopDown),
            list => list.split(',').map(|change| change.trim().parse()).collect::<Result<_, _>>().map(Augment::Custom),
        }
    }
}

impl From<Augment> for String {
    fn from(augment: Augment) -> Self {
        augment.to_string()
    }
}

impl TryFrom<String> for Augment {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.numbers().iter().try_for_each(|(number, _)| write!(f, ":{number}"))
    }
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let numbers: Vec<f32> = parts
            .map(|part| part.trim().parse().map_err(|_| format!("'{text}': '{part}' is no number")))
            .collect::<Result<_, _>>()?;
        let whole = |number: f32| match number {
            number if number >= 0.0 && number.fract() == 0.0 => Ok(number as u32),
            number => Err(format!("'{text}': {number} is no whole number")),
        };
        let change = match (name, numbers.as_slice()) {
            ("rotate", []) => ROTATE,
            ("rotate", &[degrees]) => Change::Rotate { degrees },
            ("lighting", []) => LIGHTING,
            ("lighting", &[balance, contrast]) => Change::Lighting { balance, contrast },
            ("flip", []) => Change::Flip,
            ("dihedral", []) => Change::Dihedral,
            ("rotate-zoom", &[degrees, zoom, stretch]) => Change::RotateZoom { degrees, zoom, stretch },
            ("blur", []) => BLUR,
            ("blur", &[strength]) => Change::Blur { strength: whole(strength)? },
            ("cutout", &[count, length]) => Change::Cutout { count: whole(count)?, length: whole(length)? },
            _ => {
                let presets = "or, alone, none, basic, side-on, top-down";
                return Err(format!("'{text}' is no change of images; there are {FORMS}; {presets}"));
            }
        };
        change.check().map(|()| change)
    }
}

#[cfg(test)]
mod tests;
