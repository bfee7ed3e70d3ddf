//! What a network costs: its kernels, with the operations and the bytes that none of them can do without, and the time
//! that a device of given peaks needs for that, its roof (Williams, Waterman & Patterson 2009).
//!
//! Kernels are cut as this engine fuses them. Forward: one per convolution, with batchnorm, addition and ReLU in its
//! epilogue. Training: a convolution takes the batch's moments in its epilogue; one pass per convolution applies
//! batchnorm, addition and ReLU; backwards, an input gradient adds the other branch's, masks, and takes the sums of the
//! batchnorm before it, whose gradient is one pass more. Each tensor moves once; neither what tiles read twice counts
//! nor what padding computes in vain, so that no implementation reaches the roof.

mod convolution;
mod training;

#[cfg(test)]
mod tests;

pub use convolution::Convolution;

use super::{Arch, block::BlockSpec};
use crate::Precision;

/// A network at work on a batch.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The architecture.
    pub arch: Arch,
    /// Side of the images in pixels, at least 1.
    pub size: usize,
    /// Images of a batch.
    pub batch: usize,
    /// Classes of its head, average pool and linear layer.
    pub classes: usize,
    /// What activations are stored in.
    pub precision: Precision,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations, two to a multiplication with its addition.
    pub flops: f64,
    /// Bytes read from memory or written to it.
    pub bytes: f64,
}

/// What a device can do at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Floating-point operations per second.
    pub flops: f64,
    /// Bytes per second, those read and those written.
    pub bytes: f64,
}

impl Roof {
    /// Seconds for `work` in one kernel.
    pub fn seconds(&self, work: Work) -> f64 {
        (work.flops / self.flops).max(work.bytes / self.bytes)
    }

    /// Seconds for kernels that run one after the other.
    pub fn floor(&self, kernels: &[Kernel]) -> f64 {
        kernels.iter().map(|kernel| self.seconds(kernel.work)).sum()
    }
}

/// One kernel of a network.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Layer and operation, such as `layer1.0.conv1 weight gradient`.
    pub name: String,
    /// What it does.
    pub family: Family,
    /// How much of it.
    pub work: Work,
}

/// Families of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Family {
    /// A convolution.
    Forward,
    /// The gradient of a convolution's input.
    InputGrad,
    /// The gradient of a convolution's weight.
    WeightGrad,
    /// A pass of batchnorm, addition and ReLU, with the stem's max pool.
    Norm,
    /// A pass of their gradients.
    NormGrad,
    /// Pools, the linear layer and its gradients, the loss.
    Head,
    /// The optimizer's step.
    Optimizer,
}

impl Family {
    /// Its name, such as `weight gradient`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Forward => "forward",
            Family::InputGrad => "input gradient",
            Family::WeightGrad => "weight gradient",
            Family::Norm => "batchnorm",
            Family::NormGrad => "batchnorm gradient",
            Family::Head => "head",
            Family::Optimizer => "optimizer",
        }
    }
}

/// The stem's convolution, and the side of its output after the max pool.
struct Stem {
    convolution: Convolution,
    pooled: Option<usize>,
}

/// A block's convolutions.
struct Unit {
    /// In order, the last being the one that the shortcut is added to.
    convolutions: Vec<Convolution>,
    projection: Option<Convolution>,
    /// Elements that the shortcut brings to the addition.
    shortcut: f64,
    /// Elements of the gradient that the shortcut brings back: one pixel in `stride²` of the input.
    shortcut_grad: f64,
}

impl Unit {
    fn last(&self) -> &Convolution {
        &self.convolutions[self.convolutions.len() - 1]
    }

    fn all(&self) -> impl Iterator<Item = &Convolution> {
        self.projection.iter().chain(&self.convolutions)
    }
}

/// Bytes of features, logits and gradients of parameters: f32 in all precisions.
const F32: f64 = 4.0;

impl Network {
    /// Every convolution, in order.
    pub fn convolutions(&self) -> Vec<Convolution> {
        let units = self.blocks();
        let blocks = units.iter().flat_map(Unit::all).cloned();
        std::iter::once(self.stem().convolution).chain(blocks).collect()
    }

    /// Number of units: the stem, each block, the head.
    pub fn units(&self) -> usize {
        self.blocks().len() + 2
    }

    /// Extents `[h, w, C]` of the output of the first `units` units, of which there is one at least and the head is
    /// none.
    pub fn output(&self, units: usize) -> [usize; 3] {
        let Stem { convolution, pooled } = self.stem();
        let stem = [pooled.unwrap_or(convolution.output_side), convolution.outputs];
        let block = |unit: &Unit| [unit.last().output_side, unit.last().outputs];
        let blocks = self.blocks();
        let last = blocks.get(..units.saturating_sub(1)).and_then(<[Unit]>::last);
        let [side, channels] = last.map_or(stem, block);
        [side, side, channels]
    }

    /// Bytes of the two largest activations, of those that convolutions make.
    pub fn largest_activations(&self) -> [f64; 2] {
        let mut sizes: Vec<f64> = self.convolutions().iter().map(Convolution::output_elements).collect();
        sizes.sort_by(|a, b| b.total_cmp(a));
        [0, 1].map(|place| sizes[place] * self.activation())
    }

