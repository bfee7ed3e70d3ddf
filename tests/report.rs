//! `unfreeze report` and `unfreeze lr-find` as a user runs them.

mod common;

use std::{fs, path::Path, process::Command};

use common::learning::folders;
use serde_json::Value;

/// Runs the program; its exit status, standard output and standard error.
fn unfreeze(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_unfreeze")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    (output.status.code().unwrap(), out, err)
}

#[track_caller]
fn picture(path: &Path) {
    let image = image::open(path).unwrap();
    assert!(image.width() >= 900 && image.height() >= 500, "{}", path.display());
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const MODEL: [&str; 10] =
    ["--weights", "random", "--arch", "resnet20", "--size", "32", "--hidden", "8", "--batch-size", "4"];

#[test]
fn a_run_becomes_a_page() {
    let data = folders(&["<cat> & \"co\"", "hündchen"], 5, 3, 0);
    let (root, run) = (data.path().to_str().unwrap(), data.path().join("run"));
    let train = ["train", root, "--out", run.to_str().unwrap(), "--epochs", "2", "--cycles", "1"];
    let (code, _, err) = unfreeze(&[&train[..], &MODEL].concat());
    assert_eq!(code, 0, "{err}");
    let before = entries(&run);
    let (code, out, err) = unfreeze(&["report", run.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (0, format!("{}\n", run.join("report.html").display()).as_str()), "{err}");
    let mut after = [before, vec!["plots".into(), "report.html".into()]].concat();
    after.sort();
    assert_eq!(entries(&run), after, "nothing else is touched");
    for name in entries(&run.join("plots")) {
        picture(&run.join("plots").join(name));
    }
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("&lt;cat&gt; &amp;") && html.contains("hündchen") && !html.contains("<cat>"));
    assert!(html.contains("<td class=\"text\">finetune</td>") && html.contains("After 3 epochs"), "{html}");
    // Again: what was there is replaced.
    assert_eq!(unfreeze(&["report", run.to_str().unwrap()]).0, 0);
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, err) = unfreeze(&["report", folder.path().to_str().unwrap()]);
    assert!(code == 1 && out.is_empty() && err.contains("it has no config.toml"), "{err}");
    fs::write(folder.path().join("config.toml"), "classes = ['a', 'b']").unwrap();
    fs::write(folder.path().join("history.jsonl"), "nonsense\n").unwrap();
    let (code, _, err) = unfreeze(&["report", folder.path().to_str().unwrap()]);
    assert!(code == 1 && err.contains("history.jsonl: line 1 is damaged"), "{err}");
}

#[test]
fn a_search_prints_a_rate_and_leaves_plot_and_numbers() {
    let data = folders(&["red", "green"], 8, 2, 0);
    let (root, out) = (data.path().to_str().unwrap(), data.path().join("search/of rates"));
    let search = ["lr-find", root, "--out", out.to_str().unwrap(), "--steps", "30", "--precompute", "off"];
    let (code, printed, err) = unfreeze(&[&search[..], &MODEL, &["--json", "--freeze-to", "0"]].concat());
    assert_eq!(code, 0, "{err}");
    assert_eq!(entries(&out), ["lr_find.json", "lr_find.png"]);
    picture(&out.join("lr_find.png"));
    assert_eq!(fs::read_to_string(out.join("lr_find.json")).unwrap(), printed);
    let object: Value = serde_json::from_str(&printed).unwrap();
    let count = |key: &str| object[key].as_array().unwrap().len();
    assert!(count("lrs") > 5 && count("lrs") == count("losses") && count("lrs") == count("smoothed"));

    fs::write(out.join("note.txt"), "kept").unwrap();
    let (code, printed, err) = unfreeze(&[&search[..], &MODEL].concat());
    assert_eq!(code, 0, "{err}");
    assert!(printed.starts_with("none") || printed.trim().parse::<f32>().is_ok_and(|lr| lr > 1e-6), "{printed}");
    assert_eq!(entries(&out), ["lr_find.json", "lr_find.png", "note.txt"]);

    for (flags, message) in [
        (["--steps", "3"], "--steps: 3 is not between 10"),
        (["--start", "-1"], "--start: -1"),
        (["--end", "1e-9"], "--end: "),
        (["--lr", "1,2"], "--lr: 2 values"),
    ] {
        let search = ["lr-find", root, "--out", out.to_str().unwrap()];
        let (code, _, err) = unfreeze(&[&search[..], &MODEL, &flags].concat());
        assert!(code == 2 && err.contains(message), "{flags:?}: {code} {err}");
    }
}
