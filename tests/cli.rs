//! The program as a user runs it.

mod common;
#[path = "cli/mistakes.rs"]
mod mistakes;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use common::{
    learning::{cats_and_dogs, picture},
    program::{names, unfreeze},
    shared,
};
use serde_json::Value;
use tempfile::TempDir;
use unfreeze::{
    Device,
    checkpoint::{Checkpoint, collect, write_safetensors},
    learner::{EpochRecord, StepRecord},
    nn::{Arch, HeadSpec, Model},
};

const TRAIN: &str = "train {} --out {} --weights random --arch resnet20 --size 32 --hidden 8 --batch-size 4 --epochs 1";

/// Data and a trained run, made once for all tests.
fn trained() -> &'static (TempDir, PathBuf) {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    RUN.get_or_init(|| {
        let data = cats_and_dogs();
        let run = data.path().join("run");
        unfreeze(&format!("{TRAIN} --recipe head --seed 1"), &[data.path(), &run]).succeeded();
        (data, run)
    })
}

/// A ResNet-20 checkpoint with a classifier of ten.
fn checkpoint(folder: &Path) -> PathBuf {
    let path = folder.join("resnet20.safetensors");
    let model = Model::new(Arch::ResNet20, HeadSpec::Linear, 10, 1, &Device::cpu(1).unwrap()).unwrap();
    write_safetensors(&path, &collect(&model).unwrap(), &Default::default()).unwrap();
    path
}

#[test]
fn fastai_2s_recipe_is_one_flag() {
    let data = cats_and_dogs();
    let run = data.path().join("run");
    let flags = TRAIN.replace(" --epochs 1", " --fastai2 2 --threads 1 --json");
    let ran = unfreeze(&flags, &[data.path(), &run]).succeeded();
    let printed: Vec<EpochRecord> = ran.objects().into_iter().map(|o| serde_json::from_value(o).unwrap()).collect();
    let phases: Vec<_> = printed.iter().map(|record| (record.phase.as_str(), record.epoch, record.cached)).collect();
    assert_eq!(phases, [("head", 0, true), ("finetune", 0, false), ("finetune", 1, false)]);
    let again = unfreeze("train --resume --out {} --json", &[&run]).succeeded();
    assert_eq!(fs::read_to_string(run.join("history.jsonl")).unwrap(), ran.out);
    assert!(again.out.is_empty(), "nothing is left to do: {}", again.out);
}

#[test]
fn sizes_groups_unfreezing_and_watching_are_flags() {
    let data = cats_and_dogs();
    let (run, frozen) = (data.path().join("run"), data.path().join("frozen"));
    let train = TRAIN.replace("--size 32", "--threads 1 --cycles 1 --json");
    let flags = "--sizes 16,20 --groups stage --unfreeze gradual --schedule one-cycle --warm-up 0.5 --early-stopping 9 \
                 --reduce-on-plateau 9 --monitor accuracy --save-best accuracy";
    let ran = unfreeze(&format!("{train} {flags}"), &[data.path(), &run]).succeeded();
    let printed: Vec<EpochRecord> = ran.objects().into_iter().map(|o| serde_json::from_value(o).unwrap()).collect();
    let phases: Vec<_> = printed.iter().map(|record| record.phase.as_str()).collect();
    let unfreezing = ["unfreeze layer3", "unfreeze layer2", "unfreeze layer1"];
    assert_eq!(phases, [&["head"][..], &unfreezing, &["finetune-16", "finetune-20"]].concat());
    assert!(printed.iter().all(|record| record.lrs.len() == 5), "{printed:?}");
    let model = Checkpoint::read(run.join("model.safetensors")).unwrap();
    assert_eq!(model.metadata["size"], "20");
    let best = unfreeze("evaluate {} {} --json", &[&run.join("best.safetensors"), data.path()]).succeeded();
    let highest = printed.iter().map(EpochRecord::accuracy).fold(0.0, f32::max);
    assert_eq!(best.objects()[0]["accuracy"].as_f64().map(|accuracy| accuracy as f32), Some(highest));
    assert!(unfreeze("train --resume --out {} --json", &[&run]).succeeded().out.is_empty());

    let flags = "--recipe finetune --cycles 2 --cycle-mult 1 --freeze-out linear:0.3 --size 16";
    let ran = unfreeze(&format!("{} {flags}", train.replace("--cycles 1", "")), &[data.path(), &frozen]).succeeded();
    let printed: Vec<EpochRecord> = ran.objects().into_iter().map(|o| serde_json::from_value(o).unwrap()).collect();
    let trained = |record: &EpochRecord| record.lrs.iter().filter(|lr| **lr > 0.0).count();
    // Of eleven layers number i ends at .3 + .07·i; the epochs' last steps are at 2/6 and 5/6 of the fit.
    assert_eq!(printed.iter().map(trained).collect::<Vec<_>>(), [10, 3]);
}

