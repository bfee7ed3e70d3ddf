//! The order of a parameter's extents in files and in this engine; they differ for convolutions only.

use crate::autograd::{Parameter, Role};

/// The extents of `parameter` in a file.
pub(super) fn file_shape(parameter: &Parameter) -> Vec<usize> {
    match (parameter.role(), parameter.value.dims()) {
        (Role::ConvWeight, &[k, r, s, c]) => vec![k, c, r, s],
        (_, dims) => dims.to_vec(),
    }
}

/// Values in a file's order, in this engine's: `[K, C, R, S]` to `[K, R, S, C]`.
pub(super) fn from_file(parameter: &Parameter, values: Vec<f32>) -> Vec<f32> {
    match (parameter.role(), parameter.value.dims()) {
        (Role::ConvWeight, &[_, r, s, c]) => transposed(&values, c, r * s),
        _ => values,
    }
}

/// Values in this engine's order, in a file's: `[K, R, S, C]` to `[K, C, R, S]`.
pub(super) fn to_file(parameter: &Parameter, values: Vec<f32>) -> Vec<f32> {
    match (parameter.role(), parameter.value.dims()) {
        (Role::ConvWeight, &[_, r, s, c]) => transposed(&values, r * s, c),
        _ => values,
    }
}

/// Transposes each matrix of a batch of `rows` × `columns`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let matrices = values.chunks_exact((rows * columns).max(1));
    matrices
        .flat_map(|matrix| (0..columns).flat_map(move |column| matrix.iter().skip(column).step_by(columns)))
        .copied()
        .collect()
}
