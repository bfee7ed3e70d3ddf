//! Convolution on the GPU: the launches of `kernels/conv_*.cu`.

use std::sync::Arc;

use super::{
    Extents, TileMoments,
    plan::{Plan, Problem, SEGMENT, Tile},
};
use crate::{
    Result, Shape, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Field, Kernel, Params, Source, kernel_params},
    },
    ops::{optional, small},
};

kernel_params! {
    /// All extents, as kernels take them.
    pub struct ConvExtents {
        n: u32,
        h: u32,
        w: u32,
        c: u32,
        k: u32,
        r: u32,
        s: u32,
        p: u32,
        q: u32,
        stride: u32,
        padding: u32,
        groups: u32,
        group_c: u32,
        group_k: u32,
        window: u32,
    }
}

impl Field for ConvExtents {
    fn write(&self, bytes: &mut [u8]) {
        Params::write(self, bytes);
    }
}

kernel_params! {
    struct ConvForwardParams {
        input: u64,
        weight: u64,
        output: u64,
        scale: u64,
        shift: u64,
        residual: u64,
        mean: u64,
        m2: u64,
        extents: ConvExtents,
        rows: u32,
        slices: u32,
        relu: u32,
    }
}

kernel_params! {
    struct ConvInputGradParams {
        grad: u64,
        weight: u64,
        output: u64,
        extents: ConvExtents,
        slices: u32,
    }
}

kernel_params! {
    struct ConvWeightGradParams {
        grad: u64,
        input: u64,
        output: u64,
        extents: ConvExtents,
        pixels: u32,
        slice_pixels: u32,
    }
}

kernel_params! {
    struct ConvMergeParams {
        parts: u64,
        output: u64,
        scale: u64,
        shift: u64,
        residual: u64,
        count: u32,
        channels: u32,
        slices: u32,
        relu: u32,
    }
}

/// The source `kernels/$name.cu` with one kernel per tile, and those kernels in the order of [`Tile`].
macro_rules! tiled {
    ($source:ident, $kernels:ident, $params:ident, $name:literal) => {
        pub static $source: Source = Source {
            name: $name,
            text: include_str!(concat!("../../../kernels/", $name, ".cu")),
            archs: F32_ARCHS,
            entries: &[
                concat!($name, "_128x64"),
                concat!($name, "_64x64"),
                concat!($name, "_64x16"),
                concat!($name, "_16x64"),
            ],
            layouts: &[ConvExtents::LAYOUT, $params::LAYOUT],
        };
        static $kernels: [Kernel<$params>; 4] = [
            Kernel::new(&$source, concat!($name, "_128x64"), 256),
            Kernel::new(&$source, concat!($name, "_64x64"), 256),
            Kernel::new(&$source, concat!($name, "_64x16"), 64),
            Kernel::new(&$source, concat!($name, "_16x64"), 64),
        ];
    };
}

tiled!(FORWARD_SOURCE, FORWARD, ConvForwardParams, "conv_forward");
tiled!(INPUT_GRAD_SOURCE, INPUT_GRAD, ConvInputGradParams, "conv_input_grad");
tiled!(WEIGHT_GRAD_SOURCE, WEIGHT_GRAD, ConvWeightGradParams, "conv_weight_grad");

pub static MERGE_SOURCE: Source = Source {
    name: "conv_merge",
    text: include_str!("../../../kernels/conv_merge.cu"),
    archs: F32_ARCHS,
    entries: &["conv_merge"],
    layouts: &[ConvMergeParams::LAYOUT],
};
static MERGE: Kernel<ConvMergeParams> = Kernel::new(&MERGE_SOURCE, "conv_merge", 256);

impl Extents {
    /// A matrix `[n, inputs]` as maps of one pixel, a matrix `[outputs, inputs]` as filters.
    pub fn linear(n: usize, inputs: usize, outputs: usize) -> Self {
        let (c, k) = (inputs, outputs);
        Self { n, h: 1, w: 1, c, k, r: 1, s: 1, p: 1, q: 1, stride: 1, padding: 0, groups: 1 }
    }

