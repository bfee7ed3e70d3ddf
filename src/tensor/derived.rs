//! Elements that are computed from a tensor's and kept beside them: filters as a convolution reads them.

use std::sync::{Arc, PoisonError};

use super::{
    Storage, Tensor,
    dtype::{Block, Derived},
};
use crate::{Device, Result};

impl Tensor {
    /// What `make` computes from the elements, which are f32 on the host. It is kept with the elements until they are
    /// written to, or until something is asked for under another `key`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the elements are not f32, or not on the host.
    pub(crate) fn derived(&self, key: usize, make: impl FnOnce(&[f32]) -> Vec<f32>) -> Result<Tensor> {
        let elements = self.as_slice::<f32>()?;
        let (Storage::Cpu(block), Device::Cpu(cpu)) = (&self.storage, &self.device) else {
            return Err(self.elsewhere());
        };
        // Not locked while it is made: the device's threads may be what waits for the lock.
        let known = block
            .derived
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|derived| (derived.key == key).then(|| derived.block.clone()));
        let derived = known.unwrap_or_else(|| {
            let made = Arc::new(Block::new(super::dtype::Elements::F32(make(elements)), cpu));
            let kept = Derived { key, block: made.clone() };
            *block.derived.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
            made
        });
        let length = <f32 as super::dtype::sealed::Sealed>::unwrap(&derived.elements).map_or(0, <[f32]>::len);
        Ok(Tensor { shape: [length].into(), device: self.device.clone(), storage: Storage::Cpu(derived) })
    }
}

impl Block {
    /// To be called before the elements are written to.
    pub(super) fn forget_derived(&mut self) {
        *self.derived.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
