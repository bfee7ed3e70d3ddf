//! What the CUDA driver's error codes mean: a table of our own, since asking the driver for it takes a driver.

/// A code other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// The driver has no GPU.
    pub const NO_DEVICE: Code = Code(100);
    /// The library is the toolkit's stub.
    pub const STUB_LIBRARY: Code = Code(34);
    /// Memory did not suffice.
    pub const OUT_OF_MEMORY: Code = Code(2);

    fn entry(self) -> Option<&'static (u32, &'static str, &'static str)> {
        CODES.iter().find(|(code, ..)| *code == self.0)
    }

    /// Whether the process can no longer use the GPU.
    pub fn is_fatal(self) -> bool {
        matches!(self.0, 214 | 220 | 700 | 702 | 709 | 710 | 714..=719)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.entry() {
            Some((code, name, "")) => write!(f, "CUDA_ERROR_{name} ({code})"),
            Some((code, name, meaning)) => write!(f, "CUDA_ERROR_{name} ({code}): {meaning}"),
            None => write!(f, "CUDA error {}", self.0),
        }
    }
}

const MISMATCH: &str = "the kernel module and the library of NVIDIA's driver are of different versions; restart the \
                        machine, or install the driver anew";
const CORRUPT: &str = "a kernel read or wrote where it must not";

/// Code, name without `CUDA_ERROR_`, what it means and what to do where the name does not say it.
const CODES: &[(u32, &str, &str)] = &[
    (1, "INVALID_VALUE", ""),
    (2, "OUT_OF_MEMORY", ""),
    (3, "NOT_INITIALIZED", ""),
    (4, "DEINITIALIZED", "the process is ending"),
    (34, "STUB_LIBRARY", "this libcuda is the CUDA toolkit's stub; take its folder out of LD_LIBRARY_PATH"),
    (36, "CALL_REQUIRES_NEWER_DRIVER", "install a newer NVIDIA driver"),
    (46, "DEVICE_UNAVAILABLE", "another process has the GPU for itself"),
    (100, "NO_DEVICE", ""),
    (101, "INVALID_DEVICE", ""),
    (200, "INVALID_IMAGE", "the compiled kernels are damaged, or made by a CUDA version newer than the driver"),
    (201, "INVALID_CONTEXT", ""),
    (209, "NO_BINARY_FOR_GPU", "the kernels are compiled for another architecture"),
    (214, "ECC_UNCORRECTABLE", "the GPU's memory failed"),
    (218, "INVALID_PTX", ""),
    (220, "NVLINK_UNCORRECTABLE", "the link between GPUs failed"),
    (222, "UNSUPPORTED_PTX_VERSION", "the kernels are compiled by a CUDA version newer than the driver"),
    (304, "OPERATING_SYSTEM", "the operating system refused"),
    (400, "INVALID_HANDLE", ""),
    (500, "NOT_FOUND", ""),
    (700, "ILLEGAL_ADDRESS", CORRUPT),
    (701, "LAUNCH_OUT_OF_RESOURCES", "the kernel needs more registers or threads than the GPU has"),
    (702, "LAUNCH_TIMEOUT", "a kernel ran longer than a GPU with a display may"),
    (709, "CONTEXT_IS_DESTROYED", ""),
    (710, "ASSERT", ""),
    (714, "HARDWARE_STACK_ERROR", CORRUPT),
    (715, "ILLEGAL_INSTRUCTION", ""),
    (716, "MISALIGNED_ADDRESS", CORRUPT),
    (717, "INVALID_ADDRESS_SPACE", CORRUPT),
    (718, "INVALID_PC", CORRUPT),
    (719, "LAUNCH_FAILED", "a kernel failed"),
    (720, "COOPERATIVE_LAUNCH_TOO_LARGE", "the GPU cannot hold all blocks at once"),
    (800, "NOT_PERMITTED", ""),
    (801, "NOT_SUPPORTED", ""),
    (802, "SYSTEM_NOT_READY", "start NVIDIA's fabric manager (nvidia-fabricmanager)"),
    (803, "SYSTEM_DRIVER_MISMATCH", MISMATCH),
    (804, "COMPAT_NOT_SUPPORTED_ON_DEVICE", "the forward-compatibility libcuda is for data-centre GPUs; remove it"),
    (900, "STREAM_CAPTURE_UNSUPPORTED", ""),
    (901, "STREAM_CAPTURE_INVALIDATED", ""),
    (904, "STREAM_CAPTURE_UNJOINED", ""),
    (905, "STREAM_CAPTURE_ISOLATION", ""),
    (906, "STREAM_CAPTURE_IMPLICIT", ""),
    (999, "UNKNOWN", "restarting the machine, or reloading the nvidia_uvm module, often helps"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named_without_a_driver() {
        assert!(CODES.is_sorted_by(|a, b| a.0 < b.0), "one entry per code");
        assert_eq!(Code::NO_DEVICE.to_string(), "CUDA_ERROR_NO_DEVICE (100)");
        assert_eq!(Code::OUT_OF_MEMORY.to_string(), "CUDA_ERROR_OUT_OF_MEMORY (2)");
        assert!(Code::STUB_LIBRARY.to_string().contains("LD_LIBRARY_PATH"));
        assert!(Code(803).to_string().starts_with("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803): the kernel module"));
        assert_eq!(Code(12345).to_string(), "CUDA error 12345");
    }

    /// Our names are those of the driver's header.
    #[cfg(feature = "cuda")]
    #[test]
    fn codes_have_the_drivers_names() {
        use cudarc::driver::sys::CUresult as Result;
        let known = [
            Result::CUDA_ERROR_STUB_LIBRARY,
            Result::CUDA_ERROR_DEVICE_UNAVAILABLE,
            Result::CUDA_ERROR_NO_BINARY_FOR_GPU,
            Result::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
            Result::CUDA_ERROR_ILLEGAL_ADDRESS,
            Result::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            Result::CUDA_ERROR_LAUNCH_FAILED,
            Result::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
            Result::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            Result::CUDA_ERROR_UNKNOWN,
        ];
        for code in known {
            // The derived text of an enumerator is its name; that of cudarc's error would ask the driver.
            let text = Code(code as u32).to_string();
            assert!(text.starts_with(&format!("{code:?} (")), "{text}");
        }
    }
}
