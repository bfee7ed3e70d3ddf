//! What is ordered before what.
//!
//! Every warp has a clock that synchronisation advances, and knows for each warp of its cluster the clock before which
//! that warp's accesses are ordered before its own (a vector clock). Barriers join this knowledge. Between clusters,
//! fences and strong accesses (atomics, volatile, relaxed, acquire, release) do: a fence followed by a strong write
//! leaves the writer's knowledge at the address, a strong read followed by a fence takes it up.

use std::collections::HashMap;

/// A warp's part.
#[derive(Clone, Default)]
pub(crate) struct Clock {
    /// The warp's own time: its accesses are stamped with it.
    pub now: u32,
    /// For each warp of the cluster: its accesses stamped earlier than this are ordered before ours. For the warp
    /// itself: those of other lanes. Behind the warps: the same for each mbarrier, of what bulk copies wrote that
    /// completed on it.
    pub known: Vec<u32>,
    /// The least of `known` over the warps: earlier accesses are ordered whoever made them.
    pub least: u32,
    /// What single lanes know of others of the warp, beyond `known`, after synchronisation of a part of the warp.
    pub lanes: Option<Box<[[u32; 32]; 32]>>,
    /// Knowledge of warps of blocks of other clusters: (block, warp) to clock, relative to the cluster's start.
    pub others: Knowledge,
    /// Taken at the last fence: what a strong write after it releases.
    pub released: Option<Box<Knowledge>>,
    /// `known` at the last fence, its own accesses until then included: what a relaxed arrival after it releases.
    pub fenced: Vec<u32>,
    /// Read by strong reads, taken up at the next fence.
    pub pending: Vec<(u32, u64)>,
}

/// Warps of any block and their clocks, relative to their cluster's start.
pub(crate) type Knowledge = HashMap<(u32, u32), u32>;

impl Clock {
    /// Puts `least` right, for a cluster of so many warps.
    pub fn settle(&mut self, warps: usize) {
        self.least = self.known.iter().take(warps).copied().min().unwrap_or(0);
    }
}

/// What the warps that came to a barrier know: those that it lets go know it too.
#[derive(Clone, Default)]
pub(crate) struct Joined {
    known: Vec<u32>,
    others: Knowledge,
    /// A warp came with only some of its lanes: they are not ordered with the rest of it.
    partial: bool,
}

impl Joined {
    /// Adds what a warp knows, its own accesses until `now` included, of which `whole` says that all its lanes came.
    pub fn add(&mut self, id: usize, clock: &Clock, now: u32, whole: bool) {
        raise(&mut self.known, &clock.known);
        self.known[id] = now;
        for (&key, &clock) in &clock.others {
            let known = self.others.entry(key).or_insert(0);
            *known = (*known).max(clock);
        }
        self.partial |= !whole;
    }

    /// Adds what was known at a fence.
    pub fn add_known(&mut self, known: &[u32]) {
        raise(&mut self.known, known);
    }

    /// Adds what was written until `now` by what has entry `index`.
    pub fn add_at(&mut self, index: usize, now: u32) {
        if self.known.len() <= index {
            self.known.resize(index + 1, 0);
        }
        self.known[index] = self.known[index].max(now);
    }

    /// Lets a warp know; `whole` if all its lanes waited together.
    pub fn teach(&self, id: usize, clock: &mut Clock, warps: usize, whole: bool) {
        let own = clock.known[id];
        raise(&mut clock.known, &self.known);
        // Lanes of one warp are ordered too, where all of them came and waited together.
        if whole && !self.partial {
            clock.lanes = None;
        } else {
            clock.known[id] = own;
        }
        clock.settle(warps);
        for (&key, &theirs) in &self.others {
            let known = clock.others.entry(key).or_insert(0);
            *known = (*known).max(theirs);
        }
    }
}

/// The greater of each pair.
fn raise(known: &mut Vec<u32>, more: &[u32]) {
    if known.len() < more.len() {
        known.resize(more.len(), 0);
    }
    known.iter_mut().zip(more).for_each(|(a, b)| *a = (*a).max(*b));
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
