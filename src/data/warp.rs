//! Rotation, flips, zoom and crop as one inverse mapping: each pixel of the crop looks up where it comes from, and only
//! the part of the scaled image that they reach is ever computed. The lookups themselves are [`Patch`]'s.

use std::borrow::Cow;

use image::{RgbImage, imageops};

use super::resize::{Window, resize, resize_window};
use crate::ops::augment::{Patch, Placement, Steps, reflect};
use crate::{Error, Result};

/// An image that is scaled, padded by reflection and then changed, in turn: what is asked for is noted down, and
/// computed once pixels are wanted.
#[derive(Clone, Debug)]
pub(super) struct Canvas<'a> {
    image: Cow<'a, RgbImage>,
    /// Width and height to which the image is scaled.
    scaled: (u32, u32),
    /// Pixels added on each side of it.
    pad: u32,
    /// Width and height of the canvas as changed so far.
    size: (u32, u32),
    /// From there to the scaled and padded image.
    map: Affine,
    /// Whether pixels have left their grid: what lies beyond the border of this canvas can no longer be looked up
    /// beyond the border of the image.
    warped: bool,
}

impl<'a> Canvas<'a> {
    /// `image` scaled to `scaled`, with `pad` pixels more on each side.
    pub fn new(image: &'a RgbImage, scaled: (u32, u32), pad: u32) -> Self {
        let size = (scaled.0 + 2 * pad, scaled.1 + 2 * pad);
        Self { image: Cow::Borrowed(image), scaled, pad, size, map: Affine::IDENTITY, warped: false }
    }

    /// Width and height.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Mirrors left and right.
    pub fn flip(&mut self) {
        self.map = self.map.after(&Affine { xx: -1.0, x0: f64::from(self.size.0 - 1), ..Affine::IDENTITY });
    }

    /// Turns by 90° counter-clockwise; width and height change places.
    pub fn quarter_turn(&mut self) {
        let last = f64::from(self.size.0 - 1);
        self.map = self.map.after(&Affine { xx: 0.0, xy: -1.0, x0: last, yx: 1.0, yy: 0.0, y0: 0.0 });
        self.size = (self.size.1, self.size.0);
    }

    /// Rotates counter-clockwise about pixel (width / 2, height / 2) on the same canvas; what comes in from beyond the
    /// border is its reflection.
    pub fn rotate(&mut self, degrees: f32) -> Result<()> {
        if self.warped {
            self.settle()?;
        }
        // The inverse of OpenCV's `getRotationMatrix2D`.
        let (sin, cos) = f64::from(degrees).to_radians().sin_cos();
        let (x, y) = (f64::from(self.size.0 / 2), f64::from(self.size.1 / 2));
        let (x0, y0) = (x - cos * x + sin * y, y - sin * x - cos * y);
        self.map = self.map.after(&Affine { xx: cos, xy: -sin, x0, yx: sin, yy: cos, y0 });
        self.warped = true;
        Ok(())
    }

    /// Enlarges by `factor`, at least 1, about the centre on the same canvas.
    pub fn zoom(&mut self, factor: f64) {
        let shift = |side: u32| f64::from(side) / 2.0 * (1.0 - 1.0 / factor);
        let (xx, yy) = (1.0 / factor, 1.0 / factor);
        let zoom = Affine { xx, x0: shift(self.size.0), yy, y0: shift(self.size.1), ..Affine::IDENTITY };
        self.map = self.map.after(&zoom);
        self.warped = true;
    }

    /// Scales width and height by factors of at least 1, and keeps the middle on the same canvas.
    pub fn stretch(&mut self, across: f64, down: f64) {
        // Pixels cover unit squares here, as they do when an image is resized.
        let shift = |side: u32, factor: f64| {
            let cut = (((f64::from(side) * factor).round() - f64::from(side)) / 2.0).floor();
            (cut + 0.5) / factor - 0.5
        };
        let (x0, y0) = (shift(self.size.0, across), shift(self.size.1, down));
        self.map = self.map.after(&Affine { xx: 1.0 / across, x0, yy: 1.0 / down, y0, ..Affine::IDENTITY });
        self.warped = true;
    }

    /// The pixels as changed so far, to be changed themselves.
    pub fn pixels(&mut self) -> Result<&mut RgbImage> {
        self.settle()?;
        Ok(self.image.to_mut())
    }

    /// The image that lookups go to: for measures that scaling, turning and mirroring keep.
    pub fn source(&self) -> &RgbImage {
        &self.image
    }

    fn settle(&mut self) -> Result<()> {
        if self.map != Affine::IDENTITY || self.pad > 0 || self.scaled != self.image.dimensions() {
            self.image = Cow::Owned(self.crop(self.whole())?);
            (self.scaled, self.pad, self.map, self.warped) = (self.size, 0, Affine::IDENTITY, false);
        }
        Ok(())
    }

    /// The pixels in `window`, which must lie on the canvas.
    pub fn crop(&self, window: Window) -> Result<RgbImage> {
        let pixels = self.patch(window)?.finish().into_pixels();
        // A patch makes as many as its extents ask for.
        RgbImage::from_raw(window.width, window.height, pixels).ok_or_else(|| Error::setting("crop", "is incomplete"))
    }

