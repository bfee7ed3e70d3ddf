//! Cross entropy on the GPU: `kernels/loss.cu`.

use std::sync::Arc;

use super::{CrossEntropy, Target};
use crate::{
    Result, Tensor,
    device::{
        CudaDevice,
        cuda::{F32_ARCHS, Kernel, Params, Source, kernel_params},
    },
    ops::{optional, small},
};

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows of a block: one for each warp.
const ROWS: usize = 8;

kernel_params! {
    struct LogSoftmaxParams {
        logits: u64,
        output: u64,
        n: u32,
        classes: u32,
        probabilities: u32,
    }
}

kernel_params! {
    struct LogSoftmaxGradParams {
        grad: u64,
        output: u64,
        logits_grad: u64,
        n: u32,
        classes: u32,
    }
}

kernel_params! {
    struct CrossEntropyParams {
        logits: u64,
        labels: u64,
        targets: u64,
        weights: u64,
        row_loss: u64,
        loss: u64,
        grad: u64,
        n: u32,
        classes: u32,
        smoothing: f32,
    }
}

kernel_params! {
    struct CorrectParams {
        logits: u64,
        labels: u64,
        correct: u64,
        n: u32,
        classes: u32,
    }
}

pub static SOURCE: Source = Source {
    name: "loss",
    text: include_str!("../../../kernels/loss.cu"),
    archs: F32_ARCHS,
    entries: &["log_softmax", "log_softmax_grad", "cross_entropy", "cross_entropy_mean", "count_correct"],
    layouts: &[
        LogSoftmaxParams::LAYOUT,
        LogSoftmaxGradParams::LAYOUT,
        CrossEntropyParams::LAYOUT,
        CorrectParams::LAYOUT,
    ],
};

static LOG_SOFTMAX: Kernel<LogSoftmaxParams> = Kernel::new(&SOURCE, "log_softmax", THREADS);
static LOG_SOFTMAX_GRAD: Kernel<LogSoftmaxGradParams> = Kernel::new(&SOURCE, "log_softmax_grad", THREADS);
static CROSS_ENTROPY: Kernel<CrossEntropyParams> = Kernel::new(&SOURCE, "cross_entropy", THREADS);
static MEAN: Kernel<CrossEntropyParams> = Kernel::new(&SOURCE, "cross_entropy_mean", THREADS);
static CORRECT: Kernel<CorrectParams> = Kernel::new(&SOURCE, "count_correct", THREADS);

/// Rows and classes of `logits`, as kernels take them, and the grid of kernels with a warp per row.
fn rows(logits: &Tensor) -> Result<(u32, u32, [usize; 3])> {
    let (n, classes) = (logits.shape().rows(), logits.shape().last());
    Ok((small("loss", n)?, small("loss", classes)?, [n.div_ceil(ROWS), 1, 1]))
}

/// Log-softmax, or with `probabilities` softmax.
pub fn log_softmax(cuda: &Arc<CudaDevice>, logits: &Tensor, probabilities: bool) -> Result<Tensor> {
    let (n, classes, grid) = rows(logits)?;
    let output = Tensor::uninit::<f32>(logits.shape(), cuda)?;
    let params = LogSoftmaxParams {
        logits: logits.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        n,
        classes,
        probabilities: probabilities.into(),
    };
    cuda.launch(&LOG_SOFTMAX, grid, 0, &params)?;
    Ok(output)
}

pub fn log_softmax_grad(cuda: &Arc<CudaDevice>, grad: &Tensor, output: &Tensor) -> Result<Tensor> {
    let (n, classes, grid) = rows(output)?;
    let logits_grad = Tensor::uninit::<f32>(grad.shape(), cuda)?;
    let params = LogSoftmaxGradParams {
        grad: grad.pointer::<f32>(cuda)?,
        output: output.pointer::<f32>(cuda)?,
        logits_grad: logits_grad.pointer::<f32>(cuda)?,
        n,
        classes,
    };
    cuda.launch(&LOG_SOFTMAX_GRAD, grid, 0, &params)?;
    Ok(logits_grad)
}

pub fn cross_entropy(
    cuda: &Arc<CudaDevice>,
    logits: &Tensor,
    target: &Target,
    options: &CrossEntropy,
) -> Result<(Tensor, Tensor)> {
    let (n, classes, grid) = rows(logits)?;
    let (labels, targets) = match target {
        Target::Labels(labels) => (labels.pointer::<u32>(cuda)?, 0),
        Target::Soft(targets) => (0, targets.pointer::<f32>(cuda)?),
    };
    let (loss, grad) = (Tensor::uninit::<f32>([], cuda)?, Tensor::uninit::<f32>(logits.shape(), cuda)?);
    let row_loss = Tensor::uninit::<f32>([logits.shape().rows()], cuda)?;
    let params = CrossEntropyParams {
        logits: logits.pointer::<f32>(cuda)?,
        labels,
        targets,
        weights: optional::<f32>(cuda, options.class_weights.as_ref())?,
        row_loss: row_loss.pointer::<f32>(cuda)?,
        loss: loss.pointer::<f32>(cuda)?,
        grad: grad.pointer::<f32>(cuda)?,
        n,
        classes,
        smoothing: options.label_smoothing,
    };
    cuda.launch(&CROSS_ENTROPY, grid, 0, &params)?;
    cuda.launch(&MEAN, [1, 1, 1], 0, &params)?;
    Ok((loss, grad))
}

pub fn correct(cuda: &Arc<CudaDevice>, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (n, classes, _) = rows(logits)?;
    let correct = Tensor::uninit::<u32>([], cuda)?;
    let params = CorrectParams {
        logits: logits.pointer::<f32>(cuda)?,
        labels: labels.pointer::<u32>(cuda)?,
        correct: correct.pointer::<u32>(cuda)?,
        n,
        classes,
    };
    cuda.launch(&CORRECT, [1, 1, 1], 0, &params)?;
    Ok(correct)
}
