//! The finishes of `kernels/include/finish.cuh` as kernels take them.

use super::{Factors, GradFinish as Asked, Partial as From};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{Field, Params, kernel_params},
    },
    ops::{
        batchnorm::{self, TileSums},
        conv::{Epilogue, Extents, TileMoments},
        optional, small,
    },
};

kernel_params! {
    /// All zero where there is none.
    pub struct FixedNorm {
        scale: u64,
        shift: u64,
        mean: u64,
        variance: u64,
        eps: f32,
    }
}

kernel_params! {
    pub struct ForwardFinish {
        output: u64,
        norm: FixedNorm,
        residual: u64,
        mean: u64,
        m2: u64,
        channels: u32,
        relu: u32,
    }
}

kernel_params! {
    pub struct Partial {
        grad: u64,
        stride: u32,
        h: u32,
        w: u32,
    }
}

kernel_params! {
    pub struct GradFinish {
        output: u64,
        partial: Partial,
        mask: u64,
        input: u64,
        mean: u64,
        sum: u64,
        product: u64,
        channels: u32,
    }
}

macro_rules! field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn write(&self, bytes: &mut [u8]) {
                Params::write(self, bytes);
            }
        }
    )*};
}

field!(FixedNorm, ForwardFinish, Partial, GradFinish);

impl FixedNorm {
    const NONE: Self = Self { scale: 0, shift: 0, mean: 0, variance: 0, eps: 0.0 };

    fn new(cuda: &CudaDevice, norm: batchnorm::FixedNorm) -> Result<Self> {
        let batchnorm::FixedNorm { scale, shift, mean, variance, eps } = norm;
        Ok(Self {
            scale: scale.pointer::<f32>(cuda)?,
            shift: shift.pointer::<f32>(cuda)?,
            mean: mean.pointer::<f32>(cuda)?,
            variance: variance.pointer::<f32>(cuda)?,
            eps,
        })
    }
}

impl ForwardFinish {
    pub fn new(cuda: &CudaDevice, factors: Factors, output: &Tensor, epilogue: Epilogue) -> Result<Self> {
        let Epilogue { norm, residual, relu } = epilogue;
        Ok(Self {
            output: factors.pointer(cuda, output)?,
            norm: norm.map_or(Ok(FixedNorm::NONE), |norm| FixedNorm::new(cuda, norm))?,
            residual: factors.optional(cuda, residual)?,
            mean: 0,
            m2: 0,
            channels: small("conv", output.shape().last())?,
            relu: relu.into(),
        })
    }

    /// The output as it is, and its moments: for a batchnorm with the batch's own statistics.
    pub fn with_moments(cuda: &CudaDevice, factors: Factors, output: &Tensor, moments: &TileMoments) -> Result<Self> {
        let (mean, m2) = (moments.mean.pointer::<f32>(cuda)?, moments.m2.pointer::<f32>(cuda)?);
        Ok(Self { mean, m2, ..Self::new(cuda, factors, output, Epilogue::default())? })
    }
}

impl GradFinish {
    pub fn new(
        cuda: &CudaDevice,
        factors: Factors,
        output: &Tensor,
        extents: &Extents,
        asked: Asked,
        sums: Option<&TileSums>,
    ) -> Result<Self> {
        let (grad, stride) = match asked.partial {
            Some(From::Dense(grad)) => (Some(grad), 1),
            Some(From::Strided { grad, stride }) => (Some(grad), stride),
            None => (None, 1),
        };
        let [stride, h, w] = [stride, extents.h, extents.w].map(|extent| small("conv", extent));
        let partial = Partial { grad: factors.optional(cuda, grad)?, stride: stride?, h: h?, w: w? };
        Ok(Self {
            output: factors.pointer(cuda, output)?,
            partial,
            mask: optional::<u8>(cuda, asked.sink.and_then(|sink| sink.mask.as_ref()))?,
            input: factors.optional(cuda, asked.sink.map(|sink| &sink.input))?,
            mean: optional::<f32>(cuda, asked.sink.map(|sink| &sink.mean))?,
            sum: optional::<f32>(cuda, sums.map(|sums| &sums.sum))?,
            product: optional::<f32>(cuda, sums.map(|sums| &sums.product))?,
            channels: small("conv", extents.c)?,
        })
    }
}
