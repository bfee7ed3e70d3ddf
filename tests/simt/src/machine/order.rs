//! What is ordered before what.
//!
//! Every warp has a clock that synchronisation advances, and knows for each warp of its block the clock before which
//! that warp's accesses are ordered before its own (a vector clock). Barriers join this knowledge. Between blocks,
//! fences and strong accesses (atomics, volatile, relaxed, acquire, release) do: a fence followed by a strong write
//! leaves the writer's knowledge at the address, a strong read followed by a fence takes it up.

use std::collections::HashMap;

/// A warp's part.
#[derive(Clone, Default)]
pub(crate) struct Clock {
    /// The warp's own time: its accesses are stamped with it.
    pub now: u32,
    /// For each warp of the block: its accesses stamped earlier than this are ordered before ours. For the warp
    /// itself: those of other lanes.
    pub known: Vec<u32>,
    /// The least of `known`: earlier accesses are ordered whoever made them.
    pub least: u32,
    /// What single lanes know of others of the warp, beyond `known`, after synchronisation of a part of the warp.
    pub lanes: Option<Box<[[u32; 32]; 32]>>,
    /// Knowledge of warps of other blocks: (block, warp) to clock, relative to the block's start.
    pub others: HashMap<(u32, u32), u32>,
    /// Taken at the last fence: what a strong write after it releases.
    pub released: Option<Box<Knowledge>>,
    /// Read by strong reads, taken up at the next fence.
    pub pending: Vec<(u32, u64)>,
}

/// Warps of any block and their clocks, relative to their block's start.
pub(crate) type Knowledge = HashMap<(u32, u32), u32>;

impl Clock {
    pub fn settle(&mut self) {
        self.least = self.known.iter().copied().min().unwrap_or(0);
    }
}

/// What is left at addresses, for a launch whose blocks may order each other.
#[derive(Default)]
pub(crate) struct Order {
    /// By space (block for shared memory, `u32::MAX` for global) and address.
    pub at: HashMap<(u32, u64), Knowledge>,
    /// Blocks that read a granule of global memory, where they are several: to the latest clock.
    pub readers: HashMap<u64, Vec<(u32, u32)>>,
    /// Accesses that changed something: without any, the launch hangs.
    pub progress: u64,
}
