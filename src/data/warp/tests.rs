use proptest::prelude::*;

use super::*;
use crate::data::tests::noise;
use crate::ops::augment::on_image;

fn mirrored(mut i: i64, len: i64) -> i64 {
    while !(0..len).contains(&i) {
        i = if i < 0 { -i - 1 } else { 2 * len - 1 - i };
    }
    i
}

/// The bilinear value at (x, y) of an image padded by reflection, then continued by reflection.
fn lookup(image: &RgbImage, pad: i64, (x, y): (f64, f64), k: usize) -> f64 {
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let mut sum = 0.0;
    for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let (tx, ty) = (x.floor() as i64 + dx, y.floor() as i64 + dy);
        let weight = (1.0 - (x - tx as f64).abs()) * (1.0 - (y - ty as f64).abs());
        let (px, py) = (mirrored(tx, width + 2 * pad) - pad, mirrored(ty, height + 2 * pad) - pad);
        sum += weight * f64::from(image.get_pixel(mirrored(px, width) as u32, mirrored(py, height) as u32)[k]);
    }
    sum
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Flip,
    Turn,
    Rotate(f32),
    Zoom(f64),
    Stretch(f64, f64),
}

/// Where pixel (x, y) of a canvas comes from, which before the step was of the size given.
fn back(step: Step, (width, height): (i64, i64), (x, y): (f64, f64)) -> (f64, f64) {
    let (w, h) = (width as f64, height as f64);
    match step {
        Step::Flip => (w - 1.0 - x, y),
        Step::Turn => (w - 1.0 - y, x),
        Step::Rotate(degrees) => {
            let (cx, cy, turn) = ((width / 2) as f64, (height / 2) as f64, -f64::from(degrees).to_radians());
            let (dx, dy) = (x - cx, y - cy);
            (dx * turn.cos() + dy * turn.sin() + cx, -dx * turn.sin() + dy * turn.cos() + cy)
        }
        Step::Zoom(z) => (w / 2.0 + (x - w / 2.0) / z, h / 2.0 + (y - h / 2.0) / z),
        Step::Stretch(sx, sy) => {
            let cut = |side: i64, s: f64| ((side as f64 * s).round() as i64 - side) / 2;
            ((x + cut(width, sx) as f64 + 0.5) / sx - 0.5, (y + cut(height, sy) as f64 + 0.5) / sy - 0.5)
        }
    }
}

fn take(canvas: &mut Canvas, step: Step) {
    match step {
        Step::Flip => canvas.flip(),
        Step::Turn => canvas.quarter_turn(),
        Step::Rotate(degrees) => canvas.rotate(degrees).unwrap(),
        Step::Zoom(factor) => canvas.zoom(factor),
        Step::Stretch(across, down) => canvas.stretch(across, down),
    }
}

fn exact() -> impl Strategy<Value = Step> {
    prop_oneof![Just(Step::Flip), Just(Step::Turn)]
}

