//! Graphs: a queue of its own takes what is captured, so that other threads' work stays out of it.

use std::{
    collections::HashMap,
    sync::Mutex,
    thread::{self, ThreadId},
};

use cudarc::driver::{result, sys};

use super::{super::lock, Answer};

/// The queue that is captured, the thread that captures, and what was captured.
pub struct Recorder {
    queue: sys::CUstream,
    thread: Mutex<Option<ThreadId>>,
    graphs: Mutex<Graphs>,
}

/// Executable graphs by number.
#[derive(Default)]
struct Graphs {
    executable: HashMap<u64, sys::CUgraphExec>,
    captured: u64,
}

impl Recorder {
    /// A recorder of what comes into `queue`, a stream of the current context.
    pub fn new(queue: sys::CUstream) -> Self {
        Self { queue, thread: Mutex::default(), graphs: Mutex::default() }
    }

    /// The queue, where it is this thread that captures.
    pub fn queue(&self) -> Option<sys::CUstream> {
        (*lock(&self.thread) == Some(thread::current().id())).then_some(self.queue)
    }

    /// Begins to capture what this thread queues; `None` if some thread does so already.
    pub fn begin(&self) -> Answer<Option<()>> {
        let mut thread = lock(&self.thread);
        if thread.is_some() {
            return Ok(None);
        }
        // Relaxed, since memory is allocated meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the queue is our own.
        unsafe { result::stream::begin_capture(self.queue, mode)? };
        *thread = Some(thread::current().id());
        Ok(Some(()))
    }

    /// Ends the capture, in any case; the number of the graph.
    pub fn end(&self) -> Answer<u64> {
        *lock(&self.thread) = None;
        // SAFETY: the queue is our own; a capture that was spoiled is an error here and has ended too. The executable
        // graph is a copy, so that the other is not needed any more.
        let executable = unsafe {
            let graph = result::stream::end_capture(self.queue)?;
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable?
        };
        let mut graphs = lock(&self.graphs);
        graphs.captured += 1;
        let number = graphs.captured;
        graphs.executable.insert(number, executable);
        Ok(number)
    }

    /// Queues a graph on `queue`; `None` if there is no such graph.
    pub fn replay(&self, number: u64, queue: sys::CUstream) -> Answer<Option<()>> {
        // Held meanwhile, so that nobody forgets the graph.
        let graphs = lock(&self.graphs);
        let Some(executable) = graphs.executable.get(&number) else { return Ok(None) };
        // SAFETY: graph and queue are our own; what the graph works on is kept alive by its owner.
        unsafe { result::graph::launch(*executable, queue) }.map(Some)
    }

    /// Destroys a graph.
    pub fn forget(&self, number: u64) -> Answer<()> {
        match lock(&self.graphs).executable.remove(&number) {
            // SAFETY: the graph is our own, and this its last use; the driver keeps what still runs.
            Some(executable) => unsafe { result::graph::exec_destroy(executable) },
            None => Ok(()),
        }
    }

    /// Destroys everything, the queue included, as far as the driver still does.
    pub fn destroy(&self) {
        // SAFETY: as above; the queue is not used any more.
        unsafe {
            for (_, executable) in lock(&self.graphs).executable.drain() {
                let _ = result::graph::exec_destroy(executable);
            }
            let _ = result::stream::destroy(self.queue);
        }
    }
}
