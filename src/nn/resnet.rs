//! The backbone: stem and stages of a ResNet (He et al. 2015), ResNeXt (Xie et al. 2016) or Wide ResNet (Zagoruyko &
//! Komodakis 2016), without the classifier.

use std::{fmt, ops::Range, str::FromStr};

use super::{
    Arch, Block, ConvNorm, Pass,
    block::BlockSpec,
    layers::{IMAGE_CHANNELS, Kernel},
};
use crate::{
    Device, Error, Precision, Result,
    autograd::{Parameter, Parameters, Var},
    ops::{augment::pack_images, conv::Geometry, pool::Window},
};

/// A place in the network whose activation can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// After the stem, its pooling included.
    Stem,
    /// After a stage, counted from 1: `layer1` …
    Stage(usize),
    /// After the global average, `[N, C]`.
    AveragePool,
    /// The checkpoint's own classifier.
    Logits,
}

impl FromStr for Layer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match (text, text.strip_prefix("layer").and_then(|stage| stage.parse().ok())) {
            ("stem", _) => Ok(Layer::Stem),
            ("avgpool", _) => Ok(Layer::AveragePool),
            ("logits", _) => Ok(Layer::Logits),
            (_, Some(stage @ 1..=4)) => Ok(Layer::Stage(stage)),
            _ => {
                let message = format!("'{text}' is unknown; choose stem, layer1 … layer4, avgpool or logits");
                Err(Error::setting("layer", message))
            }
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Stem => f.write_str("stem"),
            Layer::Stage(stage) => write!(f, "layer{stage}"),
            Layer::AveragePool => f.write_str("avgpool"),
            Layer::Logits => f.write_str("logits"),
        }
    }
}

/// A ResNet from image to last activation. Its units, in order, are the stem and each block.
#[derive(Clone, Debug)]
pub struct ResNet {
    arch: Arch,
    stem: ConvNorm,
    stem_pool: Option<Window>,
    stages: Vec<Vec<Block>>,
}

impl ResNet {
    /// A network with random weights.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(arch: Arch, seed: u64, device: &Device) -> Result<Self> {
        let (kernel, geometry) = stem(arch);
        let blocks = |stage: Vec<(String, BlockSpec)>| {
            stage.iter().map(|(name, block)| Block::new(name, block, seed, device)).collect()
        };
        Ok(Self {
            arch,
            stem: ConvNorm::new("conv1", "bn1", kernel, geometry, seed, device)?,
            stem_pool: (!arch.spec().cifar).then_some(Window::STEM),
            stages: stages(arch).into_iter().map(blocks).collect::<Result<_>>()?,
        })
    }

    /// The architecture.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Number of units: the stem and each block.
    pub fn units(&self) -> usize {
        1 + self.stages.iter().map(Vec::len).sum::<usize>()
    }

    /// Number of leading units in which nothing learns or takes batch statistics: in training as otherwise, what comes
    /// out of them is a function of the image alone.
    pub fn frozen_units(&self) -> usize {
        let blocks = self.stages.iter().flatten().map(Block::is_frozen);
        std::iter::once(self.stem.is_frozen()).chain(blocks).take_while(|frozen| *frozen).count()
    }

    /// The number of units up to and with `layer`, if the backbone has it.
    pub fn units_through(&self, layer: Layer) -> Option<usize> {
        match layer {
            Layer::Stem => Some(1),
            Layer::Stage(stage) if (1..=self.stages.len()).contains(&stage) => {
                Some(1 + self.stages[..stage].iter().map(Vec::len).sum::<usize>())
            }
            Layer::Stage(_) | Layer::AveragePool | Layer::Logits => None,
        }
    }

    /// What its convolutions compute with, and its activations are stored in.
    pub fn precision(&self) -> Precision {
        self.stem.precision()
    }

    /// Runs some of the units: from images `[N, H, W, 3]` if they start at 0, from the activation before otherwise. In
    /// a precision other than f32 images may also come as its kernels take them, `[N, H, W, 4]` with zeros last.
    ///
    /// # Errors
    /// [`Error::Shape`] if extents do not fit.
    pub fn forward_units(&self, pass: &mut Pass, input: &Var, units: Range<usize>) -> Result<Var> {
        let mut x = input.clone();
        if units.contains(&0) {
            if self.precision() != Precision::F32 && x.value().shape().last() == IMAGE_CHANNELS {
                x = Var::constant(pack_images(x.value(), self.precision())?);
            }
            x = match self.stem_pool {
                Some(window) => self.stem.forward_pooled(pass, &x, window)?,
                None => self.stem.forward(pass, &x, None, true)?,
            };
        }
        for (unit, block) in self.stages.iter().flatten().enumerate() {
            if units.contains(&(unit + 1)) {
                x = block.forward(pass, x)?;
            }
        }
        Ok(x)
    }

    /// The last activation, `[N, h, w, C]`, from images `[N, H, W, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the images are too small or have not three channels.
    pub fn forward(&self, pass: &mut Pass, images: &Var) -> Result<Var> {
        self.forward_units(pass, images, 0..self.units())
    }

    pub(super) fn convolutions_mut(&mut self) -> impl Iterator<Item = &mut ConvNorm> {
        let blocks = self.stages.iter_mut().flatten().flat_map(Block::convolutions_mut);
        std::iter::once(&mut self.stem).chain(blocks)
    }
}

pub(super) fn stem(arch: Arch) -> (Kernel, Geometry) {
    let (size, stride) = if arch.spec().cifar { (3, 1) } else { (7, 2) };
    let kernel = Kernel { inputs: IMAGE_CHANNELS, outputs: arch.stem_channels(), size };
    (kernel, Geometry { stride, padding: size / 2, groups: 1 })
}

/// Name and extents of each block, by stage.
pub(super) fn stages(arch: Arch) -> Vec<Vec<(String, BlockSpec)>> {
    let spec = arch.spec();
    let mut inputs = arch.stem_channels();
    let stages = spec.blocks.iter().enumerate().map(|(stage, &count)| {
        let base = arch.stem_channels() << stage;
        let blocks = (0..count).map(|index| {
            let block = BlockSpec {
                inputs,
                width: base * spec.group_width / 64 * spec.groups,
                outputs: base * spec.expansion,
                stride: if stage > 0 && index == 0 { 2 } else { 1 },
                groups: spec.groups,
                bottleneck: spec.expansion > 1,
                padded_shortcut: spec.cifar,
            };
            inputs = block.outputs;
            (format!("layer{}.{index}", stage + 1), block)
        });
        blocks.collect()
    });
    stages.collect()
}

/// Every convolution by name.
pub(super) fn plan(arch: Arch) -> Vec<(String, Kernel, Geometry)> {
    let (kernel, geometry) = stem(arch);
    let blocks = stages(arch).into_iter().flatten().flat_map(|(name, block)| {
        let named = |(suffix, kernel, geometry)| (format!("{name}.{suffix}"), kernel, geometry);
        block.plan().into_iter().map(named).collect::<Vec<_>>()
    });
    std::iter::once(("conv1".to_string(), kernel, geometry)).chain(blocks).collect()
}

impl Parameters for ResNet {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        self.stem.visit(visit);
        self.stages.iter().flatten().for_each(|block| block.visit(visit));
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        self.stem.visit_mut(visit);
        self.stages.iter_mut().flatten().for_each(|block| block.visit_mut(visit));
    }
}
