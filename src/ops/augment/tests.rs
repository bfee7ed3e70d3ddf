use super::*;
use crate::data::tests::noise;
use crate::data::{Augment, Batch, Change, Crop, Transforms, View};
use crate::ops::testing::emulator::{Settings, emulated};
use crate::ops::testing::{bits, devices, gpus, normal};
use crate::random::Random;
use crate::tensor::DType;

/// The same in f32, rounding by rounding.
fn normalised(byte: u8, [gain, offset]: [f32; 2], mean: f32, std: f32) -> f32 {
    ((gain * (f32::from(byte) / 255.0) + offset).clamp(0.0, 1.0) - mean) / std
}

#[test]
fn lights_clips_and_normalises() -> Result<()> {
    for device in devices() {
        let pictures = [Patch::whole(vec![0, 51, 255], 1, 1), Patch::whole(vec![255, 0, 102], 1, 1)];
        let lighting = [[1.0, 0.0], [2.0, -0.5]];
        let output = augment(&pictures, &lighting, [0.5, 0.2, 0.0], [0.5, 1.0, 2.0], Precision::F32, &device)?;
        assert_eq!(output.dims(), [2, 1, 1, 3]);
        let expected = [-1.0, 0.0, 0.5, 1.0, -0.2, 0.15];
        for (value, expected) in output.to_vec::<f32>()?.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert_eq!(augment(&[], &[], [0.0; 3], [1.0; 3], Precision::F32, &device)?.dims(), [0, 0, 0, 3]);
        assert!(augment(&pictures, &lighting[..1], [0.0; 3], [1.0; 3], Precision::F32, &device).is_err());
        let others = [pictures[0].clone(), Patch::whole(vec![0; 6], 2, 1)];
        assert!(augment(&others, &lighting, [0.0; 3], [1.0; 3], Precision::F32, &device).is_err());
    }
    Ok(())
}

/// More pixels than a block makes, and a last round that is not full.
#[test]
fn large_pictures_are_whole() -> Result<()> {
    let (width, height) = (37, 71);
    for device in devices() {
        let images = [noise(width, height, 1), noise(width, height, 2)];
        let patches = images.each_ref().map(|image| Patch::whole(image.as_raw().clone(), width, height));
        let lighting = [[1.1, -0.02], [0.9, 0.03]];
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let output = augment(&patches, &lighting, mean, std, Precision::F32, &device)?;
        let bytes = images.iter().zip(lighting).flat_map(|(image, l)| image.iter().map(move |&byte| (byte, l)));
        let expected = bytes.enumerate().map(|(i, (byte, l))| normalised(byte, l, mean[i % 3], std[i % 3]).to_bits());
        assert!(bits(&output).into_iter().eq(expected));
    }
    Ok(())
}

/// The fourth channel is zero, the others are those of f32, rounded once for bf16.
#[test]
fn tensor_cores_get_a_fourth_channel() -> Result<()> {
    let check = |three: &Tensor, four: &Tensor, precision: Precision| {
        let &[n, h, w, _] = three.dims() else { panic!("images") };
        assert_eq!((four.dims(), four.dtype()), (&[n, h, w, 4][..], precision.storage()));
        let (expected, actual) = (bits(&three.cast(precision.storage()).unwrap()), bits(four));
        assert!(actual.chunks(4).zip(expected.chunks(3)).all(|(four, three)| four[..3] == *three && four[3] == 0));
    };
    for device in gpus() {
        for (width, height) in [(37, 71), (1, 1), (32, 32)] {
            let images = [noise(width, height, 1), noise(width, height, 2)];
            let patches = images.each_ref().map(|image| Patch::whole(image.as_raw().clone(), width, height));
            let of = |precision| augment(&patches, &[[1.1, -0.02]; 2], [0.4; 3], [0.2, 0.3, 0.1], precision, &device);
            let floats = normal(3, "images", [3, height as usize, width as usize, 3], &device);
            for precision in [Precision::Tf32, Precision::Bf16] {
                check(&of(Precision::F32)?, &of(precision)?, precision);
                check(&floats, &pack_images(&floats, precision)?, precision);
            }
            assert!(bits(&pack_images(&floats, Precision::F32)?) == bits(&floats));
        }
        assert_eq!(pack_images(&Tensor::zeros([0, 8, 8, 3], &device)?, Precision::Bf16)?.dims(), [0, 8, 8, 4]);
    }
    for device in devices() {
        assert!(pack_images(&Tensor::zeros([1, 2, 2, 4], &device)?, Precision::F32).is_err());
    }
    let cpu = Device::cpu(1)?;
    let error = augment(&[], &[], [0.0; 3], [1.0; 3], Precision::Bf16, &cpu).expect_err("a processor").to_string();
    assert!(error.contains("a processor computes in f32, not bf16"), "{error}");
    assert!(pack_images(&Tensor::zeros([1, 2, 2, 3], &cpu)?, Precision::Tf32).is_err());
    Ok(())
}

