//! Reports of made-up runs, long and short, tidy and damaged. `UNFREEZE_KEEP_PLOTS=FOLDER` keeps the pictures, to be
//! looked at.

use std::{collections::BTreeMap, fs, path::Path};

use super::*;
use crate::{
    learner::{EpochRecord, PredictionRecord, StepRecord},
    random::Random,
};

fn classes(count: usize) -> Vec<String> {
    let names = ["daisy", "<b>roses & \"thorns\"</b>", "Gänseblümchen", "a class with an exceedingly long name"];
    (0..count).map(|n| names.get(n).map_or(format!("class {n}"), |name| name.to_string())).collect()
}

/// Two phases: a cached head, then cycles of the whole network; so many steps to an epoch.
fn records(classes_count: usize, head: usize, finetune: usize, steps: usize) -> Records {
    let mut random = Random::stream(1, "report", &[]);
    let mut records = Records { classes: classes(classes_count), ..Records::default() };
    let phases = (0..head).map(|n| ("head", n)).chain((0..finetune).map(|n| ("finetune", n)));
    for (number, (phase, epoch)) in phases.enumerate() {
        let level = 0.2 + 1.5 / (1.0 + number as f32);
        let rate = |step: usize| match phase {
            "head" => vec![1e-2; 3],
            _ => {
                let cosine = (1.0 + (std::f32::consts::PI * step as f32 / steps as f32).cos()) / 2.0;
                [1e-5, 1e-4, 1e-3].map(|lr| lr * cosine).to_vec()
            }
        };
        for step in 0..steps {
            let loss = level * random.uniform(0.5, 1.6);
            let (phase, lrs) = (phase.to_string(), rate(step));
            records.steps.push(StepRecord { phase, epoch, step, loss, lrs, momentum: 0.9 });
        }
        records.epochs.push(EpochRecord {
            phase: phase.into(),
            epoch,
            train_loss: level,
            valid_loss: level * 0.9,
            metrics: BTreeMap::from([("accuracy".into(), 1.0 - level / 3.0)]),
            lrs: rate(steps.saturating_sub(1)),
            seconds: 12.5,
            images_per_second: 40.0,
            device: "cpu".into(),
            cached: phase == "head",
        });
    }
    for n in 0..classes_count * 20 {
        let label = n % classes_count;
        let mut probabilities: Vec<f32> = (0..classes_count).map(|_| random.uniform(0.0, 1.0)).collect();
        probabilities[label] += random.uniform(-0.4, 1.5);
        let sum: f32 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= sum);
        let file = format!("valid/{}/{n}.png", records.classes[label]);
        records.predictions.push(PredictionRecord { file, label: label as u32, probabilities, targets: Vec::new() });
    }
    records
}

/// Writes a run folder as a learner does.
fn save(records: &Records, run: &Path, data: &Path) {
    let mut config = toml::Table::new();
    config.insert("data".into(), data.to_str().unwrap().into());
    config.insert("arch".into(), "resnet18".into());
    config.insert("classes".into(), records.classes.clone().into());
    fs::write(run.join("config.toml"), toml::to_string(&config).unwrap()).unwrap();
    let lines = |name: &str, lines: Vec<String>| fs::write(run.join(name), lines.join("\n") + "\n").unwrap();
    lines("history.jsonl", records.epochs.iter().map(EpochRecord::to_json).collect());
    let json = |record: serde_json::Result<String>| record.unwrap();
    lines("steps.jsonl", records.steps.iter().map(|r| json(serde_json::to_string(r))).collect());
    lines("predictions.jsonl", records.predictions.iter().map(|r| json(serde_json::to_string(r))).collect());
}

/// The extents of a picture, which must have something on it.
#[track_caller]
fn looked_at(name: &str, png: std::io::Result<Vec<u8>>) -> (u32, u32) {
    let png = png.unwrap();
    if let Some(folder) = std::env::var_os("UNFREEZE_KEEP_PLOTS") {
        fs::write(Path::new(&folder).join(name).with_extension("png"), &png).unwrap();
    }
    let image = image::load_from_memory(&png).unwrap().into_rgb8();
    let inked = image.pixels().filter(|pixel| pixel.0 != [255; 3]).count();
    assert!(inked * 100 > image.pixels().len(), "{name}: {inked} pixels are not white");
    assert!(image.width() >= 900 && image.height() >= 500, "{name}");
    image.dimensions()
}

