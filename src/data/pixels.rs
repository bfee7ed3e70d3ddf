//! Changes to the pixels of a whole image: blur, cut-out squares, lighting.

use image::RgbImage;

use super::transforms::Lighting;
use crate::random::Random;

/// Blurs by a Gaussian of `2 · strength − 1` pixels across, with the width that OpenCV gives such a kernel; the
/// border is mirrored about its outermost pixels (`BORDER_REFLECT_101`).
pub(super) fn blur(image: &mut RgbImage, strength: u32) {
    let kernel = gaussian(strength);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut rows = vec![0.0; 3 * width * height];
    for (source, target) in image.chunks_exact(3 * width).zip(rows.chunks_exact_mut(3 * width)) {
        for x in 0..width {
            for (tap, weight) in kernel.iter().enumerate() {
                let at = 3 * tapped(x, tap, kernel.len(), width);
                for k in 0..3 {
                    target[3 * x + k] += weight * f32::from(source[at + k]);
                }
            }
        }
    }
    let mut sums = vec![0.0; 3 * width];
    for (y, target) in image.chunks_exact_mut(3 * width).enumerate() {
        sums.fill(0.0);
        for (tap, weight) in kernel.iter().enumerate() {
            let at = 3 * width * tapped(y, tap, kernel.len(), height);
            for (sum, value) in sums.iter_mut().zip(&rows[at..at + 3 * width]) {
                *sum += weight * value;
            }
        }
        for (byte, sum) in target.iter_mut().zip(&sums) {
            *byte = sum.round() as u8;
        }
    }
}

fn gaussian(strength: u32) -> Vec<f32> {
    let reach = f64::from(strength.max(1) - 1);
    let sigma = 0.3 * (reach - 1.0) + 0.8;
    let weight = |at: u32| (-(f64::from(at) - reach).powi(2) / (2.0 * sigma * sigma)).exp();
    let weights: Vec<f64> = (0..2 * strength.max(1) - 1).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}

/// The position that number `tap` of a kernel of `taps`, centred on `at`, falls on.
fn tapped(at: usize, tap: usize, taps: usize, side: usize) -> usize {
    let last = side as isize - 1;
    let mut position = (at + tap) as isize - (taps / 2) as isize;
    // More than once where the kernel is wider than the image.
    while last > 0 && !(0..=last).contains(&position) {
        position = if position < 0 { -position } else { 2 * last - position };
    }
    position.clamp(0, last) as usize
}

/// Sets `count` squares of `length` pixels to black, each about a pixel drawn from the image; what is beyond the border
/// is lost.
pub(super) fn cutout(image: &mut RgbImage, count: u32, length: u32, random: &mut Random) {
    let (width, height) = image.dimensions();
    let half = f64::from(length) / 2.0;
    let span = |centre: u32, side: u32| {
        let end = |at: f64| at.clamp(0.0, f64::from(side)) as u32;
        end(f64::from(centre) - half)..end(f64::from(centre) + half)
    };
    let mut draw = |side: u32| ((random.uniform(0.0, 1.0) * side as f32) as u32).min(side - 1);
    for _ in 0..count {
        let (down, across) = (span(draw(height), height), span(draw(width), width));
        for y in down {
            across.clone().for_each(|x| image.put_pixel(x, y, image::Rgb([0; 3])));
        }
    }
}

/// Applies lighting to the pixels themselves.
pub(super) fn light(image: &mut RgbImage, lighting: Lighting) {
    let lit = |byte: usize| (lighting.gain * (byte as f32 / 255.0) + lighting.offset).clamp(0.0, 1.0) * 255.0;
    let table: [u8; 256] = std::array::from_fn(|byte| lit(byte).round() as u8);
    image.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
}

/// Mean over pixels and channels, in units of 1.
pub(super) fn mean_level(image: &RgbImage) -> f32 {
    let bytes = image.as_raw();
    let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
    (sum as f64 / bytes.len().max(1) as f64 / 255.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::noise;

    #[test]
    fn blur_is_the_sum_over_the_square() {
        for (strength, sides) in [(1, (9, 7)), (2, (12, 9)), (5, (23, 17)), (7, (5, 3)), (4, (1, 8))] {
            let image = noise(sides.0, sides.1, 3);
            let mut blurred = image.clone();
            blur(&mut blurred, strength);
            let size = 2 * i64::from(strength) - 1;
            let sigma = 0.3 * ((size - 1) as f64 * 0.5 - 1.0) + 0.8;
            // OpenCV's borderInterpolate for BORDER_REFLECT_101.
            let index = |mut i: i64, side: u32| {
                let side = i64::from(side);
                while i < 0 || i >= side {
                    i = if side == 1 {
                        0
                    } else if i < 0 {
                        -i
                    } else {
                        2 * side - 2 - i
                    };
                }
                i as u32
            };
            for (x, y, pixel) in blurred.enumerate_pixels() {
                for k in 0..3 {
                    let (mut sum, mut weights) = (0.0, 0.0);
                    for dy in -size / 2..=size / 2 {
                        for dx in -size / 2..=size / 2 {
                            let weight = (-((dx * dx + dy * dy) as f64) / (2.0 * sigma * sigma)).exp();
                            let (tx, ty) = (index(i64::from(x) + dx, sides.0), index(i64::from(y) + dy, sides.1));
                            sum += weight * f64::from(image.get_pixel(tx, ty)[k]);
                            weights += weight;
                        }
                    }
                    assert!((sum / weights - f64::from(pixel[k])).abs() < 0.51, "{strength} {x} {y}");
                }
            }
        }
    }

    #[test]
    fn blur_keeps_the_mean() {
        let image = noise(200, 200, 4);
        let mut blurred = image.clone();
        blur(&mut blurred, 5);
        assert!((mean_level(&image) - mean_level(&blurred)).abs() < 0.003);
        assert_ne!(image, blurred);
    }

    #[test]
    fn squares_are_black_of_the_size_asked_and_clipped() {
        let (width, height, length) = (40, 30, 8);
        let mut clipped = 0;
        for n in 0..300 {
            let white = image::Rgb([255; 3]);
            let mut image = RgbImage::from_pixel(width, height, white);
            cutout(&mut image, 1, length, &mut Random::stream(n, "cutout", &[]));
            let black: Vec<_> = image.enumerate_pixels().filter(|p| *p.2 != white).map(|p| (p.0, p.1)).collect();
            let side = |values: Vec<u32>, most: u32| {
                let (low, high) = (*values.iter().min().unwrap(), *values.iter().max().unwrap());
                // Shorter only at a border, and never by more than half.
                assert!(high - low < length && high - low + 1 >= length / 2, "{low} {high}");
                assert!(high - low + 1 == length || low == 0 || high == most - 1, "{low} {high}");
                high - low + 1
            };
            let across = side(black.iter().map(|p| p.0).collect(), width);
            let down = side(black.iter().map(|p| p.1).collect(), height);
            assert_eq!(black.len() as u32, across * down, "a full rectangle");
            clipped += u32::from(across * down < length * length);
        }
        // Centres within 4 of a border: 1 − 33/40 · 23/30 of them.
        assert!((75..145).contains(&clipped), "{clipped} of 300");
    }

    #[test]
    fn mean_is_over_pixels_and_channels() {
        let image = RgbImage::from_fn(2, 1, |x, _| image::Rgb(if x == 0 { [0, 51, 255] } else { [102, 0, 0] }));
        assert!((mean_level(&image) - 408.0 / 6.0 / 255.0).abs() < 1e-6);
    }
}
