//! The folder of a training run: its configuration, its records, its model, and what it needs to go on after an
//! interruption.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{Callback, EpochRecord, Event, Flow, Interpretation, Learner, StepRecord};
use crate::{
    Error, Result,
    data::{Split, Task, decode, save_png},
    files::{TEMPORARY, remove_temporaries, write_atomically},
};

const CONFIG: &str = "config.toml";
const HISTORY: &str = "history.jsonl";
const STEPS: &str = "steps.jsonl";
const PREDICTIONS: &str = "predictions.jsonl";
const MODEL: &str = "model.safetensors";
const CHECKPOINT: &str = "checkpoint";
const LOCK: &str = ".lock";
const SNAPSHOT: &str = "snapshot";
const BEST: &str = "best.safetensors";
const GRAD_CAM: &str = "grad_cam";

/// A run's folder: `config.toml`, `history.jsonl` (a line per epoch), `steps.jsonl` (a line per step),
/// `predictions.jsonl` (a line per validation image), `grad_cam/` (pictures of where the network finds what it says),
/// `model.safetensors`, `snapshot-N.safetensors`, `best.safetensors`, `ema.safetensors`, `swa.safetensors` and
/// `checkpoint/`. It is locked while this value lives, so that no two runs write to it; the lock ends with the process,
/// however that ends.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Whether the folder was not there before.
    made: bool,
    _lock: File,
}

impl RunFolder {
    /// Makes the folder and writes the configuration.
    ///
    /// # Errors
    /// As [`RunFolder::check_free`]; [`Error::Io`] if the folder cannot be written.
    pub fn create(path: impl Into<PathBuf>, config: &impl Serialize) -> Result<Self> {
        let path = path.into();
        Self::check_free(&path)?;
        let text = toml::to_string_pretty(config)
            .map_err(|error| Error::setting("config", format!("cannot be written as TOML: {error}")))?;
        let made = !path.exists();
        fs::create_dir_all(&path).map_err(|error| Error::io(&path, error))?;
        let lock = lock(&path)?;
        // Another run may have come and gone between the look and the lock.
        Self::check_free(&path)?;
        let folder = Self { path, made, _lock: lock };
        folder.clear()?;
        let written = write_atomically(&folder.file(CONFIG), |file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            // The first failure says more than that of tidying up.
            let _ = folder.close_failed();
            return Err(error);
        }
        Ok(folder)
    }

    /// Opens the folder of a run that was interrupted, and reads its configuration. What an interrupted write left
    /// behind is removed.
    ///
    /// # Errors
    /// [`Error::Data`] if there is no run, or another process is writing to it; [`Error::Io`].
    pub fn resume<C: DeserializeOwned>(path: impl Into<PathBuf>) -> Result<(Self, C)> {
        let path = path.into();
        let value = Self::config(&path)?;
        let lock = lock(&path)?;
        for folder in [path.clone(), path.join(CHECKPOINT)] {
            remove_temporaries(&folder);
        }
        Ok((Self { path, made: false, _lock: lock }, value))
    }