#[test]
fn train_writes_a_run_and_prints_an_object_per_epoch() {
    let data = cats_and_dogs();
    let run = data.path().join("runs/full");
    let train = format!("{TRAIN} --cycles 1 --lr 1e-3 --json --metrics f0.5,auc");
    let ran = unfreeze(&train, &[data.path(), &run]).succeeded();
    let printed: Vec<EpochRecord> = ran.objects().into_iter().map(|o| serde_json::from_value(o).unwrap()).collect();
    let phases: Vec<_> = printed.iter().map(|record| (record.phase.as_str(), record.epoch, record.cached)).collect();
    assert_eq!(phases, [("head", 0, true), ("finetune", 0, false)]);
    let files = [".lock", "checkpoint", "config.toml", "grad_cam", "history.jsonl", "model.safetensors", "plots"];
    assert_eq!(names(&run), [files.as_slice(), &["predictions.jsonl", "report.html", "steps.jsonl"]].concat());
    assert_eq!(names(&run.join("grad_cam")), [0, 1, 2, 3, 4, 5].map(|line| format!("{line}.png")));
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(page.matches("alt=\"where the network finds ").count(), 6);
    let steps = fs::read_to_string(run.join("steps.jsonl")).unwrap();
    let steps: Vec<StepRecord> = steps.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(steps.len() == 6 && steps.iter().all(|step| step.momentum == 0.9 && step.lrs.len() == 3), "{steps:?}");
    let again = unfreeze("evaluate {} --json", &[&run]).succeeded().objects().remove(0);
    assert!((again["loss"].as_f64().unwrap() - f64::from(printed[1].valid_loss)).abs() < 1e-5, "{again}");
    assert_eq!(again["accuracy"].as_f64().map(|a| a as f32), Some(printed[1].accuracy()));
    let names_of = |metrics: &Value| metrics.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names_of(&again["metrics"]), ["auc", "f1", "precision", "recall"]);
    let asked = unfreeze("evaluate {} --metrics f0.5,log_loss,auc --top-k 1 --json", &[&run]).succeeded().objects();
    assert_eq!(names_of(&asked[0]["metrics"]), ["auc", "f0.5", "log_loss", "top1"]);
    assert_eq!(printed[1].metrics.keys().collect::<Vec<_>>(), ["accuracy", "auc", "f0.5"]);
    for name in ["auc", "f0.5"] {
        let found = asked[0]["metrics"][name].as_f64().unwrap();
        assert!((found - f64::from(printed[1].metrics[name])).abs() < 1e-6, "{name}: {found} {printed:?}");
    }
    let single = |value: &Value| value.as_f64().map(|value| value as f32);
    assert_eq!(single(&asked[0]["metrics"]["top1"]), single(&again["accuracy"]));
    assert_eq!(again["metrics"]["auc"], again["classes"][0]["auc"]);
    let whole = unfreeze("evaluate {} {} --json", &[&run, &data.path().join("train")]).succeeded().objects().remove(0);
    assert_eq!(whole["images"], 10);
    // Those of the run, though the folder has changed.
    picture(20, 0, 900).save(data.path().join("valid/cat/new.png")).unwrap();
    let table = unfreeze("evaluate {}", &[&run]).succeeded().out;
    assert!(table.contains("of 6 images") && table.contains("\nprecision ") && table.contains(", auc "), "{table}");
    let csv = data.path().join("labels.csv");
    fs::write(&csv, "path,label\nvalid/cat/new.png,cat\nvalid/dog/0.png,dog\n").unwrap();
    let table = unfreeze("evaluate {} {}", &[&run.join("model.safetensors"), &csv]).succeeded().out;
    assert!(table.contains("of 2 images"), "{table}");
    fs::write(&csv, "path,label\nvalid/cat/new.png,cow\n").unwrap();
    let wrong = unfreeze("evaluate {} {}", &[&run, &csv]);
    assert!(wrong.code == 1 && wrong.err.contains("line 2: class `cow`"), "{}", wrong.err);
    let alone = unfreeze("evaluate {}", &[&run.join("model.safetensors")]);
    assert!(alone.code == 1 && alone.err.contains("give DATA too"), "{}", alone.err);
    assert_eq!(fs::read_to_string(run.join("history.jsonl")).unwrap(), ran.out);
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["arch"].as_str(), Some("resnet20"));
    assert!(ran.err.contains("10 training and 6 validation images in 2 classes"), "{}", ran.err);

    let train = format!("{TRAIN} --recipe head --metrics recall,precision-micro");
    let table = unfreeze(&train, &[data.path(), &data.path().join("head")]).succeeded();
    let lines: Vec<_> = table.out.lines().collect();
    assert!(lines.len() == 3 && lines[0] == "head, on cached activations", "{}", table.out);
    let heads = "epoch      trn_loss   val_loss   accuracy   precision-micro   recall     ";
    assert!(lines[1].starts_with(heads) && lines[2].split_whitespace().count() == 9, "{}", table.out);
    let quiet = format!("{TRAIN} --recipe head --quiet");
    let quiet = unfreeze(&quiet, &[data.path(), &data.path().join("quiet")]).succeeded();
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
}

