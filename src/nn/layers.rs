//! The layers that hold parameters: batchnorm, convolution with batchnorm, linear.

use std::sync::Arc;

use super::{Pass, init};
use crate::{
    Device, Error, Result,
    autograd::{Parameter, Parameters, Role, Var},
    ops::{
        batchnorm::{self, Affine, Fused, Moments},
        conv::{self, Epilogue, Geometry, TileMoments},
        linear,
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
            let (mean, variance) = (self.running_mean.value.clone(), self.running_variance.value.clone());
            Moments { mean, variance, rows: 0 }
        };
        let (scale, shift) = (pass.parameter(&self.scale), pass.parameter(&self.shift));
        let affine = Affine { scale: &scale, shift: &shift };
        batchnorm::batchnorm(&mut pass.tape, input, affine, &moments, batch, self.eps, fused)
    }

    fn uses_batch(&self, pass: &Pass) -> bool {
        pass.is_training() && self.batch_statistics
    }

    pub(super) fn update(&mut self, moments: &Moments) -> Result<()> {
        moments.update_running(self.momentum, &mut self.running_mean.value, &mut self.running_variance.value)
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

/// A convolution and the batchnorm after it; one operation where nothing in it is trained.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    weight: Parameter,
    geometry: Geometry,
    /// The batchnorm.
    pub norm: BatchNorm,
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
            norm: BatchNorm::new(norm, kernel.outputs, device)?,
        })
    }

    /// `relu(norm(conv(input)) + residual)`, residual and ReLU as asked.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if extents do not fit.
    pub fn forward(&self, pass: &mut Pass, input: &Var, residual: Option<&Var>, relu: bool) -> Result<Var> {
        let norm = &self.norm;
        let trained = pass.is_training()
            && (norm.batch_statistics
                || input.needs_grad()
                || residual.is_some_and(Var::needs_grad)
                || [&self.weight, &norm.scale, &norm.shift].into_iter().any(Parameter::is_trainable));
        if trained {
            let weight = pass.parameter(&self.weight);
            let (output, tiles) = match norm.uses_batch(pass) {
                true => conv::conv_with_moments(&mut pass.tape, input, &weight, self.geometry)?,
                false => (conv::conv(&mut pass.tape, input, &weight, self.geometry)?, None),
            };
            return norm.forward_with_moments(pass, &output, tiles.as_ref(), Fused { residual, relu });
        }
        let (scale, shift) = batchnorm::fold(
            &norm.scale.value,
            &norm.shift.value,
            &norm.running_mean.value,
            &norm.running_variance.value,
            norm.eps,
        )?;
        let epilogue = Epilogue { scale_shift: Some((&scale, &shift)), residual: residual.map(Var::value), relu };
        Ok(Var::constant(conv::forward(input.value(), &self.weight.value, self.geometry, epilogue)?))
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