    /// What kernels take: 32 bits each.
    pub fn for_kernels(&self, cuda: &CudaDevice) -> Result<ConvExtents> {
        for (what, count) in [
            ("input pixels", self.n * self.h * self.w),
            ("output pixels", self.n * self.p * self.q),
            ("weights", self.k * self.window()),
            ("channels", 2 * self.c),
            ("rows with padding", 2 * (self.h + 2 * self.padding + self.stride)),
            ("columns with padding", 2 * (self.w + 2 * self.padding + self.stride)),
        ] {
            if count > i32::MAX as usize {
                let message = format!("a convolution with {count} {what} is too large; use a smaller batch or images");
                return Err(cuda.error(message));
            }
        }
        let u32s = |extents: &Self| ConvExtents {
            n: extents.n as u32,
            h: extents.h as u32,
            w: extents.w as u32,
            c: extents.c as u32,
            k: extents.k as u32,
            r: extents.r as u32,
            s: extents.s as u32,
            p: extents.p as u32,
            q: extents.q as u32,
            stride: extents.stride as u32,
            padding: extents.padding as u32,
            groups: extents.groups as u32,
            group_c: extents.group_c() as u32,
            group_k: extents.group_k() as u32,
            window: extents.window() as u32,
        };
        let pixels = self.n * self.h * self.w;
        Ok(match self {
            // Where each output reads one pixel, all are one row: kernels then step through it without wrapping.
            Self { r: 1, s: 1, stride: 1, padding: 0, .. } => {
                u32s(&Self { n: 1, h: 1, w: pixels, p: 1, q: pixels, ..*self })
            }
            _ => u32s(self),
        })
    }
}

/// The epilogue as kernels take it.
#[derive(Clone, Copy, Default)]
pub struct Finish<'a> {
    /// With `shift`.
    pub scale: Option<&'a Tensor>,
    pub shift: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
    pub relu: bool,
}

/// Sums taken in slices: runs `compute` on memory for all of them, then adds them up into a tensor of `shape`.
pub(super) fn in_slices(
    cuda: &Arc<CudaDevice>,
    shape: impl Into<Shape>,
    slices: usize,
    finish: Finish,
    compute: impl FnOnce(&Tensor) -> Result<()>,
) -> Result<Tensor> {
    let output = Tensor::uninit::<f32>(shape, cuda)?;
    if slices == 1 {
        compute(&output)?;
        return Ok(output);
    }
    let count = output.shape().elements();
    let parts = Tensor::uninit::<f32>([slices, count], cuda)?;
    compute(&parts)?;
    let params = ConvMergeParams {
        parts: parts.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        scale: optional::<f32>(cuda, finish.scale)?,
        shift: optional::<f32>(cuda, finish.shift)?,
        residual: optional::<f32>(cuda, finish.residual)?,
        count: small("conv", count)?,
        channels: small("conv", output.shape().last())?,
        slices: slices as u32,
        relu: finish.relu.into(),
    };
    cuda.launch(&MERGE, [count.div_ceil(256), 1, 1], 0, &params)?;
    Ok(output)
}

/// The convolution of `input` with `weight`; `plan` changes none of its bits.
pub fn forward(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    finish: Finish,
    plan: Plan,
) -> Result<Tensor> {
    in_slices(cuda, extents.output(), plan.slices, finish, |output| {
        let finish = if plan.slices == 1 { finish } else { Finish::default() };
        launch_forward(cuda, input, weight, extents, finish, plan, output, None)
    })
}

