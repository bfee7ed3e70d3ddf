//! `unfreeze demo` as a user runs it: what it leaves behind, what it shows, and that it repeats itself.
#![cfg(feature = "cli")]

use std::{
    error::Error,
    fs,
    path::Path,
    process::{Command, Output},
};

use unfreeze::learner::EpochRecord;

type Outcome = Result<(), Box<dyn Error>>;

const CHANCE: f32 = 1.0 / 8.0;
/// What an accuracy must be ahead by to count as better: more than ten times the share of one picture.
const MARGIN: f32 = 0.2;

fn unfreeze(arguments: &[&str], folder: &Path) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_unfreeze")).args(arguments).arg(folder).output()
}

fn demo(out: &Path) -> std::io::Result<Output> {
    unfreeze(&["demo", "--budget", "small", "--seed", "3", "--out"], out)
}

/// The last epoch of a phase in a run folder.
fn last(run: &Path, phase: &str) -> Result<EpochRecord, Box<dyn Error>> {
    let text = fs::read_to_string(run.join("history.jsonl"))?;
    let records = text.lines().map(serde_json::from_str).collect::<Result<Vec<EpochRecord>, _>>()?;
    let found = records.into_iter().rfind(|record| record.phase == phase);
    found.ok_or_else(|| format!("{} has no phase '{phase}'", run.display()).into())
}

/// The accuracy in the printed table's row called `name`.
fn printed(output: &str, name: &str) -> Result<f32, Box<dyn Error>> {
    let row = output.lines().find_map(|line| line.strip_prefix("  ")?.strip_prefix(name)).ok_or(name)?;
    Ok(row.split_whitespace().next().ok_or(name)?.parse()?)
}

#[test]
fn the_demo_shows_what_transfer_is_worth_and_repeats_itself() -> Outcome {
    let folder = tempfile::tempdir()?;
    let run = folder.path().join("run");
    let output = demo(&run)?;
    let (out, messages) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success(), "{messages}");
    assert!(out.contains("unfreeze predict") && out.contains("report.html"), "{out}");
    for file in [
        "config.toml",
        "model.safetensors",
        "report.html",
        "resnet20-cifar10.safetensors",
        "data/train/star/0000.png",
        "data/valid/arrow/0000.png",
        "comparison/random-backbone/model.safetensors",
        "comparison/from-scratch/history.jsonl",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }

    // The table is what the records say, and pretraining is ahead of everything that does without.
    let (head, whole) = (last(&run, "head")?, last(&run, "finetune")?);
    let random = last(&run.join("comparison/random-backbone"), "head")?;
    let scratch = last(&run.join("comparison/from-scratch"), "finetune")?;
    assert!(head.cached && random.cached && !whole.cached && !scratch.cached);
    for (name, record) in [
        ("random backbone, new head", &random),
        ("random weights, everything trained", &scratch),
        ("pretrained backbone, new head", &head),
        ("then unfrozen, a rate per layer group", &whole),
    ] {
        assert!((printed(&out, name)? - record.accuracy()).abs() < 1e-3, "{name}: {} in {out}", record.accuracy());
    }
    let pixels = printed(&out, "linear classifier of the pixels")?;
    assert!((printed(&out, "chance")? - CHANCE).abs() < 1e-3, "{out}");
    assert!(pixels > CHANCE, "a linear classifier of the pixels learns nothing:\n{out}");
    for ahead in [&head, &whole] {
        for behind in [pixels, random.accuracy(), scratch.accuracy()] {
            assert!(ahead.accuracy() > behind + MARGIN, "{out}");
        }
    }
    assert!(whole.accuracy() > head.accuracy() - 0.05, "{out}");

    // It is a run folder as any: it can be evaluated, and is not overwritten.
    let evaluated = String::from_utf8(unfreeze(&["evaluate"], &run)?.stdout)?;
    let averaged = String::from_utf8(unfreeze(&["evaluate", "--tta", "2"], &run)?.stdout)?;
    let first = evaluated.lines().next().unwrap();
    let (accuracy, loss) = (first.split(' ').nth(1).unwrap(), first.rsplit(' ').next().unwrap());
    assert!(
        averaged.starts_with(&format!("clean views alone: accuracy {accuracy}, loss {loss}; with 2 more:\naccuracy "))
    );
    assert!(evaluated.starts_with(&format!("accuracy {:.4}", whole.accuracy())), "{evaluated}");
    let model = fs::read(run.join("model.safetensors"))?;
    let again = demo(&run)?;
    assert!(!again.status.success());
    let message = String::from_utf8(again.stderr)?;
    assert!(message.contains(&*run.to_string_lossy()) && message.contains("--out"), "{message}");
    assert_eq!(fs::read(run.join("model.safetensors"))?, model);

    let repeat = folder.path().join("repeat");
    assert!(demo(&repeat)?.status.success());
    assert_eq!(last(&repeat, "finetune")?.valid_loss, whole.valid_loss);
    assert!(fs::read(repeat.join("model.safetensors"))? == model, "the same seed gives another model");
    Ok(())
}

/// Interrupted before the transfer, the demo leaves nothing in the way of the next attempt.
#[cfg(unix)]
#[test]
fn an_interrupted_demo_tidies_up() -> Outcome {
    use std::{
        process::Stdio,
        thread::sleep,
        time::{Duration, Instant},
    };

    let folder = tempfile::tempdir()?;
    let run = folder.path().join("run");
    let mut child = Command::new(env!("CARGO_BIN_EXE_unfreeze"))
        .args(["demo", "--out"])
        .arg(&run)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    while !run.join("comparison").exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait()?.is_none(), "no comparison was begun");
        sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success());
    assert!(!child.wait()?.success());
    assert!(!run.exists(), "left behind: {:?}", fs::read_dir(&run)?.flatten().map(|e| e.path()).collect::<Vec<_>>());
    Ok(())
}
