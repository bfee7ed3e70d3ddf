//! Predictions of many files, and the table of them.

use std::{io, path::Path};

use super::{Learner, Prediction};
use crate::{
    Error, Result,
    data::{Split, Task},
    files::write_atomically,
};

/// What is predicted of files, in their order.
///
/// ```no_run
/// # use unfreeze::{data::Split, learner::Learner};
/// # fn with(learner: &mut Learner) -> unfreeze::Result<()> {
/// learner.predict(Split::Test)?.write_csv("submission.csv")?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    task: Task,
    classes: Vec<String>,
    rows: Vec<(String, Prediction)>,
}

impl Predictions {
    /// None so far, for these classes, labels or numbers.
    pub fn new(task: Task, classes: &[String]) -> Self {
        Self { task, classes: classes.to_vec(), rows: Vec::new() }
    }

    /// Adds what is predicted of a file.
    pub fn push(&mut self, file: impl Into<String>, prediction: Prediction) {
        self.rows.push((file.into(), prediction));
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Files and what is predicted of them.
    pub fn rows(&self) -> &[(String, Prediction)] {
        &self.rows
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes a table, whole or not at all: a first line `file,class,probability` with the names of all classes behind,
    /// then a line per file, with the probability of each class. Of labels, `file,labels` with those that are given,
    /// spaces between them; of numbers `file`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), |file| {
            // The first line is written here, not made from the names of fields.
            let mut table = csv::WriterBuilder::new().has_headers(false).from_writer(file);
            let heads: &[&str] = match self.task {
                Task::SingleLabel => &["file", "class", "probability"],
                Task::MultiLabel => &["file", "labels"],
                Task::Regression => &["file"],
            };
            let heads = heads.iter().copied().chain(self.classes.iter().map(String::as_str));
            table.write_record(heads).map_err(io::Error::from)?;
            for (file, prediction) in &self.rows {
                let Prediction { class, probability, probabilities, .. } = prediction;
                match self.task {
                    Task::SingleLabel => table.serialize((file, class, probability, probabilities)),
                    Task::MultiLabel => {
                        let given: Vec<&str> =
                            prediction.given().into_iter().map(|label| self.classes[label].as_str()).collect();
                        table.serialize((file, given.join(" "), probabilities))
                    }
                    Task::Regression => table.serialize((file, probabilities)),
                }
                .map_err(io::Error::from)?;
            }
            table.flush()
        })
    }
}

impl Learner {
    /// Predicts the images of a split, whether their classes are known or not, from cached activations where precompute
    /// allows. Files are named relative to the data set; those that cannot be decoded are left out.
    ///
    /// # Errors
    /// As of [`Learner::evaluate`]; [`Error::Data`] if the split has no images.
    pub fn predict(&mut self, split: Split) -> Result<Predictions> {
        if self.samples(split) == 0 {
            return Err(Error::data(self.data.root(), format!("has no {split} images")));
        }
        let found = self.evaluate(split)?;
        let classes = self.data.classes();
        let mut predictions = Predictions::new(self.data.task(), classes);
        for record in self.records(split, &found) {
            let prediction = Prediction::new(classes, record.probabilities).at_threshold(self.threshold);
            predictions.push(record.file, prediction);
        }
        Ok(predictions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_as_it_was() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.csv");
        let classes = ["a, or \"b\"", "c"].map(String::from);
        let mut predictions = Predictions::new(Task::SingleLabel, &classes);
        for (file, p) in [("x/1.png", 0.1f32), ("y,\n2.png", 1e-20), ("z.png", 0.5)] {
            predictions.push(file, Prediction::new(&classes, vec![p, 1.0 - p]));
        }
        predictions.write_csv(&path)?;
        let mut table = csv::Reader::from_path(&path).expect("a table");
        assert_eq!(table.headers().expect("heads"), ["file", "class", "probability", "a, or \"b\"", "c"].as_slice());
        let rows: Vec<(String, String, f32, f32, f32)> = table.deserialize().map(|row| row.expect("a row")).collect();
        assert_eq!(rows[0], ("x/1.png".into(), "c".into(), 0.9, 0.1, 0.9));
        assert_eq!(rows[1], ("y,\n2.png".into(), "c".into(), 1.0, 1e-20, 1.0));
        assert_eq!((rows[2].1.as_str(), rows.len()), (classes[0].as_str(), 3), "of equals the first");
        assert!(predictions.write_csv(folder.path().join("no/out.csv")).is_err());
        Ok(())
    }
}
