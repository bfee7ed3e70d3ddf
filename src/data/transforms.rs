//! From a decoded image to the square that a network sees: scaling, augmentation, crop.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::augment::Augment;
use super::crop::Crop;
use super::resize::short_side_dimensions;
use super::warp::Canvas;
use crate::checkpoint::Weights;
use crate::ops::augment::Patch;
use crate::random::Random;
use crate::{Error, Result};

/// How often an image is zoomed where `max_zoom` allows.
const ZOOM_CHANCE: f32 = 0.75;

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
    /// How the square is taken. Default: at random from training images, from the centre otherwise.
    #[serde(default)]
    pub crop: Crop,
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
            crop: Crop::Random,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }

    /// As [`Transforms::new`], with the normalisation that `weights` were trained with, and for those of the catalogue
    /// ([`Weights::published`]) a short side before the crop in the proportion that they were published with: 256 for
    /// 224, or 232 for 224.
    pub fn for_weights(weights: &Weights, size: usize) -> Self {
        let (mean, std) = weights.normalisation();
        let (crop, resize) = weights.published().map_or((size, size), |entry| {
            let published = &entry.transforms;
            (published.crop, published.resize)
        });
        Self::new(crop).resize(resize).at_size(size).normalise(mean, std)
    }

    /// The same for another size, the short side before the crop in proportion.
    pub fn at_size(self, size: usize) -> Self {
        let share = self.resize as f64 / self.size.max(1) as f64;
        Self { size, resize: (share * size as f64).round() as usize, ..self }
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

    /// Sets how the square is taken.
    pub fn crop(self, crop: Crop) -> Self {
        Self { crop, ..self }
    }

    /// Sets the normalisation, in units of 1.
    pub fn normalise(self, mean: [f32; 3], std: [f32; 3]) -> Self {
        Self { mean, std, ..self }
    }

    /// The part that decides [`View::Clean`]: the same without augmentation, zoom and padding, and without a crop that
    /// differs in training alone.
    pub fn evaluation(&self) -> Self {
        let crop = if self.crop == Crop::GoogleNet { Crop::Random } else { self.crop };
        Self { augment: Augment::None, max_zoom: 1.0, pad: 0, crop, ..self.clone() }
    }

    /// Whether training shows other views than the clean one: of some images at least, where only the crop is random.
    pub fn is_random(&self) -> bool {
        let Self { augment, max_zoom, pad, crop, .. } = self;
        *augment != Augment::None || *max_zoom > 1.0 || *pad > 0 || matches!(crop, Crop::Random | Crop::GoogleNet)
    }

    /// Checks that the values make sense together.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the value: `size` in 1..=8192, `resize` in `size`..=16384, `max_zoom` in 1..=10,
    /// `pad` to 4096 and 0 where nothing is cut off, every change of `augment` in its range, `mean` finite, `std`
    /// positive.
    pub fn validate(&self) -> Result<()> {
        let Self { size, resize, augment, max_zoom, pad, crop, mean, std } = self;
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
        if *pad > 0 && matches!(crop, Crop::None | Crop::GoogleNet) {
            return Err(Error::setting("pad", format!("is for images that are cropped; with crop {crop} leave it 0")));
        }
        augment.changes().iter().try_for_each(|change| change.check().map_err(|e| Error::setting("augment", e)))?;
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
    /// A random view goes the way of fastai 0.7: zoom, padding, the changes of `augment` in order, crop. What it draws
    /// depends on `view` alone, and each draw has a stream of its own, so that switching one change off leaves the
    /// others as they were.
    ///
    /// # Errors
    /// [`Error::Setting`] if [`validate`](Self::validate) fails, the image has no pixels, or is so elongated that
    /// its scaled side cannot be counted, or that the whole of it does not fit where pixels are to be blurred, cut out
    /// or squashed.
    pub fn apply(&self, image: &RgbImage, view: View) -> Result<Sample> {
        Ok(self.prepare(image, view)?.finish())
    }

    /// As [`apply`](Self::apply), up to the lookup of each pixel, which is left to the device.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn prepare(&self, image: &RgbImage, view: View) -> Result<Prepared> {
        self.validate()?;
        let size = self.size as u32;
        let scaled = |short: u32| short_side_dimensions(image.dimensions(), short);
        let (canvas, lighting, crop, mut random) = match view {
            // Padding both sides alike would not move the centre.
            View::Clean => {
                let canvas = Canvas::new(image, scaled(self.resize as u32)?, 0);
                (canvas, Lighting::NONE, self.crop.evaluation(), Random::stream(0, "none", &[]))
            }
            View::Random(random) => {
                let scaled = match self.crop {
                    // Asked for all the same: it refuses an image without pixels.
                    Crop::GoogleNet => scaled(self.resize as u32).map(|_| image.dimensions())?,
                    _ => scaled(self.short_side(random.part("zoom", 0)))?,
                };
                let mut canvas = Canvas::new(image, scaled, self.pad as u32);
                let lighting = self.augment.apply(&mut canvas, &random)?;
                (canvas, lighting, self.crop, random.part("crop", 0))
            }
        };
        Ok(Prepared { patch: crop.take(&canvas, size, &mut random)?, lighting })
    }

    /// Of a training image, in pixels.
    fn short_side(&self, mut random: Random) -> u32 {
        let (zoomed, zoom) = (random.chance(ZOOM_CHANCE), random.uniform(1.0, self.max_zoom));
        if zoomed { (zoom * self.resize as f32) as u32 } else { self.resize as u32 }
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

/// A view of an image whose pixels are still to be looked up in a part of that image.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// That part, and where the pixels lie.
    pub patch: Patch,
    /// What the device does to them before normalising.
    pub lighting: Lighting,
}

impl Prepared {
    /// Looks the pixels up.
    pub fn finish(self) -> Sample {
        Sample { pixels: self.patch.finish().into_pixels(), lighting: self.lighting }
    }
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
    pub(super) fn new(balance: f32, contrast: f32, mean: f32) -> Self {
        let gain = if contrast >= 0.0 { 1.0 + contrast } else { 1.0 / (1.0 - contrast) };
        Self { gain, offset: mean - gain * mean + balance }
    }
}

#[cfg(test)]
mod tests;
