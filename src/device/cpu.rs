//! The processor: a thread pool that belongs to the device, so that an embedding program keeps control of its cores, and
//! the memory of its tensors.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rayon::prelude::*;
use sysinfo::{CpuRefreshKind, RefreshKind, System};

use crate::{Error, Result};

/// The processor and its threads.
pub struct CpuDevice {
    pool: rayon::ThreadPool,
    live: AtomicUsize,
    peak: AtomicUsize,
    spare: Mutex<VecDeque<Vec<f32>>>,
}

/// Smaller blocks are left to the allocator, in bytes.
const SPARE: usize = 1 << 20;

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
        Ok(Self { pool, live: AtomicUsize::new(0), peak: AtomicUsize::new(0), spare: Mutex::default() })
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

    /// `elements` floats to be written to: whatever a tensor has left behind, or zeros. New memory costs the system a
    /// fault for each of its pages, which takes longer than many an operation on it.
    pub(crate) fn buffer(&self, elements: usize) -> Vec<f32> {
        if size_of::<f32>() * elements < SPARE {
            return vec![0.0; elements];
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<f32>| (elements..=elements + elements / 2).contains(&buffer.capacity());
        let best = spare.iter().enumerate().filter(|(_, buffer)| fits(buffer)).min_by_key(|(_, b)| b.capacity());
        match best.map(|(index, _)| index).and_then(|index| spare.remove(index)) {
            Some(mut buffer) => {
                buffer.resize(elements, 0.0);
                buffer
            }
            None => vec![0.0; elements],
        }
    }

    /// `elements` zeros.
    pub(crate) fn zeros(&self, elements: usize) -> Vec<f32> {
        if size_of::<f32>() * elements < SPARE {
            return vec![0.0; elements];
        }
        let mut buffer = self.buffer(elements);
        self.install(|| buffer.par_chunks_mut(SPARE / size_of::<f32>()).for_each(|part| part.fill(0.0)));
        buffer
    }

    /// Keeps the memory of a tensor that is gone, as long as spare blocks and live tensors together are no larger than
    /// the tensors have been at once; the block that was spare for longest goes first.
    pub(crate) fn recycle(&self, buffer: Vec<f32>) {
        let bytes = |buffer: &Vec<f32>| size_of::<f32>() * buffer.capacity();
        if bytes(&buffer) < SPARE {
            return;
        }
        let MemoryUse { live, peak } = self.memory();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push_back(buffer);
        let mut total = spare.iter().map(bytes).sum::<usize>();
        while live + total > peak
            && let Some(oldest) = spare.pop_front()
        {
            total -= bytes(&oldest);
        }
    }

    pub(super) fn memory(&self) -> MemoryUse {
        MemoryUse { live: self.live.load(Ordering::Relaxed), peak: self.peak.load(Ordering::Relaxed) }
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Does `work` to each `len` of `values`, and to what is left at the end, with its number; what it returns of each. A
    /// task that is alone runs on the calling thread: to wake another takes longer than what is small.
    pub(crate) fn each_chunk<T: Send, R: Send>(
        &self,
        values: &mut [T],
        len: usize,
        work: impl Fn(usize, &mut [T]) -> R + Sync,
    ) -> Vec<R> {
        match values.len() {
            0 => Vec::new(),
            all if all <= len => vec![work(0, values)],
            _ => self.install(|| values.par_chunks_mut(len).enumerate().map(|(at, part)| work(at, part)).collect()),
        }
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

#[cfg(test)]
mod tests {
    use crate::{Device, Result, Tensor};

    #[test]
    fn memory_of_tensors_that_are_gone_is_used_again_and_bounded() -> Result<()> {
        const MIB: usize = 1 << 18;
        let device = Device::cpu(1)?;
        let Device::Cpu(cpu) = &device else { unreachable!() };
        let address = |buffer: &[f32]| buffer.as_ptr() as usize;
        let first = Tensor::full([4 * MIB], 1.0, &device)?;
        let second = Tensor::full([2 * MIB], 2.0, &device)?;
        let place = address(first.as_slice::<f32>()?);
        drop(first);

        assert_ne!(address(&cpu.buffer(MIB)), place, "too large for this");
        let again = cpu.buffer(3 * MIB);
        assert_eq!((address(&again), again.len()), (place, 3 * MIB));
        cpu.recycle(again);
        assert_eq!(cpu.spare.lock().unwrap().len(), 1);

        // 6 MiB have been live at once, and 2 are: with this block there would be 5 spare.
        cpu.recycle(vec![0.0; MIB]);
        assert_eq!(cpu.spare.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [MIB]);
        drop(second);
        Ok(())
    }
}
