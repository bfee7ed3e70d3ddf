//! Matrix products on the processor, of the fully connected layer and of 1×1 convolutions. A sample's results depend
//! neither on its batch nor on the number of threads: every element is summed in an order that its own extents decide.

use std::{array, ops::Range};

use pulp::{Arch, Simd, WithSimd};

use crate::{
    device::CpuDevice,
    ops::{CHUNK, tile},
};

/// Multiplications that are worth a task of their own.
const TASK: usize = 1 << 20;
/// Terms of a sum that are added up before they are added to the others: a panel of so many stays in the nearest cache.
pub const TERMS: usize = 64;
/// Outputs that are few: to turn the samples for a [`Product`] would take longer than rows times rows.
const FEW: usize = 64;

/// Rows per task of a matrix each of whose rows takes so many multiplications: a multiple of a tile's.
pub fn rows_per_task(cpu: &CpuDevice, rows: usize, multiplications: usize) -> usize {
    let tasks = (rows * multiplications / TASK).clamp(1, 2 * cpu.threads());
    rows.div_ceil(tasks).next_multiple_of(tile::ROWS)
}

/// `input · weightᵀ`, `[n, outputs]`, of the `n` samples that `sample` gives, `inputs` values each, and `weight`
/// `[outputs, inputs]`.
pub fn outputs<'a>(
    cpu: &CpuDevice,
    n: usize,
    inputs: usize,
    sample: impl Fn(usize) -> &'a [f32] + Sync,
    weight: &[f32],
) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    let of_output = |output: usize| &weight[output * inputs..][..inputs];
    if n == 0 {
        return Vec::new();
    }
    if outputs <= FEW {
        let own = rows_per_task(cpu, n, outputs * inputs);
        let mut result = vec![0.0; n * outputs];
        cpu.each_chunk(&mut result, own * outputs, |task, result| {
            let sample = |index: usize| sample(task * own + index);
            Arch::new().dispatch(Dots { sample, inputs, weight, outputs, result });
        });
        return result;
    }
    let turned = transposed(cpu, n, inputs, sample);
    let result = whole_product(cpu, outputs, of_output, [inputs, inputs], n, |input| &turned[input * n..][..n]);
    transposed(cpu, outputs, n, |output| &result[output * n..][..n])
}

/// Some rows of the product of samples and weights.
struct Dots<'a, F> {
    sample: F,
    inputs: usize,
    weight: &'a [f32],
    outputs: usize,
    result: &'a mut [f32],
}

impl<'a, F: Fn(usize) -> &'a [f32]> WithSimd for Dots<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match tile::vectors::<S>() {
            4 => self.compute::<S, 4, 6>(simd),
            _ => self.compute::<S, 2, 4>(simd),
        }
    }
}

impl<'a, F: Fn(usize) -> &'a [f32]> Dots<'_, F> {
    #[inline(always)]
    fn compute<S: Simd, const A: usize, const B: usize>(self, simd: S) {
        let Self { sample, inputs, weight, outputs, result } = self;
        let samples = result.len() / outputs;
        for (tile, result) in result.chunks_mut(A * outputs).enumerate() {
            // Beyond the last row the last is taken again, and its results are not.
            let rows: [&[f32]; A] = array::from_fn(|i| sample((tile * A + i).min(samples - 1)));
            for first in (0..outputs).step_by(B) {
                let weights = array::from_fn(|j| &weight[(first + j).min(outputs - 1) * inputs..][..inputs]);
                let products: [[f32; B]; A] = tile::dots(simd, rows, weights);
                for (result, products) in result.chunks_exact_mut(outputs).zip(products) {
                    result[first..].iter_mut().zip(products).for_each(|(to, product)| *to = product);
                }
            }
        }
    }
}

/// The product of a matrix `[m, terms]`, whose rows `row` gives, and one `[terms, columns]`, whose rows `term` gives; see
/// [`Product`] of `at_once`.
pub fn whole_product<'a, 'b>(
    cpu: &CpuDevice,
    m: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    [terms, at_once]: [usize; 2],
    columns: usize,
    term: impl Fn(usize) -> &'b [f32] + Sync,
) -> Vec<f32> {
    let own = rows_per_task(cpu, m, terms * columns);
    let mut result = cpu.buffer(m * columns);
    cpu.each_chunk(&mut result, own * columns, |task, result| {
        Arch::new().dispatch(Product {
            rows: task * own..task * own + result.len() / columns,
            row: &row,
            terms,
            at_once,
            columns,
            term: &term,
            take: |row: usize, column: usize, values: &[f32], first: bool| {
                let to = &mut result[(row - task * own) * columns + column..][..values.len()];
                match first {
                    true => to.copy_from_slice(values),
                    false => to.iter_mut().zip(values).for_each(|(to, value)| *to += value),
                }
            },
        });
    });
    result
}

