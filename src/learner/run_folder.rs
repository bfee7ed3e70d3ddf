//! The folder of a training run: its configuration, its history, its model.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{EpochRecord, Learner};
use crate::{Error, Result, files::write_atomically};

/// A run's folder: `config.toml`, `history.jsonl` (one line per epoch), `model.safetensors`.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    written: usize,
}

impl RunFolder {
    /// Makes the folder and writes the configuration.
    ///
    /// # Errors
    /// [`Error::Data`] if the folder already holds something, so that no run is overwritten; [`Error::Io`].
    pub fn create(path: impl Into<PathBuf>, config: &impl Serialize) -> Result<Self> {
        let path = path.into();
        Self::check_free(&path)?;
        let text = toml::to_string_pretty(config)
            .map_err(|error| Error::setting("config", format!("cannot be written as TOML: {error}")))?;
        fs::create_dir_all(&path).map_err(|error| Error::io(&path, error))?;
        let folder = Self { path, written: 0 };
        write_atomically(&folder.file("config.toml"), |file| file.write_all(text.as_bytes()))?;
        Ok(folder)
    }

    /// Whether a run may be written to `path`: it is empty or not there.
    ///
    /// # Errors
    /// [`Error::Data`] if it holds something, [`Error::Io`] if it cannot be looked at.
    pub fn check_free(path: &Path) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io(path, error)),
        };
        if entries > 0 {
            return Err(Error::data(path, "this run folder already holds something; choose another --out"));
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the epochs finished since the last call, and the model.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written.
    pub fn save(&mut self, learner: &Learner) -> Result<()> {
        self.record(learner)?;
        learner.save(self.file("model.safetensors"))
    }

    /// After a run that failed: keeps what it finished, the records of its epochs; if that is nothing, takes the
    /// folder away, so that the run can be started again.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be done.
    pub fn close_failed(mut self, learner: &Learner) -> Result<()> {
        if learner.history().is_empty() {
            let config = self.file("config.toml");
            fs::remove_file(&config).map_err(|error| Error::io(config, error))?;
            return fs::remove_dir(&self.path).map_err(|error| Error::io(&self.path, error));
        }
        self.record(learner)
    }

    /// Path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn record(&mut self, learner: &Learner) -> Result<()> {
        self.append(&learner.history()[self.written..])?;
        self.written = learner.history().len();
        Ok(())
    }

    fn append(&self, records: &[EpochRecord]) -> Result<()> {
        let path = self.file("history.jsonl");
        let lines: String = records.iter().map(|record| serde_json::json!(record).to_string() + "\n").collect();
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .map_err(|error| Error::io(&path, error))
    }
}
