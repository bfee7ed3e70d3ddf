//! Finds out which GPUs there are, where there may be no driver, a stub of one, an old one or one without a GPU: each
//! is a value that says what to do. It calls the driver's library itself, because cudarc panics where that is missing.

use std::{
    ffi::{c_char, c_int},
    fmt,
    mem::ManuallyDrop,
};

use libloading::Library;

use super::codes::Code;
use crate::Error;

/// CUDA version that a driver must support: 12.0, which is driver 525.
pub const DRIVER_NEEDED: u32 = 12000;
/// Compute capability that a GPU must have: Turing's.
pub const CAPABILITY_NEEDED: (u32, u32) = (7, 5);

/// Names of the driver's library, in the order in which cudarc tries them too, so that both come to the same file.
#[cfg(windows)]
const LIBRARIES: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: &[&str] = &["libcuda.so", "libcuda.so.1"];

/// What the engine calls, but for what the probe itself does; cudarc panics where one is missing.
const FUNCTIONS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuLaunchCooperativeKernel",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeTiled",
];

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's number for it.
    pub ordinal: usize,
    /// The product's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: usize,
    /// CUDA version that the driver supports, such as 13000.
    pub driver_version: u32,
}

impl Gpu {
    /// Whether this engine has kernels for it.
    ///
    /// # Errors
    /// [`Unavailable::GpuTooOld`].
    pub fn check(&self) -> Result<(), Unavailable> {
        if self.capability >= CAPABILITY_NEEDED {
            return Ok(());
        }
        Err(Unavailable::GpuTooOld { name: self.name.clone(), capability: self.capability })
    }
}

/// Why there is no GPU to compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver's library is not found.
    NoDriver,
    /// A library has the driver's name, but not all of its functions.
    StubDriver {
        /// The library.
        library: String,
        /// The first function missing.
        missing: String,
    },
    /// The driver finds no GPU.
    NoDevice,
    /// There is no GPU of this number.
    NoSuchDevice {
        /// The number.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A call of the driver failed.
    Failed {
        /// The function called.
        call: &'static str,
        /// The library that has it.
        library: String,
        /// Its answer.
        code: Code,
    },
    /// The driver is older than the engine can use.
    DriverTooOld {
        /// The CUDA version that it supports, such as 11040.
        found: u32,
    },
    /// The GPU is older than the kernels support.
    GpuTooOld {
        /// The product's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
}

impl Unavailable {
    /// As the error of the device called `name`.
    pub fn into_error(self, name: impl Into<String>) -> Error {
        Error::Device { device: name.into(), message: self.to_string() }
    }

    /// Whether there seems to be a GPU that something keeps from being used, as opposed to none.
    pub fn is_a_problem(&self) -> bool {
        !matches!(self, Unavailable::NoDriver | Unavailable::NoDevice | Unavailable::StubDriver { .. })
            && !matches!(self, Unavailable::Failed { code: Code::STUB_LIBRARY, .. })
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::NoDriver => {
                let library = LIBRARIES[LIBRARIES.len() - 1];
                write!(f, "NVIDIA's driver ({library}) is not found; install it, or use --device cpu")
            }
            Unavailable::StubDriver { library, missing } => write!(
                f,
                "{library} is no complete NVIDIA driver: it lacks {missing}; install the driver, take a stub out of \
                 LD_LIBRARY_PATH, or use --device cpu"
            ),
            Unavailable::NoDevice => f.write_str(
                "NVIDIA's driver is installed but finds no GPU: there is none, CUDA_VISIBLE_DEVICES hides it, or the \
                 container was started without it (docker run --gpus all); or use --device cpu",
            ),
            Unavailable::NoSuchDevice { ordinal, count } => {
                let last = count.saturating_sub(1);
                write!(f, "there is no GPU {ordinal}: the last of {count} is cuda:{last}; see `unfreeze devices`")
            }
            Unavailable::Failed { call, library, code } => write!(f, "{call} of {library} failed: {code}"),
            Unavailable::DriverTooOld { found } => write!(
                f,
                "NVIDIA's driver supports CUDA {}, and {} is needed; install driver 525 or later, or use --device cpu",
                version(*found),
                version(DRIVER_NEEDED)
            ),
            Unavailable::GpuTooOld { name, capability: (major, minor) } => write!(
                f,
                "{name} has compute capability {major}.{minor}, and {}.{} (Turing) is needed; use --device cpu",
                CAPABILITY_NEEDED.0, CAPABILITY_NEEDED.1
            ),
        }
    }
}

impl std::error::Error for Unavailable {}

