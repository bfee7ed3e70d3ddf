//! The fully connected layer on the processor.

use rayon::prelude::*;

use crate::{
    Result, Tensor,
    device::{CpuDevice, Matrix, gemm},
    ops::matrix,
};

/// Output columns per task: a multiple of every vector width.
const COLUMNS: usize = 64;
/// Rows of a weight gradient per task.
const ROWS: usize = 64;

pub fn forward(cpu: &CpuDevice, input: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ([n, inputs], [outputs, _]) = (matrix("linear", input)?, matrix("linear", weight)?);
    let (x, w, bias) = (input.as_slice::<f32>()?, weight.as_slice::<f32>()?, bias.as_slice::<f32>()?);
    let mut output = vec![0.0; n * outputs];
    if n > 0 {
        // Columns are dealt out rather than rows: a sample's result then does not depend on the batch.
        let blocks: Vec<Vec<f32>> = cpu.install(|| {
            w.par_chunks(COLUMNS * inputs)
                .map(|w| {
                    let columns = w.len() / inputs;
                    let mut block = vec![0.0; n * columns];
                    let w = Matrix::dense(w, columns, inputs).transposed();
                    gemm(Matrix::dense(x, n, inputs), w, &mut block, columns, false);
                    block
                })
                .collect()
        });
        for (index, block) in blocks.iter().enumerate() {
            let columns = (outputs - index * COLUMNS).min(COLUMNS);
            for (row, block) in output.chunks_exact_mut(outputs).zip(block.chunks_exact(columns)) {
                let bias = &bias[index * COLUMNS..];
                let row = &mut row[index * COLUMNS..][..columns];
                row.iter_mut().zip(block).zip(bias).for_each(|((row, product), bias)| *row = product + bias);
            }
        }
    }
    Tensor::new(output, [n, outputs], input.device())
}

/// `grad · weight`, `[N, in]`.
pub fn input_grad(cpu: &CpuDevice, grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ([n, outputs], [_, inputs]) = (matrix("linear", grad)?, matrix("linear", weight)?);
    let (grad_slice, w) = (grad.as_slice::<f32>()?, weight.as_slice::<f32>()?);
    let mut input_grad = vec![0.0; n * inputs];
    cpu.install(|| {
        input_grad.par_chunks_mut(ROWS * inputs).zip(grad_slice.par_chunks(ROWS * outputs)).for_each(|(to, grad)| {
            let rows = grad.len() / outputs;
            gemm(Matrix::dense(grad, rows, outputs), Matrix::dense(w, outputs, inputs), to, inputs, false);
        });
    });
    Tensor::new(input_grad, [n, inputs], grad.device())
}

/// `gradᵀ · input`, `[out, in]`.
pub fn weight_grad(cpu: &CpuDevice, grad: &Tensor, input: &Tensor) -> Result<Tensor> {
    let ([n, outputs], [_, inputs]) = (matrix("linear", grad)?, matrix("linear", input)?);
    let (grad_slice, x) = (grad.as_slice::<f32>()?, input.as_slice::<f32>()?);
    let mut weight_grad = vec![0.0; outputs * inputs];
    cpu.install(|| {
        weight_grad.par_chunks_mut(ROWS * inputs).enumerate().for_each(|(block, to)| {
            let rows = to.len() / inputs;
            let first = block * ROWS;
            let grad = Matrix::part(grad_slice, outputs, 0..n, first..first + rows);
            gemm(grad.transposed(), Matrix::dense(x, n, inputs), to, inputs, false);
        });
    });
    Tensor::new(weight_grad, [outputs, inputs], grad.device())
}

/// Sums over rows, `[out]`.
pub fn bias_grad(grad: &Tensor) -> Result<Tensor> {
    let [_, outputs] = matrix("linear", grad)?;
    let mut sum = vec![0.0; outputs];
    for row in grad.as_slice::<f32>()?.chunks_exact(outputs) {
        sum.iter_mut().zip(row).for_each(|(sum, grad)| *sum += grad);
    }
    Tensor::new(sum, [outputs], grad.device())
}