/// Snapshots are those of the cycles' ends; what is left of a run that was killed is no obstacle, but other files are.
#[test]
fn snapshots_are_kept_and_averaged() {
    let data = cats_and_dogs();
    let run = data.path().join("run");
    let train = format!("{TRAIN} --recipe finetune --cycles 2 --snapshots --json");
    unfreeze(&train, &[data.path(), &run]).succeeded();
    let snapshots: Vec<String> = names(&run).into_iter().filter(|name| name.starts_with("snapshot")).collect();
    assert_eq!(snapshots, ["snapshot-1.safetensors", "snapshot-2.safetensors"]);
    let [last, model] = ["snapshot-2.safetensors", "model.safetensors"].map(|name| fs::read(run.join(name)).unwrap());
    assert!(last == model);
    let found = unfreeze("evaluate {} --ensemble last:2 --json", &[&run]).succeeded().objects().remove(0);
    let alone = unfreeze("evaluate {} --json", &[&run]).succeeded().objects().remove(0);
    assert_eq!(found["members"].as_array().unwrap().len(), 2);
    assert_eq!((&found["members"][1]["loss"], &found["images"]), (&alone["loss"], &alone["images"]));
    assert!(found["loss"] != alone["loss"]);
    let text = unfreeze("evaluate {} --ensemble last:2", &[&run]).succeeded().out;
    assert!(text.starts_with("a snapshot alone: accuracy ") && text.contains("\nall 2 together:\naccuracy "), "{text}");
    // What it predicts is the mean of what its members predict.
    let valid = data.path().join("valid");
    let probability = |model: &Path, flags: &str| -> Vec<f64> {
        let ran = unfreeze(&format!("predict {{}} {{}} --json {flags}"), &[model, &valid]).succeeded();
        ran.objects().iter().map(|object| object["probabilities"]["dog"].as_f64().unwrap()).collect()
    };
    let [a, b] = [1, 2].map(|n| probability(&run.join(format!("snapshot-{n}.safetensors")), ""));
    let together = probability(&run, "--ensemble last:2");
    assert!(together.len() == 6 && a != b);
    assert!(together.iter().enumerate().all(|(n, mean)| (mean - (a[n] + b[n]) / 2.0).abs() < 1e-6));
    let few = unfreeze("evaluate {} --ensemble last:3", &[&run]);
    assert!(few.code == 2 && few.err.contains("there are 2 snapshots"), "{}", few.err);

    fs::remove_dir_all(run.join("checkpoint")).unwrap();
    for name in ["model.safetensors", "predictions.jsonl", "report.html"] {
        fs::remove_file(run.join(name)).unwrap();
    }
    for name in ["plots", "grad_cam"] {
        fs::remove_dir_all(run.join(name)).unwrap();
    }
    fs::write(run.join("snapshot-of-mine.txt"), "").unwrap();
    assert!(unfreeze(&train, &[data.path(), &run]).err.contains("already holds something"));
    fs::remove_file(run.join("snapshot-of-mine.txt")).unwrap();
    unfreeze(&format!("{TRAIN} --recipe head"), &[data.path(), &run]).succeeded();
    assert!(!names(&run).iter().any(|name| name.starts_with("snapshot")));
}

