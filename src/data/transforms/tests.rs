use image::{Rgb, imageops};

use super::*;
use crate::data::short_side;
use crate::data::tests::noise;

#[test]
fn lighting_is_the_references_formula() {
    let apply = |light: Lighting, x: f32| light.gain * x + light.offset;
    let (b, mean, x) = (0.03, 0.4, 0.7);
    let up = apply(Lighting::new(b, 0.05, mean), x);
    assert!((up - ((x - mean) * 1.05 + mean + b)).abs() < 1e-6);
    let down = apply(Lighting::new(-b, -0.05, mean), x);
    assert!((down - ((x - mean) / 1.05 + mean - b)).abs() < 1e-6);
    assert_eq!(apply(Lighting::NONE, x), x);
}

#[test]
fn settings_without_sense_are_errors_that_name_them() {
    for (transforms, name) in [
        (Transforms::new(0), "size"),
        (Transforms::new(224).resize(200), "resize"),
        (Transforms::new(224).max_zoom(0.9), "max_zoom"),
        (Transforms::new(224).max_zoom(f32::NAN), "max_zoom"),
        (Transforms::new(224).pad(5000), "pad"),
        (Transforms::new(224).pad(4).crop(Crop::None), "pad"),
        (Transforms::new(224).pad(4).crop(Crop::GoogleNet), "pad"),
        (Transforms::new(224).normalise([0.5; 3], [0.5, 0.0, 0.5]), "std"),
        (Transforms::new(224).normalise([f32::INFINITY; 3], [0.5; 3]), "mean"),
    ] {
        let message = transforms.validate().unwrap_err().to_string();
        assert!(message.starts_with(name), "{message}");
    }
    assert!(Transforms::new(8).apply(&RgbImage::new(0, 0), View::Clean).is_err());
}

#[test]
fn clean_views_are_centred_as_torchvision_centres() {
    // (dim − size) / 2 of 0.5, 1.5, 2.5 pixels: Python rounds halves to even.
    for (width, left) in [(9, 0), (11, 2), (13, 2), (12, 2), (8, 0)] {
        let image = noise(width, 8, 3);
        let sample = Transforms::new(8).apply(&image, View::Clean).unwrap();
        assert_eq!(sample.pixels, imageops::crop_imm(&image, left, 0, 8, 8).to_image().into_raw());
        assert_eq!((sample.lighting.gain, sample.lighting.offset), (1.0, 0.0));
    }
    let image = noise(90, 70, 4);
    let sample = Transforms::new(30).resize(40).apply(&image, View::Clean).unwrap();
    let whole = imageops::crop_imm(&short_side(&image, 40).unwrap(), 10, 5, 30, 30).to_image();
    assert!(sample.pixels.iter().zip(whole.as_raw()).all(|(a, b)| a.abs_diff(*b) <= 1));
}

#[test]
fn random_views_are_what_was_asked_for() {
    let image = noise(30, 24, 9);
    let view = |transforms: &Transforms, n| {
        transforms.apply(&image, View::Random(Random::stream(1, "augment", &[0, n]))).unwrap()
    };
    let plain = Transforms::new(24);
    let crops: Vec<Vec<u8>> = (0..7).map(|x| imageops::crop_imm(&image, x, 0, 24, 24).to_image().into_raw()).collect();
    let basic = plain.clone().augment(Augment::Basic);
    let side_on = plain.clone().augment(Augment::SideOn);
    let (mut starts, mut rotated, mut flipped) = ([0; 7], 0, 0);
    for n in 0..400 {
        let sample = view(&plain, n);
        assert_eq!(sample.lighting.gain, 1.0);
        let start = crops.iter().position(|crop| *crop == sample.pixels).unwrap();
        starts[start] += 1;

        let with_basic = view(&basic, n);
        assert!((0.9..=1.05).contains(&with_basic.lighting.gain) && with_basic.lighting.offset.abs() < 0.1);
        let with_flip = view(&side_on, n);
        if with_basic.pixels != sample.pixels {
            rotated += 1;
        } else if with_flip.pixels != sample.pixels {
            // The mirrored image, cropped at the same place.
            let mirror = imageops::flip_horizontal(&image);
            let mirror = imageops::crop_imm(&mirror, start as u32, 0, 24, 24).to_image();
            assert_eq!(with_flip.pixels, mirror.into_raw());
            flipped += 1;
        }
    }
    assert!(starts[..6].iter().all(|&count| count > 30) && starts[6] == 0, "{starts:?}");
    assert!((270..330).contains(&rotated), "three in four: {rotated} of 400");
    assert!((30..70).contains(&flipped), "half of those not rotated: {flipped}");
}