    /// The configuration of the run in `path`.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none, or another one; [`Error::Io`].
    pub fn config<C: DeserializeOwned>(path: &Path) -> Result<C> {
        let file = path.join(CONFIG);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::data(path, "holds no run: there is no config.toml in it"));
            }
            Err(error) => return Err(Error::io(&file, error)),
        };
        toml::from_str(&text)
            .map_err(|error| Error::data(&file, format!("is not this run's configuration: {}", error.message())))
    }

    /// Whether a run may be written to `path`: it is not there, or holds nothing but what is left of a run that was
    /// killed before its first epoch ended.
    ///
    /// # Errors
    /// [`Error::Data`] if it holds something, so that no run is overwritten; [`Error::Io`] if it cannot be looked at.
    pub fn check_free(path: &Path) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(path, error)),
        };
        // Only a folder that a run has locked may hold what is left of one; files of others are not touched.
        let ours = path.join(LOCK).exists();
        for entry in entries {
            let name = entry.map_err(|error| Error::io(path, error))?.file_name();
            let begun = [CONFIG, LOCK, STEPS, HISTORY, CHECKPOINT, BEST].iter().any(|known| name == *known);
            let name = name.to_string_lossy();
            let begun = begun || name.starts_with(TEMPORARY) || is_snapshot(&name);
            let resumable = Learner::can_resume(path.join(CHECKPOINT));
            if resumable || !ours || !begun {
                let message = if resumable {
                    "this folder holds a run already; choose another --out, or go on with it by --resume"
                } else {
                    "this run folder already holds something; choose another --out"
                };
                return Err(Error::data(path, message));
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the learner's [`checkpoints`](Learner::checkpoints) go.
    pub fn checkpoints(&self) -> PathBuf {
        self.file(CHECKPOINT)
    }

    /// Where the model of the best epoch goes: see [`Learner::save_best`].
    pub fn best(&self) -> PathBuf {
        self.file(BEST)
    }

    /// What its snapshots are called, the model of each cycle's end: see [`Fit::snapshots`](super::Fit::snapshots).
    pub fn snapshots(&self) -> PathBuf {
        Self::snapshots_of(&self.path)
    }

    /// What the snapshots of the run in `path` are called.
    pub fn snapshots_of(path: &Path) -> PathBuf {
        path.join(SNAPSHOT)
    }

    /// A learner that records its steps and epochs here, and writes down at the end of each epoch what it needs to go
    /// on. If the folder holds such a state already, the learner takes it up, and records beyond it are dropped. A fit
    /// fails if a record cannot be written.
    ///
    /// # Errors
    /// As [`Learner::resume`]; [`Error::Io`].
    pub fn attach(&self, learner: Learner) -> Result<Learner> {
        let mut learner = learner.checkpoints(self.checkpoints());
        if Learner::can_resume(self.checkpoints()) {
            learner.resume(self.checkpoints())?;
        }
        write_history(&self.file(HISTORY), learner.history())?;
        let steps = keep_lines(&self.file(STEPS), learner.steps())?;
        let recorder = Recorder {
            history: self.file(HISTORY),
            epochs: learner.history().to_vec(),
            steps,
            steps_path: self.file(STEPS),
        };
        Ok(learner.callback(recorder))
    }

    /// The picture of where the network finds the class that it takes a validation image for, whose line in the
    /// `predictions.jsonl` of the run in `path` is `number`, from 0. Images of the largest losses have one.
    pub fn grad_cam_of(path: &Path, number: usize) -> PathBuf {
        path.join(GRAD_CAM).join(format!("{number}.png"))
    }

    /// Writes the model, `ema.safetensors` and `swa.safetensors` where its fit averaged weights, and what the model
    /// says of the validation images.
    ///
    /// # Errors
    /// [`Error::Io`] if one of them cannot be written; those of [`Learner::evaluate`].
    pub fn save(&self, learner: &mut Learner) -> Result<()> {
        self.save_models(learner)?;
        self.remove_explanations()?;
        // A run that was interrupted after its last epoch has not seen the validation images again.
        let valid = match learner.last_evaluation.take() {
            Some(evaluation) => evaluation,
            None => learner.evaluate(Split::Valid)?,
        };
        let records = learner.records(Split::Valid, &valid);
        learner.last_evaluation = Some(valid);
        write_atomically(&self.file(PREDICTIONS), |file| {
            records.iter().try_for_each(|record| writeln!(file, "{}", record.to_json()))
        })
    }

    /// Writes the network, and the averages that its fit made.
    fn save_models(&self, learner: &mut Learner) -> Result<()> {
        for average in learner.averages() {
            learner.save_average(average, self.file(&average.file()))?;
        }
        learner.save(self.file(MODEL))
    }

    /// After [`RunFolder::save`]: writes for the `count` validation images of the largest losses where the network
    /// finds the class that it takes them for, see [`Learner::grad_cam`]; for other tasks than single labels nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written; those of [`Learner::grad_cam`].
    pub fn explain(&self, learner: &Learner, count: usize) -> Result<()> {
        let Some(valid) = learner.last_evaluation() else { return Ok(()) };
        if valid.task != Task::SingleLabel {
            return Ok(());
        }
        let (data, records) = (learner.data(), learner.records(Split::Valid, valid));
        let folder = self.file(GRAD_CAM);
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        for at in Interpretation::new(data.classes(), records)?.top_losses(count) {
            let item = &data.items(Split::Valid)[valid.indices[at] as usize];
            // The report names one that is gone by now.
            let Ok(image) = decode(&item.path) else { continue };
            save_png(&learner.grad_cam(&image, None, None)?.overlay(), Self::grad_cam_of(&self.path, at))?;
        }
        Ok(())
    }

    /// Removes what is about predictions of an earlier model.
    fn remove_explanations(&self) -> Result<()> {
        let folder = self.file(GRAD_CAM);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(&folder, error)),
            _ => Ok(()),
        }
    }

    /// After a run that failed or was interrupted: writes the model of the last finished epoch. If no epoch was
    /// finished, takes the configuration away, and the folder if it was made for this run, so that the run can be
    /// started again. Returns whether the run can be resumed.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be done.
    pub fn rescue(self, learner: &mut Learner) -> Result<bool> {
        if !Learner::can_resume(self.checkpoints()) {
            self.close_failed()?;
            return Ok(false);
        }
        learner.resume(self.checkpoints())?;
        self.save_models(learner)?;
        // These are of an earlier model.
        self.remove_explanations()?;
        remove(&self.file(PREDICTIONS))?;
        Ok(true)
    }

    /// After a run that failed before its first epoch ended: takes away what it wrote.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be done.
    pub fn close_failed(self) -> Result<()> {
        if Learner::can_resume(self.checkpoints()) {
            return Ok(());
        }
        self.clear()?;
        remove(&self.file(LOCK))?;
        if self.made {
            // It may hold what others put there meanwhile.
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
    }

    /// Removes what a run writes before its first epoch has ended.
    fn clear(&self) -> Result<()> {
        remove_temporaries(&self.path);
        for name in [HISTORY, STEPS, CONFIG, BEST] {
            remove(&self.file(name))?;
        }
        Learner::forget(&self.checkpoints());
        let entries = fs::read_dir(&self.path).map_err(|error| Error::io(&self.path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| Error::io(&self.path, error))?;
            if is_snapshot(&entry.file_name().to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Whether a file is called as a snapshot is.
fn is_snapshot(name: &str) -> bool {
    let number = name.strip_prefix(SNAPSHOT).and_then(|rest| rest.strip_prefix('-'));
    number.and_then(|rest| rest.strip_suffix(".safetensors")).is_some_and(|number| number.parse::<usize>().is_ok())
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(file, error)),
        _ => Ok(()),
    }
}

/// Locks a folder against other processes, where the file system knows locks.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::options().create(true).append(true).open(&path).map_err(|error| Error::io(&path, error))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::data(folder, "another process is writing to this run folder; wait for it, or choose another"))
        }
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

fn write_history(path: &Path, records: &[EpochRecord]) -> Result<()> {
    write_atomically(path, |file| records.iter().try_for_each(|record| writeln!(file, "{}", record.to_json())))
}

/// Opens a file of lines to add to, with only its first `count` lines.
fn keep_lines(path: &Path, count: u64) -> Result<File> {
    let fail = |error| Error::io(path, error);
    let file = File::options().create(true).append(true).read(true).open(path).map_err(fail)?;
    let text = fs::read(path).map_err(fail)?;
    let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u64 + 1);
    let kept = if count == 0 { 0 } else { ends.take(count as usize).last().unwrap_or(0) };
    file.set_len(kept).map_err(fail)?;
    Ok(file)
}

/// Adds each step to `steps.jsonl` as it ends, and writes `history.jsonl` anew at the end of each epoch.
struct Recorder {
    history: PathBuf,
    epochs: Vec<EpochRecord>,
    steps: File,
    steps_path: PathBuf,
}

impl Recorder {
    fn record(&mut self, event: &Event) -> Result<()> {
        match *event {
            Event::Step { phase, epoch, step, loss, lrs, momentum, .. } => {
                let record = StepRecord { phase: phase.into(), epoch, step, loss, lrs: lrs.to_vec(), momentum };
                let line = format!("{}\n", record.to_json());
                self.steps.write_all(line.as_bytes()).map_err(|error| Error::io(&self.steps_path, error))
            }
            Event::Epoch(record) => {
                self.epochs.push(record.clone());
                write_history(&self.history, &self.epochs)
            }
            _ => Ok(()),
        }
    }
}

impl Callback for Recorder {
    fn event(&mut self, event: &Event) -> Flow {
        match self.record(event) {
            Ok(()) => Flow::Continue,
            Err(error) => Flow::Fail(error),
        }
    }
}
