//! Antialiased bilinear scaling, equal to Pillow's `BILINEAR` within one grey level, and mostly exactly: the same
//! passes in the same order.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer, pixels::U8x3};
use image::RgbImage;

use crate::{Error, Result};

/// Largest result of a scaling, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// `image` scaled to `width` × `height` pixels, whatever its aspect.
///
/// # Errors
/// [`Error::Setting`] if a side of the image or of the result is zero, or the result larger than 1 GiB.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize_window(image, (width, height), Window { x: 0, y: 0, width, height })
}

/// `image` scaled so that its shorter side is `n` pixels and the longer one ⌊n · long / short⌋, as torchvision does;
/// unchanged where that is its size.
///
/// # Errors
/// As [`resize`].
pub fn short_side(image: &RgbImage, n: u32) -> Result<RgbImage> {
    let (width, height) = short_side_dimensions(image.dimensions(), n)?;
    resize(image, width, height)
}

/// Width and height after [`short_side`].
pub(super) fn short_side_dimensions((width, height): (u32, u32), n: u32) -> Result<(u32, u32)> {
    let short = u64::from(width.min(height));
    let scaled = |side: u32| {
        let side = (u64::from(n) * u64::from(side)).checked_div(short);
        side.and_then(|side| u32::try_from(side).ok()).filter(|&side| side > 0).ok_or_else(|| {
            Error::setting("resize", format!("an image of {width}×{height} cannot be scaled to a short side of {n}"))
        })
    };
    Ok((scaled(width)?, scaled(height)?))
}

/// The pixels in `window` of `image` scaled to `scaled` = (width, height), without computing the others.
pub(super) fn resize_window(image: &RgbImage, scaled: (u32, u32), window: Window) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let fail = |cause: &str| {
        Error::setting("resize", format!("{width}×{height} cannot be scaled to {}×{}: {cause}", scaled.0, scaled.1))
    };
    if [width, height, scaled.0, scaled.1, window.width, window.height].contains(&0) {
        return Err(fail("a side is zero"));
    }
    if 3 * u64::from(window.width) * u64::from(window.height) > MAX_BYTES {
        return Err(fail("the result is too large"));
    }
    // The window in source pixels. The filter still sees the source around it, so this is the window cut out of the
    // whole, but for rounding: both are within a level of the exact value, so they may lie two apart.
    let (left, box_width) = source_span(window.x, window.width, scaled.0, width);
    let (top, box_height) = source_span(window.y, window.height, scaled.1, height);

    // Pillow scales rows first and rounds between the passes; the library would begin with columns. The first pass
    // takes the rows that the second one's filter reaches.
    let reach = (f64::from(height) / f64::from(scaled.1)).max(1.0);
    let first = (top - reach).floor().max(0.0);
    let last = (top + box_height + reach).ceil().min(f64::from(height));
    let rows = (last - first) as u32;

    // With the type of the pixels known here, the library compiles its filters for this one alone.
    let pass = |pixels: &[u8], (width, height), target: (u32, u32), (left, top, box_width, box_height)| {
        let source = TypedImageRef::<U8x3>::from_buffer(width, height, pixels).map_err(|e| fail(&e.to_string()))?;
        let mut scaled = vec![0; 3 * target.0 as usize * target.1 as usize];
        let mut view =
            TypedImage::<U8x3>::from_buffer(target.0, target.1, &mut scaled).map_err(|e| fail(&e.to_string()))?;
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(left, top, box_width, box_height);
        Resizer::new().resize_typed(&source, &mut view, &options).map_err(|e| fail(&e.to_string()))?;
        Ok(scaled)
    };
    let (across, down) = ((window.width, rows), (window.width, window.height));
    let wide = pass(image.as_raw(), (width, height), across, (left, first, box_width, f64::from(rows)))?;
    let pixels = pass(&wide, across, down, (0.0, top - first, f64::from(window.width), box_height))?;
    RgbImage::from_raw(window.width, window.height, pixels).ok_or_else(|| fail("the result is too small"))
}