fn draw(name: &str, records: &Records) {
    looked_at(&format!("{name}-losses"), plots::losses(records));
    looked_at(&format!("{name}-lrs"), plots::learning_rates(records));
    looked_at(&format!("{name}-accuracy"), plots::accuracy(records));
    let found = Interpretation::new(&records.classes, records.predictions.clone()).unwrap();
    looked_at(&format!("{name}-confusion"), confusion::confusion_matrix(found.confusion(), &records.classes));
}

#[test]
fn plots_of_runs_short_and_long() {
    draw("usual", &records(5, 10, 7, 30));
    draw("single", &records(2, 1, 0, 1));
    draw("long", &records(25, 20, 80, 200));
    draw("many", &records(120, 3, 3, 3));
}

#[test]
fn plots_of_runs_with_gaps() {
    let mut gaps = records(2, 4, 3, 10);
    gaps.steps.iter_mut().step_by(7).for_each(|step| step.loss = f32::NAN);
    gaps.steps[12].loss = f32::INFINITY;
    gaps.steps[13].lrs = vec![0.0; 3];
    gaps.epochs[2].valid_loss = f32::NAN;
    gaps.epochs[3].metrics.clear();
    draw("gaps", &gaps);
    gaps.steps.clear();
    draw("stepless", &gaps);
    let mut phases = records(2, 1, 1, 4);
    for n in 0..30 {
        phases.epochs.push(EpochRecord { phase: format!("cycle number {n}"), ..phases.epochs[1].clone() });
    }
    draw("phases", &phases);
}

#[test]
fn plots_of_searches() {
    let lrs: Vec<f32> = (0..90).map(|step| 1e-5 * 10f32.powf(6.0 * step as f32 / 99.0)).collect();
    let loss = |lr: f32| 1.6 - 0.9 * (lr / (lr + 3e-3)) + (lr / 0.5).powi(2);
    let smoothed: Vec<f32> = lrs.iter().map(|lr| loss(*lr)).collect();
    let losses = smoothed.iter().enumerate().map(|(n, loss)| loss * (1.0 + 0.15 * (n as f32 * 2.4).sin())).collect();
    let mut found = LrFound::default();
    (found.lrs, found.losses, found.smoothed) = (lrs, losses, smoothed);
    found.suggestion = Some(5e-3);
    looked_at("search", plots::lr_find(&found));
    found.suggestion = Some(9.0);
    looked_at("search-late", plots::lr_find(&found));
    found.losses[30] = f32::NAN;
    found.suggestion = None;
    [&mut found.lrs, &mut found.losses, &mut found.smoothed].into_iter().for_each(|values| values.truncate(1));
    looked_at("search-short", plots::lr_find(&found));
}

#[test]
fn a_run_read_back_is_what_was_recorded() {
    let (run, records) = (tempfile::tempdir().unwrap(), records(4, 2, 2, 3));
    save(&records, run.path(), Path::new("photos"));
    let read = Records::read(run.path()).unwrap();
    assert_eq!((&read.classes, &read.epochs, &read.steps), (&records.classes, &records.epochs, &records.steps));
    assert_eq!(read.predictions, records.predictions);
    assert_eq!((read.setting("arch"), read.setting("nothing")), (Some("resnet18"), None));
    assert_eq!(read.phases(), [0..2, 2..4]);
    for optional in ["steps.jsonl", "predictions.jsonl"] {
        fs::remove_file(run.path().join(optional)).unwrap();
    }
    let read = Records::read(run.path()).unwrap();
    assert!(read.steps.is_empty() && read.predictions.is_empty());
    let history = run.path().join("history.jsonl");
    fs::write(&history, "{\"phase\":").unwrap();
    assert!(Records::read(run.path()).unwrap_err().to_string().contains("has no epochs"));
    fs::remove_file(history).unwrap();
    assert!(Records::read(run.path()).unwrap_err().to_string().contains("has no epochs"));
    let message = Records::read("nowhere/at/all").unwrap_err().to_string();
    assert!(message.starts_with("nowhere/at/all: is no run folder"), "{message}");
}

