//! The fully connected layer on the processor.

use crate::{
    Result, Tensor,
    device::CpuDevice,
    ops::{
        matrix,
        products::{self, transposed, whole_product},
    },
};

pub fn forward(cpu: &CpuDevice, input: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ([n, inputs], [outputs, _]) = (matrix("linear", input)?, matrix("linear", weight)?);
    let x = input.as_slice::<f32>()?;
    let mut output = products::outputs(cpu, n, inputs, |sample| &x[sample * inputs..][..inputs], weight.as_slice()?);
    add_bias(&mut output, bias.as_slice()?);
    Tensor::new(output, [n, outputs], input.device())
}

/// Adds the bias of each output to `[n, outputs]`.
pub fn add_bias(output: &mut [f32], bias: &[f32]) {
    for row in output.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(output, bias)| *output += bias);
    }
}

/// `grad · weight`, `[N, in]`.
pub fn input_grad(cpu: &CpuDevice, grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ([n, outputs], [_, inputs]) = (matrix("linear", grad)?, matrix("linear", weight)?);
    let (g, w) = (grad.as_slice::<f32>()?, weight.as_slice::<f32>()?);
    let of_sample = |sample: usize| &g[sample * outputs..][..outputs];
    let result = whole_product(cpu, n, of_sample, outputs, inputs, |output| &w[output * inputs..][..inputs]);
    Tensor::new(result, [n, inputs], grad.device())
}

/// `gradᵀ · input`, `[out, in]`.
pub fn weight_grad(cpu: &CpuDevice, grad: &Tensor, input: &Tensor) -> Result<Tensor> {
    let ([n, outputs], [_, inputs]) = (matrix("linear", grad)?, matrix("linear", input)?);
    if n == 0 {
        return Tensor::zeros([outputs, inputs], grad.device());
    }
    let (g, x) = (grad.as_slice::<f32>()?, input.as_slice::<f32>()?);
    let turned = transposed(cpu, n, outputs, |sample| &g[sample * outputs..][..outputs]);
    let of_output = |output: usize| &turned[output * n..][..n];
    let result = whole_product(cpu, outputs, of_output, n, inputs, |sample| &x[sample * inputs..][..inputs]);
    Tensor::new(result, [outputs, inputs], grad.device())
}

/// Sums over rows, `[out]`.
pub fn bias_grad(grad: &Tensor) -> Result<Tensor> {
    let [_, outputs] = matrix("linear", grad)?;
    Tensor::new(column_sums(grad.as_slice()?, outputs), [outputs], grad.device())
}

/// The sum of each of `columns` columns.
pub fn column_sums(matrix: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for row in matrix.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    sums
}