#[test]
fn predict_answers_alike_from_run_and_model_for_files_and_folders() {
    let (data, run) = trained();
    let model = run.join("model.safetensors");
    let cats = data.path().join("valid/cat");
    let ran = unfreeze("predict {} {} --json --top 5", &[run, &cats]).succeeded();
    let objects = ran.objects();
    assert_eq!(objects.len(), 3);
    for (n, object) in objects.iter().enumerate() {
        assert!(object["file"].as_str().unwrap().ends_with(&format!("{n}.png")));
        let top = object["top"].as_array().unwrap();
        assert!(top.len() == 2 && top[0]["class"] == object["class"] && top[0]["probability"] == object["probability"]);
        assert!(object["probability"].as_f64().unwrap() >= 0.5);
    }
    assert_eq!(unfreeze("predict {} {} --json --top 5 --batch-size 1", &[&model, &cats]).succeeded().out, ran.out);
    let table = unfreeze("predict {} {}", &[&model, &cats.join("0.png")]).succeeded();
    assert_eq!(table.out.trim().split('\t').count(), 2, "{}", table.out);

    // A file that is no image is named; the others are answered all the same.
    let text = data.path().join("notes.txt");
    fs::write(&text, "no image").unwrap();
    let mixed = unfreeze("predict {} {} {} --json", &[run, &cats.join("0.png"), &text]);
    assert!(mixed.code == 1 && mixed.objects().len() == 1);
    assert!(mixed.err.contains("notes.txt: could not be read (1 of 2 files"), "{}", mixed.err);
    let alone = unfreeze("predict {} {}", &[run, &text]);
    assert!(alone.code == 1 && alone.out.is_empty() && alone.err.contains("not an image"), "{}", alone.err);
}

