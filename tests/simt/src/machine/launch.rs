//! What is checked and resolved before a launch.

use super::MOST_BLOCKS;
use crate::code::Class;
use crate::fault::{Fault, FaultKind};
use crate::gpu::{Config, Launch};
use crate::module::{Constant, Entry};

/// Blocks of a cluster that every device with clusters can hold.
const MOST_IN_CLUSTER: u64 = 8;

/// What a device would check before it starts anything.
pub(crate) fn check(config: &Config, name: &str, entry: &Entry, launch: &Launch, params: &[u8]) -> Result<(), Fault> {
    let fault = |text: String| Err(Fault::new(FaultKind::Launch, format!("launch of `{name}`: {text}")));
    let product = |n: [u32; 3]| n.iter().try_fold(1u64, |p, &n| p.checked_mul(u64::from(n)));
    let (Some(blocks), Some(threads)) = (product(launch.grid), product(launch.block)) else {
        return fault("the grid or block is too large".into());
    };
    if blocks == 0 || threads == 0 {
        return fault(format!("an empty grid {:?} or block {:?}", launch.grid, launch.block));
    }
    if launch.grid[1] > 65535 || launch.grid[2] > 65535 || launch.grid[0] > i32::MAX as u32 {
        return fault(format!("grid {:?} exceeds 2147483647 x 65535 x 65535", launch.grid));
    }
    if blocks > MOST_BLOCKS {
        return fault(format!("{blocks} blocks are more than this interpreter keeps race records for ({MOST_BLOCKS})"));
    }
    let shape = entry.limits.cluster_shape(launch);
    let size: u64 = shape.iter().map(|&n| u64::from(n)).product();
    match entry.limits.cluster {
        Some(required) if required != shape => {
            return fault(format!("clusters of {shape:?} blocks, and the kernel requires {required:?}"));
        }
        _ => {}
    }
    let most = entry.limits.blocks_in_cluster.map_or(MOST_IN_CLUSTER, u64::from).min(MOST_IN_CLUSTER);
    if size == 0 || size > most {
        return fault(format!("clusters of {shape:?} blocks: at most {most}, and not 0"));
    }
    if launch.grid.iter().zip(&shape).any(|(grid, cluster)| grid % cluster != 0) {
        return fault(format!("a grid of {:?} blocks is no multiple of clusters of {shape:?}", launch.grid));
    }
    let most = u64::from(config.max_threads_per_block.min(1024));
    if threads > most || launch.block[2] > 64 {
        return fault(format!("a block of {:?} threads: at most {most}, and 64 along z", launch.block));
    }
    match entry.limits.threads {
        Some((limit, true)) if threads != u64::from(limit) => {
            return fault(format!("{threads} threads in a block, and the kernel requires {limit}"));
        }
        Some((limit, false)) if threads > u64::from(limit) => {
            return fault(format!("{threads} threads in a block, and `__launch_bounds__` allows {limit}"));
        }
        _ => {}
    }
    let shared =
        entry.dynamic_base as usize - crate::ptx::module::SHARED_BASE as usize + launch.dynamic_shared as usize;
    if shared > config.max_shared {
        return fault(format!(
            "{shared} bytes of shared memory ({} static), and a block can have {}",
            entry.static_shared, config.max_shared
        ));
    }
    if params.len() != entry.param_bytes {
        return fault(format!("{} bytes of parameters, and the kernel takes {}", params.len(), entry.param_bytes));
    }
    if launch.cooperative && blocks > u64::from(config.max_cooperative_blocks) {
        return fault(format!(
            "a cooperative launch of {blocks} blocks, and {} fit the device at once",
            config.max_cooperative_blocks
        ));
    }
    Ok(())
}

/// The values of the kernel's constant registers.
pub(crate) fn constants(
    entry: &Entry,
    mut variable: impl FnMut(usize) -> Result<u64, Fault>,
) -> Result<Vec<(Class, u32, u64)>, Fault> {
    let resolve = |&(class, reg, constant): &(Class, u32, Constant)| {
        let value = match constant {
            Constant::Bits(bits) => bits,
            Constant::DynamicShared(offset) => u64::from(entry.dynamic_base).wrapping_add(offset as u64),
            Constant::Module(index, offset) => variable(index)?.wrapping_add(offset as u64),
        };
        Ok((class, reg, value))
    };
    entry.constants.iter().map(resolve).collect()
}
