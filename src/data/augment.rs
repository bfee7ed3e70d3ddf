//! What is changed at random in training images.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One random change of a training image.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// Three images in four are rotated by up to so many degrees either way.
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
}

/// What is changed at random in training images, besides the zoom and the position of the crop: one of fastai 0.7's
/// lists, or one of the caller's. Its text form is a preset's name or a list such as `rotate:10,lighting,flip`.
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
    /// These changes.
    Custom(Vec<Change>),
}

const ROTATE: Change = Change::Rotate { degrees: 10.0 };
const LIGHTING: Change = Change::Lighting { balance: 0.05, contrast: 0.05 };

impl Augment {
    /// The changes, in order.
    pub fn changes(&self) -> &[Change] {
        match self {
            Augment::None => &[],
            Augment::Basic => &[ROTATE, LIGHTING],
            Augment::SideOn => &[ROTATE, LIGHTING, Change::Flip],
            Augment::Custom(changes) => changes,
        }
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Augment::None => f.write_str("none"),
            Augment::Basic => f.write_str("basic"),
            Augment::SideOn => f.write_str("side-on"),
            Augment::Custom(changes) => {
                f.write_str(&changes.iter().map(Change::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl FromStr for Augment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Augment::None),
            "basic" => Ok(Augment::Basic),
            "side-on" => Ok(Augment::SideOn),
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
        match self {
            Change::Rotate { degrees } => write!(f, "rotate:{degrees}"),
            Change::Lighting { balance, contrast } => write!(f, "lighting:{balance}:{contrast}"),
            Change::Flip => f.write_str("flip"),
        }
    }
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let numbers: Vec<f32> = parts
            .map(|part| part.parse::<f32>().ok().filter(|number| number.is_finite() && *number >= 0.0))
            .collect::<Option<_>>()
            .ok_or_else(|| format!("'{text}': after the colon comes a number that is not negative"))?;
        match (name, numbers.as_slice()) {
            ("rotate", []) => Ok(ROTATE),
            ("rotate", &[degrees]) => Ok(Change::Rotate { degrees }),
            ("lighting", []) => Ok(LIGHTING),
            ("lighting", &[balance, contrast]) => Ok(Change::Lighting { balance, contrast }),
            ("flip", []) => Ok(Change::Flip),
            _ => Err(format!(
                "'{text}' is no change of images; there are rotate:DEGREES, lighting:BRIGHTNESS:CONTRAST, flip"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_read_back() {
        for text in ["none", "basic", "side-on", "flip", "rotate:10,lighting:0.05:0.05,flip", "rotate:3.5"] {
            assert_eq!(text.parse::<Augment>().unwrap().to_string(), text);
        }
        assert_eq!("rotate, lighting,flip".parse::<Augment>().unwrap().changes(), Augment::SideOn.changes());
        for wrong in ["", "flop", "rotate:-1", "rotate:a", "lighting:1", "flip:2", "flip,,flip", "rotate:nan"] {
            assert!(wrong.parse::<Augment>().is_err(), "{wrong}");
        }
    }
}
