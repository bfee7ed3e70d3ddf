//! Disks that are full, folders that cannot be written, memory that does not suffice, files that change under a run.

mod common;

use std::{fs, io::Write, path::Path, process::Command};

use common::{
    learning::{bits, cats_and_dogs, changed, data, folders, learner, picture},
    program::{names, ran, unfreeze},
};
use unfreeze::{
    Error,
    learner::{Event, Fit, Flow},
    optim::PerGroup,
};

const TRAIN: &str = "--weights random --arch resnet20 --size 16 --hidden 8 --batch-size 4 --epochs 2 --cycles 1";

/// Runs the program in a shell that has first run `before`.
fn under(before: &str, arguments: &str, paths: &[&Path]) -> common::program::Ran {
    let script = format!("{before}; exec \"$0\" \"$@\"");
    let program = common::program::command(arguments, paths);
    let environment = program.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let output = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(program.get_program())
        .args(program.get_args())
        .envs(environment)
        .output()
        .unwrap();
    ran(output)
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_from_the_start_leaves_nothing() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    // No file may grow beyond so many blocks of 512 bytes, as if the disk were full: first the backbone does not fit
    // (1.1 MB), so no epoch is ever finished.
    let limited = |blocks: u32, arguments: &str, paths: &[&Path]| {
        under(&format!("trap '' XFSZ; ulimit -f {blocks}"), arguments, paths)
    };
    let train = format!("train {{}} --out {{}} {TRAIN}");
    let failed = limited(1000, &train, &[images.path(), &run]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(failed.err.contains("backbone") && failed.err.contains("too large"), "{}", failed.err);
    assert!(!run.exists(), "{:?}", names(&run));

    let failed = limited(1, &train, &[images.path(), &run]);
    assert!(failed.code == 1 && !run.exists(), "not even the configuration fits: {}", failed.err);
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_later_leaves_a_run_to_resume() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let (whole, run) = (out.path().join("whole"), out.path().join("run"));
    let train = format!("train {{}} --out {{}} {TRAIN}");
    unfreeze(&train, &[images.path(), &whole]).succeeded();
    // The backbone fits while the head trains, but the whole model at its end does not.
    let size = |file: &str| fs::metadata(whole.join(file)).unwrap().len();
    let model = size("model.safetensors");
    let blocks = (model - 512) / 512;
    assert!(size("checkpoint/state.safetensors") < model - 1024);
    let failed = under(&format!("trap '' XFSZ; ulimit -f {blocks}"), &train, &[images.path(), &run]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(failed.err.contains("--resume") && failed.err.contains("too large"), "{}", failed.err);
    unfreeze("train --resume --out {}", &[&run]).succeeded();
    for file in ["model.safetensors", "steps.jsonl", "predictions.jsonl"] {
        assert!(fs::read(run.join(file)).unwrap() == fs::read(whole.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn what_is_not_of_a_run_is_never_touched() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    fs::create_dir_all(run.join("checkpoint")).unwrap();
    fs::write(run.join("checkpoint/mine.pth"), "precious").unwrap();
    fs::write(run.join("config.toml"), "mine = 1").unwrap();
    let refused = unfreeze(&format!("train {{}} --out {{}} {TRAIN}"), &[images.path(), &run]);
    assert!(refused.code == 1 && refused.err.contains("already holds something"), "{}", refused.err);
    assert_eq!(names(&run), ["checkpoint", "config.toml"]);
    assert_eq!(fs::read_to_string(run.join("checkpoint/mine.pth")).unwrap(), "precious");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_costs_no_run() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    for (redirect, code) in [(">/dev/full", 1), ("2>/dev/full", 0), (">/dev/full 2>/dev/full", 1)] {
        let run = out.path().join(redirect.replace(['>', '/', ' '], "_"));
        let ran = under(&format!("exec {redirect}"), &format!("train {{}} --out {{}} {TRAIN}"), &[images.path(), &run]);
        assert_eq!(ran.code, code, "{redirect}: {}", ran.err);
        assert!(run.join("report.html").exists() && run.join("model.safetensors").exists(), "{redirect}");
    }
}

#[test]
fn folders_that_cannot_be_written_are_named_before_anything_is_trained() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let file = out.path().join("file");
    fs::write(&file, "").unwrap();
    let mut places = vec![file.join("run"), file];
    let locked = out.path().join("locked");
    fs::create_dir(&locked).unwrap();
    #[cfg(unix)]
    fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    if fs::write(locked.join("x"), "").is_ok() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this user may write to read-only folders");
    } else {
        places.push(locked.join("run"));
        places.push(locked);
    }
    for place in places {
        let failed = unfreeze(&format!("train {{}} --out {{}} {TRAIN}"), &[images.path(), &place]);
        assert_eq!((failed.code, failed.out.as_str()), (1, ""), "{}", failed.err);
        assert!(failed.err.contains(&place.display().to_string()), "{}", failed.err);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_batch_that_does_not_fit_is_refused_with_one_that_would() {
    let images = folders(&["cat", "dog"], 40, 2, 0);
    let out = tempfile::tempdir().unwrap();
    let train = "train {} --out {} --weights random --arch resnet18 --size 512 --batch-size 64 --epochs 1 --threads 1";
    let refused = under("ulimit -v 4000000", train, &[images.path(), &out.path().join("run")]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("--batch-size: a training step of 64 images"), "{}", refused.err);
    assert!(refused.err.contains("would fit"), "{}", refused.err);
    assert!(!out.path().join("run").exists());
}

#[test]
fn a_loss_that_is_not_finite_names_the_step_and_the_layer() {
    let images = cats_and_dogs();
    let mut fitted = learner(data(&images));
    fitted.unfreeze();
    // The head's rate is harmless; the first group's throws its weights far out in the first step.
    let fit = Fit::epochs(2).lr(PerGroup::Each(vec![1e36, 0.0, 1e-3])).phase("boom");
    let error = fitted.fit(fit).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Diverged(_)), "{message}");
    assert!(message.contains("'boom'") && message.contains("step 1"), "{message}");
    let place = ["conv1", "bn1", "layer1"].iter().any(|layer| message.contains(layer));
    assert!(place && message.contains("lower the learning rate"), "{message}");

    let out = tempfile::tempdir().unwrap();
    let run = out.path().join("run");
    let train = format!("train {{}} --out {{}} {TRAIN} --lr 1e36,1e36,1e-3");
    let failed = unfreeze(&train, &[images.path(), &run]);
    assert!(failed.code == 1 && failed.err.contains("finetune"), "{}", failed.err);
    let history = fs::read_to_string(run.join("history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 2, "the head's epochs");
    unfreeze("predict {} {}", &[&run, images.path()]).succeeded();
}

#[test]
fn files_that_change_or_vanish_are_noted_and_the_fit_goes_on() {
    for precompute in [false, true] {
        let images = folders(&["cat", "dog"], 6, 4, 0);
        let root = images.path().to_owned();
        let notes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let list = notes.clone();
        let mut fitted = learner(data(&images)).callback(move |event: &Event| {
            match event {
                Event::Epoch(record) if record.epoch == 0 => {
                    fs::remove_file(root.join("train/cat/1.png")).unwrap();
                    fs::write(root.join("train/dog/2.png"), "no longer an image").unwrap();
                    picture(31, 1, 99).save(root.join("train/dog/3.png")).unwrap();
                    fs::remove_file(root.join("valid/cat/0.png")).unwrap();
                }
                Event::Note(text) => list.lock().unwrap().push(text.to_string()),
                _ => {}
            }
            Flow::Continue
        });
        fitted.precompute(precompute);
        let before = bits(fitted.model());
        let records = fitted.fit(Fit::epochs(3)).unwrap().len();
        assert_eq!(records, 3);
        assert!(!changed(&before, &bits(fitted.model())).is_empty());
        let notes = notes.lock().unwrap();
        for file in ["train/cat/1.png", "train/dog/2.png", "valid/cat/0.png"] {
            assert_eq!(notes.iter().filter(|note| note.contains(file)).count(), 1, "{file}: {notes:?}");
        }
        assert!(!notes.iter().any(|note| note.contains("dog/3.png")), "{notes:?}");
        assert_eq!(fitted.last_evaluation().unwrap().labels.len(), 7);

        // In strict mode the first of them ends the fit.
        let mut strict = learner(data(&images).strict(false).unwrap());
        fs::remove_dir_all(images.path().join("train")).unwrap();
        let message = strict.fit(Fit::epochs(1)).unwrap_err().to_string();
        assert!(message.contains("could be decoded"), "{message}");
    }
}
