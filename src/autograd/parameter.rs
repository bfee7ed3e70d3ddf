//! Named tensors of a model: what is learned, and the statistics that belong to it.

use std::sync::Arc;

use crate::{Result, Tensor, device::CudaDevice};

/// What a parameter is for; decides its layout, its initialisation and whether it can be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Convolution weight `[K, R, S, C]` (in files PyTorch's `[K, C, R, S]`).
    ConvWeight,
    /// Linear weight `[out, in]`.
    LinearWeight,
    /// Bias of a linear layer `[out]`.
    LinearBias,
    /// Batchnorm scale γ `[C]`.
    NormScale,
    /// Batchnorm shift β `[C]`.
    NormShift,
    /// Batchnorm running mean `[C]`: a statistic, never learned.
    RunningMean,
    /// Batchnorm running variance `[C]`: a statistic, never learned.
    RunningVariance,
}

impl Role {
    /// Whether it is the weight of a convolution or a linear layer, not one number per channel.
    pub fn is_weight(self) -> bool {
        matches!(self, Role::ConvWeight | Role::LinearWeight)
    }

    /// Whether an optimizer may change it.
    pub fn is_learned(self) -> bool {
        !matches!(self, Role::RunningMean | Role::RunningVariance)
    }
}

/// A convolution's weight as tensor cores read it, beside the f32 master. Groups narrower than 64 channels are joined
/// to groups of at most 64, whose filters are zero on the other groups' channels.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[K, R, S, c]`: `c` channels of a joined group, with zeros up to a multiple of 4. bf16, or f32 for TF32.
    pub forward: Tensor,
    /// `[C, R, S, k]`: filters of a joined group for each input channel, taps in reverse order; what the input gradient
    /// convolves with. `None` where no gradient reaches the input.
    pub flipped: Option<Tensor>,
    /// Independent groups of channels, before they are joined.
    pub groups: usize,
}

/// A named tensor of a model.
#[derive(Clone, Debug)]
pub struct Parameter {
    name: Arc<str>,
    role: Role,
    /// The current value, in this engine's layout.
    pub value: Tensor,
    /// Copies for tensor cores, kept equal to the value by whoever changes it.
    pub packed: Option<Packed>,
    trainable: bool,
}

impl Parameter {
    /// A parameter under its torchvision name, such as `layer1.0.conv1.weight`. Trainable if its role is learned.
    pub fn new(name: impl Into<Arc<str>>, role: Role, value: Tensor) -> Self {
        Self { name: name.into(), role, value, packed: None, trainable: role.is_learned() }
    }

    /// Sets the value; copies for tensor cores are given up.
    pub fn set_value(&mut self, value: Tensor) {
        self.value = value;
        self.packed = None;
    }

    /// Where it and its copies lie on `cuda`, unshared if it is trained.
    pub(crate) fn fingerprint(&mut self, cuda: &CudaDevice) -> Result<[u64; 3]> {
        let trainable = self.trainable;
        let address = |tensor: &mut Tensor| match trainable {
            true => tensor.address_mut(tensor.dtype(), cuda),
            false => tensor.address(tensor.dtype(), cuda),
        };
        let value = address(&mut self.value)?;
        let (forward, flipped) = match &mut self.packed {
            Some(packed) => (address(&mut packed.forward)?, packed.flipped.as_mut().map_or(Ok(0), address)?),
            None => (0, 0),
        };
        // Addresses are even.
        Ok([value | u64::from(trainable), forward, flipped])
    }

    /// The name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether gradients are computed for it.
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// Freezes or unfreezes it; statistics stay untrainable.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable && self.role.is_learned();
    }
}

/// Anything that holds parameters, visited in a fixed order.
pub trait Parameters {
    /// Calls `visit` on each parameter.
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter));
    /// Calls `visit` on each parameter for writing.
    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter));
}
