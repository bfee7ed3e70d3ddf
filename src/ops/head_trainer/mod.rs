//! Many training steps of a linear classifier in one launch, on features that lie on the GPU: what is left of a step
//! when the backbone is frozen and its activations are cached, and too little for a launch per operation.

pub(super) mod cuda;
#[cfg(test)]
mod tests;

pub(crate) use cuda::train;

use super::optimizer::Rule;
use crate::Tensor;

/// The classifier, each tensor with the buffers of its optimizer ([`Rule::buffers`]).
pub(crate) struct Head<'a> {
    /// `[classes, F]`.
    pub weight: &'a mut Tensor,
    /// `[classes]`.
    pub bias: &'a mut Tensor,
    /// Like the weight, each.
    pub weight_buffers: &'a mut [Tensor],
    /// Like the bias, each.
    pub bias_buffers: &'a mut [Tensor],
}

/// What it learns from.
#[derive(Clone, Copy)]
pub(crate) struct Samples<'a> {
    /// `[count, F]`.
    pub features: &'a Tensor,
    /// Class of each, u32 `[count]`.
    pub labels: &'a Tensor,
}

/// The steps: each has samples and a learning rate.
#[derive(Clone, Copy)]
pub(crate) struct Steps<'a> {
    /// Numbers of the samples of each step; none is empty.
    pub batches: &'a [Vec<u32>],
    /// One per step.
    pub lrs: &'a [f32],
    /// Of weight and bias.
    pub weight_decay: f32,
    /// The rule of the first step; AdamW's number counts on from it.
    pub rule: Rule,
}
