//! Gathering rows on the GPU: `kernels/gather.cu`.

use std::sync::Arc;

use crate::{
    Result, Shape, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{MOST_IMAGES, small},
    tensor::Element,
};

/// Threads of a block.
const THREADS: u32 = 256;

kernel_params! {
    struct GatherParams {
        matrix: u64,
        rows: u64,
        output: u64,
        count: u32,
        n: u32,
        width: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "gather",
    text: include_str!("../../../kernels/gather.cu"),
    archs: F32_ARCHS,
    entries: &["gather_16", "gather_4", "gather_2", "gather_1"],
    layouts: &[GatherParams::LAYOUT],
};

/// Kernels by the bytes of their unit, the widest first.
static BY_UNIT: [(usize, Kernel<GatherParams>); 4] = [
    (16, Kernel::new(&SOURCE, "gather_16", THREADS)),
    (4, Kernel::new(&SOURCE, "gather_4", THREADS)),
    (2, Kernel::new(&SOURCE, "gather_2", THREADS)),
    (1, Kernel::new(&SOURCE, "gather_1", THREADS)),
];

pub fn gather<T: Element>(
    cuda: &Arc<CudaDevice>,
    matrix: &Tensor,
    rows: &Tensor,
    [count, width]: [usize; 2],
    shape: Shape,
) -> Result<Tensor> {
    let (output, n, bytes) = (Tensor::uninit::<T>(shape, cuda)?, rows.shape().elements(), width * size_of::<T>());
    let (unit, kernel) = BY_UNIT.iter().find(|(unit, _)| bytes.is_multiple_of(*unit)).unwrap_or(&BY_UNIT[3]);
    let params = GatherParams {
        matrix: matrix.pointer::<T>(cuda)?,
        rows: rows.pointer::<u32>(cuda)?,
        output: output.pointer::<T>(cuda)?,
        count: small("gather", count)?,
        n: small("gather", n)?,
        width: small("gather", bytes / unit)?,
    };
    cuda.launch(kernel, [(bytes / unit).div_ceil(THREADS as usize), n.min(MOST_IMAGES), 1], 0, &params)?;
    Ok(output)
}
