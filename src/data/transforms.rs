//! From a decoded image to the square that a network sees: scaling, augmentation, crop.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::augment::{Augment, Change};
use super::resize::short_side_dimensions;
use super::warp::Placement;
use crate::checkpoint::Weights;
use crate::random::Random;
use crate::{Error, Result};

/// How often an image is rotated, and how often zoomed where `max_zoom` allows.
const ROTATE_CHANCE: f32 = 0.75;
const ZOOM_CHANCE: f32 = 0.75;
/// How often [`Change::Flip`] mirrors.
const FLIP_CHANCE: f32 = 0.5;

/// The pipeline from a decoded image to the network's input, as a plain value.
///
/// Two values that differ produce different pixels, and one that is equal produces the same: its JSON serves as
/// part of a cache key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Transforms {
    /// Side of the square crop, in pixels.
    pub size: usize,
    /// Short side before the crop, in pixels. Default: `size`, as fastai; 256 for 224 is torchvision's.
    pub resize: usize,
    /// Augmentation of training images. Default: none.
    pub augment: Augment,
    /// Three training images in four are scaled by up to this factor more before the crop. Default: 1, none.
    pub max_zoom: f32,
    /// Pixels by which training images are continued on each side, by reflection, before the crop. Default: 0.
    #[serde(default)]
    pub pad: usize,
    /// Mean of each channel (red, green, blue) in units of 1, subtracted by the device. Default: ImageNet's.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, divided by on the device. Default: ImageNet's.
    pub std: [f32; 3],
}

impl Transforms {
    /// Short side scaled to `size`, centre crop, ImageNet's normalisation, no augmentation.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            resize: size,
            augment: Augment::None,
            max_zoom: 1.0,
            pad: 0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }

    /// As [`Transforms::new`], with the normalisation that `weights` were trained with.
    pub fn for_weights(weights: &Weights, size: usize) -> Self {
        let (mean, std) = weights.normalisation();
        Self::new(size).normalise(mean, std)
    }

    /// Sets the short side before the crop, in pixels.
    pub fn resize(self, resize: usize) -> Self {
        Self { resize, ..self }
    }

    /// Sets the augmentation of training images.
    pub fn augment(self, augment: Augment) -> Self {
        Self { augment, ..self }
    }

    /// Sets the largest zoom of training images; 1.1 suits photographs.
    pub fn max_zoom(self, max_zoom: f32) -> Self {
        Self { max_zoom, ..self }
    }

    /// Sets the padding of training images, in pixels; 4 is usual for CIFAR's 32.
    pub fn pad(self, pad: usize) -> Self {
        Self { pad, ..self }
    }

    /// Sets the normalisation, in units of 1.
    pub fn normalise(self, mean: [f32; 3], std: [f32; 3]) -> Self {
        Self { mean, std, ..self }
    }

    /// The part that decides [`View::Clean`]: the same without augmentation, zoom and padding.
    pub fn evaluation(&self) -> Self {
        Self { augment: Augment::None, max_zoom: 1.0, pad: 0, ..self.clone() }
    }

    /// Checks that the values make sense together.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the value: `size` in 1..=8192, `resize` in `size`..=16384, `max_zoom` in 1..=10,
    /// `pad` to 4096, `mean` finite, `std` positive.
    pub fn validate(&self) -> Result<()> {
        let Self { size, resize, max_zoom, pad, mean, std, .. } = self;
        if !(1..=8192).contains(size) {
            return Err(Error::setting("size", format!("{size} is not between 1 and 8192 pixels")));
        }
        if !(*size..=16384).contains(resize) {
            return Err(Error::setting(
                "resize",
                format!("{resize} is not between the size, {size}, and 16384 pixels"),
            ));
        }
        if !(1.0..=10.0).contains(max_zoom) {
            return Err(Error::setting("max_zoom", format!("{max_zoom} is not between 1 (none) and 10")));
        }
        if *pad > 4096 {
            return Err(Error::setting("pad", format!("{pad} is more than 4096 pixels")));
        }
        if !mean.iter().all(|v| v.is_finite()) {
            return Err(Error::setting("mean", format!("{mean:?} is not finite")));
        }
        if !std.iter().all(|v| v.is_finite() && *v > 0.0) {
            return Err(Error::setting("std", format!("{std:?} is not positive")));
        }
        Ok(())
    }

    /// Produces one view of `image`.
    ///
    /// A random view draws, in the order of fastai 0.7: zoom, rotation about the centre of the padded image (the border reflected),
    /// lighting, flip, position of the crop. What it draws depends on `view` alone, and each draw has its fixed
    /// place in the stream, so switching one augmentation off leaves the others as they were.
    ///
    /// # Errors
    /// [`Error::Setting`] if [`validate`](Self::validate) fails, the image has no pixels, or is so elongated that
    /// its scaled side cannot be counted.
    pub fn apply(&self, image: &RgbImage, view: View) -> Result<Sample> {
        self.validate()?;
        match view {
            View::Clean => self.clean(image),
            View::Random(random) => self.random(image, random),
        }
    }

    fn clean(&self, image: &RgbImage) -> Result<Sample> {
        let size = self.size as u32;
        let scaled = short_side_dimensions(image.dimensions(), self.resize as u32)?;
        // Python's round, by which torchvision centres, takes halves to the even side.
        let centred = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as u32;
        // Padding both sides alike would not move the centre.
        let (x, y) = (centred(scaled.0), centred(scaled.1));
        let placement = Placement { scaled, pad: 0, angle: 0.0, flip: false, x, y, size };
        Ok(Sample { pixels: placement.render(image)?, lighting: Lighting::NONE })
    }

    fn random(&self, image: &RgbImage, mut random: Random) -> Result<Sample> {
        // Every draw is made, wanted or not: see `apply`.
        let (zoomed, zoom) = (random.chance(ZOOM_CHANCE), random.uniform(1.0, self.max_zoom));
        let (rotated, turn) = (random.chance(ROTATE_CHANCE), random.uniform(-1.0, 1.0));
        let (brighter, stronger) = (random.uniform(-1.0, 1.0), random.uniform(-1.0, 1.0));
        let flipped = random.chance(FLIP_CHANCE);
        let (down, across) = (random.uniform(0.0, 1.0), random.uniform(0.0, 1.0));

        let (size, pad) = (self.size as u32, self.pad as u32);
        let short = if zoomed { (zoom * self.resize as f32) as u32 } else { self.resize as u32 };
        let scaled = short_side_dimensions(image.dimensions(), short)?;
        let start = |unit: f32, side: u32| (f64::from(unit) * f64::from(side + 2 * pad - size)) as u32;
        let (x, y) = (start(across, scaled.0), start(down, scaled.1));
        let mut placement = Placement { scaled, pad, angle: 0.0, flip: false, x, y, size };
        let mut lighting = Lighting::NONE;
        for change in self.augment.changes() {
            match change {
                Change::Rotate { degrees } if rotated => placement.angle = turn * degrees,
                Change::Flip if flipped => placement.flip = true,
                Change::Lighting { balance, contrast } => {
                    lighting = Lighting::new(brighter * balance, stronger * contrast, mean_level(image));
                }
                Change::Rotate { .. } | Change::Flip => {}
            }
        }
        Ok(Sample { pixels: placement.render(image)?, lighting })
    }
}

