//! What was measured, in a file of one JSON object to a line.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use unfreeze::{Error, Result, nn::cost::Roof, random::Random};

use super::damaged;
use crate::cli::bench::{cell::Cell, measure::Sorted, protocol::Hello};

/// One cell's measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was measured.
    pub cell: Cell,
    /// This engine and the other side.
    pub who: [Hello; 2],
    /// Images per second at the roof of the device, if that is known.
    pub floor: Option<f64>,
    /// Why nothing was timed: the two sides do not compute the same.
    pub mismatch: Option<String>,
    /// This engine's.
    pub ours: Option<Outcome>,
    /// The other side's.
    pub theirs: Option<Outcome>,
}

/// What became of a side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was measured.
    Measured(Side),
    /// It was not, such as for lack of memory.
    Failed {
        /// Why.
        message: String,
    },
}

/// A side's measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// The way in which it was measured.
    pub variant: String,
    /// The ways that were tried, with images per second.
    pub tried: Vec<(String, f64)>,
    /// Of each block, in order; those of one place in both sides' lists ran after one another.
    pub images_per_second: Vec<f64>,
    /// Most bytes of tensors at a time, if known.
    pub peak_memory: Option<u64>,
    /// Most bytes of the whole process that were resident at a time, if known.
    #[serde(default)]
    pub peak_resident: Option<u64>,
}

/// A ratio of images per second, this engine's to the other side's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The median over pairs of blocks.
    pub median: f64,
    /// 95 % of medians of resampled pairs lie above this …
    pub low: f64,
    /// … and as many below this, less 2.5 % each.
    pub high: f64,
}

/// Resamplings of a bootstrap.
const RESAMPLED: usize = 2000;

impl Record {
    /// A record of nothing yet.
    pub fn new(cell: Cell, who: &[Hello; 2], roof: Option<Roof>) -> Self {
        let floor = roof.map(|roof| cell.batch_size as f64 / roof.floor(&cell.kernels()));
        Self { cell, who: who.clone(), floor, mismatch: None, ours: None, theirs: None }
    }

    /// What both sides reached.
    pub fn measured(&self) -> [Option<&Side>; 2] {
        [&self.ours, &self.theirs].map(|outcome| match outcome {
            Some(Outcome::Measured(side)) => Some(side),
            Some(Outcome::Failed { .. }) | None => None,
        })
    }

    /// The ratio, where both sides were measured.
    pub fn ratio(&self) -> Option<Ratio> {
        let [Some(ours), Some(theirs)] = self.measured() else { return None };
        let pairs: Vec<f64> =
            ours.images_per_second.iter().zip(&theirs.images_per_second).map(|(ours, theirs)| ours / theirs).collect();
        if pairs.is_empty() {
            return None;
        }
        let mut random = Random::stream(0, "bootstrap", &[]);
        let mut draw = || pairs[(random.uniform(0.0, pairs.len() as f32) as usize).min(pairs.len() - 1)];
        let medians = (0..RESAMPLED).map(|_| Sorted::new(pairs.iter().map(|_| draw()).collect()).median()).collect();
        let medians = Sorted::new(medians);
        let [low, high] = [0.025, 0.975].map(|at| medians.quantile(at));
        Some(Ratio { median: Sorted::new(pairs).median(), low, high })
    }
}

impl Side {
    /// Images per second, the median of its blocks.
    pub fn rate(&self) -> f64 {
        Sorted::new(self.images_per_second.clone()).median()
    }
}

/// The file of measurements.
pub struct Log {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Log {
    /// Reads what the file at `path` holds, or begins one. A last line that was not finished is dropped.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] for lines that are no measurements.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io(path, error);
        let text = if path.exists() { fs::read_to_string(path).map_err(failed)? } else { String::new() };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let lines = text[..whole].lines().enumerate();
        let records = lines
            .map(|(number, line)| serde_json::from_str(line).map_err(|error| damaged(path, number + 1, &error)))
            .collect::<Result<_>>()?;
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        file.set_len(whole as u64).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, records })
    }

    /// The last measurement of a cell.
    pub fn last(&self, cell: &Cell) -> Option<&Record> {
        self.records.iter().rfind(|record| record.cell == *cell)
    }

    /// Writes a record down.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, record: Record) -> Result<()> {
        let line = format!("{}\n", serde_json::json!(record));
        self.file.write_all(line.as_bytes()).map_err(|error| Error::io(&self.path, error))?;
        self.records.push(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::cell::Work;
    use unfreeze::{Precision, nn::Arch};

    fn record(ours: &[f64], theirs: &[f64]) -> Record {
        let (arch, work, dtype) = (Arch::ResNet20, Work::Full, Precision::F32);
        let cell = Cell { arch, size: 32, batch_size: 2, work, dtype, classes: 10 };
        let who = Hello { device: "d".into(), software: "s".into(), variants: vec![] };
        let side = |rates: &[f64]| {
            Some(Outcome::Measured(Side {
                variant: "v".into(),
                tried: vec![],
                images_per_second: rates.to_vec(),
                peak_memory: None,
                peak_resident: None,
            }))
        };
        let roof = Some(Roof { flops: 1e12, bytes: 1e9 });
        let record = Record::new(cell, &[who.clone(), who], roof);
        Record { ours: side(ours), theirs: side(theirs), ..record }
    }

    /// Pairs decide: a drift that meets both sides alike leaves no doubt, one pair that differs does.
    #[test]
    fn ratios_are_those_of_pairs() {
        let drift = record(&[30.0, 60.0, 90.0, 15.0, 45.0], &[20.0, 40.0, 60.0, 10.0, 30.0]);
        assert_eq!(drift.ratio(), Some(Ratio { median: 1.5, low: 1.5, high: 1.5 }));
        let doubt = record(&[30.0, 20.0, 40.0, 10.0, 30.0], &[20.0; 5]).ratio().unwrap();
        assert!(doubt.median == 1.5 && doubt.low < 1.0 && doubt.high == 2.0, "{doubt:?}");
        let mut failed = drift.clone();
        failed.theirs = Some(Outcome::Failed { message: "out of memory".into() });
        assert_eq!(failed.ratio(), None);
        assert!(drift.floor > Some(0.0));
    }

    #[test]
    fn the_file_goes_on_after_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let one = record(&[1.0], &[2.0]);
        Log::open(&path).unwrap().add(one.clone()).unwrap();
        let half = fs::read_to_string(&path).unwrap() + "{\"cell\":";
        fs::write(&path, half).unwrap();
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.last(&one.cell), Some(&one));
        let again = record(&[3.0], &[2.0]);
        log.add(again.clone()).unwrap();
        let log = Log::open(&path).unwrap();
        assert_eq!((log.records.len(), log.last(&one.cell)), (2, Some(&again)));
        fs::write(&path, "{}\n").unwrap();
        let error = Log::open(&path).err().unwrap().to_string();
        assert!(error.contains("line 1 is no measurement"), "{error}");
    }
}
