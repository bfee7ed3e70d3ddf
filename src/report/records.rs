//! What a run folder records, read back.

use std::{fs, io, ops::Range, path::Path};

use serde::de::DeserializeOwned;

use crate::{
    Error, Result,
    data::Task,
    learner::{EpochRecord, Evaluation, PredictionRecord, StepRecord},
};

/// The records of a run.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Records {
    /// `config.toml`.
    pub config: toml::Table,
    /// The same as it is written.
    pub config_text: String,
    /// What was to be told of images.
    pub task: Task,
    /// From which probability on a label is given.
    pub threshold: f32,
    /// Names of the classes, by position; of labels or numbers for other tasks than single labels.
    pub classes: Vec<String>,
    /// `history.jsonl`, one record per epoch.
    pub epochs: Vec<EpochRecord>,
    /// `steps.jsonl`, one record per training step; empty if there is no such file.
    pub steps: Vec<StepRecord>,
    /// `predictions.jsonl`, one record per validation sample; empty if there is no such file.
    pub predictions: Vec<PredictionRecord>,
}

impl Records {
    /// Reads the records of the run folder `run`. A last line that an interrupted run left unfinished is passed over.
    ///
    /// # Errors
    /// [`Error::Data`] if `config.toml` is missing or no epoch is on record, or naming file and line of what is
    /// damaged; [`Error::Io`] if a file cannot be read.
    pub fn read(run: impl AsRef<Path>) -> Result<Self> {
        let run = run.as_ref();
        let path = run.join("config.toml");
        let config_text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::data(run, "is no run folder: it has no config.toml"),
            _ => Error::io(&path, error),
        })?;
        let config: toml::Table = config_text
            .parse()
            .map_err(|error: toml::de::Error| Error::data(&path, format!("is damaged: {}", error.message())))?;
        let classes = classes(&config).ok_or_else(|| Error::data(&path, "has no list of strings called 'classes'"))?;

        // Not in runs of when there was one task.
        let task = config.get("task").and_then(toml::Value::as_str).map_or(Ok(Task::default()), str::parse);
        let task = task.map_err(|error| Error::data(&path, error.to_string()))?;

        let threshold = config.get("threshold").and_then(toml::Value::as_float);
        let threshold = threshold.map_or(Evaluation::default().threshold, |threshold| threshold as f32);

        let path = run.join("history.jsonl");
        let epochs = read_lines(&path, |_| Ok(()))?.unwrap_or_default();
        if epochs.is_empty() {
            return Err(Error::data(run, "has no epochs in history.jsonl: none of this run has ended yet"));
        }
        let steps = read_lines(&run.join("steps.jsonl"), |_| Ok(()))?.unwrap_or_default();
        let fits = |record: &PredictionRecord| {
            let (given, expected) = (record.probabilities.len(), classes.len());
            if given != expected {
                return Err(format!("has {given} probabilities, but config.toml names {expected} classes"));
            }
            if task != Task::SingleLabel && record.targets.len() != expected {
                return Err(format!("has {} targets, but config.toml names {expected}", record.targets.len()));
            }
            if record.label as usize >= expected {
                return Err(format!("has label {}, but config.toml names {expected} classes", record.label));
            }
            Ok(())
        };
        let predictions = read_lines(&run.join("predictions.jsonl"), fits)?.unwrap_or_default();
        Ok(Self { config, config_text, task, threshold, classes, epochs, steps, predictions })
    }

    /// A string of the configuration.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.config.get(name)?.as_str()
    }

    /// The epochs of each phase. A phase ends where the next record has another name, or starts to count anew.
    pub fn phases(&self) -> Vec<Range<usize>> {
        let mut phases: Vec<Range<usize>> = Vec::new();
        for (at, record) in self.epochs.iter().enumerate() {
            match phases.last_mut() {
                Some(last) if follows(&self.epochs[at - 1], record) => last.end = at + 1,
                _ => phases.push(at..at + 1),
            }
        }
        phases
    }

    /// Steps with their places on an axis of epochs: the third of four steps of epoch `n` lies at `n + 3/4`.
    pub fn timeline(&self) -> Vec<(f64, &StepRecord)> {
        let epochs = self.step_epochs();
        let mut timeline = Vec::with_capacity(self.steps.len());
        for (number, (at, steps)) in epochs.iter().enumerate() {
            let len = |steps: &[&StepRecord]| steps.last().map_or(0, |last| last.step + 1);
            // An epoch that has not ended is as long as the one before, if that was of the same phase.
            let unfinished = *at >= self.epochs.len() && number > 0;
            let before = if unfinished { epochs[number - 1].1.as_slice() } else { &[] };
            let same = before.first().zip(steps.first()).is_some_and(|(a, b)| a.phase == b.phase);
            let count = len(steps).max(if same { len(before) } else { 0 });
            timeline.extend(steps.iter().map(|step| (*at as f64 + (step.step + 1) as f64 / count as f64, *step)));
        }
        timeline
    }

    /// The steps of each epoch, with the epoch's position in the history. Steps of an epoch that was interrupted and
    /// done again are left out.
    fn step_epochs(&self) -> Vec<(usize, Vec<&StepRecord>)> {
        let mut epochs: Vec<(usize, Vec<&StepRecord>)> = Vec::new();
        for step in &self.steps {
            let is = |at: usize| self.epochs.get(at).is_some_and(|e| e.phase == step.phase && e.epoch == step.epoch);
            if let Some((at, steps)) = epochs.last_mut()
                && let Some(last) = steps.last()
                && (&last.phase, last.epoch) == (&step.phase, step.epoch)
            {
                if step.step > last.step {
                    steps.push(step);
                    continue;
                }
                if !is(*at + 1) {
                    steps.clear();
                    steps.push(step);
                    continue;
                }
            }
            let next = epochs.last().map_or(0, |(at, _)| at + 1);
            // Earlier epochs may have no steps on record.
            let at = (next..self.epochs.len()).find(|&at| is(at)).unwrap_or(next);
            epochs.push((at, vec![step]));
        }
        epochs
    }
}

fn follows(before: &EpochRecord, record: &EpochRecord) -> bool {
    before.phase == record.phase && record.epoch > before.epoch
}

fn classes(config: &toml::Table) -> Option<Vec<String>> {
    let names = config.get("classes")?.as_array()?;
    let names: Option<Vec<String>> = names.iter().map(|name| Some(name.as_str()?.to_string())).collect();
    names.filter(|names| !names.is_empty())
}

/// The records in a file, one a line; `None` if there is no such file. `check` says what is wrong with a record.
fn read_lines<T: DeserializeOwned>(path: &Path, check: impl Fn(&T) -> Result<(), String>) -> Result<Option<Vec<T>>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    let mut records = Vec::new();
    for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let damaged = |cause: String| Error::data(path, format!("line {} {cause}", number + 1));
        match serde_json::from_slice(line) {
            Ok(record) => {
                check(&record).map_err(damaged)?;
                records.push(record);
            }
            // Only the last line can be without an end: the run was interrupted while it was written.
            Err(_) if !line.ends_with(b"\n") => {}
            Err(error) => return Err(damaged(format!("is damaged: {error}; remove it to go on without"))),
        }
    }
    Ok(Some(records))
}