/// Which view of an image is wanted.
#[derive(Clone, Debug)]
pub enum View {
    /// As in evaluation: centre crop, nothing random.
    Clean,
    /// As in training, drawn from this stream.
    Random(Random),
}

/// One view of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Red, green, blue bytes, `[size, size, 3]`.
    pub pixels: Vec<u8>,
    /// What the device does to them before normalising.
    pub lighting: Lighting,
}

/// A change of brightness and contrast: x → clip(`gain` · x + `offset`, 0, 1) for x in units of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lighting {
    /// Factor.
    pub gain: f32,
    /// Summand.
    pub offset: f32,
}

impl Lighting {
    /// Changes nothing.
    pub const NONE: Self = Self { gain: 1.0, offset: 0.0 };

    /// Brightness raised by `balance` and contrast by the share `contrast` about the `mean` level, as fastai 0.7:
    /// (x − mean) · c + mean + balance with c = 1 + contrast, or 1 / (1 + |contrast|) where that is negative.
    fn new(balance: f32, contrast: f32, mean: f32) -> Self {
        let gain = if contrast >= 0.0 { 1.0 + contrast } else { 1.0 / (1.0 - contrast) };
        Self { gain, offset: mean - gain * mean + balance }
    }
}

/// Mean over pixels and channels, in units of 1. Taken before scaling, which keeps it.
fn mean_level(image: &RgbImage) -> f32 {
    let bytes = image.as_raw();
    let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
    (sum as f64 / bytes.len().max(1) as f64 / 255.0) as f32
}

#[cfg(test)]
mod tests;
