//! The layers that hold parameters: batchnorm, convolution with batchnorm, linear.

use std::sync::Arc;

use super::{Pass, init};
use crate::{
    Device, Error, Precision, Result, Tensor,
    autograd::{Packed, Parameter, Parameters, Role, Var},
    device::CudaDevice,
    ops::{
        batchnorm::{
            self, Affine, FixedNorm, Fused, Moments, Norm,
            fused::{Normaliser, RunningUpdate, finalize},
        },
        conv::{self, Epilogue, Geometry, TileMoments, mma},
        linear,
        pool::{Window, max_pool},
    },
};

/// Batch normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    name: Arc<str>,
    scale: Parameter,
    shift: Parameter,
    running_mean: Parameter,
    running_variance: Parameter,
    /// Weight of new statistics in the running ones. Default 0.1.
    pub momentum: f32,
    /// Added to the variance. Default 1e-5.
    pub eps: f32,
    /// Whether a training pass normalises by the batch's own statistics and updates the running ones; if not, it uses
    /// the running ones and leaves them alone, as for a frozen layer.
    pub batch_statistics: bool,
}

impl BatchNorm {
    /// A batchnorm over `channels`, with the parameters `name.weight`, `.bias`, `.running_mean`, `.running_var`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(name: &str, channels: usize, device: &Device) -> Result<Self> {
        let parameter = |suffix: &str, role, value: f32| {
            let value = crate::Tensor::full([channels], value, device)?;
            Ok::<_, Error>(Parameter::new(format!("{name}.{suffix}"), role, value))
        };
        Ok(Self {
            name: name.into(),
            scale: parameter("weight", Role::NormScale, 1.0)?,
            shift: parameter("bias", Role::NormShift, 0.0)?,
            running_mean: parameter("running_mean", Role::RunningMean, 0.0)?,
            running_variance: parameter("running_var", Role::RunningVariance, 1.0)?,
            momentum: 0.1,
            eps: 1e-5,
            batch_statistics: true,
        })
    }

    /// The name, such as `layer1.0.bn1`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Normalises `input` `[.., C]`, then adds a residual and applies a ReLU as asked.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if extents do not fit.
    pub fn forward(&self, pass: &mut Pass, input: &Var, fused: Fused) -> Result<Var> {
        self.forward_with_moments(pass, input, None, fused)
    }

    /// As [`BatchNorm::forward`], with the moments of the input's tiles where they are at hand.
    fn forward_with_moments(
        &self,
        pass: &mut Pass,
        input: &Var,
        tiles: Option<&TileMoments>,
        fused: Fused,
    ) -> Result<Var> {
        let batch = self.uses_batch(pass);
        let moments = if batch {
            let moments = tiles.map_or_else(|| Moments::of(input.value()), Moments::of_tiles)?;
            pass.report(&self.name, moments.clone());
            moments
        } else {
            self.running()
        };
        let (scale, shift) = (pass.parameter(&self.scale), pass.parameter(&self.shift));
        let affine = Affine { scale: &scale, shift: &shift };
        batchnorm::batchnorm(&mut pass.tape, input, affine, &moments, batch, self.eps, fused)
    }

    /// This batchnorm over `input`, the output of a convolution on tensor cores, still to be applied.
    fn over(&self, pass: &mut Pass, input: Var, tiles: Option<&TileMoments>) -> Result<Norm> {
        let (scale, shift) = (pass.parameter(&self.scale), pass.parameter(&self.shift));
        let normaliser = match tiles {
            Some(tiles) => finalize(tiles, scale.value(), shift.value(), self.eps)?,
            None => {
                let (factor, offset) = self.fixed().fold()?;
                Normaliser { moments: self.running(), factor, offset }
            }
        };
        if tiles.is_some() {
            pass.report(&self.name, normaliser.moments.clone());
        }
        Ok(Norm { input, scale, shift, normaliser, batch: tiles.is_some(), eps: self.eps })
    }

    /// This batchnorm with running statistics.
    fn fixed(&self) -> FixedNorm<'_> {
        let [scale, shift, mean, variance] =
            [&self.scale, &self.shift, &self.running_mean, &self.running_variance].map(|parameter| &parameter.value);
        FixedNorm { scale, shift, mean, variance, eps: self.eps }
    }

    fn running(&self) -> Moments {
        Moments { mean: self.running_mean.value.clone(), variance: self.running_variance.value.clone(), rows: 0 }
    }

    /// Where its running statistics lie on `cuda`, unshared where a training pass moves them, and what else of it
    /// decides what a pass launches.
    pub(super) fn fingerprint(&mut self, cuda: &CudaDevice) -> Result<[u64; 3]> {
        let options = u64::from(self.momentum.to_bits()) << 32 | u64::from(self.eps.to_bits());
        let statistics = [&mut self.running_mean, &mut self.running_variance];
        let [mean, variance] = statistics.map(|Parameter { value, .. }| match self.batch_statistics {
            true => value.pointer_mut::<f32>(cuda),
            false => value.pointer::<f32>(cuda),
        });
        // Addresses are even.
        Ok([mean? | u64::from(self.batch_statistics), variance?, options])
    }

    fn uses_batch(&self, pass: &Pass) -> bool {
        pass.is_training() && self.batch_statistics
    }

    /// The step of the running statistics towards `moments`.
    pub(super) fn update<'a>(&'a mut self, moments: &'a Moments) -> RunningUpdate<'a> {
        let Self { running_mean: Parameter { value: mean, .. }, running_variance, momentum, .. } = self;
        RunningUpdate { moments, momentum: *momentum, mean, variance: &mut running_variance.value }
    }
}