/// The test images of the run's data by name, in a table and as objects; over views as `evaluate` averages them.
#[test]
fn predict_makes_a_table_of_a_part_of_the_data() {
    let (data, run) = trained();
    let work = tempfile::tempdir().unwrap();
    let (set, out) = (work.path().join("set"), work.path().join("out.csv"));
    fs::create_dir_all(set.join("test/more")).unwrap();
    for (seed, name) in ["b.png", "a, 1.png", "more/c.png"].iter().enumerate() {
        picture(20, seed % 2, 700 + seed as u64).save(set.join("test").join(name)).unwrap();
    }
    fs::write(set.join("test/notes.txt"), "no image").unwrap();
    let arguments = "predict {} {} --split test --csv {} --json";
    let ran = unfreeze(arguments, &[&run.join("model.safetensors"), &set, &out]).succeeded();
    assert!(ran.err.contains("notes.txt") && ran.err.contains("out.csv: predictions for 3 images"), "{}", ran.err);
    let mut table = csv::Reader::from_path(&out).unwrap();
    assert_eq!(table.headers().unwrap(), ["file", "class", "probability", "cat", "dog"].as_slice());
    let rows: Vec<(String, String, f64, f64, f64)> = table.deserialize().map(|row| row.unwrap()).collect();
    let files: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    assert_eq!(files, ["test/a, 1.png", "test/b.png", "test/more/c.png"]);
    let given = unfreeze("predict {} {} --json", &[run, &set.join("test")]).succeeded().objects();
    for ((row, object), given) in rows.iter().zip(ran.objects()).zip(given) {
        assert!(object["file"] == row.0.as_str() && object["class"] == row.1.as_str());
        let found = [&object["probability"], &object["probabilities"]["cat"], &object["probabilities"]["dog"]];
        let found = found.map(|value| value.as_f64().unwrap());
        assert!(found.iter().zip([row.2, row.3, row.4]).all(|(a, b)| (a - b).abs() < 1e-7), "{object} {row:?}");
        assert!(row.2 == row.3.max(row.4) && object["probabilities"] == given["probabilities"]);
    }
    // Each with a picture of what decided.
    let maps = work.path().join("maps/of it");
    let explained = unfreeze("predict {} {} --split test --grad-cam {} --json", &[run, &set, &maps]).succeeded();
    assert_eq!(names(&maps), ["1-a, 1.png", "2-b.png", "3-c.png"]);
    for (object, name) in explained.objects().iter().zip(names(&maps)) {
        let path = PathBuf::from(object["grad_cam"].as_str().unwrap());
        assert!(path == maps.join(name) && image::image_dimensions(path).unwrap() == (32, 32));
    }
    // An earlier layer is looked at more finely.
    let finer = work.path().join("finer");
    unfreeze("predict {} {} --split test --grad-cam {} --grad-cam-layer layer1", &[run, &set, &finer]).succeeded();
    let pictures = [&maps, &finer].map(|folder| fs::read(folder.join("2-b.png")).unwrap());
    assert_ne!(pictures[0], pictures[1]);
    // Without more it is silent; what the run held out is where its records say.
    let ran = unfreeze("predict {} --split valid --csv {} --tta 2", &[run, &out]).succeeded();
    assert!(ran.out.is_empty(), "{}", ran.out);
    let [tta, clean] = ["--tta 2", ""].map(|flags| {
        unfreeze(&format!("evaluate {{}} --json {flags}"), &[run]).succeeded().objects()[0]["loss"].as_f64().unwrap()
    });
    let ways = ["", "--tta-mean logits", "--tta-clean 1"].map(|flags| {
        let ran = unfreeze(&format!("evaluate {{}} --json --tta 2 {flags}"), &[run]).succeeded();
        ran.objects()[0]["loss"].as_f64().unwrap()
    });
    assert!(ways[0] == tta && ways[1] != tta && (ways[2] - clean).abs() < 1e-6, "{ways:?} {clean}");
    let rows = csv::Reader::from_path(&out).unwrap().into_deserialize().map(|row| row.unwrap()).collect::<Vec<_>>();
    let loss = |(file, _, _, cat, dog): &(String, String, f64, f64, f64)| {
        assert!(data.path().join(file).is_file());
        -(if file.contains("/cat/") { cat } else { dog }).ln()
    };
    let loss = rows.iter().map(loss).sum::<f64>() / rows.len() as f64;
    assert!(rows.len() == 6 && (loss - tta).abs() < 1e-5 && (tta - clean).abs() > 1e-5, "{loss} {tta} {clean}");

    fs::remove_file(&out).unwrap();
    let (model, folder) = (run.join("model.safetensors"), work.path().join("folder.csv"));
    fs::create_dir(&folder).unwrap();
    for (arguments, paths, code, cause) in [
        ("predict {} --split test", vec![model.as_path()], 1, "give DATA too"),
        ("predict {} {} {} --split test", vec![run, &set, &set], 2, "2 paths are given"),
        ("predict {} {} --split valid", vec![run, &set], 1, "set: has no folder `valid` of validation images"),
        ("predict {} {} --tta 2", vec![&model, &set], 1, "give its run folder"),
        ("predict {} {} --csv {}", vec![run, &set, &work.path().join("out.txt")], 2, "should end in .csv"),
        ("predict {} {} --csv {}", vec![run, &set, &work.path().join("no/out.csv")], 1, "no such folder"),
        ("predict {} {} --csv {}", vec![run, &set, &folder], 1, "folder.csv: is a directory"),
        ("predict {} {} --tta 2 --ensemble last:2", vec![run, &set], 2, "cannot be used with"),
        ("predict {} {} --tta-clean 0.5", vec![run, &set], 2, "--tta <N>"),
        ("predict {} {} --tta 2 --tta-clean 1.5", vec![run, &set], 2, "1.5 is no share"),
        ("predict {} {} --threshold 0.2", vec![run, &set], 2, "multi-label"),
        ("predict {} {} --grad-cam {} --grad-cam-layer layer4", vec![run, &set, &finer], 2, "layer4"),
        ("predict {} {} --grad-cam x --ensemble last:2", vec![run, &set], 2, "cannot be used with"),
        ("predict {} {} --grad-cam {}", vec![run, &set, &model], 1, "model.safetensors: "),
    ] {
        let ran = unfreeze(arguments, &paths);
        assert!(ran.code == code && ran.err.contains(cause) && ran.out.is_empty(), "{arguments}: {}", ran.err);
    }
    assert!(!out.exists());
}

