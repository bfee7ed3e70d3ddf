//! A backbone with a head, cut into layer groups.

use std::{collections::HashMap, sync::Arc};

use super::{Arch, BatchNorm, FreezeState, Grouping, Head, HeadSpec, Pass, ResNet, Unit};
use crate::{
    Device, Precision, Result, Tensor,
    autograd::{Parameter, Parameters, Var},
    device::CudaDevice,
    ops::{
        batchnorm::{
            Moments,
            fused::{RunningUpdate, update_running},
        },
        optimizer::Table,
    },
};

/// A classifier network.
///
/// ```
/// use unfreeze::{Device, Tensor, nn::{Arch, HeadSpec, Model}};
/// # fn main() -> unfreeze::Result<()> {
/// let device = Device::cpu(1)?;
/// let model = Model::new(Arch::ResNet20, HeadSpec::Linear, 10, 0, &device)?;
/// let logits = model.logits(&Tensor::zeros([2, 32, 32, 3], &device)?)?;
/// assert_eq!(logits.dims(), [2, 10]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    /// From image to last activation.
    pub backbone: ResNet,
    /// From last activation to logits.
    pub head: Head,
    grouping: Grouping,
    /// Table of the last update of running statistics.
    statistics: Table,
}

impl Model {
    /// A network with random weights, every group trainable.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if `head` makes no sense;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(arch: Arch, head: HeadSpec, classes: usize, seed: u64, device: &Device) -> Result<Self> {
        let backbone = ResNet::new(arch, seed, device)?;
        let head = Head::new(head, arch.features(), classes, seed, device)?;
        Ok(Self { backbone, head, grouping: Grouping::default(), statistics: Table::default() })
    }

    /// The architecture.
    pub fn arch(&self) -> Arch {
        self.backbone.arch()
    }

    /// How it is cut into layer groups.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Cuts it into other layer groups.
    pub fn set_grouping(&mut self, grouping: Grouping) {
        self.grouping = grouping;
    }

    /// Its units in order: the stem, each block, the head.
    pub fn units(&self) -> Vec<Unit> {
        let blocks = self.arch().spec().blocks.iter().enumerate();
        let blocks = blocks.flat_map(|(stage, &count)| (0..count).map(move |block| Unit::Block(stage + 1, block)));
        std::iter::once(Unit::Stem).chain(blocks).chain([Unit::Head]).collect()
    }

    /// The layer group of the parameter called `name`.
    pub fn group_of(&self, name: &str) -> usize {
        self.grouping.group(self.arch(), Unit::of(name))
    }

    /// What it computes with. Default: f32.
    pub fn precision(&self) -> Precision {
        self.backbone.precision()
    }

    /// Chooses what it computes with. To be called anew after parameters were set otherwise than by an
    /// [`Optimizer`](crate::optim::Optimizer), which keeps the copies that tensor cores read.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if the device cannot compute with it;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        precision.check(self.device())?;
        self.backbone.convolutions_mut().try_for_each(|convolution| convolution.set_precision(precision))
    }

    /// Where its parameters lie.
    pub(crate) fn device(&self) -> &Device {
        let mut device = None;
        self.visit(&mut |parameter| device = Some(parameter.value.device()));
        device.unwrap_or_else(|| unreachable!("a network has parameters"))
    }

    /// Makes the groups trainable or frozen as `state` says. A frozen group's batchnorms use and keep their running
    /// statistics; with `freeze_norms` those of all groups do, while their scale and shift still learn.
    pub fn apply(&mut self, state: &FreezeState, freeze_norms: bool) {
        let (grouping, arch) = (self.grouping, self.arch());
        let trainable = move |name: &str| state.is_trainable(grouping.group(arch, Unit::of(name)));
        self.visit_mut(&mut |parameter| {
            let on = trainable(parameter.name());
            parameter.set_trainable(on);
        });
        for norm in self.norms_mut() {
            norm.batch_statistics = trainable(&format!("{}.", norm.name())) && !freeze_norms;
        }
    }

    /// Logits `[N, classes]` of an activation `[N, h, w, C]`, the output of the backbone's first `units` units.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if it is not that.
    pub fn forward_from(&self, pass: &mut Pass, activation: &Var, units: usize) -> Result<Var> {
        let last = self.backbone.forward_units(pass, activation, units..self.backbone.units())?;
        let features = self.head.pool(pass, &last)?;
        self.head.classify(pass, &features)
    }

    /// Pooled features `[N, F]` of images `[N, H, W, 3]`: what the head's trainable layers work on.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the images are too small or have not three channels.
    pub fn features(&self, pass: &mut Pass, images: &Var) -> Result<Var> {
        let activation = self.backbone.forward(pass, images)?;
        self.head.pool(pass, &activation)
    }

    /// Logits `[N, classes]` of images `[N, H, W, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the images are too small or have not three channels.
    pub fn forward(&self, pass: &mut Pass, images: &Var) -> Result<Var> {
        self.forward_from(pass, images, 0)
    }

    /// The same network with its parameters on another device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if they do not fit there;
    /// [`Error::Setting`](crate::Error::Setting) if it cannot compute with the network's precision.
    pub fn to_device(mut self, device: &Device) -> Result<Self> {
        let mut outcome = Ok(());
        self.visit_mut(&mut |parameter| match parameter.value.to_device(device) {
            Ok(value) => parameter.set_value(value),
            Err(error) => outcome = Err(error),
        });
        outcome?;
        self.set_precision(self.precision())?;
        Ok(self)
    }

    /// Logits in evaluation mode.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the images are too small or have not three channels.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.forward(&mut Pass::evaluation(), &Var::constant(images.clone()))?.into_value())
    }

    /// Moves running statistics towards those that a training pass met.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if channel counts differ.
    pub fn update_statistics(&mut self, statistics: Vec<(Arc<str>, Moments)>) -> Result<()> {
        let statistics: HashMap<_, _> = statistics.into_iter().collect();
        let Self { backbone, head, statistics: table, .. } = self;
        let mut updates: Vec<RunningUpdate> = norms(backbone, head)
            .filter_map(|norm| statistics.get(norm.name()).map(|moments| norm.update(moments)))
            .collect();
        update_running(&mut updates, table)
    }

    /// Where everything lies on `cuda` that a pass reads, unshared what a training step writes, and what else of the
    /// network decides what they launch.
    pub(crate) fn fingerprint(&mut self, cuda: &CudaDevice) -> Result<Vec<u64>> {
        let (mut words, mut outcome) = (Vec::new(), Ok(()));
        let mut add = |found: Result<[u64; 3]>| match found {
            Ok(found) => words.extend(found),
            Err(error) => outcome = Err(error),
        };
        self.visit_mut(&mut |parameter| {
            // Statistics are their batchnorm's.
            if parameter.role().is_learned() {
                add(parameter.fingerprint(cuda));
            }
        });
        self.norms_mut().for_each(|norm| add(norm.fingerprint(cuda)));
        outcome.map(|()| words)
    }

    /// Number of elements in learned parameters: `(all, trainable)`.
    pub fn parameter_count(&self) -> (usize, usize) {
        let mut count = (0, 0);
        self.visit(&mut |parameter| {
            let elements = parameter.value.shape().elements();
            count.0 += if parameter.role().is_learned() { elements } else { 0 };
            count.1 += if parameter.is_trainable() { elements } else { 0 };
        });
        count
    }

    /// Every batchnorm.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut BatchNorm> {
        norms(&mut self.backbone, &mut self.head)
    }
}

fn norms<'a>(backbone: &'a mut ResNet, head: &'a mut Head) -> impl Iterator<Item = &'a mut BatchNorm> {
    backbone.convolutions_mut().map(|convolution| &mut convolution.norm).chain(head.norms_mut())
}

impl Parameters for Model {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        self.backbone.visit(visit);
        self.head.visit(visit);
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        self.backbone.visit_mut(visit);
        self.head.visit_mut(visit);
    }
}