#[test]
fn an_image_of_one_row_needs_no_memory_for_its_scaled_length() {
    let image = noise(60_000, 1, 1);
    let transforms = Transforms::new(224).augment(Augment::SideOn).max_zoom(1.1);
    for n in 0..4 {
        transforms.apply(&image, View::Random(Random::stream(n, "augment", &[]))).unwrap();
    }
    transforms.apply(&image, View::Clean).unwrap();
}

#[test]
fn transforms_are_values_that_serialise() {
    let transforms = Transforms::new(224).resize(256).augment(Augment::SideOn).max_zoom(1.1);
    let json = serde_json::to_string(&transforms).unwrap();
    assert!(json.contains("side-on"), "{json}");
    assert_eq!(serde_json::from_str::<Transforms>(&json).unwrap(), transforms);
    assert_eq!(transforms.evaluation(), Transforms::new(224).resize(256));
    // What was written before there were padding and kinds of crops.
    let old = r#"{"size":8,"resize":9,"augment":"side-on","max_zoom":1.5,"mean":[0.5,0.5,0.5],"std":[1.0,1.0,1.0]}"#;
    let transforms: Transforms = serde_json::from_str(old).unwrap();
    assert_eq!((transforms.pad, transforms.crop), (0, Crop::Random));
    let own = Transforms::new(8).augment("rotate:3,blur:5,cutout:2:4".parse().unwrap()).pad(2).crop(Crop::Centre);
    let json = serde_json::to_string(&own).unwrap();
    assert_eq!(serde_json::from_str::<Transforms>(&json).unwrap(), own, "{json}");
}

#[test]
fn zoom_is_drawn_for_three_images_in_four() {
    // Along a ramp the step from pixel to pixel shrinks as the zoom grows.
    let ramp = RgbImage::from_fn(40, 40, |x, _| Rgb([6 * x as u8; 3]));
    let transforms = Transforms::new(40).max_zoom(1.5);
    let mut zoomed = 0;
    for n in 0..200 {
        let sample = transforms.apply(&ramp, View::Random(Random::stream(2, "augment", &[n]))).unwrap();
        // Columns 5 and 34 are clear of the flattened ends.
        let zoom = 6.0 * 29.0 / (f64::from(sample.pixels[3 * 34]) - f64::from(sample.pixels[3 * 5]));
        assert!((0.97..1.53).contains(&zoom), "{zoom}");
        zoomed += u32::from(zoom > 1.03);
    }
    assert!((115..165).contains(&zoomed), "{zoomed} of 200");
}

#[test]
fn clean_views_do_not_depend_on_augmentation() {
    let image = noise(30, 24, 9);
    let plain = Transforms::new(20).resize(22);
    let clean = plain.apply(&image, View::Clean).unwrap();
    for list in ["side-on", "top-down", "rotate-zoom:20:0.5:0.5,blur:5,cutout:3:9"] {
        for crop in [Crop::Random, Crop::Centre, Crop::GoogleNet] {
            let pad = if crop == Crop::GoogleNet { 0 } else { 4 };
            let augmented = plain.clone().augment(list.parse().unwrap()).max_zoom(1.4).pad(pad).crop(crop);
            assert_eq!(augmented.apply(&image, View::Clean).unwrap(), clean, "{list} {crop}");
            assert_eq!(augmented.evaluation().apply(&image, View::Clean).unwrap(), clean);
        }
    }
}

#[test]
fn a_preset_is_the_same_whoever_used_it_before() {
    // fastai 0.7's GoogLeNet crop added itself to the list that all pipelines shared.
    let image = noise(30, 24, 9);
    let side_on = Transforms::new(20).augment(Augment::SideOn);
    let views = || {
        let view = |n| View::Random(Random::stream(n, "augment", &[]));
        (0..5).map(|n| side_on.apply(&image, view(n)).unwrap()).collect::<Vec<_>>()
    };
    let before = views();
    let googlenet = side_on.clone().crop(Crop::GoogleNet);
    let other = googlenet.apply(&image, View::Random(Random::stream(0, "augment", &[]))).unwrap();
    assert_ne!(other, before[0]);
    assert_eq!(views(), before);
    assert_eq!(Augment::SideOn.changes().len(), 3);
}