/// Start and length, in pixels of a source side of `source`, of `length` pixels at `start` of a side scaled to
/// `scaled`.
fn source_span(start: u32, length: u32, scaled: u32, source: u32) -> (f64, f64) {
    let to_source = |x: u32| (f64::from(x) * f64::from(source) / f64::from(scaled)).min(f64::from(source));
    let left = to_source(start);
    let mut span = to_source(start.saturating_add(length)) - left;
    // Rounding must not push the end out of the source.
    while left + span > f64::from(source) {
        span = span.next_down();
    }
    (left, span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::noise;
    use proptest::prelude::*;

    /// Triangle filter as wide as the scale, in f64: for each target pixel the sources and their weights.
    fn weights(source: u32, target: u32) -> Vec<Vec<(u32, f64)>> {
        let scale = f64::from(source) / f64::from(target);
        let support = scale.max(1.0);
        let row = |x: u32| {
            let centre = (f64::from(x) + 0.5) * scale;
            let weight = |s: u32| 1.0 - ((f64::from(s) + 0.5 - centre) / support).abs();
            let taps: Vec<(u32, f64)> = (0..source).map(|s| (s, weight(s))).filter(|t| t.1 > 0.0).collect();
            let sum: f64 = taps.iter().map(|t| t.1).sum();
            taps.into_iter().map(|(s, w)| (s, w / sum)).collect()
        };
        (0..target).map(row).collect()
    }

    /// Checks `part`, which begins at `origin` of `image` scaled to `scaled`, against the filter in f64.
    fn assert_filtered(image: &RgbImage, scaled: (u32, u32), part: &RgbImage, origin: (u32, u32)) {
        let (across, down) = (weights(image.width(), scaled.0), weights(image.height(), scaled.1));
        for (x, y, pixel) in part.enumerate_pixels() {
            for channel in 0..3 {
                let mut expected = 0.0;
                for &(sy, wy) in &down[(origin.1 + y) as usize] {
                    for &(sx, wx) in &across[(origin.0 + x) as usize] {
                        expected += wy * wx * f64::from(image.get_pixel(sx, sy)[channel]);
                    }
                }
                // Half a level for each of the two passes' rounding, and their fixed-point weights.
                assert!((expected - f64::from(pixel[channel])).abs() <= 1.1, "{expected} {pixel:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn equals_the_filter_in_f64(w in 1u32..60, h in 1u32..60, tw in 1u32..60, th in 1u32..60, seed in 0u64..9) {
            let image = noise(w, h, seed);
            assert_filtered(&image, (tw, th), &resize(&image, tw, th).unwrap(), (0, 0));
        }

        #[test]
        fn constant_stays_constant(w in 1u32..300, h in 1u32..300, n in 1u32..100, level: u8) {
            let image = RgbImage::from_pixel(w, h, image::Rgb([level, 255 - level, 0]));
            let scaled = short_side(&image, n).unwrap();
            prop_assert_eq!(scaled.width().min(scaled.height()), n);
            prop_assert!(scaled.pixels().all(|p| p.0 == [level, 255 - level, 0]));
        }

        #[test]
        fn a_window_equals_the_filter_too(w in 1u32..90, h in 1u32..90, tw in 8u32..90, th in 8u32..90,
                                          fx in 0.0..1.0, fy in 0.0..1.0, seed in 0u64..9) {
            let image = noise(w, h, seed);
            let (x, y) = ((fx * f64::from(tw - 7)) as u32, (fy * f64::from(th - 7)) as u32);
            let window = resize_window(&image, (tw, th), Window { x, y, width: 7, height: 7 }).unwrap();
            assert_filtered(&image, (tw, th), &window, (x, y));
        }
    }

    #[test]
    fn long_side_is_truncated_and_equal_size_kept() {
        assert_eq!(short_side_dimensions((500, 375), 224).unwrap(), (298, 224)); // 298.67
        assert_eq!(short_side_dimensions((375, 500), 224).unwrap(), (224, 298));
        let image = noise(31, 40, 1);
        assert_eq!(short_side(&image, 31).unwrap(), image);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let image = noise(3, 3, 1);
        assert!(resize(&image, 0, 5).is_err());
        assert!(resize(&image, 1 << 20, 1 << 20).is_err());
        assert!(short_side(&RgbImage::new(0, 4), 5).is_err());
        assert!(short_side_dimensions((1, u32::MAX), 224).is_err());
    }
}
