//! What the assembler says that each kernel takes.

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel.
    pub entry: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of shared memory that are part of the kernel.
    pub shared: u32,
    /// Bytes of a thread's stack: local arrays, and registers that did not fit.
    pub stack: u32,
    /// Bytes written and read again because registers did not suffice.
    pub spills: u32,
}

/// Reads the log of a compilation with `--ptxas-options=-v`.
pub(super) fn resources(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    // Properties of device functions that are not inlined stand between those of kernels; their stack counts too.
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Resources { entry, ..Resources::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            kernel.stack += number_before(line, " bytes stack frame");
            kernel.spills += number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        }
        if line.contains("Used ") {
            kernel.registers = number_before(line, " registers");
            kernel.shared = number_before(line, " bytes smem");
        }
    }
    kernels
}

/// The number that stands before `unit`; 0 without one.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len()).unwrap_or_default();
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_log_is_read() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Function properties for b
ptxas         .     128 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers, 128 bytes cumulative stack size
ptxas info    : Compile time = 13.163 ms
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 512 bytes smem, 400 bytes cmem[0]";
        let expected = [
            Resources { entry: "b".into(), registers: 28, shared: 0, stack: 128, spills: 12 },
            Resources { entry: "a".into(), registers: 10, shared: 512, stack: 0, spills: 0 },
        ];
        assert_eq!(resources(log), expected);
    }
}
