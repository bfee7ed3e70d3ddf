//! The plots of a run and of a search for the learning rate.

use std::{io, ops::Range};

use plotters::style::{HSLColor, RGBColor};

use super::{
    Records,
    chart::{Axis, BLUE, Chart, GREY, LIGHT, Line, ORANGE},
};
use crate::learner::{EpochRecord, LrFound};

const EPOCHS: &str = "epoch, counted through all phases";

/// Buckets into which a line of more points is gathered, about one for each column of pixels.
const BUCKETS: usize = 1000;

/// Loss of each step and, per epoch, on the training and the validation set.
pub(super) fn losses(records: &Records) -> io::Result<Vec<u8>> {
    let timeline = records.timeline();
    let steps: Vec<(f64, f64)> = timeline.iter().map(|(x, step)| (*x, f64::from(step.loss))).collect();
    let smoothed = smoothed_by_phase(records, &steps);
    let train = per_epoch(records, |record| record.train_loss);
    let valid = per_epoch(records, |record| record.valid_loss);

    let shown = smoothed.iter().chain(&train).chain(&valid).map(|point| point.1);
    // A few steps with extreme losses should not press everything else flat.
    let range = padded(shown.chain(most(steps.iter().map(|point| point.1))));
    let mut lines = Vec::new();
    if !steps.is_empty() {
        lines.push(line("training, each step", LIGHT, 2, false, decimated(&steps)));
        lines.push(line("training, smoothed", BLUE, 4, false, decimated(&smoothed)));
    }
    lines.push(line("training, mean of the epoch", GREY, 3, true, train));
    lines.push(line("validation", ORANGE, 4, true, valid));
    chart("Loss", records, Axis::linear("cross entropy (nats per image)", range), lines).png()
}

/// Learning rate of each layer group.
pub(super) fn learning_rates(records: &Records) -> io::Result<Vec<u8>> {
    let timeline = records.timeline();
    let rates: Vec<(f64, &[f32])> = if timeline.is_empty() {
        (1..).map(f64::from).zip(records.epochs.iter().map(|record| record.lrs.as_slice())).collect()
    } else {
        timeline.iter().map(|(x, step)| (*x, step.lrs.as_slice())).collect()
    };
    let groups = rates.iter().map(|(_, lrs)| lrs.len()).max().unwrap_or_default();
    let names = group_names(records, groups);
    let lines = names.into_iter().enumerate().map(|(group, name)| {
        let rate = |lrs: &[f32]| lrs.get(group).map_or(f64::NAN, |lr| f64::from(*lr));
        let points: Vec<(f64, f64)> = rates.iter().map(|(x, lrs)| (*x, rate(lrs))).collect();
        // Where groups have the same rate, the wider lines of the first ones show beside the later ones.
        let width = 3 + 5 * (groups - 1 - group).min(3) as u32;
        line(&name, group_colour(group, groups), width, points.len() == 1, decimated(&points))
    });
    let all = || rates.iter().flat_map(|(_, lrs)| lrs.iter().map(|lr| f64::from(*lr)));
    // A cosine's last steps go down to almost nothing, which matters little.
    let least = 1e-6 * all().fold(0.0, f64::max);
    let mut axis = Axis::log("learning rate", all().filter(|lr| *lr >= least));
    // Room for the names of the phases above the highest rates.
    axis.range.end *= (axis.range.end / axis.range.start).powf(0.06);
    chart("Learning rate of each layer group", records, axis, lines.collect()).png()
}

/// Accuracy on the validation set after each epoch.
pub(super) fn accuracy(records: &Records) -> io::Result<Vec<u8>> {
    let points = per_epoch(records, EpochRecord::accuracy);
    // No share is above 1; a little room keeps the line at the top whole.
    let range = padded(points.iter().map(|point| point.1));
    let range = range.start.max(0.0)..range.end.min(1.004);
    let best =
        points.iter().filter(|point| point.1.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.total_cmp(&a.0)));
    let name = match best {
        Some((epoch, accuracy)) => format!("accuracy (best {accuracy:.4}, after epoch {epoch})"),
        None => "accuracy".into(),
    };
    let axis = Axis::linear("share of validation images classified correctly", range);
    chart("Accuracy on the validation set", records, axis, vec![line(&name, BLUE, 4, true, points)]).png()
}