    /// What the pixels in `window`, which must lie on the canvas, are looked up in.
    pub fn patch(&self, window: Window) -> Result<Patch> {
        let mirror = Affine { xx: -1.0, x0: f64::from(self.size.0 - 1), ..Affine::IDENTITY };
        let (width, height) = (window.width, window.height);
        if self.pad == 0 && self.map == Affine::IDENTITY {
            return Ok(Patch::whole(self.scaled_part(window)?.into_raw(), width, height));
        }
        if self.pad == 0 && self.map == mirror {
            // A flipped crop from the right equals a crop of the flipped image from the left.
            let from = Window { x: self.size.0 - window.x - width, ..window };
            return Ok(Patch::mirrored(self.scaled_part(from)?.into_raw(), width, height));
        }
        self.mapped(window)
    }

    /// The whole, squashed to a square.
    pub fn squashed(&self, size: u32) -> Result<Patch> {
        if self.pad == 0 && self.map == Affine::IDENTITY {
            // In one step, whatever it was to be scaled to: two would lose detail.
            return squash(&self.image, size);
        }
        squash(&self.crop(self.whole())?, size)
    }

    fn whole(&self) -> Window {
        Window { x: 0, y: 0, width: self.size.0, height: self.size.1 }
    }

    fn scaled_part(&self, window: Window) -> Result<RgbImage> {
        let Window { x, y, width, height } = window;
        if self.scaled == self.image.dimensions() {
            return Ok(imageops::crop_imm(&*self.image, x, y, width, height).to_image());
        }
        resize_window(&self.image, self.scaled, window)
    }

    fn mapped(&self, window: Window) -> Result<Patch> {
        let (width, height) = self.scaled;
        if width.max(height).saturating_add(2 * self.pad) > Placement::MAX_SIDE {
            let message = format!("a side of an image scaled to {width}×{height} is too long to turn or pad");
            return Err(Error::setting("resize", message));
        }
        // A rectangle's image under an affine map is bounded by the images of its corners.
        let (left, top) = (f64::from(window.x), f64::from(window.y));
        let (right, bottom) = (left + f64::from(window.width - 1), top + f64::from(window.height - 1));
        let corners = [(left, top), (right, top), (left, bottom), (right, bottom)].map(|(x, y)| self.map.at(x, y));
        let (x, across) = reached(corners.map(|c| c.0), width, self.pad);
        let (y, down) = reached(corners.map(|c| c.1), height, self.pad);
        let part = self.scaled_part(Window { x, y, width: across, height: down })?;

        let Affine { xx, xy, yx, yy, .. } = self.map;
        let steps = Steps { start: corners[0].into(), across: [xx, yx], down: [xy, yy] };
        let extents = [window.width, window.height];
        let placement = Placement::new(extents, steps, [x, y], [width, height], self.pad);
        Ok(Patch::new(part.into_raw(), across, placement))
    }
}

/// `image` resized to a square, whatever its aspect.
pub(super) fn squash(image: &RgbImage, size: u32) -> Result<Patch> {
    Ok(Patch::whole(resize(image, size, size)?.into_raw(), size, size))
}

/// (x, y) → (xx · x + xy · y + x0, yx · x + yy · y + y0), where whole numbers are the centres of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Affine {
    xx: f64,
    xy: f64,
    x0: f64,
    yx: f64,
    yy: f64,
    y0: f64,
}

impl Affine {
    const IDENTITY: Self = Self { xx: 1.0, xy: 0.0, x0: 0.0, yx: 0.0, yy: 1.0, y0: 0.0 };

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.xx * x + self.xy * y + self.x0, self.yx * x + self.yy * y + self.y0)
    }

    /// First `first`, then this.
    fn after(&self, first: &Self) -> Self {
        let (x0, y0) = self.at(first.x0, first.y0);
        Self {
            xx: self.xx * first.xx + self.xy * first.yx,
            xy: self.xx * first.xy + self.xy * first.yy,
            x0,
            yx: self.yx * first.xx + self.yy * first.yx,
            yy: self.yx * first.xy + self.yy * first.yy,
            y0,
        }
    }
}

/// Start and length of the pixels that bilinear lookups between the extremes of `at` on the canvas reach on a side of
/// the image, with a pixel to spare for the rounding of coordinates.
fn reached(at: [f64; 4], len: u32, pad: u32) -> (u32, u32) {
    let low = at.iter().copied().fold(f64::INFINITY, f64::min).floor() as i64 - 1;
    let high = at.iter().copied().fold(f64::NEG_INFINITY, f64::max).floor() as i64 + 2;
    let (low, high) = reflected_range(low, high, len + 2 * pad);
    let (low, high) = reflected_range(i64::from(low) - i64::from(pad), i64::from(high) - i64::from(pad), len);
    (low, high - low + 1)
}

/// First and last position that the indices `low..=high` have on a reflected side.
fn reflected_range(low: i64, high: i64, len: u32) -> (u32, u32) {
    let side = i64::from(len);
    if low < -side || high >= 2 * side {
        return (0, len - 1);
    }
    // Reflection is monotonous between borders, so the extremes lie at the ends or at the border crossed.
    let ends = (reflect(low, len), reflect(high, len));
    let start = if low < 0 { 0 } else { ends.0.min(ends.1) };
    let end = if high >= side { len - 1 } else { ends.0.max(ends.1) };
    (start, end)
}

#[cfg(test)]
mod tests;
