//! The stem's batchnorm, ReLU and maximum pool: `kernels/batchnorm_pool.cu`.

use std::sync::Arc;

use super::{CHANNELS, THREADS, uninit};
use crate::{
    Error, Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Field, Params, Source, kernel_params},
    },
    ops::{
        batchnorm::{TileSums, fused::Coefficients},
        pool::Window,
        small,
    },
    tensor::{DType, cuda::ByType},
};

/// Rows and columns of pixels that a block takes: `PATCH_ROWS` and `PATCH_COLS`.
const PATCH: [usize; 2] = [8, 16];
/// Columns of outputs that it takes, and outputs of f32 and of bf16: `OUT_COLS` and `LANES`.
const OUT_COLS: usize = 8;
const OUTPUTS: [usize; 2] = [16, 32];

kernel_params! {
    struct PoolExtents {
        n: u32,
        h: u32,
        w: u32,
        c: u32,
        p: u32,
        q: u32,
        stride: u32,
        padding: u32,
    }
}

impl Field for PoolExtents {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct ApplyPoolParams {
        input: u64,
        factor: u64,
        offset: u64,
        output: u64,
        at: u64,
        extents: PoolExtents,
    }
}

kernel_params! {
    /// What the gradients share.
    struct PoolGrad {
        grad: u64,
        input: u64,
        at: u64,
        factor: u64,
        offset: u64,
        extents: PoolExtents,
    }
}

impl Field for PoolGrad {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct ReducePoolParams {
        pool: PoolGrad,
        mean: u64,
        sum: u64,
        product: u64,
    }
}

kernel_params! {
    struct InputGradPoolParams {
        pool: PoolGrad,
        a: u64,
        b: u64,
        c: u64,
        input_grad: u64,
    }
}

pub static SOURCE: Source = Source {
    name: "batchnorm_pool",
    text: include_str!("../../../../kernels/batchnorm_pool.cu"),
    archs: F32_ARCHS,
    entries: &[
        "batchnorm_apply_pool_x4",
        "batchnorm_apply_pool_bf16",
        "batchnorm_reduce_pool_x4",
        "batchnorm_reduce_pool_bf16",
        "batchnorm_input_grad_pool_x4",
        "batchnorm_input_grad_pool_bf16",
    ],
    layouts: &[
        PoolExtents::LAYOUT,
        ApplyPoolParams::LAYOUT,
        PoolGrad::LAYOUT,
        ReducePoolParams::LAYOUT,
        InputGradPoolParams::LAYOUT,
    ],
};

static APPLY: ByType<ApplyPoolParams> =
    ByType::new(&SOURCE, "batchnorm_apply_pool_x4", "batchnorm_apply_pool_bf16", THREADS);
static REDUCE: ByType<ReducePoolParams> =
    ByType::new(&SOURCE, "batchnorm_reduce_pool_x4", "batchnorm_reduce_pool_bf16", THREADS);
static INPUT_GRAD: ByType<InputGradPoolParams> =
    ByType::new(&SOURCE, "batchnorm_input_grad_pool_x4", "batchnorm_input_grad_pool_bf16", THREADS);

/// Patches of `rows` × `cols` places on `n` maps of `height` × `width`.
fn patches([n, height, width]: [usize; 3], [rows, cols]: [usize; 2]) -> usize {
    n * height.div_ceil(rows) * width.div_ceil(cols)
}

impl PoolExtents {
    fn new([n, h, w, c]: [usize; 4], [p, q]: [usize; 2], window: Window) -> Result<Self> {
        let count = |value| small("batchnorm", value);
        // Kernels count rows of all images, and the elements of one, in 32 bits.
        count(n * h)?;
        count(h * w * c)?;
        let (stride, padding) = (count(window.stride)?, count(window.padding)?);
        Ok(Self { n: count(n)?, h: count(h)?, w: count(w)?, c: count(c)?, p: count(p)?, q: count(q)?, stride, padding })
    }
}

