//! Measurements as a table for people to read.

use super::record::{Log, Outcome, Ratio, Record, Side};
use crate::cli::bench::{
    cell::{CLASSES, Cell},
    measure::size,
};

/// A ratio above this, with what is likely of it, is a win.
const WIN: f64 = 1.02;

/// Every cell, measured or not, in Markdown, under who was measured and with how many were won.
pub fn markdown(cells: &[Cell], log: &Log) -> String {
    let measured: Vec<_> = cells.iter().filter_map(|cell| log.last(cell)).collect();
    let mut lines = Vec::new();
    // More than one where the file was filled by several machines or versions.
    let mut who: Vec<_> = measured.iter().map(|record| &record.who).collect();
    who.dedup();
    for [ours, theirs] in who {
        lines.push(format!("{}: {} beside {}", ours.device, ours.software, theirs.software));
    }
    if !measured.is_empty() {
        lines.push(String::new());
    }
    lines.push(
        "| work | network | batch | dtype | unfreeze, img/s | other, img/s | mode | ratio (95 %) | share of roof | \
         tensors | other | process | other |"
            .into(),
    );
    lines.push("|---|---|---|---|---|---|---|---|---|---|---|---|---|".into());
    for cell in cells {
        lines.push(row(cell, log.last(cell)));
    }
    let ratios: Vec<Ratio> = measured.iter().filter_map(|record| record.ratio()).collect();
    let (won, lost) = (
        ratios.iter().filter(|ratio| ratio.low > WIN).count(),
        ratios.iter().filter(|ratio| ratio.high < 1.0 / WIN).count(),
    );
    lines.push(String::new());
    lines.push(format!(
        "{} of {} cells measured; {} compared: faster in {won}, slower in {lost}, no difference of more than 2 % shown \
         in {}.",
        measured.len(),
        cells.len(),
        ratios.len(),
        ratios.len() - won - lost
    ));
    lines.join("\n")
}

/// A record in a few words.
pub fn line(record: &Record) -> String {
    let rates = record.measured().map(|side| side.map_or("failed".into(), |side| format!("{:.1}", side.rate())));
    let ratio = record.ratio().map_or(String::new(), |ratio| format!(", ratio {}", ratio_text(&ratio)));
    format!("{} and {} images/s{ratio}", rates[0], rates[1])
}

fn row(cell: &Cell, record: Option<&Record>) -> String {
    let Cell { arch, batch_size, work, dtype, classes, .. } = cell;
    let classes = if *classes == CLASSES { String::new() } else { format!(", {classes} classes") };
    let start = format!("| {}{classes} | {arch} | {batch_size} | {dtype} |", work.name());
    let Some(record) = record else { return format!("{start} not measured | | | | | | | | |") };
    if let Some(message) = &record.mismatch {
        return format!("{start} {} | | | | | | | | |", escaped(message));
    }
    let [ours, theirs] = record.measured();
    let rate = |outcome: &Option<Outcome>| match outcome {
        Some(Outcome::Measured(side)) => format!("{:.1}", side.rate()),
        Some(Outcome::Failed { message }) => format!("failed: {}", escaped(message)),
        None => String::new(),
    };
    let memory = |bytes: fn(&Side) -> Option<u64>| {
        [ours, theirs].map(|side| side.and_then(bytes).map_or("-".into(), |bytes| size(bytes as f64)))
    };
    let ([tensors, their_tensors], [process, their_process]) =
        (memory(|side| side.peak_memory), memory(|side| side.peak_resident));
    let share = match (record.floor, ours) {
        (Some(floor), Some(side)) => format!("{:.2}", side.rate() / floor),
        _ => "-".into(),
    };
    format!(
        "{start} {} | {} | {} | {} | {share} | {tensors} | {their_tensors} | {process} | {their_process} |",
        rate(&record.ours),
        rate(&record.theirs),
        theirs.map_or("", |side| &side.variant),
        record.ratio().map_or("-".into(), |ratio| ratio_text(&ratio)),
    )
}

fn ratio_text(ratio: &Ratio) -> String {
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high)
}

/// A message that fits into a cell.
fn escaped(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(80).map(|c| if c == '|' { '/' } else { c }).collect()
}