#[test]
fn features_have_the_layers_shape_and_name_their_files() {
    let (data, _) = trained();
    let work = tempfile::tempdir().unwrap();
    let (weights, out) = (checkpoint(work.path()), work.path().join("features.safetensors"));
    let (cats, dog) = (data.path().join("valid/cat"), data.path().join("valid/dog/1.png"));
    for (layer, shape) in [
        ("stem", vec![4, 16, 32, 32]),
        ("layer1", vec![4, 16, 32, 32]),
        ("layer2", vec![4, 32, 16, 16]),
        ("layer3", vec![4, 64, 8, 8]),
        ("avgpool", vec![4, 64]),
        ("logits", vec![4, 10]),
    ] {
        let arguments = format!("features {{}} {{}} --weights {{}} --layer {layer} --out {{}}");
        unfreeze(&arguments, &[&dog, &cats, &weights, &out]).succeeded();
        let file = Checkpoint::read(&out).unwrap();
        assert_eq!(file.tensors["features"].shape, shape, "{layer}");
        let files: Vec<String> = serde_json::from_str(&file.metadata["files"]).unwrap();
        let ends = ["dog/1.png", "cat/0.png", "cat/1.png", "cat/2.png"];
        assert!(files.len() == 4 && files.iter().zip(ends).all(|(file, end)| file.ends_with(end)), "{files:?}");
    }
    fs::remove_file(&out).unwrap();
    let ran = unfreeze("features {} --weights {} --layer layer4 --out {}", &[&cats, &weights, &out]);
    assert!(ran.code == 2 && ran.err.contains("resnet20 has no layer4; its stages end at layer3"), "{}", ran.err);
    assert!(!out.exists());
}