    /// Floating-point operations of the forward pass of each unit: the stem, each block, the head.
    pub fn forward_by_unit(&self) -> Vec<f64> {
        let (stem, blocks) = (self.stem().convolution.flops(), self.blocks());
        let block = |unit: &Unit| unit.all().map(Convolution::flops).sum();
        std::iter::once(stem).chain(blocks.iter().map(block)).chain([self.linear().flops]).collect()
    }

    /// The kernels of the frozen network. With `pool_in_stem` the stem's max pool is taken in the stem's epilogue,
    /// which spares the largest activation.
    pub fn forward(&self, pool_in_stem: bool) -> Vec<Kernel> {
        let mut kernels = self.frozen(self.units() - 1, pool_in_stem);
        kernels.extend(self.head());
        kernels
    }

    /// The first `units` units of the frozen network, the head not among them.
    fn frozen(&self, units: usize, pool_in_stem: bool) -> Vec<Kernel> {
        let (mut kernels, bytes) = (Vec::new(), self.activation());
        let Stem { convolution: stem, pooled } = self.stem();
        let pooled = pooled.map(|side| self.elements(side, stem.outputs) * bytes);
        let output = stem.output_elements() * bytes;
        if units == 0 {
            return kernels;
        }
        let work = stem.forward(self.precision);
        match pooled {
            Some(pooled) if pool_in_stem => {
                let work = Work { bytes: work.bytes - output + pooled, ..work };
                kernels.push(kernel("conv1, max pool", Family::Forward, work));
            }
            Some(pooled) => {
                kernels.push(kernel("conv1", Family::Forward, work));
                kernels.push(kernel("max pool", Family::Norm, moved(output + pooled)));
            }
            None => kernels.push(kernel("conv1", Family::Forward, work)),
        }
        for unit in self.blocks().iter().take(units - 1) {
            for convolution in unit.all() {
                let last = convolution.name == unit.last().name;
                let residual = if last { unit.shortcut * bytes } else { 0.0 };
                let work = convolution.forward(self.precision);
                let work = Work { bytes: work.bytes + residual, ..work };
                kernels.push(kernel(&convolution.name, Family::Forward, work));
            }
        }
        kernels
    }

    /// Average pool and linear layer.
    fn head(&self) -> [Kernel; 2] {
        let (features, input) = (self.features(), self.last_activation());
        let pool = moved(input * self.activation() + features * F32);
        [kernel("average pool", Family::Head, pool), kernel("linear", Family::Head, self.linear())]
    }

    /// One product of the linear layer: the output, or the gradient of the input or of the weight.
    fn linear(&self) -> Work {
        self.product(self.arch.features(), self.classes)
    }

    /// As [`linear`](Self::linear), of a layer of so many inputs and outputs.
    fn product(&self, inputs: usize, outputs: usize) -> Work {
        let (batch, inputs, outputs) = (self.batch as f64, inputs as f64, outputs as f64);
        let elements = batch * inputs + inputs * outputs + batch * outputs;
        Work { flops: 2.0 * batch * inputs * outputs, bytes: elements * F32 }
    }

    /// Bytes of an activation's element.
    fn activation(&self) -> f64 {
        self.precision.storage().bytes() as f64
    }

    /// Elements of an activation of the batch.
    fn elements(&self, side: usize, channels: usize) -> f64 {
        self.batch as f64 * (side * side) as f64 * channels as f64
    }

    /// Elements of the batch's pooled features.
    fn features(&self) -> f64 {
        self.elements(1, self.arch.features())
    }

    /// Elements of the last activation.
    fn last_activation(&self) -> f64 {
        self.blocks().last().map_or(0.0, |unit| unit.last().output_elements())
    }

    fn stem(&self) -> Stem {
        let (kernel, geometry) = super::resnet::stem(self.arch);
        let convolution = Convolution::new("conv1".into(), self.batch, self.size, kernel, geometry);
        let pooled = (!self.arch.spec().cifar).then_some(convolution.output_side.div_ceil(2));
        Stem { convolution, pooled }
    }

    fn blocks(&self) -> Vec<Unit> {
        let stem = self.stem();
        let mut side = stem.pooled.unwrap_or(stem.convolution.output_side);
        let blocks = super::resnet::stages(self.arch).into_iter().flatten();
        blocks.map(|(name, spec)| self.unit(&name, &spec, &mut side)).collect()
    }

    /// The block of `spec` on an input of `side`, which becomes that of its output.
    fn unit(&self, name: &str, spec: &BlockSpec, side: &mut usize) -> Unit {
        let input = *side;
        let (mut convolutions, mut projection) = (Vec::new(), None);
        for (suffix, kernel, geometry) in spec.plan() {
            let is_projection = suffix.starts_with("downsample");
            let from = if is_projection { input } else { *side };
            let convolution = Convolution::new(format!("{name}.{suffix}"), self.batch, from, kernel, geometry);
            if is_projection {
                projection = Some(convolution);
            } else {
                *side = convolution.output_side;
                convolutions.push(convolution);
            }
        }
        let strided = self.elements(input.div_ceil(spec.stride), spec.inputs);
        let shortcut = if projection.is_some() { self.elements(*side, spec.outputs) } else { strided };
        Unit { convolutions, projection, shortcut, shortcut_grad: strided }
    }
}

fn kernel(name: &str, family: Family, work: Work) -> Kernel {
    Kernel { name: name.into(), family, work }
}

/// Work that is nothing but `bytes` moved.
fn moved(bytes: f64) -> Work {
    Work { flops: 0.0, bytes }
}