fn inside() -> impl Strategy<Value = Step> {
    let factor = 1.0f64..1.6;
    prop_oneof![
        Just(Step::Flip),
        Just(Step::Turn),
        factor.clone().prop_map(Step::Zoom),
        factor.clone().prop_map(|s| Step::Stretch(s, 1.0)),
        factor.prop_map(|s| Step::Stretch(1.0, s)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// One lookup in the image, through all steps: nothing is computed in between.
    #[test]
    fn equals_each_step_taken_back(width in 9u32..70, height in 9u32..70, size in 1u32..9, fx in 0.0..1.0,
                                   fy in 0.0..1.0, pad in 0u32..13, first in prop::collection::vec(exact(), 0..3),
                                   angle in prop::option::of(-180.0f32..180.0),
                                   then in prop::collection::vec(inside(), 0..4)) {
        let image = noise(width, height, 5);
        let mut canvas = Canvas::new(&image, (width, height), pad);
        let (mut steps, mut size_now) = (Vec::new(), (i64::from(width + 2 * pad), i64::from(height + 2 * pad)));
        for step in first.into_iter().chain(angle.map(Step::Rotate)).chain(then) {
            steps.push((step, size_now));
            if matches!(step, Step::Turn) {
                size_now = (size_now.1, size_now.0);
            }
            take(&mut canvas, step);
        }
        prop_assert_eq!((i64::from(canvas.size().0), i64::from(canvas.size().1)), size_now);
        let at = |f: f64, side: i64| (f * (side - i64::from(size)) as f64) as u32;
        let window = Window { x: at(fx, size_now.0), y: at(fy, size_now.1), width: size, height: size };
        for (x, y, pixel) in canvas.crop(window).unwrap().enumerate_pixels() {
            let end = (f64::from(window.x + x), f64::from(window.y + y));
            let source = steps.iter().rev().fold(end, |at, &(step, size)| back(step, size, at));
            for k in 0..3 {
                let expected = lookup(&image, i64::from(pad), source, k);
                prop_assert!((expected - f64::from(pixel[k])).abs() < 0.6, "{} {}", expected, pixel[k]);
            }
        }
    }

    #[test]
    fn reached_holds_every_lookup(low in -60.0f64..60.0, span in 0.0f64..60.0, len in 1u32..30, pad in 0u32..20) {
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
fn a_second_rotation_sees_the_first_ones_border() {
    // Twice 45° is a quarter turn, but the corners were lost and reflected in between.
    let image = noise(41, 41, 5);
    let whole = Window { x: 0, y: 0, width: 41, height: 41 };
    let mut canvas = Canvas::new(&image, (41, 41), 0);
    canvas.rotate(45.0).unwrap();
    let once = canvas.crop(whole).unwrap();
    canvas.rotate(45.0).unwrap();
    let twice = canvas.crop(whole).unwrap();
    for (x, y, pixel) in twice.enumerate_pixels() {
        let source = back(Step::Rotate(45.0), (41, 41), (f64::from(x), f64::from(y)));
        assert!((lookup(&once, 0, source, 1) - f64::from(pixel[1])).abs() < 0.6);
    }
}

#[test]
fn quarter_turns_are_the_librarys() {
    let image = noise(13, 9, 5);
    let mut canvas = Canvas::new(&image, (13, 9), 0);
    let whole =
        |canvas: &Canvas| canvas.crop(Window { x: 0, y: 0, width: canvas.size().0, height: canvas.size().1 }).unwrap();
    canvas.quarter_turn();
    assert_eq!(whole(&canvas), imageops::rotate270(&image));
    canvas.flip();
    assert_eq!(whole(&canvas), imageops::flip_horizontal(&imageops::rotate270(&image)));
    // A rotation by 90° of odd sides, whose centre is a pixel, is one too.
    let square = noise(9, 9, 5);
    let mut canvas = Canvas::new(&square, (9, 9), 0);
    canvas.rotate(90.0).unwrap();
    assert_eq!(whole(&canvas), imageops::rotate270(&square));
}

#[test]
fn pixels_are_those_of_the_whole_canvas() {
    let image = noise(20, 14, 5);
    let mut canvas = Canvas::new(&image, (20, 14), 3);
    canvas.flip();
    let part = canvas.crop(Window { x: 4, y: 1, width: 9, height: 8 }).unwrap();
    let pixels = canvas.pixels().unwrap();
    assert_eq!(pixels.dimensions(), (26, 20));
    assert_eq!(imageops::crop_imm(pixels, 4, 1, 9, 8).to_image(), part);
    pixels.put_pixel(0, 0, image::Rgb([1, 2, 3]));
    canvas.flip();
    let corner = canvas.crop(Window { x: 25, y: 0, width: 1, height: 1 }).unwrap();
    assert_eq!(corner.as_raw(), &[1, 2, 3]);
}