#[test]
fn torn_ends_are_passed_over_and_damage_is_named() {
    let (run, records) = (tempfile::tempdir().unwrap(), records(4, 2, 2, 3));
    let file = run.path().join("steps.jsonl");
    let steps = |text: &str| {
        save(&records, run.path(), Path::new("photos"));
        fs::write(&file, fs::read_to_string(&file).unwrap() + text).unwrap();
        Records::read(run.path()).map(|records| records.steps.len())
    };
    assert_eq!(steps("{\"phase\":\"he").unwrap(), 12);
    assert_eq!(steps("\n").unwrap(), 12);
    let message = steps("{\"phase\":\"he\n").unwrap_err().to_string();
    assert!(message.contains("steps.jsonl: line 13 is damaged"), "{message}");

    save(&records, run.path(), Path::new("photos"));
    let file = run.path().join("predictions.jsonl");
    for (line, cause) in [
        ("{\"file\":\"x\",\"label\":4,\"probabilities\":[1,0,0,0]}", "line 1 has label 4, but config.toml names 4"),
        ("{\"file\":\"x\",\"label\":0,\"probabilities\":[1,0]}", "line 1 has 2 probabilities"),
    ] {
        fs::write(&file, line).unwrap();
        let message = Records::read(run.path()).unwrap_err().to_string();
        assert!(message.contains(cause), "{message}");
    }
    fs::write(run.path().join("config.toml"), "classes = [1]").unwrap();
    assert!(Records::read(run.path()).unwrap_err().to_string().contains("'classes'"));
    fs::write(run.path().join("config.toml"), "classes = [").unwrap();
    assert!(Records::read(run.path()).unwrap_err().to_string().contains("config.toml: is damaged"));
}

#[test]
fn steps_lie_within_their_epochs() {
    let places = |records: &Records| records.timeline().iter().map(|(x, _)| *x).collect::<Vec<_>>();
    let whole = records(2, 1, 2, 2);
    assert_eq!(places(&whole), [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
    // The last epoch was interrupted: its step lies where it would have.
    let mut cut = whole.clone();
    cut.steps.truncate(5);
    cut.epochs.truncate(2);
    assert_eq!(places(&cut), [0.5, 1.0, 1.5, 2.0, 2.5]);
    // It was interrupted and done again.
    let mut again = whole.clone();
    again.steps.insert(4, again.steps[4].clone());
    assert_eq!(places(&again), places(&whole));
    // The same phase twice, of an epoch each, is no repetition.
    let mut twice = records(2, 1, 0, 2);
    twice.epochs.push(twice.epochs[0].clone());
    twice.steps.extend(twice.steps.clone());
    assert_eq!((places(&twice), twice.phases()), (vec![0.5, 1.0, 1.5, 2.0], vec![0..1, 1..2]));
    // Of the first epoch no steps are on record.
    let mut late = whole.clone();
    late.steps.drain(..2);
    assert_eq!(places(&late), [1.5, 2.0, 2.5, 3.0]);
}

#[test]
fn the_page_escapes_names_and_names_missing_images() {
    let (run, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut records = records(4, 2, 2, 3);
    records.predictions.truncate(2);
    for (n, record) in records.predictions.iter_mut().enumerate() {
        record.file = format!("valid/<{n}> & \"{n}\".png");
        record.probabilities = vec![0.0, 0.0, 0.25, 0.75];
    }
    let there = data.path().join(&records.predictions[0].file);
    fs::create_dir_all(there.parent().unwrap()).unwrap();
    crate::data::tests::noise(40, 400, 1).save(&there).unwrap();
    save(&records, run.path(), data.path());
    let page = write(run.path()).unwrap();
    assert_eq!(page, run.path().join("report.html"));
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("&lt;b&gt;roses &amp; &quot;thorns&quot;&lt;/b&gt;") && !html.contains("<b>roses"));
    assert!(html.contains("Gänseblümchen") && html.contains("<b>a class with an exceedingly long name</b> 75.0 %"));
    assert!(
        html.contains("alt=\"valid/&lt;0&gt; &amp; &quot;0&quot;.png: daisy, taken for a class with")
            && html.contains("data:image/jpeg;base64,")
    );
    assert!(html.contains("valid/&lt;1&gt; &amp; &quot;1&quot;.png: "), "the missing file is named");
    assert_eq!(html.matches("data:image/png;base64,").count(), 4);
    assert!(!html.contains("http") && !html.contains("<script"), "nothing from elsewhere");
    for plot in ["losses", "learning_rates", "accuracy", "confusion"] {
        image::open(run.path().join("plots").join(plot).with_extension("png")).unwrap();
    }
    // Without predictions nothing is said about classes, and no plot is left that does.
    fs::remove_file(run.path().join("predictions.jsonl")).unwrap();
    let html = fs::read_to_string(write(run.path()).unwrap()).unwrap();
    assert!(html.contains("no predictions.jsonl") && html.matches("data:image/png;base64,").count() == 3);
    assert!(!run.path().join("plots/confusion.png").exists());
}

/// The files shown under a heading, which are all missing.
fn shown<'a>(html: &'a str, heading: &str) -> Vec<&'a str> {
    let (_, after) = html.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    let (list, _) = after.split_once("</ul>").unwrap();
    list.split("class=\"missing\">").skip(1).map(|text| text.split_once(": ").unwrap().0).collect()
}

