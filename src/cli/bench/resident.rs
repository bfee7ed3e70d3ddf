//! What the system counts of this process' memory, as Linux tells it.

use std::fs;

/// Lets [`peak`] start again from what is resident now.
pub fn reset() {
    // Where the system refuses, the peak is that since the process began.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Most bytes that were resident at a time since the process began, or since [`reset`]; `None` where the system does
/// not tell.
pub fn peak() -> Option<u64> {
    high_water(&fs::read_to_string("/proc/self/status").ok()?)
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes() {
        assert_eq!(high_water("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    1536 kB\nVmRSS:\t 7 kB\n"), Some(1536 << 10));
        assert_eq!(high_water("Name:\tx\n"), None);
        assert_eq!(high_water("VmHWM:\t    many kB\n"), None);
    }

    /// Other tests of this process may be running, so that only a lower bound is certain.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_written_to_counts() {
        const BYTES: usize = 64 << 20;
        reset();
        let held = vec![1u8; BYTES];
        assert!(peak().unwrap() > BYTES as u64);
        drop(held);
    }
}
