//! Every kernel file of the engine, for what compiles or lists them all.

use super::{
    augment, batchnorm, conv, dropout, elementwise, gather, head_trainer, linear, loss, mix, optimizer, pointwise_loss,
    pool, reduce, shortcut,
};
use crate::{device::cuda::Source, tensor};

/// One source per file of `kernels/`.
pub const SOURCES: &[&Source] = &[
    &augment::cuda::SOURCE,
    &batchnorm::cuda::SOURCE,
    &batchnorm::cuda::GRAD_SOURCE,
    &batchnorm::cuda::POOL_SOURCE,
    &conv::cuda::FORWARD_SOURCE,
    &conv::cuda::INPUT_GRAD_SOURCE,
    &conv::cuda::MERGE_SOURCE,
    &conv::cuda::WEIGHT_GRAD_SOURCE,
    &conv::hopper::SOURCE,
    &conv::mma::FORWARD_SOURCE,
    &conv::mma::INPUT_GRAD_SOURCE,
    &conv::mma::PACK_SOURCE,
    &conv::mma::PATCH_SOURCE,
    &conv::mma::WEIGHT_GRAD_SOURCE,
    &conv::naive::SOURCE,
    &dropout::cuda::SOURCE,
    &elementwise::cuda::SOURCE,
    &gather::cuda::SOURCE,
    &head_trainer::cuda::SOURCE,
    &linear::cuda::SOURCE,
    &loss::cuda::SOURCE,
    &mix::cuda::SOURCE,
    &optimizer::cuda::SOURCE,
    &pointwise_loss::cuda::SOURCE,
    &pool::cuda::SOURCE,
    &reduce::cuda::SOURCE,
    &shortcut::cuda::SOURCE,
    &tensor::cuda::SOURCE,
];
