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
const TERMS: usize = 64;
/// Outputs that are few: to turn the samples for a [`Product`] would take longer than rows times rows.
const FEW: usize = 64;
/// Rows of a task that make up for packing all columns.
const MANY: usize = 192;
/// Columns of a task at least, a multiple of every panel's.
const NARROWEST: usize = 64;
/// Floats of the second matrix that are packed at a time, for the second cache to hold them: a quarter of a megabyte.
const PACKED: usize = 1 << 16;
/// Columns that lie side by side and are packed at once: a kilobyte, which is read as fast as memory gives it.
const RUN: usize = 256;

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
    let result = whole_product(cpu, outputs, of_output, inputs, n, |input| &turned[input * n..][..n]);
    cpu.recycle(turned);
    let outputs = transposed(cpu, outputs, n, |output| &result[output * n..][..n]);
    cpu.recycle(result);
    outputs
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

/// The product of a matrix `[m, terms]`, whose rows `row` gives, and one `[terms, columns]`, whose rows `term` gives.
pub fn whole_product<'a, 'b>(
    cpu: &CpuDevice,
    m: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    terms: usize,
    columns: usize,
    term: impl Fn(usize) -> &'b [f32] + Sync,
) -> Vec<f32> {
    if m * columns == 0 {
        return Vec::new();
    }
    let tasks = (m * terms * columns / TASK).clamp(1, 2 * cpu.threads());
    // Every task packs its columns of the second matrix anew: tasks of few rows share columns out instead.
    let own_columns = if m / tasks < MANY { columns.div_ceil(tasks).max(RUN).min(columns) } else { columns };
    let own_columns = own_columns.next_multiple_of(NARROWEST);
    let own_rows = m.div_ceil(tasks.div_ceil(columns.div_ceil(own_columns))).next_multiple_of(tile::ROWS);
    let mut result = cpu.buffer(m * columns);
    let mut parts: Vec<Written> = Vec::new();
    for (number, rows) in result.chunks_mut(own_rows * columns).enumerate() {
        let first = parts.len();
        parts.extend((0..columns).step_by(own_columns).map(|column| Written {
            row: number * own_rows,
            column,
            out: Vec::new(),
        }));
        for row in rows.chunks_mut(columns) {
            row.chunks_mut(own_columns).zip(&mut parts[first..]).for_each(|(row, part)| part.out.push(row));
        }
    }
    cpu.each_chunk(&mut parts, 1, |_, parts| {
        for part in parts {
            let rows = part.row..part.row + part.out.len();
            let columns = part.column..part.column + part.out[0].len();
            let blocks = Blocks::new(terms, columns.len());
            Arch::new().dispatch(Product { rows, row: &row, terms, columns, term: &term, blocks, sums: part });
        }
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
    take: impl FnMut(usize, usize, &[f32]),
) {
    // What few rows make use of should still lie in the nearest cache.
    let most = PACKED / n.max(1) / NARROWEST * NARROWEST;
    let columns = if rows.len() < FEW { NARROWEST } else { most.clamp(NARROWEST, inputs.next_multiple_of(NARROWEST)) };
    Arch::new().dispatch(Product {
        rows,
        row: |output: usize| &turned[output * n..][..n],
        terms: n,
        columns: 0..inputs,
        term: sample,
        blocks: Blocks { terms: n, columns },
        sums: &mut Taken(take),
    });
}

/// How much of the second matrix is packed at a time, for the second cache to hold it.
#[derive(Clone, Copy)]
struct Blocks {
    terms: usize,
    columns: usize,
}

impl Blocks {
    fn new(terms: usize, columns: usize) -> Self {
        let columns = columns.next_multiple_of(NARROWEST);
        // Powers of two all: whole panels, and sums of whole TERMS.
        let terms = terms.min(PACKED / columns.min(RUN).next_power_of_two());
        Self { terms, columns: (PACKED / terms.max(1) / NARROWEST * NARROWEST).clamp(NARROWEST, columns) }
    }
}

/// Where sums go: `V` vectors of a row from a column on, of which `own` floats are wanted.
trait Sums {
    /// The sums so far, where there have been any.
    fn load<S: Simd, const V: usize>(&self, at: [usize; 2], own: usize, sums: &mut [S::f32s; V]);
    /// Takes them with those of more terms.
    fn store<S: Simd, const V: usize>(&mut self, at: [usize; 2], own: usize, sums: &[S::f32s; V]);
}

/// Part of a matrix, from a row and a column on.
struct Written<'a> {
    row: usize,
    column: usize,
    out: Vec<&'a mut [f32]>,
}

impl Sums for Written<'_> {
    #[inline(always)]
    fn load<S: Simd, const V: usize>(&self, [row, column]: [usize; 2], own: usize, sums: &mut [S::f32s; V]) {
        let from = &self.out[row - self.row][column - self.column..][..own];
        match pulp::as_arrays::<V, _>(S::as_simd_f32s(from).0).0.first() {
            Some(from) => *sums = *from,
            None => bytemuck::cast_slice_mut(sums)[..own].copy_from_slice(from),
        }
    }

    #[inline(always)]
    fn store<S: Simd, const V: usize>(&mut self, [row, column]: [usize; 2], own: usize, sums: &[S::f32s; V]) {
        let to = &mut self.out[row - self.row][column - self.column..][..own];
        match pulp::as_arrays_mut::<V, _>(S::as_mut_simd_f32s(to).0).0.first_mut() {
            Some(to) => *to = *sums,
            None => to.copy_from_slice(&bytemuck::cast_slice(sums)[..own]),
        }
    }
}

