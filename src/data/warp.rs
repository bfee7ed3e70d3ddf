//! Rotation, flip and crop as one inverse mapping: each pixel of the crop looks up where it comes from, and only
//! the part of the scaled image that they reach is ever computed.

use image::{RgbImage, imageops};

use super::resize::{Window, resize_window};
use crate::Result;

/// Where a square crop lies on an image that is scaled, padded by reflection, rotated on this canvas, then flipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Placement {
    /// Width and height of the scaled image.
    pub scaled: (u32, u32),
    /// Pixels added on each side; they and the scaled image make the canvas.
    pub pad: u32,
    /// Degrees counter-clockwise about pixel (width / 2, height / 2); 0 copies pixels.
    pub angle: f32,
    /// Mirrors left and right.
    pub flip: bool,
    /// Left edge of the crop.
    pub x: u32,
    /// Top edge of the crop.
    pub y: u32,
    /// Side of the crop; it must lie within the canvas.
    pub size: u32,
}

impl Placement {
    /// The crop's pixels, `[size, size, 3]`.
    pub fn render(&self, image: &RgbImage) -> Result<Vec<u8>> {
        if self.angle != 0.0 || self.pad > 0 {
            return self.render_mapped(image);
        }
        // Flipping a crop from the right equals cropping the flipped image from the left.
        let x = if self.flip { self.scaled.0 - self.x - self.size } else { self.x };
        let window = Window { x, y: self.y, width: self.size, height: self.size };
        let mut crop = resize_window(image, self.scaled, window)?;
        if self.flip {
            imageops::flip_horizontal_in_place(&mut crop);
        }
        Ok(crop.into_raw())
    }

    /// Width and height of the padded image.
    fn canvas(&self) -> (u32, u32) {
        (self.scaled.0 + 2 * self.pad, self.scaled.1 + 2 * self.pad)
    }

    fn render_mapped(&self, image: &RgbImage) -> Result<Vec<u8>> {
        let canvas = self.canvas();
        let rotation = Rotation::new(self.angle, canvas);
        // Canvas coordinates of the crop's pixel (i, j).
        let column = |i: u32| {
            let x = i64::from(self.x + i);
            if self.flip { i64::from(canvas.0) - 1 - x } else { x }
        };
        let row = |j: u32| i64::from(self.y + j);

        // A rectangle's image under an affine map is bounded by the images of its corners.
        let last = self.size - 1;
        let corners = [(0, 0), (last, 0), (0, last), (last, last)].map(|(i, j)| rotation.source(column(i), row(j)));
        let (x, width) = reached(corners.map(|c| c.0), self.scaled.0, self.pad);
        let (y, height) = reached(corners.map(|c| c.1), self.scaled.1, self.pad);
        let source = resize_window(image, self.scaled, Window { x, y, width, height })?;
        let source = Reflected { pixels: &source, origin: (x, y), scaled: self.scaled, pad: self.pad };

        let mut pixels = Vec::with_capacity(3 * self.size as usize * self.size as usize);
        let across = if self.flip { -1.0 } else { 1.0 };
        let (dx, dy) = (fixed(across * rotation.cos), fixed(across * rotation.sin));
        for j in 0..self.size {
            let (x, y) = rotation.source(column(0), row(j));
            let (x, y) = (fixed(x), fixed(y));
            for i in 0..i64::from(self.size) {
                pixels.extend_from_slice(&source.sample(x + i * dx, y + i * dy));
            }
        }
        Ok(pixels)
    }
}

/// A coordinate with 32 bits after the point: floor and remainder are a shift and a mask, where floating point
/// would call a function for each pixel.
fn fixed(x: f64) -> i64 {
    (x * (1u64 << 32) as f64).round() as i64
}

/// The inverse of OpenCV's `getRotationMatrix2D`.
struct Rotation {
    cos: f64,
    sin: f64,
    centre: (f64, f64),
}

impl Rotation {
    fn new(degrees: f32, (width, height): (u32, u32)) -> Self {
        let (sin, cos) = f64::from(degrees).to_radians().sin_cos();
        Self { cos, sin, centre: (f64::from(width / 2), f64::from(height / 2)) }
    }

    /// Where the pixel (x, y) of the rotated canvas comes from.
    fn source(&self, x: i64, y: i64) -> (f64, f64) {
        let (dx, dy) = (x as f64 - self.centre.0, y as f64 - self.centre.1);
        (self.cos * dx - self.sin * dy + self.centre.0, self.sin * dx + self.cos * dy + self.centre.1)
    }
}

/// Position of index `i` on a side of `len` pixels continued as in OpenCV's `BORDER_REFLECT`: `cba|abc|cba`.
fn reflect(i: i64, len: u32) -> u32 {
    let len = i64::from(len);
    if (0..len).contains(&i) {
        return i as u32;
    }
    let i = i.rem_euclid(2 * len);
    i.min(2 * len - 1 - i) as u32
}

/// Position of index `i` of a canvas on the image of `len` pixels in it: the canvas is continued by reflection, and so
/// is the image on the `pad` pixels beside it.
fn on_image(i: i64, len: u32, pad: u32) -> u32 {
    reflect(i64::from(reflect(i, len + 2 * pad)) - i64::from(pad), len)
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

/// A part of a scaled image, continued by reflection at the borders of the whole.
struct Reflected<'a> {
    pixels: &'a RgbImage,
    origin: (u32, u32),
    scaled: (u32, u32),
    pad: u32,
}