#[test]
fn pixels_are_written_once() -> Result<()> {
    let Some((device, emulator)) = emulated(Settings::default()) else { return Ok(()) };
    let image = noise(64, 64, 1);
    let patches = [Patch::whole(image.as_raw().clone(), 64, 64)];
    let floats = normal(1, "images", [1, 64, 64, 3], &device);
    let sector = 32 / DType::F32.bytes() as u64;
    for (precision, suffix, per_pixel) in
        [(Precision::F32, "", 3), (Precision::Tf32, "_x4", 4), (Precision::Bf16, "_bf16", 2)]
    {
        augment(&patches, &[[1.0, 0.0]], [0.0; 3], [1.0; 3], precision, &device)?;
        pack_images(&floats, precision)?;
        let (counters, pixels) = (emulator.counters(), 64 * 64);
        let augment = counters[&format!("augment{suffix}")];
        assert_eq!(augment.global_store_sectors, pixels * per_pixel / sector, "{precision}");
        if let Some(pack) = counters.get(&format!("pack_images{suffix}")) {
            assert_eq!(pack.global_load_sectors, pixels * 3 / sector, "{precision}");
            assert_eq!(pack.global_store_sectors, pixels * per_pixel / sector, "{precision}");
            assert_eq!(pack.bank_conflicts(), 0, "{precision}");
        }
    }
    Ok(())
}

#[test]
fn mirrored_patches_are_flipped() {
    for (width, height) in [(1, 1), (2, 3), (5, 2), (8, 8)] {
        let image = noise(width, height, 3);
        let patch = Patch::mirrored(image.as_raw().clone(), width, height);
        let mut looked_up = vec![0; image.len()];
        patch.draw(&mut looked_up, |_, byte| byte);
        let finished = patch.finish();
        assert!(finished.is_finished());
        assert_eq!(finished.pixels(), looked_up);
        assert_eq!(looked_up, image::imageops::flip_horizontal(&image).into_raw());
    }
}

/// Pipelines that end in every kind of patch.
fn pipelines(size: usize) -> Vec<Transforms> {
    let own = |list: &str| list.parse::<Augment>().unwrap();
    let plain = || Transforms::new(size);
    vec![
        plain(),
        plain().resize(size + 3).augment(Augment::SideOn).max_zoom(1.2),
        plain().augment(Augment::TopDown).pad(3),
        plain().pad(2 * size).augment(own("flip")),
        plain().augment(own("rotate:180,lighting:0.2:0.3")).pad(5),
        plain().augment(own("rotate-zoom:40:0.7:0.9,flip")).max_zoom(1.5),
        plain().augment(own("rotate:30,dihedral,rotate-zoom:90:1:1,rotate:20")),
        plain().augment(own("rotate:30,lighting:0.1:0.1,blur:3,cutout:2:4,flip")),
        plain().augment(own("dihedral,rotate:45")).crop(Crop::Centre),
        plain().augment(Augment::SideOn).crop(Crop::None),
        plain().augment(Augment::TopDown).crop(Crop::GoogleNet),
        plain().augment(Augment::Custom(vec![Change::Rotate { degrees: 90.0 }; 2])),
    ]
}

/// A device looks up the very pixels that the processor finishes, and rounds as it does.
#[test]
fn views_are_the_processors_bit_for_bit() -> Result<()> {
    for device in devices() {
        for size in [1, 13, 24] {
            for (number, transforms) in pipelines(size).into_iter().enumerate() {
                let (mut batch, mut expected) = (Batch::default(), Vec::new());
                for n in 0..12u32 {
                    // Upright, lying, square; scaled down, up and not at all.
                    let side = |n: u32| [size as u32, 9, 40][n as usize % 3];
                    let image = noise(side(n) + n % 2, side(n / 3), u64::from(n));
                    let view = match n {
                        0 => View::Clean,
                        _ => View::Random(Random::stream(u64::from(n), "augment", &[number as u64])),
                    };
                    let sample = transforms.apply(&image, view.clone())?;
                    let light = [sample.lighting.gain, sample.lighting.offset];
                    let (mean, std) = (transforms.mean, transforms.std);
                    let bytes = sample.pixels.iter().enumerate();
                    expected.extend(bytes.map(|(i, &byte)| normalised(byte, light, mean[i % 3], std[i % 3]).to_bits()));
                    batch.push(transforms.prepare(&image, view)?, 0, n);
                }
                let output = batch.upload(&transforms, &device, Precision::F32)?;
                assert_eq!(output.dims(), [12, size, size, 3]);
                assert!(bits(&output) == expected, "{device}, {size} pixels, {transforms:?}");
            }
        }
    }
    Ok(())
}
