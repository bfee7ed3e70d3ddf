//! Buffers through which input goes to the GPU.

use std::{ptr::null_mut, sync::Mutex};

use cudarc::driver::{result, sys};

use super::{Answer, Hardware};
use crate::{
    Result,
    device::cuda::{Driver, SLOTS},
};

/// Input buffers grow to multiples of this many bytes.
pub(super) const SLOT_GRAIN: usize = 1 << 20;

/// An input buffer: page-locked memory of the host, and memory of the GPU.
pub(super) struct Slot {
    pub host: *mut u8,
    pub device: sys::CUdeviceptr,
    pub capacity: usize,
    /// The copy to the GPU has been done.
    pub copied: sys::CUevent,
    /// The kernels that read it have run.
    pub read: sys::CUevent,
}

impl Slot {
    pub fn new() -> Answer<Self> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Self { host: null_mut(), device: 0, capacity: 0, copied: event()?, read: event()? })
    }

    /// Gives back the buffers.
    pub fn release(&mut self) -> Answer<()> {
        if std::mem::take(&mut self.capacity) > 0 {
            // SAFETY: both are this slot's own, and the caller knows that nothing uses them any more.
            unsafe {
                result::free_sync(self.device)?;
                result::free_host(self.host.cast())?;
            }
        }
        Ok(())
    }
}

impl Hardware {
    /// Gives `slot` buffers of `capacity` bytes, once nothing uses those it has.
    pub(super) fn grow(&self, slot: &mut Slot, capacity: usize) -> Result<()> {
        self.run("waiting for input", || {
            // SAFETY: events are the slot's own; one that was never recorded counts as done.
            unsafe {
                result::event::synchronize(slot.copied)?;
                result::event::synchronize(slot.read)
            }
        })?;
        self.run("freeing memory", || slot.release())?;
        let device = self.alloc(capacity)?;
        let host = self.run(&format!("page-locking {capacity} bytes of the host's memory"), || {
            // SAFETY: written before it is read.
            unsafe { result::malloc_host(capacity, 0) }
        });
        let host = host.inspect_err(|_| self.free(device))?.cast();
        (slot.host, slot.device, slot.capacity) = (host, device, capacity);
        Ok(())
    }

    pub(super) fn slot(&self, slot: usize) -> Result<&Mutex<Slot>> {
        self.slots
            .get(slot)
            .ok_or_else(|| self.refused(&format!("there is no input slot {slot}; the last is {}", SLOTS - 1)))
    }
}
