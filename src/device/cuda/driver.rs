//! What a GPU does for the engine, as a trait. Two things implement it: the hardware, through cudarc, and the emulator
//! that runs the same kernels on the processor in tests. Everything above (tile choice, grid sizes, packing of
//! arguments, memory) is the same code for both.

use super::{EncodedMap, TensorMap};
use crate::Result;

/// A GPU: memory, modules of kernels, and one queue that runs what it is given in order.
///
/// Kernels and copies may run later than the call that asked for them; [`Driver::download`] and
/// [`Driver::synchronize`] wait. A kernel's own failure may show in any later call.
pub trait Driver: Send + Sync {
    /// What the GPU is.
    fn properties(&self) -> &Properties;

    /// Bytes that are free, of all there are.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) as of every method here.
    fn memory(&self) -> Result<MemoryInfo>;

    /// A block of memory with arbitrary contents, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives back what [`Driver::alloc`] gave, once everything queued has run.
    fn free(&self, address: u64);

    /// Copies from the host; `from` may change as soon as the call returns.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Waits for everything queued and copies to the host.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies within the GPU; the ranges do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets every byte.
    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()>;

    /// Copies to a device buffer of the driver's own, of number `slot`, through pinned memory and beside the kernels
    /// that run; kernels launched after this call wait for it. Returns the buffer's address.
    fn stage(&self, slot: usize, bytes: &[u8]) -> Result<u64>;

    /// Says that the kernels launched so far are the last to read the buffer of `slot`.
    fn unstage(&self, slot: usize) -> Result<()>;

    /// Loads a module of kernels.
    fn load(&self, image: Image) -> Result<ModuleId>;

    /// Finds a kernel in a module.
    fn function(&self, module: ModuleId, entry: &str) -> Result<FunctionId>;

    /// What a kernel takes.
    fn attributes(&self, function: FunctionId) -> Result<Attributes>;

    /// A tensor map as a kernel takes it. For GPUs of compute capability 9.0 or more.
    fn tensor_map(&self, map: &TensorMap) -> Result<EncodedMap>;

    /// Queues a kernel with one parameter, a struct of the bytes `params`.
    fn launch(&self, function: FunctionId, launch: &Launch, params: &[u8]) -> Result<()>;

    /// Waits for everything queued.
    fn synchronize(&self) -> Result<()>;

    /// From here to [`Driver::end_capture`], what this thread launches, copies within the GPU and fills is written down
    /// instead of done, and [`carve`](Driver::carve) and [`release`](Driver::release) with it where they tell of blocks
    /// allocated meanwhile. What exchanges data with the host or waits is then an error. Other threads go on as ever.
    ///
    /// # Errors
    /// Also where a graph is being captured already.
    fn begin_capture(&self) -> Result<()>;

    /// Ends it, in any case; what was written down.
    fn end_capture(&self) -> Result<GraphId>;

    /// Queues all that is written down in a graph, in its order.
    fn replay(&self, graph: GraphId) -> Result<()>;

    /// Forgets a graph; replays that are queued still run.
    fn forget(&self, graph: GraphId);

    /// Says that `bytes` at `address`, inside a block of [`Driver::alloc`], are a buffer of their own from now on, with
    /// arbitrary contents. For drivers that check accesses.
    fn carve(&self, address: u64, bytes: usize) -> Result<()> {
        let _ = (address, bytes);
        Ok(())
    }

    /// Says that the buffer at `address` is no longer one.
    fn release(&self, address: u64) {
        let _ = address;
    }
}

/// What a GPU is.
#[derive(Clone, Debug)]
pub struct Properties {
    /// The product's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub shared_per_block: usize,
    /// CUDA version that the driver supports, such as 13000.
    pub driver_version: u32,
    /// What kind of module it loads.
    pub image: ImageKind,
    /// Bytes to leave unused behind each buffer, so that a driver that checks accesses sees them leave it. 0 for
    /// hardware.
    pub guard: usize,
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Free for anyone.
    pub free: usize,
    /// All there is.
    pub total: usize,
}

/// Kinds of [`Image`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// Machine code of one architecture.
    Cubin,
    /// NVIDIA's assembly language, as text.
    Ptx,
}

/// A compiled module.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// Machine code of one architecture.
    Cubin(&'a [u8]),
    /// NVIDIA's assembly language.
    Ptx(&'a str),
}

/// A loaded module, as its driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId(pub u64);

/// A kernel of a loaded module, as its driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId(pub u64);

/// A captured graph, as its driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u64);

/// What a kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of local memory per thread: spilled registers and arrays.
    pub local_bytes: u32,
    /// Bytes of shared memory that are part of the kernel.
    pub shared_bytes: u32,
    /// Most threads that a block of it may have.
    pub max_threads: u32,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along each axis; each at least 1.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory; a driver raises the kernel's limit where that is needed.
    pub shared: u32,
    /// Whether all blocks must run at once, for kernels with a barrier across the grid.
    pub cooperative: bool,
    /// Blocks along each axis that run together and reach each other's shared memory; divides the grid. `[1, 1, 1]` for
    /// none, which is all that GPUs before compute capability 9.0 can.
    pub cluster: [u32; 3],
}
