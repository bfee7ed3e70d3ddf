//! Activations of a frozen prefix, computed once. An entry is found by a key made from everything that decides its
//! content, so nothing stale is ever served: what changed has another key.

mod key;

pub use key::{Key, KeyBuilder};

use crate::{Device, Error, Result, Tensor, ops::gather::gather};

/// Share of a GPU's free memory that the features of one data set may take there: one in so many. Others must fit
/// beside them, and the networks that are trained next.
const SHARE: u64 = 4;

/// Features of a data set's samples, `[rows, width]`, with their labels and positions.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    width: usize,
    values: Vec<f32>,
    /// The same values on a GPU, `[rows, width]`.
    resident: Option<Tensor>,
    labels: Vec<u32>,
    indices: Vec<u32>,
}

impl Activations {
    /// Adds the features `[n, width]` of a batch.
    ///
    /// # Errors
    /// [`Error::Shape`] if the width is not that of the rows before, or the labels do not match.
    pub fn push(&mut self, features: &Tensor, labels: &[u32], indices: &[u32]) -> Result<()> {
        let &[rows, width] = features.dims() else {
            return Err(Error::shape("cache", format!("expected features [N, F], got {}", features.shape())));
        };
        if rows != labels.len() || rows != indices.len() || (self.width != width && !self.labels.is_empty()) {
            let message = format!("{} does not fit {} labels and width {}", features.shape(), labels.len(), self.width);
            return Err(Error::shape("cache", message));
        }
        self.width = width;
        self.resident = None;
        self.values.extend_from_slice(&features.to_vec::<f32>()?);
        self.labels.extend_from_slice(labels);
        self.indices.extend_from_slice(indices);
        Ok(())
    }

    /// Copies the features to `device` if it is a GPU with room for them, so that batches need not be uploaded.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn keep_on(&mut self, device: &Device) -> Result<()> {
        let fits = device.available().is_some_and(|free| self.bytes() as u64 <= free / SHARE);
        self.resident = match device {
            Device::Cuda(_) if fits => match Tensor::new(self.values.clone(), [self.rows(), self.width], device) {
                // Free memory may be in pieces.
                Err(Error::OutOfMemory { .. }) => None,
                outcome => Some(outcome?),
            },
            _ => None,
        };
        Ok(())
    }

    /// Number of samples.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Label of each row.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Position of each row's sample in its split.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Memory taken, in bytes.
    pub fn bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }

    /// Features `[rows.len(), width]` on `device`, and labels, of the given rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if a row does not exist; [`Error::OutOfMemory`].
    pub fn gather(&self, rows: &[u32], device: &Device) -> Result<(Tensor, Vec<u32>)> {
        let label = |row: &u32| {
            let label = self.labels.get(*row as usize).copied();
            label.ok_or_else(|| Error::shape("cache", format!("row {row} of {}", self.rows())))
        };
        let labels = rows.iter().map(label).collect::<Result<Vec<u32>>>()?;
        let features = match &self.resident {
            Some(resident) if resident.device().is(device) => {
                gather(resident, &Tensor::new(rows.to_vec(), [rows.len()], device)?)?
            }
            _ => {
                let values = rows.iter().flat_map(|row| &self.values[*row as usize * self.width..][..self.width]);
                Tensor::new(values.copied().collect(), [rows.len(), self.width], device)?
            }
        };
        Ok((features, labels))
    }
}

/// The activations of each split that were computed last, in memory.
#[derive(Debug, Default)]
pub struct ActivationCache {
    entries: Vec<(Key, std::sync::Arc<Activations>)>,
}

/// Entries kept: training and validation set, before and after a change that is undone.
const KEPT: usize = 4;

impl ActivationCache {
    /// The entry under `key`, if there is one.
    pub fn get(&self, key: &Key) -> Option<std::sync::Arc<Activations>> {
        self.entries.iter().find(|(found, _)| found == key).map(|(_, activations)| activations.clone())
    }

    /// Adds an entry; the oldest goes if there are too many.
    pub fn insert(&mut self, key: Key, activations: Activations) -> std::sync::Arc<Activations> {
        if self.entries.len() == KEPT {
            self.entries.remove(0);
        }
        let activations = std::sync::Arc::new(activations);
        self.entries.push((key, activations.clone()));
        activations
    }
}
