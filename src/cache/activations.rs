//! The activations of a data set's samples, wherever they lie in memory.

use std::{collections::HashMap, ops::Range, sync::Arc};

use super::chunk::{Chunk, Place};
use crate::{DType, Device, Element, Error, Result, Shape, Tensor, data::batches, ops::gather::gather};

/// Share of a GPU's free memory that the features of one data set may take there: one in so many. Others must fit
/// beside them, and the networks that are trained next.
const SHARE: u64 = 4;

/// Activations of a data set's samples, a row each, with their labels and positions. Rows are of any extents, those of
/// a pooled feature `[F]` or those of an activation `[h, w, C]`, and of the type in which the network passes them on.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    chunks: Vec<Arc<Chunk>>,
    places: Vec<Place>,
    /// The same values on a GPU, `[rows, width]`, and the labels, `[rows]`.
    resident: Option<(Tensor, Tensor)>,
    labels: Vec<u32>,
    indices: Vec<u32>,
}

impl Activations {
    /// Adds the activations `[n, …]` of a batch.
    ///
    /// # Errors
    /// [`Error::Shape`] if extents or type are not those of the rows before, or the labels do not match.
    pub fn push(&mut self, batch: &Tensor, labels: &[u32], indices: &[u32]) -> Result<()> {
        let rows = batch.dims().first().copied().unwrap_or_default();
        if rows != labels.len() || rows != indices.len() || batch.dims().len() < 2 {
            let message = format!("{} is no batch of {} labelled rows", batch.shape(), labels.len());
            return Err(Error::shape("cache", message));
        }
        let chunk = self.add_chunk(Arc::new(Chunk::of(batch, &Vec::from_iter(0..rows))?))?;
        for (row, (label, index)) in labels.iter().zip(indices).enumerate() {
            self.add((chunk, row as u32), *label, *index);
        }
        Ok(())
    }

    /// The number under which the rows of `chunk` can be added.
    pub(super) fn add_chunk(&mut self, chunk: Arc<Chunk>) -> Result<u32> {
        if let Some(first) = self.chunks.first().filter(|first| !first.is_like(&chunk)) {
            let message = format!("rows of {:?} beside rows of {:?}, or of another type", chunk.dims(), first.dims());
            return Err(Error::shape("cache", message));
        }
        self.chunks.push(chunk);
        Ok(self.chunks.len() as u32 - 1)
    }

    /// Adds a row of a chunk.
    pub(super) fn add(&mut self, place: Place, label: u32, index: u32) {
        self.resident = None;
        self.places.push(place);
        self.labels.push(label);
        self.indices.push(index);
    }

