//! Images from files to batches, through the public interface.

mod common;

use std::fs;
use std::path::Path;
use std::time::Instant;

use common::shared;
use image::{Rgb, imageops};
use tempfile::TempDir;
use unfreeze::data::{
    Augment, Batch, Holdout, ImageData, Item, Loader, LoaderOptions, RgbImage, Split, Transforms, decode, find_images,
    resize,
};
use unfreeze::ops::augment::Patch;
use unfreeze::random::Random;

fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut random = Random::stream(seed, "noise", &[]);
    RgbImage::from_fn(width, height, |_, _| Rgb([(); 3].map(|()| random.uniform(0.0, 256.0) as u8)))
}

fn save(path: impl AsRef<Path>, image: &RgbImage) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    image.save(path).unwrap();
}

/// Two classes, with awkward names; `train` images per class, two for validation in `val`.
fn folders(train: u64) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (label, class) in ["Hund & Katze", "été 犬"].iter().enumerate() {
        for n in 0..train {
            let image = noise(20 + n as u32, 30 - n as u32, 100 * label as u64 + n);
            save(folder.path().join(format!("train/{class}/bild {n:02} ü.png")), &image);
        }
        for n in 0..2 {
            save(folder.path().join(format!("val/{class}/{n}.png")), &noise(25, 25, 50 + n));
        }
    }
    folder
}

fn data(folder: &TempDir) -> ImageData {
    let transforms = Transforms::new(12).resize(14).augment(Augment::SideOn).max_zoom(1.3);
    ImageData::from_folders(folder.path()).unwrap().transforms(transforms).batch_size(4)
}

fn batches(loader: Loader) -> Vec<Batch> {
    loader.map(Result::unwrap).collect()
}

fn error(folder: &TempDir) -> String {
    ImageData::from_folders(folder.path()).unwrap_err().to_string()
}

#[test]
fn classes_and_files_are_sorted_and_awkward_names_work() {
    let folder = folders(5);
    save(folder.path().join("train/été 犬/aa/deeper/nested.png"), &noise(9, 9, 1));
    fs::write(folder.path().join("train/été 犬/.DS_Store"), "x").unwrap();
    let data = data(&folder);
    assert_eq!(data.classes(), ["Hund & Katze", "été 犬"]);
    let names: Vec<_> = data.items(Split::Train).iter().map(|i| (i.label, i.path.file_name().unwrap())).collect();
    assert_eq!(names.len(), 11);
    assert_eq!(names[5], (1, "nested.png".as_ref()));
    assert_eq!(names[6], (1, "bild 00 ü.png".as_ref()));
    assert_eq!(data.items(Split::Valid).len(), 4);
    assert!(data.skipped().is_empty() && data.notes().is_empty());
    assert_eq!(batches(data.loader(Split::Train, &LoaderOptions::evaluation()).unwrap()).len(), 3);
}

#[test]
fn files_that_are_no_images_are_named_and_skipped() {
    let folder = folders(3);
    let class = folder.path().join("train/Hund & Katze");
    fs::write(class.join("page.jpg"), "<html>404</html>").unwrap();
    fs::write(class.join("notes.txt"), "P. S. not an image").unwrap();
    fs::write(class.join("zero.png"), "").unwrap();
    fs::write(folder.path().join("train/stray.png"), "x").unwrap();
    let data = data(&folder);
    let skipped: Vec<String> = data.skipped().iter().map(ToString::to_string).collect();
    for name in ["page.jpg", "notes.txt", "zero.png", "stray.png"] {
        assert!(skipped.iter().any(|s| s.contains(name)), "{name} in {skipped:?}");
    }
    assert_eq!((skipped.len(), data.items(Split::Train).len()), (4, 6));
    let message = data.strict(true).unwrap_err().to_string();
    assert!(message.contains("stray.png") && message.contains("4 such files"), "{message}");
}

