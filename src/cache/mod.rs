//! Activations of a frozen prefix, computed once. An entry is found by a key made from everything that decides its
//! content, so nothing stale is ever served: what changed has another key.

mod key;
pub mod store;

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
    /// The same values on a GPU, `[rows, width]`, and the labels, `[rows]`.
    resident: Option<(Tensor, Tensor)>,
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
        let copy = || {
            let features = Tensor::new(self.values.clone(), [self.rows(), self.width], device)?;
            Ok((features, Tensor::new(self.labels.clone(), [self.rows()], device)?))
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

    /// Features and labels where a GPU holds them.
    pub(crate) fn resident(&self) -> Option<(&Tensor, &Tensor)> {
        self.resident.as_ref().map(|(features, labels)| (features, labels))
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
        let features = match self.resident() {
            Some((resident, _)) if resident.device().is(device) => {
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
                assert_eq!(activations.resident.is_some(), kept && matches!(device, Device::Cuda(_)));
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
