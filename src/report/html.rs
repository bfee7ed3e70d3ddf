//! The page about a run: one HTML file that needs nothing else, neither network nor scripts.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Write},
    path::Path,
};

use super::{Plots, Records, gallery::galleries, images::data_url, targets};
use crate::{
    data::Task,
    learner::{Average, Counts, EpochRecord, Interpretation, Metric},
};

/// Pairs of confused classes listed.
const MOST_CONFUSED: usize = 20;
/// Longer tables are folded.
const MOST_ROWS: usize = 40;

const STYLE: &str = include_str!("style.css");

/// The page of the run in `run`.
pub(super) fn page(run: &Path, records: &Records, found: &Interpretation, plots: &Plots) -> String {
    let data = records.setting("data").unwrap_or("data");
    let name = Path::new(data).file_name().map_or(data.into(), |name| name.to_string_lossy());
    let title = match records.setting("arch") {
        Some(arch) => format!("{name}, {arch}"),
        None => name.into_owned(),
    };
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        title = Escaped(&title)
    );
    html += &format!("<p>{}</p>\n", Escaped(&summary(records, data)));
    html += "<h2>Training</h2>\n";
    html += &phases(records);
    for (name, png) in plots.iter().filter(|(name, _)| *name != "confusion") {
        html += &plot(name, png);
    }
    html += &folded("Epochs", records.epochs.len(), &epochs(records));
    html += "<h2>Predictions on the validation set</h2>\n";
    if records.predictions.is_empty() {
        html += "<p>This run holds no predictions.jsonl, so there is nothing to say about single classes.</p>\n";
    } else if records.task != Task::SingleLabel {
        html += &targets::outcome(records);
    } else {
        for (name, png) in plots.iter().filter(|(name, _)| *name == "confusion") {
            html += &plot(name, png);
        }
        html += &confused(found);
        html += &folded("Classes", records.classes.len(), &classes(found));
        html += &galleries(found, run, Path::new(data));
    }
    html += &format!("<h2>Configuration</h2>\n<pre>{}</pre>\n</body>\n</html>\n", Escaped(&records.config_text));
    html
}

/// The outcome in words.
fn summary(records: &Records, data: &str) -> String {
    let Some(last) = records.epochs.last() else {
        return format!("No epoch of this run on {data} has ended yet.");
    };
    let seconds: f64 = records.epochs.iter().map(|record| record.seconds).sum();
    let (epochs, duration) = (counted(records.epochs.len(), "epoch"), duration(seconds));
    let share = percent(f64::from(last.accuracy()));
    let right = match records.task {
        Task::SingleLabel => format!("the network classifies {share} of the validation images in {data} correctly"),
        Task::MultiLabel => {
            format!("the network gives or withholds {share} of all labels of the validation images in {data} rightly")
        }
        Task::Regression => format!("the network has learned the numbers of the images in {data}"),
    };
    let mut text = format!("After {epochs}, which took {duration}, {right}, at a loss of {:.4}.", last.valid_loss);
    if let Some((number, best)) = best(&records.epochs)
        && best.accuracy() > last.accuracy()
    {
        let best = percent(f64::from(best.accuracy()));
        let _ = write!(text, " The best accuracy, {best}, was reached after epoch {}.", number + 1);
    }
    if !records.predictions.is_empty() {
        let samples = counted(records.predictions.len(), "validation image");
        let what = match records.task {
            Task::SingleLabel => "in {} classes",
            Task::MultiLabel => "and {} labels",
            Task::Regression => "and {} numbers",
        };
        let what = what.replace("{}", &records.classes.len().to_string());
        let _ = write!(text, " Predictions for {samples} {what} are on record.");
    }
    text
}

/// An accuracy, where there is one.
fn share(accuracy: f32) -> String {
    if accuracy.is_finite() { format!("{accuracy:.4}") } else { "–".into() }
}

/// The first epoch of the highest accuracy, and its position.
fn best(epochs: &[EpochRecord]) -> Option<(usize, &EpochRecord)> {
    let epochs = epochs.iter().enumerate().filter(|(_, record)| record.accuracy().is_finite());
    epochs.reduce(|best, next| if next.1.accuracy() > best.1.accuracy() { next } else { best })
}

fn phases(records: &Records) -> String {
    let rows = records.phases().into_iter().map(|phase| {
        let epochs = &records.epochs[phase];
        let cached = epochs.iter().filter(|record| record.cached).count() as f64 / epochs.len() as f64;
        let last = &epochs[epochs.len() - 1];
        let best = best(epochs).map_or(f32::NAN, |(_, record)| record.accuracy());
        vec![
            last.phase.clone(),
            epochs.len().to_string(),
            share(best),
            share(last.accuracy()),
            format!("{:.4}", last.valid_loss),
            format!("{:.1}", epochs.iter().map(|record| record.seconds).sum::<f64>()),
            percent(cached),
        ]
    });
    let heads = [
        "phase",
        "epochs",
        "best accuracy",
        "final accuracy",
        "final validation loss",
        "seconds",
        "epochs on cached activations",
    ];
    table(&heads, 1, rows)
}