    /// Copies the activations to `device` if it is a GPU with room for them, so that batches need not be uploaded. Not
    /// those that are on disk, for want of host memory: the copy would first be made there.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn keep_on(&mut self, device: &Device) -> Result<()> {
        let fits = !self.chunks.iter().any(|chunk| chunk.is_mapped())
            && device.available().is_some_and(|free| self.bytes() as u64 <= free / SHARE);
        let copy = || {
            let rows: Vec<u32> = (0..self.rows() as u32).collect();
            let values = self.collect(&rows, device)?;
            let width = values.shape().elements() / self.rows().max(1);
            let values = values.reshape([self.rows(), width])?;
            Ok((values, Tensor::new(self.labels.clone(), [self.rows()], device)?))
        };
        self.resident = match device {
            Device::Cuda(_) if fits => match copy() {
                // Free memory may be in pieces.
                Err(Error::OutOfMemory { .. }) => None,
                outcome => Some(outcome?),
            },
            _ => None,
        };
        Ok(())
    }

    /// Activations `[rows, width]` and labels where a GPU holds them.
    pub(crate) fn resident(&self) -> Option<(&Tensor, &Tensor)> {
        self.resident.as_ref().map(|(activations, labels)| (activations, labels))
    }

    /// Number of samples.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Extents of a row.
    pub fn dims(&self) -> &[usize] {
        self.chunks.first().map_or(&[0], |chunk| chunk.dims())
    }

    /// Label of each row.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Position of each row's sample in its split.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The rows of samples numbered in `order`, in the batches of a [`Loader`](crate::data::Loader): a sample that has
    /// no row leaves its batch smaller.
    pub fn batches(&self, order: &[u32], batch_size: usize) -> Vec<Vec<u32>> {
        let rows: HashMap<u32, u32> = self.indices.iter().copied().zip(0..).collect();
        let batch = |range: Range<usize>| order[range].iter().filter_map(|index| rows.get(index).copied()).collect();
        batches(order.len(), batch_size).into_iter().map(batch).collect()
    }

    /// What the rows take where they are in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let element = self.dtype().bytes();
        self.rows() * self.dims().iter().product::<usize>() * element
    }

    /// Activations `[rows.len(), …]` on `device`, and labels, of the given rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if a row does not exist; [`Error::OutOfMemory`].
    pub fn gather(&self, rows: &[u32], device: &Device) -> Result<(Tensor, Vec<u32>)> {
        let label = |row: &u32| {
            let label = self.labels.get(*row as usize).copied();
            label.ok_or_else(|| Error::shape("cache", format!("row {row} of {}", self.rows())))
        };
        let labels = rows.iter().map(label).collect::<Result<Vec<u32>>>()?;
        let batch = match self.resident() {
            Some((resident, _)) if resident.device().is(device) => {
                let rows = Tensor::new(rows.to_vec(), [rows.len()], device)?;
                gather(resident, &rows)?.reshape(self.batch(labels.len())?)?
            }
            _ => self.collect(rows, device)?,
        };
        Ok((batch, labels))
    }

    /// Whether [`Activations::slice`] has the rows.
    pub(crate) fn are_slices(&self) -> bool {
        self.rows() > 0 && self.dtype() == DType::F32 && !self.chunks.iter().any(|chunk| chunk.is_mapped())
    }

    /// The values of a row where they are f32 in host memory, else none.
    pub(crate) fn slice(&self, row: u32) -> &[f32] {
        let (chunk, row) = self.places[row as usize];
        self.chunks[chunk as usize].f32_row(row as usize).unwrap_or_default()
    }

    fn dtype(&self) -> DType {
        self.chunks.first().map_or(DType::F32, |chunk| chunk.dtype())
    }

    /// The shape of a batch of `n` rows.
    fn batch(&self, n: usize) -> Result<Shape> {
        match *self.dims() {
            [a] => Ok([n, a].into()),
            [a, b] => Ok([n, a, b].into()),
            [a, b, c] => Ok([n, a, b, c].into()),
            ref other => Err(Error::shape("cache", format!("rows of {other:?} are no activations"))),
        }
    }

    /// The rows, which exist, from host memory or disk.
    fn collect(&self, rows: &[u32], device: &Device) -> Result<Tensor> {
        match self.dtype() {
            DType::BF16 => self.collect_of(Chunk::copy_bf16, rows, device),
            _ => self.collect_of(Chunk::copy_f32, rows, device),
        }
    }

    fn collect_of<T: Element>(
        &self,
        copy: fn(&Chunk, usize, &mut Vec<T>),
        rows: &[u32],
        device: &Device,
    ) -> Result<Tensor> {
        let width: usize = self.dims().iter().product();
        let mut batch = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let (chunk, row) = self.places[*row as usize];
            copy(&self.chunks[chunk as usize], row as usize, &mut batch);
        }
        Tensor::new(batch, self.batch(rows.len())?, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        cpu, devices,
        emulator::{Settings, emulated},
        normal,
    };

    fn activations(rows: usize, width: usize, device: &Device) -> Result<Activations> {
        let mut activations = Activations::default();
        for (batch, count) in [(0, rows / 2), (1, rows - rows / 2)] {
            let first = (batch * (rows / 2)) as u32;
            let numbers: Vec<u32> = (first..first + count as u32).collect();
            let labels: Vec<u32> = numbers.iter().map(|number| number * 10).collect();
            activations.push(&normal(batch as u64, "features", [count, width], device), &labels, &numbers)?;
        }
        Ok(activations)
    }

    #[test]
    fn batches_are_the_same_from_every_memory() -> Result<()> {
        let rows = [6u32, 0, 3, 6];
        let (expected, _) = activations(7, 12, &cpu(1))?.gather(&rows, &cpu(1))?;
        let expected = expected.to_vec::<f32>()?;
        for device in devices() {
            let mut activations = activations(7, 12, &device)?;
            for kept in [false, true] {
                if kept {
                    activations.keep_on(&device)?;
                }
                assert_eq!(activations.resident().is_some(), kept && matches!(device, Device::Cuda(_)));
                // Elsewhere too.
                for place in [&device, &cpu(1)] {
                    let (features, labels) = activations.gather(&rows, place)?;
                    assert!(features.device().is(place) && features.to_vec::<f32>()? == expected, "{device}");
                    assert_eq!(labels, [60, 0, 30, 60]);
                    assert!(activations.gather(&[0, 7], place).is_err());
                    assert_eq!(activations.gather(&[], place)?.0.dims(), [0, 12]);
                }
            }
            // What comes later is not forgotten.
            activations.push(&Tensor::full([1, 12], 5.0, &device)?, &[70], &[7])?;
            assert_eq!(activations.gather(&[7], &device)?.0.to_vec::<f32>()?, [5.0; 12]);
            assert!(activations.push(&Tensor::full([1, 11], 5.0, &device)?, &[80], &[8]).is_err());
        }
        Ok(())
    }

    #[test]
    fn rows_keep_their_extents_and_their_type() -> Result<()> {
        for device in devices() {
            for dtype in [DType::F32, DType::BF16] {
                let batch = normal(3, "activation", [3, 2, 2, 8], &device).cast(dtype)?;
                let expected = batch.cast(DType::F32)?.to_vec::<f32>()?;
                let mut activations = Activations::default();
                activations.push(&batch, &[0, 1, 2], &[0, 1, 2])?;
                assert_eq!((activations.dims(), activations.bytes()), (&[2, 2, 8][..], 96 * dtype.bytes()));
                for kept in [false, true] {
                    if kept {
                        activations.keep_on(&device)?;
                    }
                    let (gathered, _) = activations.gather(&[2, 0], &device)?;
                    assert_eq!((gathered.dims(), gathered.dtype()), (&[2, 2, 2, 8][..], dtype));
                    let gathered = gathered.cast(DType::F32)?.to_vec::<f32>()?;
                    assert!(gathered[..32] == expected[64..] && gathered[32..] == expected[..32], "{dtype:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_stays_on_the_host() -> Result<()> {
        let settings = Settings { capacity: 64 << 20, ..Settings::default() };
        let Some((device, _)) = emulated(settings) else { return Ok(()) };
        for (rows, fits) in [(3000, true), (5000, false)] {
            let mut activations = activations(rows, 1024, &cpu(1))?;
            activations.keep_on(&device)?;
            assert_eq!(activations.resident.is_some(), fits, "{rows}");
            assert_eq!(activations.gather(&[rows as u32 - 1], &device)?.1, [(rows as u32 - 1) * 10]);
        }
        Ok(())
    }
}
