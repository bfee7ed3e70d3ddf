//! The cache as the program uses it.

use std::{fs, path::Path};

use unfreeze::{
    checkpoint::{collect, write_safetensors},
    learner::EpochRecord,
    nn::{Arch, HeadSpec, Model},
    prelude::Device,
};

use crate::{
    common::{
        learning::{cats_and_dogs, timeless},
        program::{command, names, ran, unfreeze},
    },
    files, write_alterable,
};

const TRAIN: &str = "train {} --out {} --weights random --arch resnet8 --size 16 --hidden 8 --batch-size 4 --epochs 2 \
                     --cycles 1 --threads 1 --json";

#[test]
fn the_program_caches_views_and_goes_on_with_runs_of_before() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let cached = |run: &Path, flags: &str| -> Vec<bool> {
        let ran = unfreeze(&format!("{TRAIN} {flags}"), &[images.path(), run]).succeeded();
        ran.objects().iter().map(|record| record["cached"].as_bool().unwrap()).collect()
    };
    // The second part shows augmented images anew, unless views of them are asked for and some layers stay frozen.
    let run = |name: &str| out.path().join(name);
    assert_eq!(cached(&run("on"), "--freeze-to 1"), [true, true, false]);
    assert_eq!(cached(&run("views"), "--freeze-to 1 --precompute 3 --renew-views 2"), [true; 3]);
    assert_eq!(cached(&run("all"), "--precompute 3"), [true, true, false]);
    assert_eq!(cached(&run("off"), "--precompute off --freeze-to 1"), [false; 3]);
    assert_eq!(cached(&run("clean"), "--freeze-to 1 --augment none --max-zoom 1 --crop centre"), [true; 3]);
    unfreeze("train --resume --out {}", &[&run("views")]).succeeded();
    // A run of a version that knew no views.
    let config = run("on").join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let known = |line: &&str| !["views", "renew_views", "verify_content"].iter().any(|key| line.starts_with(key));
    let old: String = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
    assert!(old.len() < text.len() && old.contains("precompute = true"));
    fs::write(&config, old).unwrap();
    unfreeze(&format!("{TRAIN} --freeze-to 1 --resume"), &[images.path(), &run("on")]).succeeded();

    let find = "lr-find {} --out {} --weights random --arch resnet8 --size 16 --hidden 8 --batch-size 4 --steps 10";
    unfreeze(&format!("{find} --precompute 3 --freeze-to 1 --verify-content"), &[images.path(), &run("lr")])
        .succeeded();
    for (flags, named) in
        [("--precompute 0", "from 1"), ("--precompute some", "on, off"), ("--renew-views 2", "several")]
    {
        let refused = unfreeze(&format!("{TRAIN} {flags}"), &[images.path(), &run("refused")]);
        assert!(refused.code == 2 && refused.err.contains(named), "{flags}: {}", refused.err);
    }
    assert!(names(&run("refused")).is_empty());
}

#[test]
fn the_program_computes_ahead_what_training_looks_up() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let (cache, weights) = (out.path().join("cache"), out.path().join("resnet8.safetensors"));
    let model = Model::new(Arch::ResNet8, HeadSpec::Linear, 10, 1, &Device::cpu(1).unwrap()).unwrap();
    write_safetensors(&weights, &collect(&model).unwrap(), &Default::default()).unwrap();
    let ahead = |flags: &str| {
        let line = format!("precompute {{}} --weights {{}} --cache {{}} --size 16 --json {flags}");
        unfreeze(&line, &[images.path(), &weights, &cache]).succeeded().objects()
    };
    let counts = |objects: &[serde_json::Value]| -> Vec<u64> {
        objects.iter().map(|object| object["activations"].as_u64().unwrap()).collect()
    };
    assert_eq!(counts(&ahead("--views 3")), [30, 6]);
    assert_eq!(counts(&ahead("--views 3 --boundary layer1")), [30, 6]);
    // Whatever is in the cache now, training adds nothing to it: neither in the first part, nor in the second.
    let listed = files(&cache);
    assert!(listed.len() > 3, "{listed:?}");
    let train = |name: &str, flags: &str| -> (Vec<EpochRecord>, Vec<u8>) {
        let line = format!(
            "train {{}} --out {{}} --weights {{}} --cache {{}} --size 16 --hidden 8 --batch-size 4 --epochs 3 \
             --cycles 1 --cycle-len 3 --freeze-to 1 --json {flags}"
        );
        let run = out.path().join(name);
        let ran = unfreeze(&line, &[images.path(), &run, &weights, &cache]).succeeded();
        let records = ran.objects().into_iter().map(|object| serde_json::from_value(object).unwrap());
        (timeless(&records.collect::<Vec<EpochRecord>>()), fs::read(run.join("model.safetensors")).unwrap())
    };
    let found = train("found", "--precompute 3");
    assert_eq!(files(&cache).len(), listed.len());
    fs::remove_dir_all(&cache).unwrap();
    assert!(found == train("anew", "--precompute 3"));
    let refused = unfreeze("precompute {} --weights {} --cache off", &[images.path(), &weights]);
    assert!(refused.code == 2 && refused.err.contains("--cache"), "{}", refused.err);
    let refused = unfreeze("precompute {} --weights {} --boundary layer4", &[images.path(), &weights]);
    assert!(refused.code == 2 && refused.err.contains("layer3"), "{}", refused.err);
}

