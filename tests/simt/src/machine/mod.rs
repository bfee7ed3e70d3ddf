//! Running a launch: blocks over threads, warps in blocks, instructions in warps.

pub(crate) mod access;
pub(crate) mod alu;
pub(crate) mod async_copy;
pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod block;
pub(crate) mod collective;
pub(crate) mod global;
pub(crate) mod matrix;
pub(crate) mod order;
pub(crate) mod race;
pub(crate) mod regs;
pub(crate) mod schedule;
pub(crate) mod shared;
pub(crate) mod trouble;
pub(crate) mod warp;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::code::Class;
use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};
use crate::gpu::{Config, Launch};
use crate::memory::Table;
use crate::module::{Constant, Entry};
use block::Block;
use order::Order;
use schedule::Schedule;

/// Race records have 22 bits for the block.
const MOST_BLOCKS: u64 = 1 << 22;

/// What all blocks of a launch share.
pub(crate) struct Context<'a> {
    pub config: &'a Config,
    pub name: &'a str,
    pub entry: &'a Entry,
    pub launch: &'a Launch,
    pub params: &'a [u8],
    pub table: &'a Table,
    /// The launch's number in race records.
    pub number: u64,
    pub constants: &'a [(Class, u32, u64)],
    /// Blocks may order each other's accesses; they all run on one thread.
    pub ordered: bool,
    /// All blocks run on one thread.
    pub alone: bool,
}

impl Context<'_> {
    pub fn threads(&self) -> u32 {
        self.launch.block.iter().product()
    }

    pub fn warps(&self) -> usize {
        self.threads().div_ceil(32) as usize
    }

    pub fn blocks(&self) -> u64 {
        self.launch.grid.iter().map(|&n| u64::from(n)).product()
    }
}

/// What a device would check before it starts anything.
pub(crate) fn check_launch(
    config: &Config,
    name: &str,
    entry: &Entry,
    launch: &Launch,
    params: &[u8],
) -> Result<(), Fault> {
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
    let most = u64::from(config.max_threads_per_block.min(1024));
    if threads > most || launch.block[2] > 64 {
        return fault(format!("a block of {:?} threads: at most {most}, and 64 along z", launch.block));
    }
    match entry.threads {
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

#[allow(clippy::too_many_arguments)]
pub(crate) fn run(
    config: &Config,
    name: &str,
    entry: &Entry,
    launch: &Launch,
    params: &[u8],
    table: &Table,
    number: u64,
    constants: &[(Class, u32, u64)],
) -> Result<Counters, Fault> {
    let ordered = launch.cooperative || entry.traits.ordered;
    let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
    let threads = if ordered { 1 } else { (config.threads.max(1) as u64).min(blocks) };
    let alone = threads == 1;
    let context = Context { config, name, entry, launch, params, table, number, constants, ordered, alone };
    if launch.cooperative {
        return run_together(&context);
    }
    if alone {
        return run_share(&context, &AtomicU64::new(0), &AtomicU64::new(u64::MAX)).map_err(|(_, fault)| fault);
    }
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let results: Vec<_> = std::thread::scope(|scope| {
        let share = || run_share(&context, &next, &failed);
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        handles.into_iter().map(|h| h.join()).collect()
    });
    let mut total = Counters::default();
    let mut first: Option<(u64, Fault)> = None;
    for result in results {
        match result {
            Ok(Ok(counters)) => total += counters,
            Ok(Err((turn, fault))) => {
                if first.as_ref().is_none_or(|(t, _)| turn < *t) {
                    first = Some((turn, fault));
                }
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    first.map_or(Ok(total), |(_, fault)| Err(fault))
}

/// Runs blocks as long as there are any that come before the first one that failed.
fn run_share(context: &Context, next: &AtomicU64, failed: &AtomicU64) -> Result<Counters, (u64, Fault)> {
    let order = Schedule::blocks(context.config.seed, context.blocks());
    let mut sync = Order::default();
    let mut block = Block::new(context);
    loop {
        let turn = next.fetch_add(1, Relaxed);
        if turn >= order.len() as u64 || turn > failed.load(Relaxed) {
            return Ok(block.counters);
        }
        block.start(order[turn as usize]);
        let mut rounds = block::Rounds::default();
        loop {
            match block.round(&mut sync, &mut rounds) {
                Ok(true) => break,
                Ok(false) => {}
                Err(fault) => {
                    failed.fetch_min(turn, Relaxed);
                    return Err((turn, fault));
                }
            }
            if let Some(fault) = rounds.stuck(context, std::slice::from_ref(&block)) {
                failed.fetch_min(turn, Relaxed);
                return Err((turn, fault));
            }
        }
    }
}

/// A cooperative launch: all blocks are resident and take turns.
fn run_together(context: &Context) -> Result<Counters, Fault> {
    let order = Schedule::blocks(context.config.seed, context.blocks());
    let mut sync = Order::default();
    let mut blocks = Vec::new();
    for &index in &order {
        let mut block = Block::new(context);
        block.start(index);
        blocks.push(block);
    }
    let mut rounds = block::Rounds::default();
    let mut done = vec![false; blocks.len()];
    while done.iter().any(|d| !d) {
        for (block, done) in blocks.iter_mut().zip(&mut done) {
            if !*done {
                *done = block.round(&mut sync, &mut rounds)?;
            }
        }
        if let Some(fault) = rounds.stuck(context, &blocks) {
            return Err(fault);
        }
    }
    let mut total = Counters::default();
    blocks.iter().for_each(|b| total += b.counters);
    Ok(total)
}