#[test]
fn convert_and_inspect_read_what_pytorch_wrote() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.safetensors");
    let golden = shared("golden/checkpoints");
    let input = golden.as_ref().map_or_else(|| checkpoint(work.path()), |folder| folder.join("zip.pth"));
    unfreeze("convert {} {} --dtype f16", &[&input, &out]).succeeded();
    let ran = unfreeze("inspect {} --json", &[&out]).succeeded();
    let file = Checkpoint::read(&out).unwrap();
    let mut objects = ran.objects();
    let last = objects.pop().unwrap();
    assert!(last["format"] == "safetensors" && last["tensors"] == file.tensors.len(), "{last}");
    assert_eq!(objects.len(), file.tensors.len());
    for object in objects {
        let tensor = &file.tensors[object["name"].as_str().unwrap()];
        assert_eq!(object["shape"], serde_json::json!(tensor.shape));
        assert!(object["dtype"] == "f16" || !tensor.dtype.is_float());
    }
    let wrapped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/fixtures/imagenet_example.pth.tar");
    let told = unfreeze("inspect {}", &[&wrapped]).succeeded().out;
    assert!(told.contains("left out: best_acc1 (stored beside the weights)\n"), "{told}");
    let told = unfreeze("inspect {} --json", &[&wrapped]).succeeded().objects();
    let left = serde_json::json!([{ "name": "best_acc1", "reason": "stored beside the weights" }]);
    assert_eq!(told.last().unwrap()["left_out"], left);
    let table = unfreeze("inspect {}", &[&out]).succeeded();
    assert!(table.out.ends_with("elements\n") && table.out.lines().count() == file.tensors.len() + 1);

    let (pth, weights) = (work.path().join("out.pth"), checkpoint(work.path()));
    let told = unfreeze("convert {} {}", &[&weights, &pth]).succeeded();
    assert!(told.err.contains("safetensors, resnet20 by names and shapes"), "{}", told.err);
    let told = unfreeze("inspect {} --stats", &[&pth]).succeeded().out;
    assert!(told.contains("  std ") && told.contains("PyTorch zip, resnet20: "), "{told}");
    let plan = unfreeze("convert {} --dry-run --dtype bf16", &[&weights]).succeeded().out;
    assert!(plan.contains("fc.bias  f32 -> bf16 [10]\n"), "{plan}");
    let same = unfreeze("convert {} --check {}", &[&weights, &pth]).succeeded().out;
    assert!(same.contains("tensors equal, 0 different, 0 missing, 0 extra"), "{same}");
    let half = work.path().join("half.pt");
    let rounded = unfreeze("convert {} {} --dtype f16 --check {}", &[&weights, &half, &pth]).succeeded().out;
    assert!(rounded.contains("fc.weight: differs by up to ") && rounded.contains(", rounding\n"), "{rounded}");
    let other = unfreeze("convert {} --check {}", &[&out, &weights]);
    assert!(golden.is_none() || other.code == 1 && other.err.contains("differs from"), "{}", other.err);

    let onnx = work.path().join("out.onnx");
    unfreeze("convert {} {} --batchnorm keep", &[&weights, &onnx]).succeeded();
    let told = unfreeze("inspect {}", &[&onnx]).succeeded().out;
    assert!(told.contains("resnet20: "), "{told}");
    let ran = unfreeze("convert {} {}", &[&input, &work.path().join("out.txt")]);
    assert!(ran.code == 2 && ran.err.contains("should end in .safetensors"), "{}", ran.err);
    let ran = unfreeze("convert {} {} --check {}", &[&weights, &pth, &pth]);
    assert!(ran.code == 2 && ran.err.contains("would be written over"), "{}", ran.err);
    let ran = unfreeze("convert {} {} --arch resnet18", &[&weights, &work.path().join("x.safetensors")]);
    assert!(ran.code == 1 && ran.err.contains("of resnet20, not of resnet18; use --arch resnet20"), "{}", ran.err);
    assert!(!work.path().join("x.safetensors").exists() && !work.path().join("out.txt").exists());
}

#[test]
fn summary_and_devices_print_objects() {
    let summary = unfreeze("summary --arch resnet20 --freeze-to 1 --json", &[]).succeeded().objects();
    assert_eq!(summary.len(), 11);
    assert_eq!(summary[10]["shape"], serde_json::json!([1, 2]));
    let trainable = |layer: &Value| layer["trainable"].as_u64().unwrap() > 0;
    assert!(summary.iter().all(|layer| trainable(layer) == (layer["group"].as_u64().unwrap() > 0)));
    let table = unfreeze("summary --arch resnet20", &[]).succeeded();
    assert!(table.out.contains("groups: 0 stem..layer1 (frozen)"), "{}", table.out);
    let memory = "summary --arch resnet20 --freeze-to 1 --memory --batch-size 8 --dtype bf16";
    let objects = unfreeze(&format!("{memory} --json"), &[]).succeeded().objects();
    assert_eq!(objects[0]["output_bytes"], 8.0 * 32.0 * 32.0 * 16.0 * 2.0);
    let kept = |layer: &Value| layer["saved_bytes"].as_f64().unwrap() > 0.0;
    assert!(objects.iter().all(|layer| kept(layer) == (layer["group"].as_u64().unwrap() > 0)));
    let table = unfreeze(memory, &[]).succeeded().out;
    assert!(table.starts_with("layer") && table.contains("kept, MB"), "{table}");

    let devices = unfreeze("devices --json", &[]).succeeded().objects();
    assert!(devices[0]["name"] == "cpu" && devices[0]["threads"].as_u64() > Some(0));
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, start) in [("bash", "_unfreeze"), ("zsh", "#compdef unfreeze"), ("fish", "# Print an optspec")] {
        let script = unfreeze(&format!("completions {shell}"), &[]).succeeded().out;
        assert!(script.starts_with(start) && script.contains("lr-find"), "{script}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let work = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_unfreeze"));
    let ran = inspect.arg("inspect").arg(checkpoint(work.path())).stdout(writer).output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
}
