//! The processor: a thread pool that belongs to the device, so that an embedding program keeps control of its cores.

use crate::{Error, Result};

/// The processor and its threads.
pub struct CpuDevice {
    pool: rayon::ThreadPool,
}

impl CpuDevice {
    pub(super) fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("unfreeze-cpu-{index}"))
            .build()
            .map_err(|error| Error::Device { device: "cpu".into(), message: error.to_string() })?;
        Ok(Self { pool })
    }

    /// Worker threads in the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` in the pool.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}
