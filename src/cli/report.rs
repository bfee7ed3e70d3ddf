//! `unfreeze report`

use std::path::PathBuf;

use clap::Args;
use unfreeze::{Result, report};

/// Make plots and a page about a training run from its records
///
/// RUN receives plots/*.png and report.html, which needs no other file; its path is printed. What was there under these
/// names is replaced.
#[derive(Args)]
pub struct Report {
    /// Run folder
    run: PathBuf,
}

impl Report {
    pub fn run(self) -> Result<()> {
        outln!("{}", report::write(&self.run)?.display());
        Ok(())
    }
}