#[test]
fn galleries_show_what_their_headings_say() {
    let run = tempfile::tempdir().unwrap();
    let mut records = records(2, 1, 0, 1);
    let rows = [(0, 0.9), (0, 0.2), (1, 0.1), (0, 0.55), (1, 0.7), (0, 0.6), (0, 0.99), (0, 0.8), (0, 0.95)];
    let record = |(n, (label, p)): (usize, (u32, f32))| PredictionRecord {
        file: format!("{n}.png"),
        label,
        probabilities: vec![p, 1.0 - p],
        targets: Vec::new(),
    };
    records.predictions = rows.into_iter().enumerate().map(record).collect();
    save(&records, run.path(), Path::new("nowhere"));
    let html = fs::read_to_string(write(run.path()).unwrap()).unwrap();
    let losses = ["1.png", "4.png", "3.png", "5.png", "7.png", "0.png", "2.png", "8.png", "6.png"];
    assert_eq!(shown(&html, "<h3>Top losses</h3>"), losses);
    assert!(html.contains("2 of 9 images are classified wrongly. Here are the 9"));
    assert!(html.contains("is <b>daisy</b> 20.0 %<br>taken for <b>&lt;b&gt;roses"));
    assert!(html.contains("is <b>daisy</b> 99.0 %<br>loss 0.010"));
    let (first, second) = html.split_once("<details open>\n<summary><b>&lt;b&gt;roses").unwrap();
    assert!(first.contains("<summary><b>daisy</b>: 6 of 7 images recognised</summary>"));
    for (class, heading, files) in [
        (first, "most correct", vec!["6.png", "8.png", "0.png", "7.png"]),
        (first, "most incorrect", vec!["1.png"]),
        (first, "most uncertain, of any class", vec!["3.png", "5.png", "4.png", "1.png"]),
        (second, "most correct", vec!["2.png"]),
        (second, "most incorrect", vec!["4.png"]),
    ] {
        assert_eq!(shown(class, &format!("<h4>{heading}</h4>")), files, "{heading}");
    }
    // Of a class that an image neither is nor is taken for, the probability is told too.
    let mut records = self::records(3, 1, 0, 1);
    let record =
        PredictionRecord { file: "0.png".into(), label: 0, probabilities: vec![0.5, 0.2, 0.3], targets: Vec::new() };
    records.predictions = vec![record];
    let other = tempfile::tempdir().unwrap();
    save(&records, other.path(), Path::new("nowhere"));
    let third = fs::read_to_string(write(other.path()).unwrap()).unwrap();
    assert!(third.contains("is <b>daisy</b> 50.0 %<br><b>Gänseblümchen</b> 30.0 %<br>loss 0.693"));
    for tag in ["ul", "li", "details", "summary", "table", "span", "h4"] {
        let count = |text: String| html.matches(&text).count();
        let opened = count(format!("<{tag}>")) + count(format!("<{tag} "));
        assert_eq!(opened, count(format!("</{tag}>")), "{tag}");
    }
}

#[test]
fn of_many_classes_the_least_recognised_are_shown() {
    let run = tempfile::tempdir().unwrap();
    let mut records = records(30, 1, 0, 1);
    // The first 14 are recognised always.
    for record in records.predictions.iter_mut().filter(|record| record.label < 14) {
        record.probabilities.fill(0.0);
        record.probabilities[record.label as usize] = 1.0;
    }
    save(&records, run.path(), Path::new("nowhere"));
    let html = fs::read_to_string(write(run.path()).unwrap()).unwrap();
    let details: Vec<&str> = html.split("<details>\n<summary><b>").skip(1).collect();
    assert!(details.len() == 16 && details[0].starts_with("class 14<") && details[15].starts_with("class 29<"));
    assert!(html.contains("The 16 of 30 classes of which the least is recognised are shown."));
    assert!(html.contains("Here are the 24"));
}