/// The features of a backbone that stayed frozen are those of training, whatever is asked of the head later.
#[test]
fn evaluation_finds_what_training_left_and_adds_only_where_told() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let path = |name: &str| out.path().join(name);
    let (run, cache, own, default) = (path("run"), path("cache"), path("own"), path("default"));
    let alterable = images.path().join("valid/cat/0.bmp");
    write_alterable(&alterable, 0);
    unfreeze(&format!("{TRAIN} --recipe head --cache {{}}"), &[images.path(), &run, &cache]).succeeded();
    let evaluate = |arguments: &str, paths: &[&Path]| {
        let mut command = command(&format!("{arguments} --json"), &[&[run.as_path()], paths].concat());
        ran(command.env("UNFREEZE_CACHE", &default).output().unwrap()).succeeded().out
    };
    let off = "evaluate {} --cache off";
    let before = evaluate(off, &[]);
    let known = files(&cache).len();
    // What is found is of before the image was altered.
    write_alterable(&alterable, 255);
    let after = evaluate(off, &[]);
    assert!(before != after);
    assert_eq!(evaluate("evaluate {} --cache {}", &[&cache]), before);
    assert_eq!(evaluate("evaluate {} {} --cache {}", &[images.path(), &cache]), before);
    assert_eq!(files(&cache).len(), known);
    assert!(evaluate("evaluate {} --cache {} --verify-content", &[&cache]) == after && files(&cache).len() > known);
    // Where none are kept, none are looked for; but where a folder is given, also those of augmented views are.
    assert_eq!(evaluate("evaluate {}", &[]), after);
    assert!(files(out.path()).iter().all(|file| !file.starts_with(&default)));
    let tta = evaluate("evaluate {} --cache {} --tta 2", &[&own]);
    write_alterable(&alterable, 0);
    assert_eq!(evaluate("evaluate {} --cache {} --tta 2", &[&own]), tta);
    assert_eq!(evaluate("evaluate {} --cache {}", &[&own]), after);
    let predicted = evaluate("predict {} --split valid --cache {}", &[&own]);
    assert!(predicted != evaluate("predict {} --split valid", &[]));
    write_alterable(&alterable, 255);
    assert_eq!(evaluate("predict {} --split valid", &[]), predicted);
    // Damage is made up for, and what is no folder is said.
    for file in files(&own).iter().filter(|file| file.extension().is_some_and(|extension| extension == "chunk")) {
        let mut bytes = fs::read(file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(file, bytes).unwrap();
    }
    let repaired = unfreeze("evaluate {} --cache {} --json", &[&run, &own]).succeeded();
    assert!(repaired.out == after && repaired.err.contains("damaged"), "{}", repaired.err);
    let odd = unfreeze("evaluate {} --cache {} --json", &[&run, &alterable]).succeeded();
    assert!(odd.out == after && odd.err.contains("no cached activations are used"), "{}", odd.err);
    let refused = unfreeze("predict {} {} --cache {}", &[&run, images.path(), &own]);
    assert!(refused.code == 2 && refused.err.contains("--split"), "{}", refused.err);
}
