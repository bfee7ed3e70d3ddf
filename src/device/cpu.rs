//! The processor: a thread pool that belongs to the device, so that an embedding program keeps control of its cores.

use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use sysinfo::{CpuRefreshKind, RefreshKind, System};

use crate::{Error, Result};

/// The processor and its threads.
pub struct CpuDevice {
    pool: rayon::ThreadPool,
    live: AtomicUsize,
    peak: AtomicUsize,
}

/// Bytes that a device's tensors take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Now.
    pub live: usize,
    /// At most, since [`Device::reset_peak`](super::Device::reset_peak).
    pub peak: usize,
}

impl CpuDevice {
    pub(super) fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("unfreeze-cpu-{index}"))
            .build()
            .map_err(|error| Error::Device { device: "cpu".into(), message: error.to_string() })?;
        Ok(Self { pool, live: AtomicUsize::new(0), peak: AtomicUsize::new(0) })
    }

    /// Worker threads in the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    pub(crate) fn allocated(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    pub(crate) fn freed(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn memory(&self) -> MemoryUse {
        MemoryUse { live: self.live.load(Ordering::Relaxed), peak: self.peak.load(Ordering::Relaxed) }
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Runs `work` in the pool.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

/// The processor's product, architecture, and the vector instructions that matrix products choose by.
pub(super) fn arithmetic() -> String {
    static FOUND: OnceLock<String> = OnceLock::new();
    let find = || {
        let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
        let product = system.cpus().first().map_or("", |cpu| cpu.brand()).to_string();
        format!("{product}, {}, {:?}", std::env::consts::ARCH, instructions())
    };
    FOUND.get_or_init(find).clone()
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> [bool; 3] {
    [is_x86_feature_detected!("fma"), is_x86_feature_detected!("avx2"), is_x86_feature_detected!("avx512f")]
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> [bool; 0] {
    []
}
