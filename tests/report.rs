//! `unfreeze report` and `unfreeze lr-find` as a user runs them.

mod common;

use std::{fs, path::Path};

use common::{
    learning::folders,
    program::{names, unfreeze},
};

#[track_caller]
fn picture(path: &Path) {
    let image = image::open(path).unwrap();
    assert!(image.width() >= 900 && image.height() >= 500, "{}", path.display());
}

const MODEL: &str = "--weights random --arch resnet20 --size 32 --hidden 8 --batch-size 4";

#[test]
fn a_run_becomes_a_page() {
    let data = folders(&["<cat> & \"co\"", "hündchen"], 5, 3, 0);
    let run = data.path().join("run");
    unfreeze(&format!("train {{}} --out {{}} {MODEL} --epochs 2 --cycles 1"), &[data.path(), &run]).succeeded();
    let expected = names(&run);
    assert!(expected.contains(&"report.html".into()), "a run ends with its report: {expected:?}");
    fs::remove_file(run.join("report.html")).unwrap();
    fs::remove_dir_all(run.join("plots")).unwrap();
    for _ in 0..2 {
        // The second time, what is there is replaced.
        let ran = unfreeze("report {}", &[&run]).succeeded();
        assert_eq!(ran.out, format!("{}\n", run.join("report.html").display()));
        assert_eq!(names(&run), expected, "nothing else is touched");
    }
    let plots = run.join("plots");
    assert_eq!(names(&plots), ["accuracy.png", "confusion.png", "learning_rates.png", "losses.png"]);
    names(&plots).iter().for_each(|name| picture(&plots.join(name)));
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("&lt;cat&gt; &amp; &quot;co&quot;") && html.contains("hündchen") && !html.contains("<cat>"));
    assert!(html.contains("<td class=\"text\">finetune</td>") && html.contains("After 3 epochs"), "{html}");
    let images = html.matches("data:image/jpeg;base64,").count();
    assert!(images >= 6 && !html.contains("class=\"missing\""), "all six are among the losses: {images}");
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let ran = unfreeze("report {}", &[folder.path()]);
    assert!(ran.code == 1 && ran.out.is_empty() && ran.err.contains("it has no config.toml"), "{}", ran.err);
    fs::write(folder.path().join("config.toml"), "classes = ['a', 'b']").unwrap();
    fs::write(folder.path().join("history.jsonl"), "nonsense\n").unwrap();
    let ran = unfreeze("report {}", &[folder.path()]);
    assert!(ran.code == 1 && ran.err.contains("history.jsonl: line 1 is damaged"), "{}", ran.err);
    assert_eq!(names(folder.path()), ["config.toml", "history.jsonl"]);
}

#[test]
fn a_search_prints_a_rate_and_leaves_plot_and_numbers() {
    let data = folders(&["red", "green"], 8, 2, 0);
    let out = data.path().join("search/of rates");
    let search = |flags: &str| unfreeze(&format!("lr-find {{}} --out {{}} {MODEL} {flags}"), &[data.path(), &out]);
    let ran = search("--steps 30 --precompute off --freeze-to 0 --json").succeeded();
    assert_eq!(names(&out), ["lr_find.json", "lr_find.png"]);
    picture(&out.join("lr_find.png"));
    assert_eq!(fs::read_to_string(out.join("lr_find.json")).unwrap(), ran.out);
    let object = &ran.objects()[0];
    let count = |key: &str| object[key].as_array().unwrap().len();
    assert!(count("lrs") > 5 && count("lrs") == count("losses") && count("lrs") == count("smoothed"));
    assert_eq!(object["suggestion"], object["minimum"]);
    let ran = search("--steps 30 --precompute off --freeze-to 0 --json --suggest valley").succeeded();
    assert_eq!(ran.objects()[0]["suggestion"], object["valley"], "the same search, read otherwise");

    fs::write(out.join("note.txt"), "kept").unwrap();
    let ran = search("--steps 30 --quiet").succeeded();
    let rate = ran.out.trim().parse::<f32>();
    assert!(ran.out.starts_with("none") || rate.is_ok_and(|lr| lr > 1e-6), "{}", ran.out);
    assert_eq!((ran.err.as_str(), names(&out).len()), ("", 3));

    for (flags, message) in [
        ("--steps 3", "--steps: 3 is not between 10"),
        ("--steps epoch", "--steps: 4, those of an epoch, is not between 10"),
        ("--suggest slide", "give minimum, steepest or valley"),
        ("--start -1", "--start: -1"),
        ("--end 1e-9", "--end: "),
        ("--lr 1,2", "--lr: 2 values"),
    ] {
        let ran = search(flags);
        assert!(ran.code == 2 && ran.err.contains(message), "{flags}: {} {}", ran.code, ran.err);
    }
}