impl Parameters for BatchNorm {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        [&self.scale, &self.shift, &self.running_mean, &self.running_variance].into_iter().for_each(visit);
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        let Self { scale, shift, running_mean, running_variance, .. } = self;
        [scale, shift, running_mean, running_variance].into_iter().for_each(visit);
    }
}

/// Channels of the images that a stem takes.
pub(super) const IMAGE_CHANNELS: usize = 3;

/// A convolution and the batchnorm after it; one operation where nothing in it is trained.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    weight: Parameter,
    geometry: Geometry,
    precision: Precision,
    /// The batchnorm.
    pub norm: BatchNorm,
}

/// What is added to the output of a convolution and its batchnorm.
pub(super) enum Addend<'a> {
    /// An activation.
    Value(Var),
    /// What another convolution with its batchnorm makes of an activation.
    Projection(&'a ConvNorm, Var),
}

impl Addend<'_> {
    fn needs_grad(&self, pass: &Pass) -> bool {
        match self {
            Addend::Value(value) => value.needs_grad(),
            Addend::Projection(convolution, input) => convolution.is_trained(pass, input, None),
        }
    }

    fn compute(self, pass: &mut Pass) -> Result<Var> {
        match self {
            Addend::Value(value) => Ok(value),
            Addend::Projection(convolution, input) => convolution.forward(pass, &input, None, false),
        }
    }
}

/// Extents of a convolution's weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub inputs: usize,
    pub outputs: usize,
    pub size: usize,
}

impl ConvNorm {
    pub(super) fn new(
        conv: &str,
        norm: &str,
        kernel: Kernel,
        geometry: Geometry,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let name = format!("{conv}.weight");
        let shape = [kernel.outputs, kernel.size, kernel.size, kernel.inputs / geometry.groups];
        let weight = init::conv(&name, shape, seed, device)?;
        Ok(Self {
            weight: Parameter::new(name, Role::ConvWeight, weight),
            geometry,
            precision: Precision::F32,
            norm: BatchNorm::new(norm, kernel.outputs, device)?,
        })
    }

    /// `relu(norm(conv(input)) + residual)`, residual and ReLU as asked.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if extents do not fit.
    pub fn forward(&self, pass: &mut Pass, input: &Var, residual: Option<&Var>, relu: bool) -> Result<Var> {
        self.forward_with(pass, input, residual.cloned().map(Addend::Value), relu)
    }

    /// As [`ConvNorm::forward`]. A projection is computed after this convolution, so that on the way back it comes
    /// before it.
    pub(super) fn forward_with(&self, pass: &mut Pass, input: &Var, addend: Option<Addend>, relu: bool) -> Result<Var> {
        if !self.is_trained(pass, input, addend.as_ref()) {
            // A projection's input may then be gone before the output comes into being.
            let residual = addend.map(|addend| addend.compute(pass)).transpose()?;
            return Ok(Var::constant(self.frozen(input.value(), residual.as_ref().map(Var::value), relu)?));
        }
        if self.precision != Precision::F32 {
            let norm = self.normed(pass, input)?;
            let shortcut = match addend {
                Some(Addend::Projection(projection, input)) if projection.is_trained(pass, &input, None) => {
                    Some(batchnorm::Shortcut::Normed(Box::new(projection.normed(pass, &input)?)))
                }
                Some(addend) => Some(batchnorm::Shortcut::Value(addend.compute(pass)?)),
                None => None,
            };
            return batchnorm::apply_fused(&mut pass.tape, norm, shortcut, relu);
        }
        let weight = pass.parameter(&self.weight);
        let (output, tiles) = match self.norm.uses_batch(pass) {
            true => conv::conv_with_moments(&mut pass.tape, input, &weight, self.geometry)?,
            false => (conv::conv(&mut pass.tape, input, &weight, self.geometry)?, None),
        };
        let residual = addend.map(|addend| addend.compute(pass)).transpose()?;
        let fused = Fused { residual: residual.as_ref(), relu };
        self.norm.forward_with_moments(pass, &output, tiles.as_ref(), fused)
    }

