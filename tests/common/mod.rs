//! What several integration tests share.
#![allow(dead_code)] // each test binary uses a part

pub mod emulator;
pub mod formula;
pub mod learning;
pub mod naive;
pub mod program;

use std::{io::Write, path::PathBuf};

/// The development data beside the project (`../shared`, or `UNFREEZE_SHARED`), if this machine has `name` there.
/// A visible skip is printed if not.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("UNFREEZE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    // Past the macros, whose output the test runner keeps to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not on this machine", path.display());
    None
}
