//! From source text to a loaded module.

use super::{Driver, ModuleId, Source};
use crate::{Error, Result};

/// Compiles kernels, or finds them compiled.
#[derive(Clone, Debug, Default)]
pub struct Compiler {}

impl Compiler {
    /// Loads `source`, compiled for the GPU behind `driver`.
    pub(super) fn load(&self, source: &Source, driver: &dyn Driver) -> Result<ModuleId> {
        let _ = (source, driver);
        Err(Error::Device { device: "cuda".into(), message: "no compiler yet".into() })
    }
}