impl Reflected<'_> {
    /// The bilinear value at the [`fixed`] (x, y), where whole numbers are the centres of pixels of the whole.
    fn sample(&self, x: i64, y: i64) -> [u8; 3] {
        let column = |i: i64| 3 * (on_image(i, self.scaled.0, self.pad) - self.origin.0) as usize;
        let row =
            |j: i64| 3 * (on_image(j, self.scaled.1, self.pad) - self.origin.1) as usize * self.pixels.width() as usize;
        let (left, right) = (column(x >> 32), column((x >> 32) + 1));
        let (top, bottom) = (row(y >> 32), row((y >> 32) + 1));

        let raw = self.pixels.as_raw();
        let pixel = |row: usize, column: usize| &raw[row + column..row + column + 3];
        let (a, b, c, d) = (pixel(top, left), pixel(top, right), pixel(bottom, left), pixel(bottom, right));
        // Weights of 12 bits: 8 + 12 + 12 fill 32 bits, and are off by less than a tenth of a grey level.
        let weight = |x: i64| ((x >> 20) & 0xFFF) as u32;
        let mix = |a: u32, b: u32, t: u32| a * (4096 - t) + b * t;
        std::array::from_fn(|k| {
            let upper = mix(a[k].into(), b[k].into(), weight(x));
            let lower = mix(c[k].into(), d[k].into(), weight(x));
            ((mix(upper, lower, weight(y)) + (1 << 23)) >> 24) as u8
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::noise;
    use proptest::prelude::*;

    fn mirrored(mut i: i64, len: i64) -> i64 {
        while !(0..len).contains(&i) {
            i = if i < 0 { -i - 1 } else { 2 * len - 1 - i };
        }
        i
    }

    /// Rotates the whole canvas by the forward matrix's inverse in f64, then flips, then crops.
    fn naive(image: &RgbImage, p: &Placement, i: u32, j: u32, k: usize) -> f64 {
        let pad = i64::from(p.pad);
        let (iw, ih) = (i64::from(image.width()), i64::from(image.height()));
        let (width, height) = (iw + 2 * pad, ih + 2 * pad);
        let x = i64::from(p.x + i);
        let (x, y) = (if p.flip { width - 1 - x } else { x } as f64, f64::from(p.y + j));
        let (cx, cy, turn) = ((width / 2) as f64, (height / 2) as f64, -f64::from(p.angle).to_radians());
        let sx = (x - cx) * turn.cos() + (y - cy) * turn.sin() + cx;
        let sy = -(x - cx) * turn.sin() + (y - cy) * turn.cos() + cy;
        let mut sum = 0.0;
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let (tx, ty) = (sx.floor() as i64 + dx, sy.floor() as i64 + dy);
            let weight = (1.0 - (sx - tx as f64).abs()) * (1.0 - (sy - ty as f64).abs());
            let (px, py) = (mirrored(tx, width) - pad, mirrored(ty, height) - pad);
            sum += weight * f64::from(image.get_pixel(mirrored(px, iw) as u32, mirrored(py, ih) as u32)[k]);
        }
        sum
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_rotate_flip_crop(width in 9u32..70, height in 9u32..70, size in 1u32..9, fx in 0.0..1.0,
                                   fy in 0.0..1.0, angle in -180.0f32..180.0, straight: bool, flip: bool,
                                   pad in 0u32..13) {
            let image = noise(width, height, 5);
            let at = |f: f64, side: u32| (f * f64::from(side + 2 * pad - size)) as u32;
            let (x, y) = (at(fx, width), at(fy, height));
            let angle = if straight { 0.0 } else { angle };
            let placement = Placement { scaled: (width, height), pad, angle, flip, x, y, size };
            let pixels = placement.render(&image).unwrap();
            for (at, &value) in pixels.iter().enumerate() {
                let (pixel, k) = (at as u32 / 3, at % 3);
                let expected = naive(&image, &placement, pixel % size, pixel / size, k);
                prop_assert!((expected - f64::from(value)).abs() < 0.6, "{expected} {value}");
            }
        }

        #[test]
        fn reached_holds_every_lookup(low in -60.0f64..60.0, span in 0.0f64..60.0, len in 1u32..30,
                                      pad in 0u32..20) {
            let (start, length) = reached([low, low + span, low, low], len, pad);
            for i in low.floor() as i64..=(low + span).floor() as i64 + 1 {
                let at = on_image(i, len, pad);
                let (side, pad) = (i64::from(len), i64::from(pad));
                prop_assert_eq!(i64::from(at), mirrored(mirrored(i, side + 2 * pad) - pad, side));
                prop_assert!((start..start + length).contains(&at));
            }
        }
    }

    #[test]
    fn quarter_turn_counter_clockwise_moves_the_right_edge_to_the_top() {
        // Odd sides, so that the centre is a pixel.
        let image = noise(9, 9, 5);
        let turned = Placement { scaled: (9, 9), pad: 0, angle: 90.0, flip: false, x: 0, y: 0, size: 9 };
        let turned = RgbImage::from_raw(9, 9, turned.render(&image).unwrap()).unwrap();
        assert_eq!(turned, imageops::rotate270(&image));
    }

    #[test]
    fn without_rotation_pixels_are_copied() {
        let image = noise(20, 14, 5);
        let mut placement = Placement { scaled: (20, 14), pad: 0, angle: 0.0, flip: false, x: 3, y: 2, size: 11 };
        let plain = imageops::crop_imm(&image, 3, 2, 11, 11).to_image();
        assert_eq!(placement.render(&image).unwrap(), plain.into_raw());
        placement.flip = true;
        let flipped = imageops::flip_horizontal(&image);
        let flipped = imageops::crop_imm(&flipped, 3, 2, 11, 11).to_image();
        assert_eq!(placement.render(&image).unwrap(), flipped.into_raw());
    }
}
