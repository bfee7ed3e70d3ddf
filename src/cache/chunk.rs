//! Rows of activations that were computed, or are read, together.

use std::borrow::Cow;

use half::bf16;

use super::store::{MappedRows, Stored};
use crate::{DType, Element, Error, Result, Tensor};

/// Activations of some samples as the network passes them on: in host memory, or on disk.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Extents of a row.
    dims: Vec<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    Mapped(MappedRows),
}

/// Where a row lies: the number of a chunk, and the row's number there.
pub(super) type Place = (u32, u32);

impl Chunk {
    /// The given rows of a batch `[n, …]`.
    pub fn of(batch: &Tensor, rows: &[usize]) -> Result<Self> {
        let values = match batch.dtype() {
            DType::F32 => Values::F32(picked(batch, rows)?),
            DType::BF16 => Values::BF16(picked(batch, rows)?),
            other => return Err(Error::shape("cache", format!("activations of {other:?} are not kept"))),
        };
        Ok(Self { dims: batch.dims().get(1..).unwrap_or_default().to_vec(), values })
    }

    /// Rows of these extents and of this type, whose values are `values`.
    pub fn restored(dims: &[usize], stored: Stored, values: Vec<f32>) -> Self {
        let values = match stored {
            Stored::F32 => Values::F32(values),
            Stored::Bf16 => Values::BF16(values.into_iter().map(bf16::from_f32).collect()),
        };
        Self { dims: dims.to_vec(), values }
    }

    /// Rows of these extents that are read from disk whenever they are asked for.
    pub fn mapped(dims: &[usize], rows: MappedRows) -> Self {
        Self { dims: dims.to_vec(), values: Values::Mapped(rows) }
    }

    /// Extents of a row.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The type in which the network passes them on.
    pub fn dtype(&self) -> DType {
        match &self.values {
            Values::F32(_) => DType::F32,
            Values::BF16(_) => DType::BF16,
            Values::Mapped(rows) => match rows.stored() {
                Stored::F32 => DType::F32,
                Stored::Bf16 => DType::BF16,
            },
        }
    }

    /// Whether they are on disk.
    pub fn is_mapped(&self) -> bool {
        matches!(self.values, Values::Mapped(_))
    }

    /// The values in memory, which f32 holds exactly.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.values {
            Values::F32(values) => Cow::Borrowed(values),
            Values::BF16(values) => Cow::Owned(values.iter().map(|value| value.to_f32()).collect()),
            Values::Mapped(_) => Cow::default(),
        }
    }

    /// Memory taken, in bytes. What is mapped takes none that others could not have.
    pub fn bytes(&self) -> u64 {
        let bytes = match &self.values {
            Values::F32(values) => size_of_val(values.as_slice()),
            Values::BF16(values) => size_of_val(values.as_slice()),
            Values::Mapped(_) => 0,
        };
        bytes as u64
    }

    /// The values of a row, if they are f32 in memory.
    pub fn f32_row(&self, row: usize) -> Option<&[f32]> {
        match &self.values {
            Values::F32(values) => Some(self.row_of(values, row)),
            Values::BF16(_) | Values::Mapped(_) => None,
        }
    }

    /// Adds the values of a row to `batch`, if they are of this type.
    pub fn copy_f32(&self, row: usize, batch: &mut Vec<f32>) {
        match &self.values {
            Values::F32(values) => batch.extend_from_slice(self.row_of(values, row)),
            Values::Mapped(rows) => {
                batch.extend(rows.row(row).as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)));
            }
            Values::BF16(_) => {}
        }
    }

    /// As [`Chunk::copy_f32`].
    pub fn copy_bf16(&self, row: usize, batch: &mut Vec<bf16>) {
        match &self.values {
            Values::BF16(values) => batch.extend_from_slice(self.row_of(values, row)),
            Values::Mapped(rows) => {
                batch.extend(rows.row(row).as_chunks().0.iter().map(|value| bf16::from_le_bytes(*value)));
            }
            Values::F32(_) => {}
        }
    }

    fn row_of<'a, T>(&self, values: &'a [T], row: usize) -> &'a [T] {
        let width: usize = self.dims.iter().product();
        &values[row * width..][..width]
    }

    pub fn is_like(&self, other: &Self) -> bool {
        (&self.dims, self.dtype()) == (&other.dims, other.dtype())
    }
}

fn picked<T: Element>(batch: &Tensor, rows: &[usize]) -> Result<Vec<T>> {
    let (values, count) = (batch.to_vec::<T>()?, batch.dims().first().copied().unwrap_or_default());
    if rows.iter().copied().eq(0..count) {
        return Ok(values);
    }
    let width = values.len() / count.max(1);
    Ok(rows.iter().flat_map(|row| &values[row * width..][..width]).copied().collect())
}
