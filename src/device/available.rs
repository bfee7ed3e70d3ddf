//! How much memory a process may still take.

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// Bytes of host memory that this process can still take: what the system has available, within the limits of its
/// control group and of its address space. `None` where the system does not say.
pub(crate) fn available_memory() -> Option<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    let free = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let group = system.cgroup_limits().map(|limits| limits.free_memory);
    [free, group, address_space()].into_iter().flatten().min()
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
