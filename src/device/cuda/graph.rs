//! CUDA graphs: what a piece of work asks of the GPU, captured once and then replayed with one call.
//!
//! Memory that the work allocates comes from an arena of the graph's own, at addresses that every replay writes to
//! again. Where memory runs short, graphs lose theirs, and have to be captured anew.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    thread::{self, ThreadId},
};

use super::{Buffer, CudaDevice, GraphId, lock, memory::Owner};
use crate::Result;

/// Captured work. What it read and wrote outside of its own memory must be alive when it is replayed.
pub struct Graph(Arc<Mutex<Option<Captured>>>);

/// The graphs of a device, and the one that is being captured.
#[derive(Default)]
pub(super) struct Graphs {
    /// Held while a graph is captured: one at a time.
    turn: Mutex<()>,
    capture: Mutex<Option<Capture>>,
    captured: Mutex<Vec<Weak<Mutex<Option<Captured>>>>>,
}

/// A graph that is being captured.
struct Capture {
    thread: ThreadId,
    /// Number of its arena.
    arena: u64,
    /// Tables to be uploaded when it is complete.
    tables: Vec<(Buffer, Vec<u8>)>,
    launches: Launches,
}

/// How often each kernel is launched.
type Launches = BTreeMap<&'static str, u64>;

/// A graph with what it owns.
struct Captured {
    device: Arc<CudaDevice>,
    id: GraphId,
    arena: u64,
    launches: Launches,
    tables: Vec<Buffer>,
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.device.driver.forget(self.id);
        lock(&self.device.memory).end_graph(self.arena, &*self.device.driver);
    }
}

impl Graph {
    /// Queues the work once more; false if the graph had to give up its memory and there is nothing to replay any more.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the driver refuses.
    pub fn replay(&self) -> Result<bool> {
        match &*lock(&self.0) {
            Some(Captured { device, id, launches, .. }) => {
                device.driver.replay(*id)?;
                let mut loaded = lock(&device.loaded);
                launches.iter().for_each(|(entry, count)| *loaded.launches.entry(entry).or_default() += count);
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl Graphs {
    /// The arena of the graph that this thread captures.
    pub fn owner(&self) -> Owner {
        self.own(|capture| Owner::Graph(capture.arena)).unwrap_or(Owner::Everyone)
    }

    /// Counts a launch to the graph that this thread captures; false if there is none.
    pub fn count(&self, entry: &'static str) -> bool {
        self.own(|capture| *capture.launches.entry(entry).or_default() += 1).is_some()
    }

    /// `with` of what this thread captures.
    fn own<T>(&self, with: impl FnOnce(&mut Capture) -> T) -> Option<T> {
        lock(&self.capture).as_mut().filter(|capture| capture.thread == thread::current().id()).map(with)
    }

    /// Takes the memory of all graphs; whether there was any.
    pub fn evict(&self) -> bool {
        let graphs = std::mem::take(&mut *lock(&self.captured));
        let taken: Vec<Captured> =
            graphs.iter().filter_map(Weak::upgrade).filter_map(|graph| lock(&graph).take()).collect();
        !taken.is_empty()
    }
}

impl CudaDevice {
    /// How many graphs there are that can be replayed.
    pub fn graphs(&self) -> usize {
        lock(&self.graphs.captured).iter().filter_map(Weak::upgrade).filter(|graph| lock(graph).is_some()).count()
    }

    /// Captures what `work` asks of this device, instead of doing it, until the graph is replayed; tensors that it
    /// returns hold values only then. What its tensors take, and what replays write, is the graph's own memory; that of
    /// tensors from elsewhere must not be given back while the graph is replayed.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Device`](crate::Error::Device) where it exchanges data with the host, waits or
    /// captures, or the driver refuses; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn capture<T>(self: &Arc<Self>, work: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        if self.is_capturing() {
            return Err(self.error("a graph is captured already"));
        }
        let _turn = lock(&self.graphs.turn);
        let arena = lock(&self.memory).begin_graph(&*self.driver)?;
        let recording = Recording { device: self, arena, live: true };
        self.driver.begin_capture()?;
        *lock(&self.graphs.capture) =
            Some(Capture { thread: thread::current().id(), arena, tables: Vec::new(), launches: Launches::new() });
        let result = work()?;
        Ok((recording.end()?, result))
    }

    /// Whether this thread captures a graph of this device.
    pub(super) fn is_capturing(&self) -> bool {
        self.graphs.owner() != Owner::Everyone
    }

    /// The address of a copy of `bytes` that the graph being captured keeps, and that is there when it is replayed.
    pub(super) fn keep(self: &Arc<Self>, bytes: Vec<u8>) -> Result<u64> {
        let buffer = self.alloc_from(Owner::Everyone, bytes.len())?;
        let address = buffer.address();
        self.graphs.own(|capture| capture.tables.push((buffer, bytes)));
        Ok(address)
    }
}

/// A capture that ends, whatever happens.
struct Recording<'a> {
    device: &'a Arc<CudaDevice>,
    arena: u64,
    live: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<Graph> {
        let capture = lock(&self.device.graphs.capture).take();
        let (tables, launches) = capture.map(|capture| (capture.tables, capture.launches)).unwrap_or_default();
        let id = self.device.driver.end_capture()?;
        self.live = false;
        let (buffers, contents): (Vec<Buffer>, Vec<Vec<u8>>) = tables.into_iter().unzip();
        let captured = Captured { device: self.device.clone(), id, arena: self.arena, launches, tables: buffers };
        captured.tables.iter().zip(&contents).try_for_each(|(table, bytes)| table.overwrite(bytes))?;
        let graph = Arc::new(Mutex::new(Some(captured)));
        let mut graphs = lock(&self.device.graphs.captured);
        graphs.retain(|graph| graph.strong_count() > 0);
        graphs.push(Arc::downgrade(&graph));
        Ok(Graph(graph))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.live {
            // Of work that failed; nothing of it is wanted.
            let capture = lock(&self.device.graphs.capture).take();
            if capture.is_some()
                && let Ok(id) = self.device.driver.end_capture()
            {
                self.device.driver.forget(id);
            }
            lock(&self.device.memory).end_graph(self.arena, &*self.device.driver);
        }
    }
}

#[cfg(test)]
mod tests;
