//! Every kernel file of the engine, for what compiles or lists them all.

use super::augment;
use crate::device::cuda::Source;

/// One source per file of `kernels/`.
pub const SOURCES: &[&Source] = &[&augment::cuda::SOURCE];
