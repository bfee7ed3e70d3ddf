//! Tables that kernels read: of addresses, mostly.

use std::{fmt, sync::Arc};

use super::{Buffer, CudaDevice};
use crate::Result;

/// A table on a GPU that is kept from step to step and goes up again only when something in it changed. What a graph is
/// captured with is the graph's, and stays as it is. A clone is empty.
#[derive(Default)]
pub struct Table(Option<Uploaded>);

/// What is on the GPU, and where.
struct Uploaded {
    bytes: Vec<u8>,
    buffer: Buffer,
}

impl Table {
    /// The address of a table of `bytes`: that of the last one if it has as many, so that a step leaves memory as it
    /// was.
    pub(crate) fn address(&mut self, cuda: &Arc<CudaDevice>, bytes: Vec<u8>) -> Result<u64> {
        if cuda.is_capturing() {
            return cuda.keep(bytes);
        }
        if let Some(last) = &mut self.0
            && last.bytes.len() == bytes.len()
            && Arc::ptr_eq(last.buffer.device(), cuda)
        {
            if last.bytes != bytes {
                last.buffer.overwrite(&bytes)?;
                last.bytes = bytes;
            }
            return Ok(last.buffer.address());
        }
        let buffer = cuda.upload(&bytes)?;
        Ok(self.0.insert(Uploaded { bytes, buffer }).buffer.address())
    }
}

impl Clone for Table {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}