#[test]
fn unusable_layouts_are_errors_that_name_the_folder() {
    let folder = folders(2);
    fs::create_dir(folder.path().join("train/vide")).unwrap();
    assert!(error(&folder).contains("vide") && error(&folder).contains("no images"));
    fs::remove_dir(folder.path().join("train/vide")).unwrap();

    save(folder.path().join("val/only here/1.png"), &noise(9, 9, 1));
    assert!(error(&folder).contains("`only here` is not among the classes"), "{}", error(&folder));
    fs::remove_dir_all(folder.path().join("val/only here")).unwrap();

    fs::remove_dir_all(folder.path().join("val/été 犬")).unwrap();
    let data = ImageData::from_folders(folder.path()).unwrap();
    assert!(data.notes()[0].contains("été 犬") && data.notes().len() == 1, "{:?}", data.notes());

    fs::remove_dir_all(folder.path().join("train/été 犬")).unwrap();
    assert!(error(&folder).contains("has one class, `Hund & Katze`"));
    fs::rename(folder.path().join("val"), folder.path().join("other")).unwrap();
    assert!(error(&folder).contains("no folder `valid`") && error(&folder).contains("train/CLASS/*"));
    fs::rename(folder.path().join("train"), folder.path().join("images")).unwrap();
    assert!(error(&folder).contains("no folder `train`"));

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(ImageData::from_folders(file).unwrap_err().to_string().contains("is a file"));
    assert!(ImageData::from_folders(folder.path().join("gone")).unwrap_err().to_string().contains("gone"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    let folder = folders(2);
    let class = folder.path().join("train/Hund & Katze");
    std::os::unix::fs::symlink("..", class.join("circle")).unwrap();
    std::os::unix::fs::symlink(&class, class.join("self")).unwrap();
    std::os::unix::fs::symlink("nowhere", class.join("broken.png")).unwrap();
    std::os::unix::fs::symlink(class.join("bild 00 ü.png"), class.join("link.png")).unwrap();
    let found = find_images(&class).unwrap();
    // `circle` leads to the other class; back in this one it ends.
    assert_eq!(found.images.len(), 5);
    let skipped = format!("{:?}", found.skipped);
    assert!(skipped.contains("broken.png") && skipped.contains("already read"), "{skipped}");
}

#[test]
fn damaged_images_are_left_out_of_their_batch_and_named() {
    let folder = folders(5);
    let damaged = folder.path().join("train/Hund & Katze/bild 02 ü.png");
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    let data = data(&folder);
    assert!(data.skipped().is_empty(), "it starts as an image does");
    let all = batches(data.loader(Split::Train, &LoaderOptions::evaluation()).unwrap());
    assert_eq!(all[0].indices, [0, 1, 3]);
    assert_eq!((all[0].len(), all[0].patches[2].pixels().len(), all[0].labels.len()), (3, 12 * 12 * 3, 3));
    assert_eq!(all[0].failed.len(), 1);
    assert_eq!(all[0].failed[0].path, damaged);
    assert_eq!(all.iter().map(Batch::len).sum::<usize>(), 9);

    let mut strict = data.strict(true).unwrap().loader(Split::Train, &LoaderOptions::evaluation()).unwrap();
    assert!(strict.next().unwrap().unwrap_err().to_string().contains("bild 02"));
    assert!(strict.next().is_none());
}

#[test]
fn patches_are_what_the_pictures_are_taken_from() {
    let folder = folders(9);
    let data = data(&folder);
    let pass = |patches| {
        batches(data.loader(Split::Train, &LoaderOptions { patches, ..LoaderOptions::training(7, 3) }).unwrap())
    };
    let (finished, mut unfinished) = (pass(false), pass(true));
    assert!(finished.iter().flat_map(|batch| &batch.patches).all(Patch::is_finished));
    assert!(unfinished.iter().flat_map(|batch| &batch.patches).any(|patch| !patch.is_finished()));
    for batch in &mut unfinished {
        batch.patches = batch.patches.drain(..).map(Patch::finish).collect();
    }
    assert_eq!(finished, unfinished);
}

#[test]
fn batches_do_not_depend_on_the_number_of_workers() {
    let folder = folders(9);
    let data = data(&folder);
    let pass = |workers, seed, epoch| {
        batches(data.loader(Split::Train, &LoaderOptions { workers, ..LoaderOptions::training(seed, epoch) }).unwrap())
    };
    let one = pass(1, 7, 3);
    assert_eq!(one, pass(2, 7, 3));
    assert_eq!(one, pass(5, 7, 3));
    assert_ne!(one, pass(1, 7, 4));
    assert_ne!(one, pass(1, 8, 3));
    assert_eq!(one.iter().map(Batch::len).collect::<Vec<_>>(), [4, 4, 4, 4, 2]);
    assert!(one.iter().flat_map(|b| &b.lighting).any(|l| l[0] != 1.0));
    let labels = one.iter().flat_map(|b| b.indices.iter().zip(&b.labels)).all(|(&i, &l)| l == u32::from(i >= 9));
    assert!(labels);
}

#[test]
fn each_sample_and_each_epoch_draws_its_own_view() {
    let folder = folders(2);
    for class in ["Hund & Katze", "été 犬"] {
        for n in 0..2 {
            save(folder.path().join(format!("train/{class}/bild {n:02} ü.png")), &noise(25, 25, 1));
        }
    }
    let data = data(&folder);
    let mut views: Vec<[f32; 2]> = Vec::new();
    for epoch in 0..2 {
        let options = LoaderOptions { augment: true, epoch, ..LoaderOptions::default() };
        views.extend(batches(data.loader(Split::Train, &options).unwrap()).iter().flat_map(|b| b.lighting.clone()));
    }
    assert_eq!(views.len(), 8);
    for (n, view) in views.iter().enumerate() {
        assert!(!views[..n].contains(view), "the same picture, yet {views:?}");
    }
}

#[test]
fn a_single_last_sample_joins_the_batch_before() {
    let folder = folders(2);
    save(folder.path().join("train/été 犬/last.png"), &noise(15, 15, 1));
    let all = batches(data(&folder).loader(Split::Train, &LoaderOptions::evaluation()).unwrap());
    assert_eq!(all.iter().map(Batch::len).collect::<Vec<_>>(), [5]);
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let folder = folders(9);
    let data = data(&folder);
    for taken in 0..4 {
        for workers in [1, 3] {
            let options = LoaderOptions { workers, prefetch: taken, ..LoaderOptions::training(1, 0) };
            let mut loader = data.loader(Split::Train, &options).unwrap();
            assert_eq!(loader.by_ref().take(taken).count(), taken);
            assert_eq!(loader.len(), 5 - taken);
        }
    }
}

#[test]
fn files_without_labels_load_too() {
    let folder = folders(3);
    let items = Item::unlabelled(find_images(folder.path()).unwrap().images);
    let options = LoaderOptions::evaluation();
    let loader = Loader::new(items.clone(), &Transforms::new(8), vec![9, 0], 2, &options).unwrap();
    let all = batches(loader);
    assert_eq!((all.len(), &all[0].indices[..], &all[0].labels[..]), (1, &[9, 0][..], &[0, 0][..]));
    let wrong = Loader::new(items.clone(), &Transforms::new(8), vec![10], 2, &options);
    assert!(wrong.err().unwrap().to_string().contains("no sample 10"));
    assert!(Loader::new(items.clone(), &Transforms::new(8), vec![0], 0, &options).is_err());
    assert!(Loader::new(items, &Transforms::new(0), vec![0], 1, &options).is_err());
}

#[test]
fn scaling_equals_pillows() {
    let Some(path) = shared("golden/ops.safetensors") else { return };
    let bytes = fs::read(path).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let image = |name: &str| {
        let tensor = golden.tensor(name).unwrap();
        RgbImage::from_raw(tensor.shape()[1] as u32, tensor.shape()[0] as u32, tensor.data().to_vec()).unwrap()
    };
    let source = image("resize.u8_37x53");
    for name in ["resize.pil_bilinear_16x23", "resize.pil_bilinear_64x80"] {
        let expected = image(name);
        let scaled = resize(&source, expected.width(), expected.height()).unwrap();
        let far = scaled.as_raw().iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(far <= Some(1), "{name}: {far:?}");
    }
}

#[test]
fn exif_orientations_decode_to_one_picture() {
    let Some(folder) = shared("data/nasty/exif_orientation") else { return };
    for (first, others) in [("Landscape_1.jpg", "Landscape_"), ("hopper_orientation_2.jpg", "hopper_orientation_")] {
        let expected = decode(folder.join(first)).unwrap();
        let distance = |image: &RgbImage| {
            let pairs = image.as_raw().iter().zip(expected.as_raw());
            pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / expected.as_raw().len() as f64
        };
        for n in 2..=8 {
            let image = decode(folder.join(format!("{others}{n}.jpg"))).unwrap();
            assert_eq!(image.dimensions(), expected.dimensions(), "{others}{n}");
            // The files were compressed one by one: Pillow, too, finds them up to 3.9 grey levels apart.
            let upright = distance(&image);
            assert!(upright < 4.0, "{others}{n}: {upright} grey levels");
            for turned in
                [imageops::rotate180(&image), imageops::flip_horizontal(&image), imageops::flip_vertical(&image)]
            {
                assert!(distance(&turned) > 4.0 * upright, "{others}{n}: {} {upright}", distance(&turned));
            }
        }
    }
}

#[test]
fn photographs_load() {
    let Some(folder) = shared("data/hymenoptera") else { return };
    let data = ImageData::from_folders(folder).unwrap().transforms(Transforms::new(224).augment(Augment::SideOn));
    assert_eq!(data.classes(), ["ants", "bees"]);
    // 244 JPEGs and a GIF, which torchvision passes over for its extension.
    assert_eq!((data.items(Split::Train).len(), data.items(Split::Valid).len()), (245, 153));
    let start = Instant::now();
    let all = batches(data.loader(Split::Train, &LoaderOptions::training(1, 0)).unwrap());
    assert_eq!(all.iter().map(Batch::len).sum::<usize>(), 245);
    assert!(all.iter().all(|batch| batch.failed.is_empty()));
    eprintln!("hymenoptera: {:.0} images/s, decoded and augmented", 245.0 / start.elapsed().as_secs_f64());
}

#[test]
fn test_images_are_a_split_of_their_own_with_or_without_labels() {
    let folder = common::learning::folders(&["cat", "dog"], 4, 2, 0);
    let test = folder.path().join("test");
    for class in ["cat", "dog"] {
        fs::create_dir_all(test.join(class)).unwrap();
        common::learning::picture(20, 0, 77).save(test.join(class).join("a b.png")).unwrap();
    }
    let data = ImageData::from_folders(folder.path()).unwrap();
    let labels: Vec<u32> = data.items(Split::Test).iter().map(|item| item.label).collect();
    assert!(labels == [0, 1] && data.is_labelled(Split::Test));
    fs::copy(folder.path().join("train/cat/0.png"), test.join("dog/leak.png")).unwrap();
    let notes = ImageData::from_folders(folder.path()).unwrap().notes().to_vec();
    assert!(notes.len() == 1 && notes[0].starts_with("1 of the 3 test images"), "{notes:?}");

    fs::remove_dir_all(&test).unwrap();
    fs::create_dir(&test).unwrap();
    common::learning::picture(20, 0, 78).save(test.join("1.png")).unwrap();
    let data = ImageData::from_folders(folder.path()).unwrap();
    assert!(data.items(Split::Test).len() == 1 && !data.is_labelled(Split::Test));
}

#[test]
fn a_share_is_held_out_of_class_folders_and_tables() {
    let folder = common::learning::folders(&["cat", "dog"], 10, 1, 0);
    let train = folder.path().join("train");
    fs::copy(train.join("cat/3.png"), train.join("cat/3 again.png")).unwrap();
    let holdout = Holdout { fraction: 0.3, seed: 4 };
    let data = ImageData::open(&train, Some(holdout)).unwrap();
    assert_eq!((data.items(Split::Train).len(), data.items(Split::Valid).len()), (15, 6));
    assert!(data.notes().iter().any(|note| note.contains("3 again.png")), "{:?}", data.notes());
    let twin = |split| data.items(split).iter().filter(|item| item.path.to_string_lossy().contains("cat/3")).count();
    assert!([0, 2].contains(&twin(Split::Valid)) && twin(Split::Valid) + twin(Split::Train) == 2);

    let mut table = String::from("path,label\n");
    for (class, n) in ["cat", "dog"].iter().flat_map(|class| (0..10).map(move |n| (class, n))) {
        table += &format!("train/{class}/{n}.png,{class}\n");
    }
    let path = folder.path().join("labels.csv");
    fs::write(&path, table).unwrap();
    let data = ImageData::open(&path, Some(holdout)).unwrap();
    assert_eq!((data.items(Split::Train).len(), data.items(Split::Valid).len()), (14, 6));
    let message = ImageData::open(&path, None).unwrap_err().to_string();
    assert!(message.contains("labels.csv") && message.contains("`split`"), "{message}");
    let message = ImageData::open(folder.path(), Some(holdout)).unwrap_err().to_string();
    assert!(message.contains("valid_fraction") && message.contains("already"), "{message}");
}