/// The convolution, and the moments of each tile of its output.
pub fn forward_with_moments(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    tile: Tile,
) -> Result<(Tensor, TileMoments)> {
    let (plan, rows) = (Plan { tile, slices: 1 }, extents.n * extents.p * extents.q);
    let [rows_per_tile, _] = tile.extents();
    let tiles = [rows.div_ceil(rows_per_tile), extents.k];
    let [mean, m2] = [Tensor::uninit::<f32>(tiles, cuda)?, Tensor::uninit::<f32>(tiles, cuda)?];
    let moments = TileMoments { rows, rows_per_tile, mean, m2 };
    let output = Tensor::uninit::<f32>(extents.output(), cuda)?;
    launch_forward(cuda, input, weight, extents, Finish::default(), plan, &output, Some(&moments))?;
    Ok((output, moments))
}

#[expect(clippy::too_many_arguments, reason = "the kernel has them")]
fn launch_forward(
    cuda: &Arc<CudaDevice>,
    input: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    finish: Finish,
    plan: Plan,
    output: &Tensor,
    moments: Option<&TileMoments>,
) -> Result<()> {
    let problem = Problem::forward(extents);
    let params = ConvForwardParams {
        input: input.pointer::<f32>(cuda)?,
        weight: weight.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        scale: optional::<f32>(cuda, finish.scale)?,
        shift: optional::<f32>(cuda, finish.shift)?,
        residual: optional::<f32>(cuda, finish.residual)?,
        mean: optional::<f32>(cuda, moments.map(|moments| &moments.mean))?,
        m2: optional::<f32>(cuda, moments.map(|moments| &moments.m2))?,
        extents: extents.for_kernels(cuda)?,
        rows: problem.rows as u32,
        slices: plan.slices as u32,
        relu: finish.relu.into(),
    };
    cuda.launch(&FORWARD[plan.tile as usize], [problem.tiles(plan.tile) * plan.slices, 1, 1], 0, &params)
}

/// `[N, H, W, C]`; `plan` changes none of its bits.
pub fn input_grad(
    cuda: &Arc<CudaDevice>,
    output_grad: &Tensor,
    weight: &Tensor,
    extents: &Extents,
    plan: Plan,
) -> Result<Tensor> {
    let shape = [extents.n, extents.h, extents.w, extents.c];
    in_slices(cuda, shape, plan.slices, Finish::default(), |output| {
        let params = ConvInputGradParams {
            grad: output_grad.pointer::<f32>(cuda)?,
            weight: weight.pointer::<f32>(cuda)?,
            output: output.pointer::<f32>(cuda)?,
            extents: extents.for_kernels(cuda)?,
            slices: plan.slices as u32,
        };
        let blocks = Problem::input_grad(extents).tiles(plan.tile) * plan.slices;
        cuda.launch(&INPUT_GRAD[plan.tile as usize], [blocks, 1, 1], 0, &params)
    })
}

/// `[K, R, S, C / groups]`.
pub fn weight_grad(
    cuda: &Arc<CudaDevice>,
    output_grad: &Tensor,
    input: &Tensor,
    extents: &Extents,
    plan: Plan,
) -> Result<Tensor> {
    let shape = [extents.k, extents.r, extents.s, extents.group_c()];
    if extents.n == 0 {
        return Tensor::zeros(shape, output_grad.device());
    }
    let problem = Problem::weight_grad(extents);
    in_slices(cuda, shape, plan.slices, Finish::default(), |output| {
        let params = ConvWeightGradParams {
            grad: output_grad.pointer::<f32>(cuda)?,
            input: input.pointer::<f32>(cuda)?,
            output: output.pointer::<f32>(cuda)?,
            extents: extents.for_kernels(cuda)?,
            pixels: problem.depth as u32,
            slice_pixels: (problem.segments().div_ceil(plan.slices) * SEGMENT) as u32,
        };
        let blocks = problem.tiles(plan.tile) * plan.slices;
        cuda.launch(&WEIGHT_GRAD[plan.tile as usize], [blocks, 1, 1], 0, &params)
    })
}
