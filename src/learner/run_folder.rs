//! The folder of a training run: its configuration, its history, its model.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use super::{Callback, Event, Flow, Learner};
use crate::{Error, Result, files::write_atomically};

const CONFIG: &str = "config.toml";
const HISTORY: &str = "history.jsonl";

/// A run's folder: `config.toml`, `history.jsonl` (one line per epoch), `model.safetensors`.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Whether the folder was not there before.
    made: bool,
    /// What went wrong when an epoch's record was written.
    failure: Arc<Mutex<Option<Error>>>,
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
        let folder = Self { path, made, failure: Arc::default() };
        write_atomically(&folder.file(CONFIG), |file| file.write_all(text.as_bytes()))?;
        Ok(folder)
    }

    /// Whether a run may be written to `path`: it is not there, or holds nothing but the configuration of a run that
    /// was interrupted before its first epoch ended.
    ///
    /// # Errors
    /// [`Error::Data`] if it holds something, so that no run is overwritten; [`Error::Io`] if it cannot be looked at.
    pub fn check_free(path: &Path) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(path, error)),
        };
        for entry in entries {
            if entry.map_err(|error| Error::io(path, error))?.file_name() != CONFIG {
                return Err(Error::data(path, "this run folder already holds something; choose another --out"));
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A callback that adds each epoch's record to `history.jsonl` as it ends. If that fails the fit stops, and
    /// [`RunFolder::save`] returns the error.
    pub fn recorder(&self) -> impl Callback + use<> {
        let (path, failure) = (self.file(HISTORY), self.failure.clone());
        move |event: &Event| {
            let Event::Epoch(record) = event else { return Flow::Continue };
            let file = File::options().create(true).append(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(format!("{}\n", record.to_json()).as_bytes()));
            match written {
                Ok(()) => Flow::Continue,
                Err(error) => {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Error::io(&path, error));
                    Flow::Stop
                }
            }
        }
    }

    /// Writes the model.
    ///
    /// # Errors
    /// [`Error::Io`] if it, or a record before, cannot be written.
    pub fn save(&self, learner: &Learner) -> Result<()> {
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        learner.save(self.file("model.safetensors"))
    }

    /// After a run that failed: if it finished no epoch, takes the configuration away, and the folder if it was made
    /// for this run, so that the run can be started again.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be done.
    pub fn close_failed(self) -> Result<()> {
        if self.file(HISTORY).exists() {
            return Ok(());
        }
        let config = self.file(CONFIG);
        fs::remove_file(&config).map_err(|error| Error::io(config, error))?;
        if self.made {
            // It may hold what others put there meanwhile.
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
    }

    /// Path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}