/// Loss against learning rate, with the suggestion.
pub(super) fn lr_find(found: &LrFound) -> io::Result<Vec<u8>> {
    let points = |losses: &[f32]| -> Vec<(f64, f64)> {
        found.lrs.iter().zip(losses).map(|(lr, loss)| (f64::from(*lr), f64::from(*loss))).collect()
    };
    let (raw, smoothed) = (points(&found.losses), points(&found.smoothed));
    let (low, high) = readable(smoothed.iter().map(|point| point.1));
    let lines = vec![line("loss of each step", LIGHT, 2, false, raw), line("smoothed", BLUE, 5, false, smoothed)];
    Chart {
        title: "Loss against learning rate",
        x: Axis::log("learning rate of the last layer group", found.lrs.iter().map(|lr| f64::from(*lr))),
        y: Axis::linear("cross entropy (nats per image)", padded([low, high].into_iter())),
        lines,
        phases: Vec::new(),
        mark: found.suggestion.map(|lr| {
            let text = if lr < 0.1 { format!("suggestion {lr:.1e}") } else { format!("suggestion {lr:.2}") };
            (f64::from(lr), text)
        }),
    }
    .png()
}

/// From the lowest of the losses of a search to somewhat above the highest one before it: beyond, where the loss
/// explodes, nothing is to be read.
fn readable(losses: impl Iterator<Item = f64>) -> (f64, f64) {
    let losses: Vec<f64> = losses.filter(|loss| loss.is_finite()).collect();
    let lowest = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b]));
    let Some(lowest) = lowest else { return (1.0, 1.0) };
    let highest = |losses: &[f64]| losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (low, before) = (losses[lowest], highest(&losses[..=lowest]));
    (low, highest(&losses).min(before + 0.6 * (before - low).max(0.2 * before)))
}

fn chart(title: &'static str, records: &Records, y: Axis, lines: Vec<Line>) -> Chart {
    let end = lines.iter().flat_map(|line| &line.points).map(|point| point.0.ceil()).fold(1.0, f64::max);
    let phases = records.phases();
    let name = |phase: &Range<usize>| (phase.start as f64, records.epochs[phase.start].phase.clone());
    Chart {
        title,
        x: Axis::linear(EPOCHS, 0.0..1.02 * end),
        y,
        lines,
        phases: phases.iter().map(name).collect(),
        mark: None,
    }
}

fn line(name: &str, colour: RGBColor, width: u32, dots: bool, points: Vec<(f64, f64)>) -> Line {
    // Dots that touch are no dots.
    let dots = dots && points.len() <= 80;
    Line { name: name.into(), colour, width, dots, points }
}

fn per_epoch(records: &Records, value: impl Fn(&EpochRecord) -> f32) -> Vec<(f64, f64)> {
    (1..).map(f64::from).zip(records.epochs.iter().map(|record| f64::from(value(record)))).collect()
}

/// The names of the layer groups, if the configuration tells them.
fn group_names(records: &Records, groups: usize) -> Vec<String> {
    let names = records.setting("arch").and_then(|arch| arch.parse::<crate::nn::Arch>().ok()).map(|arch| {
        let grouping = records.setting("groups").and_then(|groups| groups.parse::<crate::nn::Grouping>().ok());
        grouping.unwrap_or_default().names(arch)
    });
    match names {
        Some(names) if names.len() == groups => names,
        _ => (0..groups).map(|group| format!("group {group}")).collect(),
    }
}

fn group_colour(group: usize, groups: usize) -> RGBColor {
    if groups <= 3 {
        return [RGBColor(86, 180, 233), RGBColor(0, 140, 100), ORANGE][group + 3 - groups];
    }
    let hue = 0.75 * (1.0 - group as f64 / (groups - 1) as f64);
    let (r, g, b) = plotters::style::Color::to_backend_color(&HSLColor(hue, 0.75, 0.42)).rgb;
    RGBColor(r, g, b)
}

