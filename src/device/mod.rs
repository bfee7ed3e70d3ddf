//! What computes and holds memory. Every operation matches on [`Device`] exhaustively.

mod available;
mod cpu;
pub mod cuda;
mod gemm;

pub(crate) use available::available_memory;
pub use cpu::{CpuDevice, MemoryUse};
pub use cuda::CudaDevice;
pub(crate) use gemm::{Matrix, gemm};

use std::{fmt, str::FromStr, sync::Arc};

use crate::{Error, Result};

/// Most worker threads of a device: beyond any machine, and short of what brings one down.
const MAX_THREADS: usize = 1024;

/// A place that computes. Cheap to clone.
#[derive(Clone)]
#[non_exhaustive]
pub enum Device {
    /// The processor, with a thread pool of its own.
    Cpu(Arc<CpuDevice>),
    /// A GPU.
    Cuda(Arc<CudaDevice>),
}

impl Device {
    /// The processor with `threads` worker threads; 0 means one per core.
    ///
    /// # Errors
    /// [`Error::Setting`] for more than 1024 threads; [`Error::Device`] if the operating system refuses them.
    pub fn cpu(threads: usize) -> Result<Self> {
        check_threads(threads)?;
        Ok(Device::Cpu(Arc::new(CpuDevice::new(threads)?)))
    }

    /// The best device of this machine, with a host thread per core: a GPU if one can be used, else the processor.
    ///
    /// # Errors
    /// [`Error::Device`] if the operating system refuses the threads.
    pub fn auto() -> Result<Self> {
        Device::open(DeviceName::Auto, 0)
    }

    /// Opens the device that `name` asks for, with `threads` host threads (0: one per core).
    ///
    /// # Errors
    /// [`Error::Device`] if it is not available on this machine or in this build, saying why and what to do;
    /// [`Error::Setting`] for more than 1024 threads.
    pub fn open(name: DeviceName, threads: usize) -> Result<Self> {
        Device::open_with_note(name, threads).map(|(device, _)| device)
    }

    /// As [`Device::open`]; and why `auto` took the processor, where there seems to be a GPU.
    ///
    /// # Errors
    /// As of [`Device::open`].
    pub fn open_with_note(name: DeviceName, threads: usize) -> Result<(Self, Option<String>)> {
        check_threads(threads)?;
        match name {
            DeviceName::Cpu => Ok((Device::cpu(threads)?, None)),
            DeviceName::Cuda(ordinal) => Ok((Device::Cuda(Arc::new(CudaDevice::open(ordinal, threads)?)), None)),
            DeviceName::Auto => match CudaDevice::first(threads) {
                Ok(cuda) => Ok((Device::Cuda(Arc::new(cuda)), None)),
                Err(problem) => Ok((Device::cpu(threads)?, problem)),
            },
        }
    }

    /// Host threads that this device works with.
    pub fn threads(&self) -> usize {
        self.host().threads()
    }

    /// Whether both are one device, with one memory.
    pub(crate) fn is(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu(one), Device::Cpu(other)) => Arc::ptr_eq(one, other),
            (Device::Cuda(one), Device::Cuda(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// The processor's part of it.
    fn host(&self) -> &CpuDevice {
        match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => cuda.host(),
        }
    }

    /// What the tensors made on it take.
    pub fn memory(&self) -> MemoryUse {
        match self {
            Device::Cpu(cpu) => cpu.memory(),
            Device::Cuda(cuda) => cuda.memory(),
        }
    }

    /// Lets [`MemoryUse::peak`] start again from what is live.
    pub fn reset_peak(&self) {
        match self {
            Device::Cpu(cpu) => cpu.reset_peak(),
            Device::Cuda(cuda) => cuda.reset_peak(),
        }
    }

    /// Gives memory that no tensor lies in back to the system, for other programs. A GPU's is kept otherwise.
    pub fn trim(&self) {
        match self {
            Device::Cpu(_) => {}
            Device::Cuda(cuda) => cuda.trim(),
        }
    }

    /// Waits for everything that was asked of the device.
    ///
    /// # Errors
    /// [`Error::Device`] if any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.driver().synchronize(),
        }
    }

    /// Bytes that new tensors can still take; `None` where nobody says.
    pub(crate) fn available(&self) -> Option<u64> {
        match self {
            Device::Cpu(_) => available_memory(),
            Device::Cuda(cuda) => cuda.available().ok().map(|bytes| bytes as u64),
        }
    }

    /// Runs `work` inside the device's thread pool, so that parallel iterators within use only its threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.host().install(work)
    }
}

impl Device {
    /// What decides the bits of what it computes: the GPU's product and compute capability, the processor's product,
    /// architecture and vector instructions. Devices that differ in it round differently.
    pub fn arithmetic(&self) -> String {
        match self {
            Device::Cpu(_) => cpu::arithmetic(),
            Device::Cuda(cuda) => {
                let gpu = cuda.properties();
                format!("{}, {}.{}", gpu.name, gpu.capability.0, gpu.capability.1)
            }
        }
    }
}

fn check_threads(threads: usize) -> Result<()> {
    if threads <= MAX_THREADS {
        return Ok(());
    }
    Err(Error::setting("threads", format!("{threads} are more than {MAX_THREADS}; 0 is one per core")))
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu(_) => f.write_str("cpu"),
            Device::Cuda(cuda) => f.write_str(cuda.name()),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({} threads)", self.threads())
    }
}

/// The name of a device as written on a command line: `auto`, `cpu`, `cuda:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceName {
    /// The best device at hand.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU with this ordinal.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceName::Auto),
            "cpu" => Ok(DeviceName::Cpu),
            "cuda" => Ok(DeviceName::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(DeviceName::Cuda)
                .ok_or_else(|| format!("'{text}' is no device; use auto, cpu or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Auto => f.write_str("auto"),
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}
