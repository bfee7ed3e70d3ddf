//! The memory of a GPU as a whole: an arena for everything, and one for each captured graph, whose temporaries are then
//! written to at every replay and must overlap nothing that was allocated elsewhere.

use std::collections::BTreeMap;

use super::{Driver, arena::Arena};
use crate::{Result, device::MemoryUse};

/// Bytes beyond what a graph's tables take.
const TABLES: usize = 1 << 20;

/// Whose arena a block is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Everyone,
    /// The graph of this number.
    Graph(u64),
}

/// All arenas.
#[derive(Debug, Default)]
pub(super) struct Memory {
    common: Arena,
    graphs: BTreeMap<u64, Graph>,
    number: u64,
    peak: usize,
}

#[derive(Debug)]
struct Graph {
    arena: Arena,
    /// The graph is gone, but something in its arena may not be.
    over: bool,
}

impl Memory {
    /// A block of at least `bytes`, which may be 0.
    pub fn alloc(&mut self, owner: Owner, bytes: usize, driver: &dyn Driver) -> Result<u64> {
        let address = match owner {
            Owner::Everyone => self.common.alloc(bytes, driver),
            Owner::Graph(number) => match self.graphs.get_mut(&number) {
                Some(graph) => graph.arena.alloc(bytes, driver),
                None => unreachable!("a graph that is being captured has an arena"),
            },
        };
        self.peak = self.peak.max(self.memory().live);
        address
    }

    /// Takes back a block.
    pub fn free(&mut self, owner: Owner, address: u64, driver: &dyn Driver) {
        match owner {
            Owner::Everyone => self.common.free(address, driver),
            Owner::Graph(number) => {
                if let Some(graph) = self.graphs.get_mut(&number) {
                    graph.arena.free(address, driver);
                    self.give_back(number, driver);
                }
            }
        }
    }

    /// An arena for a graph about to be captured. What is unused elsewhere goes back to the driver, to make room; all
    /// but what tables need that are made meanwhile, so that chunks allocated while it is captured are the graph's
    /// alone.
    pub fn begin_graph(&mut self, driver: &dyn Driver) -> Result<u64> {
        self.common.trim(driver);
        self.common.reserve(TABLES, driver)?;
        self.number += 1;
        self.graphs.insert(self.number, Graph { arena: Arena::pinned(), over: false });
        Ok(self.number)
    }

    /// A graph is gone; its memory follows as soon as no tensor is left in it.
    pub fn end_graph(&mut self, number: u64, driver: &dyn Driver) {
        if let Some(graph) = self.graphs.get_mut(&number) {
            graph.over = true;
            self.give_back(number, driver);
        }
    }

    fn give_back(&mut self, number: u64, driver: &dyn Driver) {
        if let Some(graph) = self.graphs.get_mut(&number).filter(|graph| graph.over) {
            graph.arena.trim(driver);
            if graph.arena.memory().live == 0 {
                self.graphs.remove(&number);
            }
        }
    }

    /// Gives what holds nothing back to the driver.
    pub fn trim(&mut self, driver: &dyn Driver) {
        self.common.trim(driver);
    }

    /// What is live; of a graph, all that it ever needed at once.
    pub fn memory(&self) -> MemoryUse {
        let of = |graph: &Graph| if graph.over { graph.arena.memory().live } else { graph.arena.memory().peak };
        let live = self.common.memory().live + self.graphs.values().map(of).sum::<usize>();
        MemoryUse { live, peak: self.peak.max(live) }
    }

    pub fn reset_peak(&mut self) {
        self.peak = self.memory().live;
    }

    /// Bytes that the driver has given and new tensors can take; graphs give way to them.
    pub fn unused(&self) -> usize {
        let held = self.graphs.values().filter(|graph| !graph.over).map(|graph| graph.arena.held());
        self.common.unused() + held.sum::<usize>()
    }
}
