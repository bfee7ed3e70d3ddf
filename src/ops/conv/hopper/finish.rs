//! What is done to sums before they are stored, as kernels take it (`kernels/include/finish.cuh`).

use crate::device::cuda::{Field, Params, kernel_params};

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

macro_rules! nested {
    ($($name:ident),*) => {$(
        impl Field for $name {
            fn write(&self, bytes: &mut [u8]) {
                Params::write(self, bytes);
            }
        }
    )*};
}

nested!(ForwardFinish, Partial, GradFinish);
