//! What a network computes, as a plain value: for those who write it down in another form, or look for it in one.

use super::{Arch, block::norm_name, layers::Kernel, resnet};
use crate::ops::conv::Geometry;

/// A backbone, from images to the last activation.
pub(crate) struct Structure {
    pub stem: ConvLayer,
    /// Whether the stem ends in a max pool ([`Window::STEM`](crate::ops::pool::Window::STEM)).
    pub pooled: bool,
    pub blocks: Vec<BlockStructure>,
}

/// A convolution without bias, and the batchnorm after it.
pub(crate) struct ConvLayer {
    /// The convolution's name, such as `layer1.0.conv1`.
    pub conv: String,
    /// The batchnorm's name, such as `layer1.0.bn1`.
    pub norm: String,
    /// Extents of the weight in PyTorch's order, `[K, C / groups, R, S]`.
    pub shape: [usize; 4],
    pub geometry: Geometry,
}

/// A residual block: its convolutions have a ReLU after each but the last, which the shortcut is added to, and the sum
/// has one.
pub(crate) struct BlockStructure {
    pub name: String,
    pub convolutions: Vec<ConvLayer>,
    pub shortcut: ShortcutLayer,
}

/// What is added to the output of a block's convolutions.
pub(crate) enum ShortcutLayer {
    /// The block's input.
    Identity,
    /// The input through a convolution and its batchnorm.
    Projection(ConvLayer),
    /// Every `stride`-th pixel of the input, with `channels` of zeros on each side of its own.
    Padding { stride: usize, channels: usize },
}

impl ConvLayer {
    fn new(conv: String, Kernel { inputs, outputs, size }: Kernel, geometry: Geometry) -> Self {
        let norm = norm_name(&conv);
        Self { conv, norm, shape: [outputs, inputs / geometry.groups, size, size], geometry }
    }
}

impl Structure {
    /// That of `arch`.
    pub fn new(arch: Arch) -> Self {
        let (kernel, geometry) = resnet::stem(arch);
        let blocks = resnet::stages(arch).into_iter().flatten().map(|(name, spec)| {
            let layer = |(suffix, kernel, geometry): (String, _, _)| {
                ConvLayer::new(format!("{name}.{suffix}"), kernel, geometry)
            };
            let mut convolutions: Vec<_> = spec.plan().into_iter().map(layer).collect();
            let shortcut = match convolutions.pop_if(|last| last.conv.ends_with("downsample.0")) {
                Some(projection) => ShortcutLayer::Projection(projection),
                None if spec.stride == 1 && spec.inputs == spec.outputs => ShortcutLayer::Identity,
                None => ShortcutLayer::Padding { stride: spec.stride, channels: (spec.outputs - spec.inputs) / 2 },
            };
            BlockStructure { name, convolutions, shortcut }
        });
        Self {
            stem: ConvLayer::new("conv1".into(), kernel, geometry),
            pooled: !arch.spec().cifar,
            blocks: blocks.collect(),
        }
    }
}