    /// `max_pool(relu(norm(conv(input))))`: a stem.
    pub(super) fn forward_pooled(&self, pass: &mut Pass, input: &Var, window: Window) -> Result<Var> {
        if self.precision != Precision::F32 && self.is_trained(pass, input, None) {
            let norm = self.normed(pass, input)?;
            return batchnorm::apply_fused_pooled(&mut pass.tape, norm, window);
        }
        let output = self.forward(pass, input, None, true)?;
        max_pool(&mut pass.tape, &output, window)
    }

    /// Whether nothing in it learns or takes batch statistics.
    pub(super) fn is_frozen(&self) -> bool {
        let Self { weight, norm, .. } = self;
        !norm.batch_statistics && ![weight, &norm.scale, &norm.shift].into_iter().any(Parameter::is_trainable)
    }

    /// Whether a gradient flows through it, or it takes batch statistics.
    fn is_trained(&self, pass: &Pass, input: &Var, addend: Option<&Addend>) -> bool {
        input.needs_grad()
            || addend.is_some_and(|addend| addend.needs_grad(pass))
            || (pass.is_training() && !self.is_frozen())
    }

    /// All of it as one operation, with running statistics.
    fn frozen(&self, input: &Tensor, residual: Option<&Tensor>, relu: bool) -> Result<Tensor> {
        let epilogue = Epilogue { norm: Some(self.norm.fixed()), residual, relu };
        match self.precision {
            Precision::F32 => conv::forward(input, &self.weight.value, self.geometry, epilogue),
            Precision::Tf32 | Precision::Bf16 => mma::forward(input, &self.packed()?, self.geometry, epilogue),
        }
    }

    /// The convolution on tensor cores, and its batchnorm, still to be applied.
    fn normed(&self, pass: &mut Pass, input: &Var) -> Result<Norm> {
        let (weight, batch) = (pass.parameter(&self.weight), self.norm.uses_batch(pass));
        let (output, tiles) = conv::conv_packed(&mut pass.tape, input, &weight, &self.packed()?, self.geometry, batch)?;
        self.norm.over(pass, output, tiles.as_ref())
    }

    /// The weight as tensor cores read it: the copy at hand, or one made now.
    fn packed(&self) -> Result<Packed> {
        match &self.weight.packed {
            Some(packed) => Ok(packed.clone()),
            None => self.pack(),
        }
    }

    fn pack(&self) -> Result<Packed> {
        // Nothing needs the gradient of the images.
        let flipped = self.weight.value.shape().last() * self.geometry.groups != IMAGE_CHANNELS;
        mma::pack(&self.weight.value, self.geometry.groups, self.precision, flipped)
    }

    /// Chooses what it computes with, and makes the copies of its weight that this needs.
    pub(super) fn set_precision(&mut self, precision: Precision) -> Result<()> {
        self.precision = precision;
        self.weight.packed = match precision {
            Precision::F32 => None,
            Precision::Tf32 | Precision::Bf16 => Some(self.pack()?),
        };
        Ok(())
    }

    pub(super) fn precision(&self) -> Precision {
        self.precision
    }
}

impl Parameters for ConvNorm {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        visit(&self.weight);
        self.norm.visit(visit);
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        visit(&mut self.weight);
        self.norm.visit_mut(visit);
    }
}

/// A fully connected layer.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Parameter,
    bias: Parameter,
}

impl Linear {
    /// `[N, inputs]` to `[N, outputs]`, with the parameters `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(name: &str, inputs: usize, outputs: usize, seed: u64, device: &Device) -> Result<Self> {
        let weight = format!("{name}.weight");
        let value = init::linear(&weight, [outputs, inputs], seed, device)?;
        Ok(Self {
            weight: Parameter::new(weight, Role::LinearWeight, value),
            bias: Parameter::new(format!("{name}.bias"), Role::LinearBias, crate::Tensor::zeros([outputs], device)?),
        })
    }

    /// Weight and bias.
    pub(crate) fn parameters_mut(&mut self) -> [&mut Parameter; 2] {
        [&mut self.weight, &mut self.bias]
    }

    /// The layer's output, `[N, outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if extents do not fit.
    pub fn forward(&self, pass: &mut Pass, input: &Var) -> Result<Var> {
        let (weight, bias) = (pass.parameter(&self.weight), pass.parameter(&self.bias));
        linear::linear(&mut pass.tape, input, &weight, &bias)
    }
}

impl Parameters for Linear {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        visit(&self.weight);
        visit(&self.bias);
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        visit(&mut self.weight);
        visit(&mut self.bias);
    }
}