/// `[N, P, Q, C]` each: the maxima, and the winners as bytes.
pub fn apply_pooled(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    [factor, offset]: [&Tensor; 2],
    extents: [usize; 4],
    [p, q]: [usize; 2],
    window: Window,
) -> Result<(Tensor, Tensor)> {
    let ([n, _, _, c], dtype) = (extents, input.dtype());
    let kernel = APPLY.of(dtype)?;
    let (output, at) = (Tensor::uninit_of(dtype, [n, p, q, c], cuda)?, Tensor::uninit::<u8>([n, p, q, c], cuda)?);
    let params = ApplyPoolParams {
        input: input.address(dtype, cuda)?,
        factor: factor.pointer::<f32>(cuda)?,
        offset: offset.pointer::<f32>(cuda)?,
        output: output.address(dtype, cuda)?,
        at: at.pointer::<u8>(cuda)?,
        extents: PoolExtents::new(extents, [p, q], window)?,
    };
    let outputs = OUTPUTS[usize::from(dtype == DType::BF16)];
    let blocks = patches([n, p, q], [outputs / OUT_COLS, OUT_COLS]) * c.div_ceil(CHANNELS);
    cuda.launch(kernel, [blocks, 1, 1], 0, &params)?;
    Ok((output, at))
}

/// What gradients are computed from: that of the output, the input, the winners, factor and offset.
pub type Saved<'a> = [&'a Tensor; 5];

impl PoolGrad {
    fn new(cuda: &CudaDevice, [grad, input, at, factor, offset]: Saved, window: Window) -> Result<Self> {
        let dtype = input.dtype();
        let (&[n, h, w, c], &[_, p, q, _]) = (input.dims(), at.dims()) else {
            return Err(Error::shape("batchnorm", "maps are [N, H, W, C]"));
        };
        Ok(Self {
            grad: grad.address(dtype, cuda)?,
            input: input.address(dtype, cuda)?,
            at: at.pointer::<u8>(cuda)?,
            factor: factor.pointer::<f32>(cuda)?,
            offset: offset.pointer::<f32>(cuda)?,
            extents: PoolExtents::new([n, h, w, c], [p, q], window)?,
        })
    }

    /// Patches of pixels, each a tile of sums.
    fn tiles(&self) -> usize {
        let PoolExtents { n, h, w, .. } = self.extents;
        patches([n, h, w].map(|extent| extent as usize), PATCH)
    }

    fn grid(&self) -> [usize; 3] {
        [self.tiles() * (self.extents.c as usize).div_ceil(CHANNELS), 1, 1]
    }
}

pub fn reduce_pooled(cuda: &Arc<CudaDevice>, saved: Saved, mean: &Tensor, window: Window) -> Result<TileSums> {
    let kernel = REDUCE.of(saved[1].dtype())?;
    let pool = PoolGrad::new(cuda, saved, window)?;
    let [sum, product] = uninit([pool.tiles(), pool.extents.c as usize], cuda)?;
    let params = ReducePoolParams {
        pool,
        mean: mean.pointer::<f32>(cuda)?,
        sum: sum.pointer::<f32>(cuda)?,
        product: product.pointer::<f32>(cuda)?,
    };
    cuda.launch(kernel, pool.grid(), 0, &params)?;
    Ok(TileSums { sum, product })
}

pub fn input_grad_pooled(cuda: &Arc<CudaDevice>, saved: Saved, of: &Coefficients, window: Window) -> Result<Tensor> {
    let input = saved[1];
    let kernel = INPUT_GRAD.of(input.dtype())?;
    let input_grad = Tensor::uninit_of(input.dtype(), input.shape(), cuda)?;
    let params = InputGradPoolParams {
        pool: PoolGrad::new(cuda, saved, window)?,
        a: of.a.pointer::<f32>(cuda)?,
        b: of.b.pointer::<f32>(cuda)?,
        c: of.c.pointer::<f32>(cuda)?,
        input_grad: input_grad.address(input.dtype(), cuda)?,
    };
    cuda.launch(kernel, params.pool.grid(), 0, &params)?;
    Ok(input_grad)
}