fn epochs(records: &Records) -> String {
    let others: BTreeSet<&str> =
        records.epochs.iter().flat_map(EpochRecord::other_metrics).map(|(name, _)| name).collect();
    let rows = records.epochs.iter().enumerate().map(|(number, record)| {
        let lrs: Vec<String> = record.lrs.iter().filter(|lr| **lr > 0.0).map(|lr| format!("{lr:.1e}")).collect();
        [
            record.phase.clone(),
            (number + 1).to_string(),
            format!("{:.4}", record.train_loss),
            format!("{:.4}", record.valid_loss),
            share(record.accuracy()),
        ]
        .into_iter()
        .chain(others.iter().map(|name| record.metrics.get(*name).map_or("–".into(), |value| format!("{value:.4}"))))
        .chain([
            format!("{:.1}", record.seconds),
            format!("{:.0}", record.images_per_second),
            if record.cached { "yes" } else { "no" }.into(),
            lrs.join(" "),
        ])
        .collect()
    });
    let heads = ["phase", "epoch", "training loss", "validation loss", "accuracy"].into_iter();
    let heads = heads.chain(others.iter().copied()).chain(["seconds", "images/s", "cached", "last learning rates"]);
    let heads: Vec<&str> = heads.collect();
    table(&heads, 1, rows)
}

fn confused(found: &Interpretation) -> String {
    let pairs = found.most_confused(1);
    if pairs.is_empty() {
        return "<p>No class was taken for another.</p>\n".into();
    }
    let name = |class: usize| found.classes()[class].clone();
    let rows = pairs.iter().take(MOST_CONFUSED).map(|&(label, predicted, count)| {
        let share = count as f64 / found.confusion().class(label).support.max(1) as f64;
        vec![name(label), name(predicted), count.to_string(), percent(share)]
    });
    let table = table(&["true class", "taken for", "images", "of the true class"], 2, rows);
    format!("<h3>Most confused classes</h3>\n{table}")
}

fn classes(found: &Interpretation) -> String {
    let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.3}"));
    let evaluation = found.evaluation();
    let row = |name: &str, numbers: [Option<f64>; 4], support: usize| {
        [vec![name.to_string()], numbers.map(number).to_vec(), vec![support.to_string()]].concat()
    };
    let rows = found.classes().iter().enumerate().map(|(class, name)| {
        let counts = found.confusion().class(class);
        let numbers = [counts.precision(), counts.recall(), counts.f_beta(1.0), evaluation.auc(class)];
        row(name, numbers, counts.support)
    });
    let mean = |metric: fn(&Counts) -> Option<f64>| found.confusion().average(Average::Macro, metric);
    let means = [mean(Counts::precision), mean(Counts::recall), mean(|counts| counts.f_beta(1.0))];
    let means = [means[0], means[1], means[2], evaluation.metric(Metric::Auc)];
    let last = row("mean over the classes", means, found.confusion().samples());
    table(&["class", "precision", "recall", "F1", "area under ROC", "images"], 1, rows.chain([last]))
}

fn plot(name: &str, png: &[u8]) -> String {
    let text = name.replace('_', " ");
    format!("<p><img class=\"plot\" src=\"{}\" alt=\"plot: {text}\"></p>\n", data_url("image/png", png))
}

/// A table under a heading; a long one opens on demand.
fn folded(title: &str, rows: usize, table: &str) -> String {
    if rows <= MOST_ROWS {
        return format!("<h3>{title}</h3>\n{table}");
    }
    format!("<h3>{title}</h3>\n<details>\n<summary>{rows} rows</summary>\n{table}</details>\n")
}

/// A table whose first `texts` columns are text and the others numbers.
pub(super) fn table(heads: &[&str], texts: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let cell = |tag: &str, column: usize, text: &str| {
        let class = if column < texts { " class=\"text\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", Escaped(text))
    };
    let cells = |tag: &str, row: &[&str]| -> String {
        row.iter().enumerate().map(|(column, text)| cell(tag, column, text)).collect()
    };
    let mut html = format!("<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n", cells("th", heads));
    for row in rows {
        let row: Vec<&str> = row.iter().map(String::as_str).collect();
        let _ = writeln!(html, "<tr>{}</tr>", cells("td", &row));
    }
    html + "</tbody>\n</table>\n"
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Text as it may stand in HTML, in attributes too.
pub(super) struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // HTML has no other control characters.
                letter if letter.is_control() && !matches!(letter, '\n' | '\t') => f.write_char('\u{fffd}')?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}
