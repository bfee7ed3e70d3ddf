//! A residual block: two or three convolutions, and a shortcut around them.

use super::{
    ConvNorm, Pass,
    layers::{Addend, Kernel},
};
use crate::{
    Device, Result,
    autograd::{Parameter, Parameters, Var},
    ops::{conv::Geometry, shortcut::shortcut},
};

/// What is added to the output of a block's convolutions.
#[derive(Clone, Debug)]
pub enum Shortcut {
    /// The block's input.
    Identity,
    /// The input through a strided 1×1 convolution.
    Projection(Box<ConvNorm>),
    /// Every second pixel of the input, with zeros for the new channels.
    Padding {
        /// Step over pixels.
        stride: usize,
        /// Channels of the output.
        channels: usize,
    },
}

/// A basic block (3×3, 3×3) or a bottleneck (1×1, 3×3 with the stride, 1×1).
#[derive(Clone, Debug)]
pub struct Block {
    convolutions: Vec<ConvNorm>,
    shortcut: Shortcut,
}

/// The name of the batchnorm after the convolution called `conv`.
pub(super) fn norm_name(conv: &str) -> String {
    conv.replace("conv", "bn").replace("downsample.0", "downsample.1")
}

/// The extents of a block.
pub(super) struct BlockSpec {
    pub inputs: usize,
    /// Channels of the 3×3 convolutions.
    pub width: usize,
    pub outputs: usize,
    pub stride: usize,
    pub groups: usize,
    pub bottleneck: bool,
    pub padded_shortcut: bool,
}

impl BlockSpec {
    /// Name and extents of each convolution, that of a projecting shortcut last.
    pub(super) fn plan(&self) -> Vec<(String, Kernel, Geometry)> {
        let &BlockSpec { inputs, width, outputs, stride, groups, .. } = self;
        // (inputs, outputs, size, stride, groups)
        let layout: &[_] = if self.bottleneck {
            &[(inputs, width, 1, 1, 1), (width, width, 3, stride, groups), (width, outputs, 1, 1, 1)]
        } else {
            &[(inputs, width, 3, stride, 1), (width, outputs, 3, 1, 1)]
        };
        let convolutions = layout.iter().enumerate().map(|(index, &(inputs, outputs, size, stride, groups))| {
            let geometry = Geometry { stride, padding: size / 2, groups };
            (format!("conv{}", index + 1), Kernel { inputs, outputs, size }, geometry)
        });
        let projection = (self.changes_shape() && !self.padded_shortcut).then(|| {
            let geometry = Geometry { stride, ..Geometry::default() };
            ("downsample.0".to_string(), Kernel { inputs, outputs, size: 1 }, geometry)
        });
        convolutions.chain(projection).collect()
    }

    fn changes_shape(&self) -> bool {
        self.stride != 1 || self.inputs != self.outputs
    }
}

impl Block {
    pub(super) fn new(name: &str, spec: &BlockSpec, seed: u64, device: &Device) -> Result<Self> {
        let convolution = |(conv, kernel, geometry): (String, Kernel, Geometry)| {
            let conv = format!("{name}.{conv}");
            ConvNorm::new(&conv, &norm_name(&conv), kernel, geometry, seed, device)
        };
        let mut convolutions: Vec<ConvNorm> = spec.plan().into_iter().map(convolution).collect::<Result<_>>()?;
        let depth = if spec.bottleneck { 3 } else { 2 };
        let shortcut = match convolutions.split_off(depth).pop() {
            Some(projection) => Shortcut::Projection(Box::new(projection)),
            None if spec.changes_shape() => Shortcut::Padding { stride: spec.stride, channels: spec.outputs },
            None => Shortcut::Identity,
        };
        Ok(Self { convolutions, shortcut })
    }

    /// `relu(convolutions(input) + shortcut(input))`. An input that nobody else has is gone as soon as it can be.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if extents do not fit.
    pub fn forward(&self, pass: &mut Pass, input: Var) -> Result<Var> {
        let mut addend = Some(match &self.shortcut {
            Shortcut::Identity => Addend::Value(input.clone()),
            Shortcut::Projection(projection) => Addend::Projection(projection, input.clone()),
            Shortcut::Padding { stride, channels } => {
                Addend::Value(shortcut(&mut pass.tape, &input, *stride, *channels)?)
            }
        });
        let mut x = input;
        for (index, convolution) in self.convolutions.iter().enumerate() {
            let last = index + 1 == self.convolutions.len();
            x = convolution.forward_with(pass, &x, addend.take_if(|_| last), true)?;
        }
        Ok(x)
    }

    pub(super) fn is_frozen(&self) -> bool {
        let projection = match &self.shortcut {
            Shortcut::Projection(projection) => Some(&**projection),
            Shortcut::Identity | Shortcut::Padding { .. } => None,
        };
        self.convolutions.iter().chain(projection).all(ConvNorm::is_frozen)
    }

    pub(super) fn convolutions_mut(&mut self) -> impl Iterator<Item = &mut ConvNorm> {
        let projection = match &mut self.shortcut {
            Shortcut::Projection(projection) => Some(&mut **projection),
            Shortcut::Identity | Shortcut::Padding { .. } => None,
        };
        self.convolutions.iter_mut().chain(projection)
    }
}

impl Parameters for Block {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        self.convolutions.iter().for_each(|convolution| convolution.visit(visit));
        if let Shortcut::Projection(projection) = &self.shortcut {
            projection.visit(visit);
        }
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        self.convolutions.iter_mut().for_each(|convolution| convolution.visit_mut(visit));
        if let Shortcut::Projection(projection) = &mut self.shortcut {
            projection.visit_mut(visit);
        }
    }
}
