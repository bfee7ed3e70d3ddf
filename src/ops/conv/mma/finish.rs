//! The finishes of `kernels/include/finish.cuh` as kernels take them.

use super::{Factors, GradFinish as Asked, Partial as From};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{Field, Params, kernel_params},
    },
    ops::{
        batchnorm::TileSums,
        conv::{Epilogue, Extents, TileMoments},
        optional, small,
    },
};

kernel_params! {
    pub struct ForwardFinish {
        output: u64,
        scale: u64,
        shift: u64,
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

field!(ForwardFinish, Partial, GradFinish);

impl ForwardFinish {
    pub fn new(
        cuda: &CudaDevice,
        factors: Factors,
        output: &Tensor,
        epilogue: Epilogue,
        moments: Option<&TileMoments>,
    ) -> Result<Self> {
        let Epilogue { scale_shift, residual, relu } = epilogue;
        Ok(Self {
            output: factors.pointer(cuda, output)?,
            scale: optional::<f32>(cuda, scale_shift.map(|(scale, _)| scale))?,
            shift: optional::<f32>(cuda, scale_shift.map(|(_, shift)| shift))?,
            residual: factors.optional(cuda, residual)?,
            mean: optional::<f32>(cuda, moments.map(|moments| &moments.mean))?,
            m2: optional::<f32>(cuda, moments.map(|moments| &moments.m2))?,
            channels: small("conv", output.shape().last())?,
            relu: relu.into(),
        })
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
