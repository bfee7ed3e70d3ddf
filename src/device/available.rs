//! How much memory a process may still take.

use std::fs;

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// Bytes of host memory that this process can still take: what the system has available, within the limits of its
/// control group and of its address space. `None` where the system does not say.
pub(crate) fn available_memory() -> Option<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    let free = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let group = system.cgroup_limits().map(|limits| {
        let statistics = STATISTICS.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        limits.free_memory.saturating_add(page_cache(&statistics)).min(limits.total_memory)
    });
    [free, group, address_space()].into_iter().flatten().min()
}

/// Where Linux tells what a control group's memory is used for, in its version 2 and 1.
const STATISTICS: [&str; 2] = ["/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"];

/// Bytes of files that a control group has in memory, by its statistics: they count as used there, and yet make room
/// for whoever asks.
fn page_cache(statistics: &str) -> u64 {
    let value = |name: &str| {
        let mut fields = statistics.lines().filter_map(|line| line.split_once(' '));
        fields.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse::<u64>().ok())
    };
    // The totals are those with the groups within; version 2 has no others, and calls them so.
    let total = |name: &str| value(&format!("total_{name}")).or_else(|| value(name)).unwrap_or(0);
    total("active_file").saturating_add(total("inactive_file"))
}

/// What is left of the address space, where it is limited (`ulimit -v`).
#[cfg(unix)]
fn address_space() -> Option<u64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let process = sysinfo::get_current_pid().ok()?;
    let mut system = System::new();
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), false, memory);
    // Threads reserve more of it than they use.
    const RESERVED: u64 = 256 << 20;
    Some(limit.saturating_sub(system.process(process)?.virtual_memory()).saturating_sub(RESERVED))
}

#[cfg(not(unix))]
fn address_space() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_cache_is_read_from_the_statistics_of_both_versions() {
        let second = "anon 1000\nfile 900\ninactive_anon 1\nactive_anon 2\ninactive_file 300\nactive_file 40\nslab 5\n";
        assert_eq!(page_cache(second), 340);
        let first = "cache 7\ninactive_file 10\nactive_file 20\ntotal_cache 9\ntotal_inactive_file 500\n\
                     total_active_file 60\n";
        assert_eq!(page_cache(first), 560);
        for (odd, expected) in [
            ("", 0),
            ("inactive_file", 0),
            ("inactive_file \nactive_file many", 0),
            ("inactive_file -1\nactive_file 8", 8),
            ("my_active_file 8\nactive_file_x 9", 0),
            ("active_file 18446744073709551615\ninactive_file 5", u64::MAX),
        ] {
            assert_eq!(page_cache(odd), expected, "{odd}");
        }
        assert!(available_memory().is_none_or(|bytes| bytes > 0));
    }
}
