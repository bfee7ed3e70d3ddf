use std::collections::HashMap;

use image::{Rgb, RgbImage, imageops};

use super::*;
use crate::data::tests::noise;
use crate::data::{Sample, Transforms, View};

fn view(image: &RgbImage, list: &str, n: u64) -> Sample {
    let transforms = Transforms::new(image.width().min(image.height()) as usize).augment(list.parse().unwrap());
    transforms.apply(image, View::Random(Random::stream(5, "augment", &[n]))).unwrap()
}

#[test]
fn text_forms_read_back() {
    for text in [
        "none",
        "basic",
        "side-on",
        "top-down",
        "flip",
        "dihedral",
        "rotate:10,lighting:0.05:0.05,flip",
        "rotate:3.5",
        "rotate-zoom:10:0.5:0.25,blur:5,cutout:1:16",
    ] {
        assert_eq!(text.parse::<Augment>().unwrap().to_string(), text);
    }
    assert_eq!("rotate, lighting,flip".parse::<Augment>().unwrap().changes(), Augment::SideOn.changes());
    assert_eq!("rotate,lighting,dihedral".parse::<Augment>().unwrap().changes(), Augment::TopDown.changes());
    assert_eq!(Augment::Custom(vec![]).to_string(), "none");
}

#[test]
fn text_that_makes_no_sense_is_explained() {
    for (wrong, cause) in [
        ("", "there are rotate:DEGREES"),
        ("flop", "'flop' is no change"),
        ("flip,side-on", "alone"),
        ("rotate:-1", "-1 is not between 0 and 180"),
        ("rotate:a", "'a' is no number"),
        ("rotate:nan", "NaN is not between"),
        ("rotate:inf", "inf is not between"),
        ("lighting:1", "lighting:BRIGHTNESS:CONTRAST"),
        ("lighting:0.1:5", "5 is not between 0 and 1"),
        ("flip:2", "no change"),
        ("flip,,flip", "'' is no change"),
        ("blur:0", "strength is 1"),
        ("blur:1.5", "1.5 is no whole number"),
        ("blur:1e9", "not between 0 and 100"),
        ("cutout:1", "cutout:COUNT:LENGTH"),
        ("cutout:-1:4", "-1 is no whole number"),
    ] {
        let message = wrong.parse::<Augment>().unwrap_err();
        assert!(message.contains(cause), "{wrong}: {message}");
    }
    let custom = Augment::Custom(vec![Change::Rotate { degrees: f32::NAN }]);
    let message = Transforms::new(8).augment(custom).validate().unwrap_err().to_string();
    assert!(message.starts_with("augment: 'rotate:NaN'"), "{message}");
}

#[test]
fn dihedral_reaches_the_eight_symmetries_alike() {
    let image = noise(16, 16, 1);
    let mut symmetries: Vec<RgbImage> = vec![image.clone()];
    for _ in 0..3 {
        symmetries.push(imageops::rotate90(symmetries.last().unwrap()));
    }
    symmetries.extend(symmetries.clone().iter().map(imageops::flip_horizontal));
    let mut counts = [0; 8];
    for n in 0..1600 {
        let pixels = view(&image, "dihedral", n).pixels;
        counts[symmetries.iter().position(|symmetry| *symmetry.as_raw() == pixels).expect("a symmetry")] += 1;
    }
    // 200 each; five standard deviations are 66.
    assert!(counts.iter().all(|count| (134..266).contains(count)), "{counts:?}");
}

#[test]
fn elongated_images_can_be_turned() {
    // A column of a row's crop: what was above is to the left.
    let image = RgbImage::from_fn(8, 40, |x, y| Rgb([x as u8, y as u8, 0]));
    let mut turned = 0;
    for n in 0..40 {
        let pixels = view(&image, "dihedral", n).pixels;
        let step = [pixels[3].abs_diff(pixels[0]), pixels[4].abs_diff(pixels[1])];
        assert!(step == [1, 0] || step == [0, 1], "{step:?}");
        turned += u32::from(step == [0, 1]);
    }
    assert!((8..32).contains(&turned), "{turned}");
}

#[test]
fn each_change_acts_as_often_as_it_says() {
    let image = noise(24, 24, 2);
    for (list, share) in [
        ("rotate:10", 0.75),
        ("flip", 0.5),
        ("blur:5", 0.5),
        ("cutout:1:16", 0.5),
        ("rotate-zoom:10:0.5:0.5", 0.75),
        ("lighting", 0.0),
        ("rotate:0", 0.0),
        ("blur:1", 0.0),
    ] {
        let changed = (0..1000).filter(|&n| view(&image, list, n).pixels != *image.as_raw()).count();
        let expected: f64 = 1000.0 * share;
        // Five standard deviations; none where nothing is drawn.
        let slack = 5.0 * (expected * (1.0 - share)).sqrt();
        assert!((changed as f64 - expected).abs() <= slack, "{list}: {changed} of 1000");
    }
}

