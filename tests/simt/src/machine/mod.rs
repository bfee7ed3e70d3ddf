//! Running a launch: blocks over threads, warps in blocks, instructions in warps.

pub(crate) mod access;
pub(crate) mod alu;
pub(crate) mod async_copy;
pub(crate) mod atomic;
pub(crate) mod banks;
pub(crate) mod barrier;
pub(crate) mod bulk;
pub(crate) mod bytes;
pub(crate) mod cluster;
pub(crate) mod cluster_barrier;
pub(crate) mod collective;
pub(crate) mod flight;
pub(crate) mod global;
pub(crate) mod launch;
pub(crate) mod matrix;
pub(crate) mod mbarrier;
pub(crate) mod order;
pub(crate) mod race;
pub(crate) mod regs;
pub(crate) mod rounds;
pub(crate) mod schedule;
pub(crate) mod shadow;
pub(crate) mod shared;
pub(crate) mod step;
pub(crate) mod trouble;
pub(crate) mod warp;
pub(crate) mod warpgroup;
pub(crate) mod wgmma;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::code::Class;
use crate::counters::Counters;
use crate::fault::Fault;
use crate::gpu::{Config, Launch};
use crate::memory::Table;
use crate::module::Entry;
use cluster::Cluster;
use order::Order;
use rounds::Rounds;
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
    /// Blocks of a cluster along x, y and z.
    pub cluster: [u32; 3],
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

    pub fn cluster_size(&self) -> usize {
        self.cluster.iter().product::<u32>() as usize
    }

    pub fn clusters(&self) -> u64 {
        self.blocks() / self.cluster_size() as u64
    }

    /// The numbers of the blocks of a cluster, by rank.
    pub fn blocks_of(&self, cluster: u64) -> Vec<u64> {
        let (size, grid) = (self.cluster, self.launch.grid);
        let shape = [0, 1, 2].map(|axis| grid[axis] / size[axis]);
        let first = trouble::coordinates(cluster, shape);
        let block = |rank: usize| {
            let within = trouble::coordinates(rank as u64, size);
            let [x, y, z] = [0, 1, 2].map(|axis| u64::from(first[axis] * size[axis] + within[axis]));
            (z * u64::from(grid[1]) + y) * u64::from(grid[0]) + x
        };
        (0..self.cluster_size()).map(block).collect()
    }
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
    let cluster = entry.limits.cluster_shape(launch);
    let mut context =
        Context { config, name, entry, launch, params, table, number, constants, ordered, alone: true, cluster };
    let threads = if ordered { 1 } else { (config.threads.max(1) as u64).min(context.clusters()) };
    let alone = threads == 1;
    context.alone = alone;
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

/// Runs clusters as long as there are any that come before the first one that failed.
fn run_share(context: &Context, next: &AtomicU64, failed: &AtomicU64) -> Result<Counters, (u64, Fault)> {
    let order = Schedule::clusters(context.config.seed, context.clusters());
    let mut sync = Order::default();
    let mut cluster = [Cluster::new(context)];
    loop {
        let turn = next.fetch_add(1, Relaxed);
        if turn >= order.len() as u64 || turn > failed.load(Relaxed) {
            return Ok(cluster[0].counters);
        }
        cluster[0].start(order[turn as usize]);
        if let Err(fault) = run_to_end(context, &mut cluster, &mut sync) {
            failed.fetch_min(turn, Relaxed);
            return Err((turn, fault));
        }
    }
}

/// A cooperative launch: all blocks are resident and take turns.
fn run_together(context: &Context) -> Result<Counters, Fault> {
    let start = |index: u64| {
        let mut cluster = Cluster::new(context);
        cluster.start(index);
        cluster
    };
    let order = Schedule::clusters(context.config.seed, context.clusters());
    let mut clusters: Vec<_> = order.into_iter().map(start).collect();
    run_to_end(context, &mut clusters, &mut Order::default())?;
    let mut total = Counters::default();
    clusters.iter().for_each(|cluster| total += cluster.counters);
    Ok(total)
}

/// Runs clusters in turns until all have ended.
fn run_to_end(context: &Context, clusters: &mut [Cluster], sync: &mut Order) -> Result<(), Fault> {
    let mut rounds = Rounds::default();
    while !clusters.iter().all(Cluster::done) {
        for cluster in clusters.iter_mut().filter(|cluster| !cluster.done()) {
            cluster.round(sync, &mut rounds)?;
        }
        rounds.settle(context, clusters, sync)?;
    }
    Ok(())
}