/// Sums of all terms, handed on.
struct Taken<F>(F);

impl<F: FnMut(usize, usize, &[f32])> Sums for Taken<F> {
    fn load<S: Simd, const V: usize>(&self, _: [usize; 2], _: usize, _: &mut [S::f32s; V]) {
        unreachable!("all terms are summed at once");
    }

    #[inline(always)]
    fn store<S: Simd, const V: usize>(&mut self, [row, column]: [usize; 2], own: usize, sums: &[S::f32s; V]) {
        self.0(row, column, &bytemuck::cast_slice(sums)[..own]);
    }
}

/// Some rows and columns of a product. An element is summed up [`TERMS`] terms at a time, whatever the blocks are.
struct Product<'s, F, G, H> {
    rows: Range<usize>,
    row: F,
    terms: usize,
    columns: Range<usize>,
    term: G,
    blocks: Blocks,
    sums: &'s mut H,
}

impl<'a, 'b, F, G, H> WithSimd for Product<'_, F, G, H>
where
    F: Fn(usize) -> &'a [f32],
    G: Fn(usize) -> &'b [f32],
    H: Sums,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match tile::vectors::<S>() {
            _ if self.columns.len() <= S::F32_LANES => self.compute::<S, 1>(simd),
            4 => self.compute::<S, 4>(simd),
            _ => self.compute::<S, 2>(simd),
        }
    }
}

impl<'a, 'b, F, G, H> Product<'_, F, G, H>
where
    F: Fn(usize) -> &'a [f32],
    G: Fn(usize) -> &'b [f32],
    H: Sums,
{
    #[inline(always)]
    fn compute<S: Simd, const V: usize>(self, simd: S) {
        let width = V * S::F32_LANES;
        let strip = self.blocks.columns.min(self.columns.len()).next_multiple_of(width);
        let lengths = [self.blocks.terms * strip, tile::ROWS * width];
        let mut buffers = lengths.map(|length| vec![0.0; length + tile::SLACK]);
        let [panels, sums] = &mut buffers;
        let [panels, sums] = [(panels, lengths[0]), (sums, lengths[1])].map(|(buffer, length)| {
            pulp::as_arrays_mut::<V, _>(S::as_mut_simd_f32s(tile::aligned_mut(buffer, length)).0).0
        });
        for start in (0..self.terms).step_by(self.blocks.terms) {
            let terms = start..self.terms.min(start + self.blocks.terms);
            for first in self.columns.clone().step_by(strip) {
                let columns = first..self.columns.end.min(first + strip);
                self.pack::<S, V>(terms.clone(), columns.clone(), panels);
                for first in self.rows.clone().step_by(tile::ROWS) {
                    let rows = first..self.rows.end.min(first + tile::ROWS);
                    // Beyond the last row the last is taken again, and its sums are not.
                    let of_tile: [&[f32]; tile::ROWS] = array::from_fn(|i| (self.row)((first + i).min(rows.end - 1)));
                    for (column, panel) in columns.clone().step_by(width).zip(panels.chunks_exact(terms.len())) {
                        let own = width.min(columns.end - column);
                        if start > 0 {
                            let sums = rows.clone().zip(&mut *sums);
                            sums.for_each(|(row, sums)| self.sums.load::<S, V>([row, column], own, sums));
                        }
                        for (from, panel) in terms.clone().step_by(TERMS).zip(panel.chunks(TERMS)) {
                            let part = of_tile.map(|row| &row[from..][..panel.len()]);
                            let (panel, sums) = (
                                bytemuck::cast_slice(panel.as_flattened()),
                                bytemuck::cast_slice_mut(sums.as_flattened_mut()),
                            );
                            tile::multiply::<S, V>(simd, part, panel, sums, width, from > 0);
                        }
                        let sums = rows.clone().zip(&*sums);
                        sums.for_each(|(row, sums)| self.sums.store::<S, V>([row, column], own, sums));
                    }
                }
            }
        }
    }

    /// Writes some terms of some columns to `panels`, `[panels, terms]`.
    #[inline(always)]
    fn pack<S: Simd, const V: usize>(&self, terms: Range<usize>, columns: Range<usize>, panels: &mut [[S::f32s; V]]) {
        let size = terms.len();
        for (k, term) in terms.map(&self.term).enumerate() {
            let term = &term[columns.clone()];
            let whole = pulp::as_arrays::<V, _>(S::as_simd_f32s(term).0).0;
            let mut panels = panels.chunks_exact_mut(size);
            whole.iter().zip(&mut panels).for_each(|(part, panel)| panel[k] = *part);
            let rest = &term[whole.len() * V * S::F32_LANES..];
            if let (false, Some(panel)) = (rest.is_empty(), panels.next()) {
                bytemuck::cast_slice_mut(&mut panel[k])[..rest.len()].copy_from_slice(rest);
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
