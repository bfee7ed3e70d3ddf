//! Every kernel file of the engine, for what compiles or lists them all.

use super::{conv, linear};
use crate::device::cuda::Source;

/// One source per file of `kernels/`.
pub const SOURCES: &[&Source] = &[
    &conv::cuda::FORWARD_SOURCE,
    &conv::cuda::INPUT_GRAD_SOURCE,
    &conv::cuda::MERGE_SOURCE,
    &conv::cuda::WEIGHT_GRAD_SOURCE,
    &conv::naive::SOURCE,
    &linear::cuda::SOURCE,
];
