//! Progress of a fit: a bar on a terminal, nothing between epochs otherwise; and the table of epochs.

use std::time::Duration;

use super::options::Mode;
use indicatif::{ProgressBar, ProgressStyle};
use unfreeze::learner::{Callback, EpochRecord, Event, Flow};

/// Follows a fit.
pub struct Progress {
    bar: ProgressBar,
    task: String,
    mode: Mode,
    phase: Option<String>,
    /// Metrics that have a column beside the accuracy.
    metrics: Vec<String>,
}

impl Progress {
    /// Prints epochs as a table, or as JSON objects.
    pub fn new(mode: Mode) -> Self {
        // The bar draws to standard error, and nothing at all where that is no terminal.
        let bar = if mode.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = "{msg:24} {wide_bar} {pos}/{len} {eta:>5}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, task: String::new(), mode, phase: None, metrics: Vec::new() }
    }

    fn show(&mut self, task: String, done: usize, total: usize) {
        if self.task != task {
            self.bar.reset();
            self.bar.set_message(task.clone());
            self.bar.enable_steady_tick(Duration::from_millis(250));
            self.task = task;
        }
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.bar.finish_and_clear();
        self.task.clear();
        match self.mode {
            Mode { json: true, .. } => return outln!("{}", record.to_json()),
            Mode { quiet: true, .. } => return,
            _ => {}
        }
        // As fastai prints it, with the phase above and what else there is to know behind.
        if self.phase.as_ref() != Some(&record.phase) {
            let (lead, cached) = (
                if self.phase.is_some() { "\n" } else { "" },
                if record.cached { ", on cached activations" } else { "" },
            );
            outln!("{lead}{}{cached}", record.phase);
            self.metrics = record.other_metrics().map(|(name, _)| name.to_string()).collect();
            let heads: String = self.metrics.iter().map(|name| format!("   {name:<8}")).collect();
            let accuracy = if record.accuracy().is_finite() { "   accuracy" } else { "" };
            outln!("epoch      trn_loss   val_loss{accuracy}{heads}   seconds  images/s  lr");
            self.phase = Some(record.phase.clone());
        }
        let mut lrs: Vec<String> = record.lrs.iter().filter(|lr| **lr > 0.0).map(|lr| format!("{lr:.1e}")).collect();
        lrs.dedup();
        let metric = |name: &String| match record.metrics.get(name) {
            Some(value) => format!("   {value:<width$.6}", width = name.len().max(8)),
            None => format!("   {:<width$}", "-", width = name.len().max(8)),
        };
        let metrics: String = self.metrics.iter().map(metric).collect();
        // Numbers have none.
        let accuracy = Some(record.accuracy()).filter(|accuracy| accuracy.is_finite());
        let accuracy = accuracy.map_or(String::new(), |accuracy| format!("   {accuracy:<8.6}"));
        outln!(
            "{:>5}      {:<8.6}   {:<8.6}{accuracy}{metrics}  {:>8.1}  {:>8.0}  {}",
            record.epoch,
            record.train_loss,
            record.valid_loss,
            record.seconds,
            record.images_per_second,
            lrs.join(" ")
        );
    }
}

impl Callback for Progress {
    fn event(&mut self, event: &Event) -> Flow {
        match *event {
            Event::Caching { split, done, total } => {
                self.show(format!("caching {split} set"), done, total);
                if done == total {
                    self.bar.finish_and_clear();
                }
            }
            Event::Step { epoch, step, steps, .. } => self.show(format!("epoch {epoch}"), step + 1, steps),
            Event::Finding { step, steps, .. } => {
                self.show("searching".into(), step + 1, steps);
                if step + 1 == steps {
                    self.bar.finish_and_clear();
                }
            }
            Event::Validating { done, total } => self.show("validating".into(), done, total),
            Event::Epoch(record) => self.epoch(record),
            Event::Note(text) if !self.mode.quiet => self.bar.suspend(|| errln!("note: {text}")),
            _ => {}
        }
        Flow::Continue
    }
}