#[test]
fn rotate_zoom_does_each_of_its_four_alike() {
    // Along ramps, the steps from pixel to pixel give the map away.
    let image = RgbImage::from_fn(60, 60, |x, y| Rgb([4 * x as u8, 4 * y as u8, 0]));
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for n in 0..800 {
        let pixels = view(&image, "rotate-zoom:10:0.5:0.5", n).pixels;
        let at = |x: usize, y: usize, k: usize| f64::from(pixels[3 * (60 * y + x) + k]) / 4.0;
        // Red and green along the middle row, red and green along the middle column, by 20 pixels.
        let (xx, yx) = ((at(40, 30, 0) - at(20, 30, 0)) / 20.0, (at(40, 30, 1) - at(20, 30, 1)) / 20.0);
        let (xy, yy) = ((at(30, 40, 0) - at(30, 20, 0)) / 20.0, (at(30, 40, 1) - at(30, 20, 1)) / 20.0);
        let near = |a: f64, b: f64| (a - b).abs() < 0.02;
        let kind = match () {
            () if near(xx, 1.0) && near(yy, 1.0) && near(xy, 0.0) && near(yx, 0.0) => "as it was, or nearly",
            () if near(xy, 0.0) && near(yx, 0.0) && near(xx, yy) => "zoomed",
            () if near(xy, 0.0) && near(yx, 0.0) && near(yy, 1.0) => "stretched across",
            () if near(xy, 0.0) && near(yx, 0.0) && near(xx, 1.0) => "stretched down",
            () if near(xy, -yx) && near(xx, yy) => "rotated",
            () => panic!("{xx} {xy} {yx} {yy}"),
        };
        assert!((0.65..1.02).contains(&xx) && (0.65..1.02).contains(&yy) && yx.abs() < 0.19, "{xx} {yy} {yx}");
        *counts.entry(kind).or_default() += 1;
    }
    let within = |kind, range: std::ops::Range<u32>| assert!(range.contains(&counts[kind]), "{kind}: {counts:?}");
    within("rotated", 120..240);
    within("zoomed", 140..240);
    within("stretched across", 60..140);
    within("stretched down", 60..140);
    within("as it was, or nearly", 160..300);
}

#[test]
fn leaving_one_out_leaves_the_others_as_they_were() {
    let image = noise(24, 24, 3);
    let gains = |list: &str| (0..40).map(|n| view(&image, list, n).lighting.gain).collect::<Vec<_>>();
    assert_eq!(gains("rotate,lighting,flip"), gains("lighting"));
    let mirrored = imageops::flip_horizontal(&image);
    for n in 0..40 {
        let alone = view(&image, "flip", n).pixels;
        let flipped = alone == *mirrored.as_raw();
        assert!(flipped || alone == *image.as_raw());
        // The rotation by which the two differ is the same.
        let source = if flipped { &mirrored } else { &image };
        if view(&image, "rotate,flip", n).pixels == *source.as_raw() {
            assert_eq!(view(&image, "rotate", n).pixels, *image.as_raw());
        }
    }
    // A second one of a kind draws for itself.
    let twice = (0..400).filter(|&n| view(&image, "flip,flip", n).pixels != *image.as_raw()).count();
    assert!((150..250).contains(&twice), "{twice} of 400");
}

#[test]
fn what_is_cut_out_stays_black_after_earlier_lighting_and_not_after_later() {
    let image = RgbImage::from_pixel(32, 32, Rgb([120; 3]));
    let (mut before, mut after) = (0, 0);
    for n in 0..60 {
        let sample = view(&image, "lighting:0.3:0,cutout:1:12", n);
        assert_eq!(sample.lighting, Lighting::NONE);
        if let Some(black) = sample.pixels.iter().position(|&byte| byte == 0) {
            let lit = sample.pixels.iter().find(|&&byte| byte != 0).unwrap();
            // Brightness alone: of 120 by up to 0.3 · 255 = 76.5.
            assert!((43..=197).contains(lit) && *lit != 120, "{lit} {black}");
            before += 1;
        }
        let sample = view(&image, "cutout:1:12,lighting:0.3:0", n);
        assert_ne!(sample.lighting, Lighting::NONE);
        if sample.pixels.contains(&0) {
            assert!(sample.pixels.contains(&120));
            after += 1;
        }
    }
    assert!(before > 15 && after > 15, "{before} {after}");
}

#[test]
fn changes_are_made_in_the_order_of_the_list() {
    // Cut out first, the square's edge is blurred; cut out last, it is sharp.
    let image = RgbImage::from_pixel(32, 32, Rgb([200; 3]));
    let shades = |list, n| {
        let pixels = view(&image, list, n).pixels;
        let between = pixels.iter().filter(|&&byte| byte > 0 && byte < 200).count();
        (pixels.contains(&0) || between > 0, between > 0)
    };
    let mut both = 0;
    for n in 0..80 {
        let (cut, blurred) = shades("cutout:1:14,blur:5", n);
        both += u32::from(cut && blurred);
        assert!(!shades("blur:5,cutout:1:14", n).1);
    }
    // Both of two even chances.
    assert!((8..35).contains(&both), "{both}");
}
