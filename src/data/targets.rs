//! What is to be told of images: one class of several, any number of labels, or numbers.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is to be told of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Its class, one of several.
    #[default]
    SingleLabel,
    /// Which labels hold of it: any number of them, or none.
    MultiLabel,
    /// Numbers.
    Regression,
}

impl Task {
    const ALL: [(Task, &'static str); 3] =
        [(Task::SingleLabel, "single-label"), (Task::MultiLabel, "multi-label"), (Task::Regression, "regression")];

    /// # Errors
    /// [`Error::Data`] naming the folder at `path` where folders of images cannot say what this task needs.
    pub(super) fn check_folders(self, path: &Path) -> Result<()> {
        match self {
            Task::SingleLabel => Ok(()),
            Task::MultiLabel | Task::Regression => {
                let message = format!("is no table: for {self} give a .csv file, for example path,label,split");
                Err(Error::data(path, message))
            }
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(task, _)| task == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text).map(|(task, _)| *task);
        found.ok_or_else(|| {
            Error::setting("task", format!("'{text}' is unknown; choose single-label, multi-label or regression"))
        })
    }
}

/// What the images of a data set should be, where that is no single class: a row of numbers each. For labels 1 where one
/// holds and 0 where not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    columns: usize,
    values: Arc<[f32]>,
}

impl Targets {
    /// Rows of so many numbers.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not fill the rows.
    pub fn new(columns: usize, values: Vec<f32>) -> Result<Self> {
        if columns == 0 || !values.len().is_multiple_of(columns) {
            return Err(Error::shape("targets", format!("{} numbers in rows of {columns}", values.len())));
        }
        Ok(Self { columns, values: values.into() })
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    /// Row `number`: that of an image is its [`Item::label`](super::Item::label).
    pub fn row(&self, number: u32) -> Option<&[f32]> {
        let first = (number as usize).checked_mul(self.columns)?;
        self.values.get(first..first.checked_add(self.columns)?)
    }

    /// The rows of these numbers, one after the other.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such row.
    pub fn gather(&self, numbers: &[u32]) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(numbers.len() * self.columns);
        for number in numbers {
            let row = self.row(*number);
            values.extend(row.ok_or_else(|| Error::shape("targets", format!("row {number} of {}", self.rows())))?);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_number() -> Result<()> {
        let targets = Targets::new(2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
        assert_eq!((targets.rows(), targets.columns()), (3, 2));
        assert_eq!(targets.gather(&[2, 0])?, [5.0, 6.0, 1.0, 2.0]);
        assert!(targets.gather(&[0, 3]).unwrap_err().to_string().contains("row 3 of 3"));
        assert!(targets.row(u32::MAX).is_none());
        assert!(Targets::new(2, vec![1.0]).is_err() && Targets::new(0, Vec::new()).is_err());
        Ok(())
    }

    #[test]
    fn tasks_have_names() {
        for (task, name) in Task::ALL {
            assert_eq!((task.to_string(), name.parse::<Task>().unwrap()), (name.to_string(), task));
            assert_eq!(serde_json::json!(task), name);
        }
        assert!("labels".parse::<Task>().unwrap_err().to_string().contains("multi-label"));
    }
}