/// Exponential moving averages of the steps of each phase, so that no phase starts at the level of the one before.
fn smoothed_by_phase(records: &Records, steps: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut smoothed = Vec::with_capacity(steps.len());
    let starts = records.phases().into_iter().map(|phase| phase.start as f64);
    let mut bounds: Vec<usize> = starts.map(|start| steps.partition_point(|step| step.0 <= start)).collect();
    bounds.push(steps.len());
    smoothed.extend(smooth(&steps[..bounds[0]]));
    for pair in bounds.windows(2) {
        smoothed.extend(smooth(&steps[pair[0]..pair[1]]));
    }
    smoothed
}

/// A debiased exponential moving average over about a fortieth of the points.
fn smooth(steps: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    let beta = 1.0 - 1.0 / (steps.len() as f64 / 40.0).clamp(3.0, 50.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    steps.iter().map(move |&(x, y)| {
        if y.is_finite() {
            mean = beta * mean + (1.0 - beta) * y;
            weight = beta * weight + (1.0 - beta);
        }
        (x, mean / weight)
    })
}

/// Long lines with fewer points: the least and the greatest of each bucket, so that outliers stay to be seen.
fn decimated(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * BUCKETS {
        return points.to_vec();
    }
    let extremes = points.chunks(points.len().div_ceil(BUCKETS)).flat_map(|bucket| {
        let order = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let finite = || bucket.iter().filter(|point| point.1.is_finite());
        let mut pair: Vec<(f64, f64)> =
            [finite().min_by(order), finite().max_by(order)].into_iter().flatten().copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        pair
    });
    extremes.collect()
}

/// Values without the greatest hundredth.
fn most(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.truncate(values.len() - values.len() / 100);
    values
}

/// A range with some room around `values`, from 0 where they come near it.
fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let values = values.filter(|value| value.is_finite());
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..1.0;
    }
    let room = ((high - low) * 0.08).max(high.abs() * 0.03).max(1e-3);
    let bottom = if low >= 0.0 && low < 0.3 * high { 0.0 } else { low - room };
    bottom..high + room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimation_keeps_extremes_and_order() {
        let mut points: Vec<(f64, f64)> = (0..20_000).map(|x| (f64::from(x), 1.0)).collect();
        (points[7777].1, points[7778].1, points[3].1) = (99.0, -5.0, f64::NAN);
        let few = decimated(&points);
        assert!(few.len() <= 2 * BUCKETS && few.is_sorted_by(|a, b| a.0 < b.0), "{}", few.len());
        assert!(few.contains(&(7777.0, 99.0)) && few.contains(&(7778.0, -5.0)));
        assert!(few.iter().all(|point| point.1.is_finite()));
        assert_eq!(decimated(&points[..2000]).len(), 2000);
    }

    #[test]
    fn a_search_is_shown_from_before_its_lowest_loss() {
        // It rises at first, and explodes at the end.
        let (low, high) = readable([1.1, 2.0, 1.5, 0.9, 1.0, f64::NAN, 50.0].into_iter());
        assert!(low == 0.9 && (high - (2.0 + 0.6 * 1.1)).abs() < 1e-12, "{low} {high}");
        assert_eq!(readable([2.0, 1.0, 1.2].into_iter()), (1.0, 2.0));
        assert_eq!(readable([f64::NAN].into_iter()), (1.0, 1.0));
    }

    #[test]
    fn ranges_hold_their_values() {
        assert_eq!(padded([].into_iter()), 0.0..1.0);
        assert_eq!(padded([f64::NAN].into_iter()), 0.0..1.0);
        let range = padded([0.01, 2.0, f64::INFINITY].into_iter());
        assert!(range.start == 0.0 && range.end > 2.0 && range.end < 2.3, "{range:?}");
        let flat = padded([0.5, 0.5].into_iter());
        assert!(flat.start < 0.5 && flat.end > 0.5, "{flat:?}");
    }

    #[test]
    fn smoothing_starts_at_the_first_value_and_passes_over_gaps() {
        let smoothed: Vec<_> = smooth(&[(0.0, 2.0), (1.0, f64::NAN), (2.0, 4.0)]).collect();
        assert_eq!(smoothed[0].1, 2.0);
        assert_eq!(smoothed[1].1, 2.0);
        // β = 2/3: weights 2/9 and 3/9 of 5/9.
        assert!((smoothed[2].1 - (2.0 * 2.0 + 3.0 * 4.0) / 5.0).abs() < 1e-12, "{smoothed:?}");
    }
}
