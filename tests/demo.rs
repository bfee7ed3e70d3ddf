//! `unfreeze demo` as a user runs it: what it leaves behind, that it learns, and that it repeats itself.
#![cfg(feature = "cli")]

use std::{
    error::Error,
    fs,
    path::Path,
    process::{Command, Output},
};

use unfreeze::learner::EpochRecord;

type Outcome = Result<(), Box<dyn Error>>;

const CHANCE: f32 = 1.0 / 6.0;

fn demo(out: &Path) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_unfreeze"))
        .args(["demo", "--budget", "small", "--seed", "3", "--out"])
        .arg(out)
        .output()
}

/// The last epoch of a phase in a run folder.
fn last(run: &Path, phase: &str) -> Result<EpochRecord, Box<dyn Error>> {
    let text = fs::read_to_string(run.join("history.jsonl"))?;
    let records = text.lines().map(serde_json::from_str).collect::<Result<Vec<EpochRecord>, _>>()?;
    let found = records.into_iter().rfind(|record| record.phase == phase);
    found.ok_or_else(|| format!("{} has no phase '{phase}'", run.display()).into())
}

#[test]
fn the_demo_learns_repeats_itself_and_overwrites_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let run = folder.path().join("run");
    let output = demo(&run)?;
    let (printed, messages) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success(), "{messages}");
    assert!(printed.contains("chance") && printed.contains("unfreeze predict"), "{printed}");
    for file in [
        "config.toml",
        "history.jsonl",
        "model.safetensors",
        "pretrained.safetensors",
        "data/pretrain/train/star/0000.png",
        "data/transfer/valid/arrow/0000.png",
        "comparison/random-backbone/model.safetensors",
        "comparison/from-scratch/history.jsonl",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }

    // Both parts of the transfer beat chance by far, and a head on the random backbone.
    let (head, whole) = (last(&run, "head")?, last(&run, "finetune")?);
    let random = last(&run.join("comparison/random-backbone"), "head")?;
    assert!(head.cached && random.cached && !whole.cached);
    for record in [&head, &whole] {
        let message = format!("{}: {} after {}", record.phase, record.accuracy(), random.accuracy());
        assert!(record.accuracy() > 2.0 * CHANCE && record.accuracy() > random.accuracy(), "{message}");
    }

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
