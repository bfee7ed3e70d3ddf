//! Plots, tables and an HTML page about a run, from its records alone.
//!
//! ```no_run
//! # fn main() -> unfreeze::Result<()> {
//! let page = unfreeze::report::write("run".as_ref())?;
//! println!("{}", page.display());
//! # Ok(()) }
//! ```

mod chart;
mod confusion;
mod gallery;
mod html;
mod images;
mod plots;
mod records;
mod targets;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

pub use records::Records;

use crate::{
    Error, Result,
    data::Task,
    files::{remove_temporaries, write_atomically},
    learner::{Interpretation, LrFound},
};

/// The plots of a run: `(name, PNG)`.
type Plots = Vec<(&'static str, Vec<u8>)>;

/// Makes the plots and the page of the run folder `run`: `plots/*.png` and `report.html`, whose path is returned.
///
/// # Errors
/// As [`Records::read`]; [`Error::Io`] if a file cannot be written.
pub fn write(run: &Path) -> Result<PathBuf> {
    let records = Records::read(run)?;
    let folder = run.join("plots");
    fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
    remove_temporaries(&folder);
    // Only images of a single class are taken for others.
    let single = records.task == Task::SingleLabel;
    let classified = if single { records.predictions.clone() } else { Vec::new() };
    let found = Interpretation::new(&records.classes, classified)?;
    let mut plots: Plots = Vec::new();
    let mut plot = |name: &'static str, png: std::io::Result<Vec<u8>>| {
        let path = folder.join(name).with_extension("png");
        let png = png.map_err(|error| Error::io(&path, error))?;
        write_bytes(&path, &png)?;
        plots.push((name, png));
        Ok(())
    };
    plot("losses", plots::losses(&records))?;
    plot("learning_rates", plots::learning_rates(&records))?;
    if records.epochs.iter().any(|record| record.accuracy().is_finite()) {
        plot("accuracy", plots::accuracy(&records))?;
    }
    if found.records().is_empty() {
        // One of an earlier report would not belong to this page.
        let _ = fs::remove_file(folder.join("confusion.png"));
    } else {
        plot("confusion", confusion::confusion_matrix(found.confusion(), &records.classes))?;
    }
    let page = run.join("report.html");
    write_bytes(&page, html::page(run, &records, &found, &plots).as_bytes())?;
    Ok(page)
}

impl LrFound {
    /// Draws loss against learning rate, with the suggestion, as a PNG file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn plot(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let png = plots::lr_find(self).map_err(|error| Error::io(path, error))?;
        write_bytes(path, &png)
    }

    /// Writes the numbers to `folder/lr_find.json` and the plot to `folder/lr_find.png`, whose path is returned.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<PathBuf> {
        let folder = folder.as_ref();
        write_bytes(&folder.join("lr_find.json"), format!("{}\n", self.to_json()).as_bytes())?;
        let plot = folder.join("lr_find.png");
        self.plot(&plot)?;
        Ok(plot)
    }
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| file.write_all(bytes))
}