/// `turned · input`, of some rows of `turned` `[outputs, n]`, a gradient, and `n` samples of `inputs` values that `sample`
/// gives. Elements are handed to `take` some of a row at a time, each once and of all terms, with the numbers of their row
/// and of the first's column.
pub fn take_weight_grad<'a>(
    turned: &[f32],
    rows: Range<usize>,
    [n, inputs]: [usize; 2],
    sample: impl Fn(usize) -> &'a [f32],
    mut take: impl FnMut(usize, usize, &[f32]),
) {
    Arch::new().dispatch(Product {
        rows,
        row: |output: usize| &turned[output * n..][..n],
        terms: n,
        at_once: n,
        columns: inputs,
        term: sample,
        take: |row: usize, column: usize, values: &[f32], _: bool| take(row, column, values),
    });
}

/// Some rows of a product.
struct Product<F, G, H> {
    rows: Range<usize>,
    row: F,
    terms: usize,
    /// Of so many terms the sums are handed on before those of the next: a multiple of [`TERMS`], or all.
    at_once: usize,
    columns: usize,
    term: G,
    /// Takes sums of some columns: row, first column, the sums, and whether they are of the first terms.
    take: H,
}

impl<'a, 'b, F, G, H> WithSimd for Product<F, G, H>
where
    F: Fn(usize) -> &'a [f32],
    G: Fn(usize) -> &'b [f32],
    H: FnMut(usize, usize, &[f32], bool),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match tile::vectors::<S>() {
            _ if self.columns <= S::F32_LANES => self.compute::<S, 1>(simd),
            4 => self.compute::<S, 4>(simd),
            _ => self.compute::<S, 2>(simd),
        }
    }
}

impl<'a, 'b, F, G, H> Product<F, G, H>
where
    F: Fn(usize) -> &'a [f32],
    G: Fn(usize) -> &'b [f32],
    H: FnMut(usize, usize, &[f32], bool),
{
    #[inline(always)]
    fn compute<S: Simd, const V: usize>(self, simd: S) {
        let Self { rows, row, terms, at_once, columns, term, mut take } = self;
        let width = V * S::F32_LANES;
        let (mut panel, mut sums) = (vec![0.0; at_once.min(terms) * width], vec![0.0; tile::ROWS * width]);
        for start in (0..terms).step_by(at_once) {
            let these = start..terms.min(start + at_once);
            for column in (0..columns).step_by(width) {
                let own = width.min(columns - column);
                for (k, panel) in these.clone().zip(panel.chunks_exact_mut(width)) {
                    panel[..own].copy_from_slice(&term(k)[column..][..own]);
                }
                for first in rows.clone().step_by(tile::ROWS) {
                    // Beyond the last row the last is taken again, and its sums are not.
                    let of_tile: [&[f32]; tile::ROWS] = array::from_fn(|i| row((first + i).min(rows.end - 1)));
                    for (from, panel) in these.clone().step_by(TERMS).zip(panel.chunks(TERMS * width)) {
                        let part = of_tile.map(|row| &row[from..these.end.min(from + TERMS)]);
                        tile::multiply::<S, V>(simd, part, panel, &mut sums, width, from > start);
                    }
                    for (row, sums) in (first..rows.end).zip(sums.chunks_exact(width)) {
                        take(row, column, &sums[..own], start == 0);
                    }
                }
            }
        }
    }
}

/// A matrix `[rows, columns]`, whose rows `row` gives, with rows and columns exchanged.
pub fn transposed<'a>(
    cpu: &CpuDevice,
    rows: usize,
    columns: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
) -> Vec<f32> {
    let mut result = cpu.buffer(rows * columns);
    transpose(cpu, rows, columns, row, &mut result);
    result
}

/// The same, written to `to`.
pub fn transpose<'a>(
    cpu: &CpuDevice,
    rows: usize,
    columns: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    to: &mut [f32],
) {
    /// Columns at a time: their lines are still in the cache when the next row comes.
    const BLOCK: usize = 16;
    let own = CHUNK.div_ceil(rows.max(1)).next_multiple_of(BLOCK).min(columns.next_multiple_of(BLOCK));
    cpu.each_chunk(to, own * rows, |task, to| {
        for (block, to) in to.chunks_mut(BLOCK * rows).enumerate() {
            for index in 0..rows {
                let values = &row(index)[task * own + block * BLOCK..];
                to[index..].iter_mut().step_by(rows).zip(values).for_each(|(to, value)| *to = *value);
            }
        }
    });
}