/// A CUDA version as people write it: 12.4 for 12040.
pub fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// The GPUs that the driver shows, whether or not the engine has kernels for them; at least one.
///
/// # Errors
/// [`Unavailable`], which says why there is none.
pub fn gpus() -> Result<Vec<Gpu>, Unavailable> {
    let driver = Loaded::find()?;
    driver.call("cuInit", |init: unsafe extern "C" fn(u32) -> c_int| {
        // SAFETY: the signature in the driver's header; the only flag defined is 0.
        unsafe { init(0) }
    })?;
    let mut supported = 0;
    driver.call("cuDriverGetVersion", |get: unsafe extern "C" fn(*mut c_int) -> c_int| {
        // SAFETY: as in the header; writes one integer.
        unsafe { get(&mut supported) }
    })?;
    let driver_version = supported.max(0) as u32;
    if driver_version < DRIVER_NEEDED {
        return Err(Unavailable::DriverTooOld { found: driver_version });
    }
    let mut count = 0;
    driver.call("cuDeviceGetCount", |get: unsafe extern "C" fn(*mut c_int) -> c_int| {
        // SAFETY: as in the header; writes one integer.
        unsafe { get(&mut count) }
    })?;
    if count <= 0 {
        return Err(Unavailable::NoDevice);
    }
    FUNCTIONS.iter().try_for_each(|function| driver.has(function))?;
    (0..count).map(|ordinal| driver.gpu(ordinal, driver_version)).collect()
}

/// The driver's library. It keeps threads of its own and must never be unloaded.
struct Loaded {
    library: ManuallyDrop<Library>,
    name: &'static str,
}

impl Loaded {
    fn find() -> Result<Self, Unavailable> {
        // SAFETY: the driver's library may be loaded at any time; its initialisers have no conditions.
        let open = |name: &&'static str| Some((unsafe { Library::new(*name) }.ok()?, *name));
        let (library, name) = LIBRARIES.iter().find_map(open).ok_or(Unavailable::NoDriver)?;
        Ok(Self { library: ManuallyDrop::new(library), name })
    }

    /// Calls `function`, of the type that `call` takes.
    fn call<F: Copy>(&self, function: &'static str, call: impl FnOnce(F) -> c_int) -> Result<(), Unavailable> {
        // SAFETY: the callers here name each function's type as the driver's header has it.
        let found = unsafe { self.library.get::<F>(function) }.map_err(|_| self.lacks(function))?;
        match call(*found) {
            0 => Ok(()),
            code if code as u32 == Code::NO_DEVICE.0 => Err(Unavailable::NoDevice),
            code => Err(Unavailable::Failed { call: function, library: self.file(), code: Code(code as u32) }),
        }
    }

    fn has(&self, function: &str) -> Result<(), Unavailable> {
        // SAFETY: only whether it is there is asked; it is not called.
        unsafe { self.library.get::<*const ()>(function) }.map(|_| ()).map_err(|_| self.lacks(function))
    }

    fn lacks(&self, function: &str) -> Unavailable {
        Unavailable::StubDriver { library: self.file(), missing: function.to_owned() }
    }

    fn gpu(&self, ordinal: c_int, driver_version: u32) -> Result<Gpu, Unavailable> {
        let mut device: c_int = 0;
        self.call("cuDeviceGet", |get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int| {
            // SAFETY: as in the header; writes one integer.
            unsafe { get(&mut device, ordinal) }
        })?;
        let mut name = [0u8; 256];
        self.call("cuDeviceGetName", |get: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int| {
            // SAFETY: as in the header; writes a C string of at most the length given.
            unsafe { get(name.as_mut_ptr().cast(), name.len() as c_int, device) }
        })?;
        let mut memory = 0;
        self.call("cuDeviceTotalMem_v2", |get: unsafe extern "C" fn(*mut usize, c_int) -> c_int| {
            // SAFETY: as in the header; writes one size_t.
            unsafe { get(&mut memory, device) }
        })?;
        let attribute = |number: c_int| {
            let mut value = 0;
            self.call("cuDeviceGetAttribute", |get: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int| {
                // SAFETY: as in the header; writes one integer.
                unsafe { get(&mut value, number, device) }
            })
            .map(|()| value as u32)
        };
        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        let capability = (attribute(75)?, attribute(76)?);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        Ok(Gpu { ordinal: ordinal as usize, name, capability, memory, driver_version })
    }

    /// The file that was loaded, as far as the system says.
    fn file(&self) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let paths = maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| format!("/{path}"));
        let ours = |path: &String| path.rsplit('/').next().is_some_and(|file| file.starts_with("libcuda.so"));
        { paths }.find(ours).unwrap_or_else(|| self.name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_say_what_to_do() {
        let old = Unavailable::DriverTooOld { found: 11040 };
        assert!(old.to_string().contains("supports CUDA 11.4, and 12.0 is needed; install driver 525"), "{old}");
        let gpu = |capability| Gpu {
            ordinal: 0,
            name: "Tesla V100".into(),
            capability,
            memory: 1 << 34,
            driver_version: 12040,
        };
        assert_eq!(gpu((7, 5)).check(), Ok(()));
        assert_eq!(gpu((12, 1)).check(), Ok(()));
        let text = gpu((7, 0)).check().unwrap_err().to_string();
        assert!(text.contains("Tesla V100 has compute capability 7.0, and 7.5"), "{text}");
        let ordinal = Unavailable::NoSuchDevice { ordinal: 3, count: 2 }.to_string();
        assert!(ordinal.contains("no GPU 3: the last of 2 is cuda:1"), "{ordinal}");
        assert!(Unavailable::NoDriver.to_string().contains("--device cpu") && !Unavailable::NoDriver.is_a_problem());
        let mismatch = Unavailable::Failed { call: "cuInit", library: "libcuda.so.1".into(), code: Code(803) };
        assert!(mismatch.is_a_problem() && mismatch.to_string().contains("restart the machine"), "{mismatch}");
    }
}
