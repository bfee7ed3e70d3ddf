//! Every kernel file of the engine, for what compiles or lists them all.

use super::{batchnorm, dropout, elementwise, gather, loss, optimizer, pool, reduce, shortcut};
use crate::{device::cuda::Source, tensor};

/// One source per file of `kernels/`.
pub const SOURCES: &[&Source] = &[
    &batchnorm::cuda::SOURCE,
    &dropout::cuda::SOURCE,
    &elementwise::cuda::SOURCE,
    &gather::cuda::SOURCE,
    &loss::cuda::SOURCE,
    &optimizer::cuda::SOURCE,
    &pool::cuda::SOURCE,
    &reduce::cuda::SOURCE,
    &shortcut::cuda::SOURCE,
    &tensor::cuda::SOURCE,
];
