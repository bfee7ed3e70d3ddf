//! The GPU engine's device layer: a [`Driver`], the memory dealt out on it, the kernels compiled and loaded for it.

mod arena;
mod cache;
mod codes;
mod compile;
mod driver;
mod graph;
#[cfg(feature = "cuda")]
mod hardware;
mod locate;
mod memory;
mod nvrtc;
mod params;
mod prebuilt;
mod probe;
mod resources;
mod source;
mod table;
mod tensor_map;

pub use crate::files::CACHE_VARIABLE;
pub use cache::kernel_cache;
pub use codes::Code;
pub use compile::Compiler;
pub use driver::{Attributes, Driver, FunctionId, GraphId, Image, ImageKind, Launch, MemoryInfo, ModuleId, Properties};
pub use graph::Graph;
#[cfg(feature = "cuda")]
pub use hardware::Hardware;
pub use locate::{NVRTC_VARIABLE, all_nvrtc, find_nvrtc};
pub use nvrtc::{Compiled, Nvrtc, Program};
pub use params::Layout;
pub(crate) use params::{Field, Params, kernel_params};
pub use prebuilt::{KERNELS_VARIABLE, Prebuilt};
pub use probe::{CAPABILITY_NEEDED, DRIVER_NEEDED, Gpu, Unavailable, gpus, version};
pub use resources::Resources;
pub(crate) use source::Kernel;
pub use source::{F32_ARCHS, HEADERS, Source};
pub use table::Table;
pub use tensor_map::{EncodedMap, Swizzle, TensorMap, TensorMode, TensorType};

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{CpuDevice, MemoryUse};
use crate::{Error, Result};
use graph::Graphs;
use memory::{Memory, Owner};

/// Input buffers that the driver fills beside running kernels.
const SLOTS: usize = 2;

/// A GPU with its memory and kernels, and the host threads that feed it.
pub struct CudaDevice {
    name: String,
    driver: Arc<dyn Driver>,
    host: CpuDevice,
    compiler: Compiler,
    memory: Mutex<Memory>,
    graphs: Graphs,
    loaded: Mutex<Loaded>,
    free_slots: Mutex<VecDeque<usize>>,
}

/// Modules by source, kernels by source and entry, and how often each was launched.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, ModuleId>,
    functions: HashMap<(&'static str, &'static str), FunctionId>,
    launches: BTreeMap<&'static str, u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CudaDevice {
    /// The GPU behind `driver`, called `name` (such as `cuda:0`), with `threads` host threads (0: one per core).
    ///
    /// # Errors
    /// [`Error::Device`] if the operating system refuses the threads.
    pub fn new(name: impl Into<String>, driver: Arc<dyn Driver>, compiler: Compiler, threads: usize) -> Result<Self> {
        Ok(Self {
            name: name.into(),
            driver,
            host: CpuDevice::new(threads)?,
            compiler,
            memory: Mutex::default(),
            graphs: Graphs::default(),
            loaded: Mutex::default(),
            free_slots: Mutex::new((0..SLOTS).collect()),
        })
    }

    /// The GPU number `ordinal` of this machine.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::Data`], saying why it cannot be used and what to do: no driver or an old one, no
    /// such GPU, an old one, nothing to compile kernels with.
    pub fn open(ordinal: usize, threads: usize) -> Result<Self> {
        let found = gpus().and_then(|gpus| {
            let count = gpus.len();
            gpus.into_iter().nth(ordinal).ok_or(Unavailable::NoSuchDevice { ordinal, count })
        });
        Self::on(&found.map_err(|reason| reason.into_error(format!("cuda:{ordinal}")))?, threads)
    }

    /// The first GPU that can be used.
    ///
    /// # Errors
    /// Why not, where there seems to be one that something keeps from being used; `None` where there is none.
    pub(super) fn first(threads: usize) -> Result<Self, Option<String>> {
        let gpus = gpus().map_err(|reason| reason.is_a_problem().then(|| reason.to_string()))?;
        let mut problem = None;
        for gpu in &gpus {
            match Self::on(gpu, threads) {
                Ok(device) => return Ok(device),
                Err(error) => problem = problem.or(Some(error.to_string())),
            }
        }
        Err(problem)
    }

    fn on(gpu: &Gpu, threads: usize) -> Result<Self> {
        let name = format!("cuda:{}", gpu.ordinal);
        gpu.check().map_err(|reason| reason.into_error(&name))?;
        let compiler = Compiler::new();
        compiler.check(gpu)?;
        Self::new(name, hardware(gpu)?, compiler, threads)
    }

    /// The name, such as `cuda:0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// What the GPU is.
    pub fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    /// The host threads.
    pub fn host(&self) -> &CpuDevice {
        &self.host
    }

    pub(super) fn memory(&self) -> MemoryUse {
        lock(&self.memory).memory()
    }

    pub(super) fn reset_peak(&self) {
        lock(&self.memory).reset_peak();
    }

    pub(super) fn trim(&self) {
        lock(&self.memory).trim(&*self.driver);
    }

    /// Bytes that new tensors can still take.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver does not say.
    pub fn available(&self) -> Result<usize> {
        Ok(self.driver.memory()?.free + lock(&self.memory).unused())
    }

    /// A block of `bytes` with arbitrary contents.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        self.alloc_from(self.graphs.owner(), bytes)
    }

    fn alloc_from(self: &Arc<Self>, owner: Owner, bytes: usize) -> Result<Buffer> {
        let alloc = || lock(&self.memory).alloc(owner, bytes, &*self.driver);
        let address = match alloc() {
            Err(Error::OutOfMemory { .. }) if self.graphs.evict() => alloc()?,
            outcome => outcome?,
        };
        Ok(Buffer { device: self.clone(), address, bytes, place: Place::Arena(owner) })
    }

    /// A copy of `bytes` on the GPU.
    pub(crate) fn upload(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.alloc(bytes.len())?;
        buffer.overwrite(bytes)?;
        Ok(buffer)
    }

    /// A copy of `bytes` on the GPU that arrives beside running kernels; for input read once or a few times and then
    /// dropped.
    pub(crate) fn stage(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        let slot = if bytes.is_empty() { None } else { lock(&self.free_slots).pop_front() };
        let Some(slot) = slot else { return self.upload(bytes) };
        match self.driver.stage(slot, bytes) {
            Ok(address) => Ok(Buffer { device: self.clone(), address, bytes: bytes.len(), place: Place::Slot(slot) }),
            Err(error) => {
                lock(&self.free_slots).push_back(slot);
                Err(error)
            }
        }
    }

    /// Launches `kernel` over `grid` blocks, with `shared` bytes of dynamic shared memory. Nothing is launched where
    /// the grid is empty.
    pub(crate) fn launch<P: Params>(
        &self,
        kernel: &Kernel<P>,
        grid: [usize; 3],
        shared: usize,
        params: &P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        // What CUDA allows: 2³¹ − 1 blocks along x, 65535 along y and z.
        let [x, y, z] = grid;
        if x > i32::MAX as usize || y > 65535 || z > 65535 || shared > self.properties().shared_per_block {
            let message = format!("{} needs a grid of {grid:?} and {shared} bytes of shared memory", kernel.entry);
            return Err(self.error(message));
        }
        let launch = Launch {
            grid: grid.map(|blocks| blocks as u32),
            block: kernel.block,
            shared: shared as u32,
            cooperative: false,
            cluster: kernel.cluster,
        };
        self.run(kernel.source, kernel.entry, &launch, &params.to_bytes())
    }

    /// Runs the kernel `entry` of `source`, compiled and loaded at its first use, with one parameter, a struct of the
    /// bytes `params`. For kernels of one's own; addresses come from [`Driver::alloc`].
    ///
    /// # Errors
    /// [`Error::Device`] where it does not compile or the driver refuses the launch.
    pub fn run(&self, source: &'static Source, entry: &'static str, launch: &Launch, params: &[u8]) -> Result<()> {
        self.driver.launch(self.function(source, entry)?, launch, params)?;
        if !self.graphs.count(entry) {
            *lock(&self.loaded).launches.entry(entry).or_default() += 1;
        }
        Ok(())
    }

    /// How often each kernel was launched so far, alone or as part of a [`Graph`].
    pub fn launches(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.loaded).launches.clone()
    }

    /// Loads a kernel, once.
    fn function(&self, source: &'static Source, entry: &'static str) -> Result<FunctionId> {
        let mut loaded = lock(&self.loaded);
        if let Some(function) = loaded.functions.get(&(source.name, entry)) {
            return Ok(*function);
        }
        let module = match loaded.modules.get(source.name) {
            Some(module) => *module,
            None => {
                let module = self.compiler.load(source, &*self.driver)?;
                loaded.modules.insert(source.name, module);
                module
            }
        };
        let function = self.driver.function(module, entry)?;
        loaded.functions.insert((source.name, entry), function);
        Ok(function)
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::Device { device: self.name.clone(), message: message.into() }
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Every buffer holds its device, so that none is left, and all chunks go back: the primary context is shared
        // with the rest of the process and may outlive this device.
        lock(&self.memory).trim(&*self.driver);
    }
}

/// The driver of a GPU.
#[cfg(feature = "cuda")]
fn hardware(gpu: &Gpu) -> Result<Arc<dyn Driver>> {
    Ok(Arc::new(Hardware::open(gpu)?))
}

/// The driver of a GPU, which this build does not have.
#[cfg(not(feature = "cuda"))]
fn hardware(gpu: &Gpu) -> Result<Arc<dyn Driver>> {
    let message = "this program was built without the cargo feature `cuda`; use --device cpu".into();
    Err(Error::Device { device: format!("cuda:{}", gpu.ordinal), message })
}

/// A block of a GPU's memory; given back when dropped.
pub(crate) struct Buffer {
    device: Arc<CudaDevice>,
    address: u64,
    bytes: usize,
    place: Place,
}

/// Where a block is from.
enum Place {
    Arena(Owner),
    /// It is this input slot.
    Slot(usize),
}

impl Buffer {
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// Copies the block to the host.
    pub fn download(&self, to: &mut [u8]) -> Result<()> {
        assert!(to.len() <= self.bytes, "a download larger than its block");
        if to.is_empty() { Ok(()) } else { self.device.driver.download(self.address, to) }
    }

    /// Copies `bytes`, as many as it has, from the host.
    pub fn overwrite(&self, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.bytes, "a block is overwritten as a whole");
        if bytes.is_empty() { Ok(()) } else { self.device.driver.upload(self.address, bytes) }
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) -> Result<()> {
        if self.bytes == 0 { Ok(()) } else { self.device.driver.fill(self.address, byte, self.bytes) }
    }

    /// Copies a block of this device and size here.
    pub fn assign(&self, from: &Self) -> Result<()> {
        assert_eq!(from.bytes, self.bytes, "a block is overwritten as a whole");
        if self.bytes == 0 { Ok(()) } else { self.device.driver.copy(from.address, self.address, self.bytes) }
    }

    /// A copy on the same device.
    pub fn duplicate(&self) -> Result<Self> {
        let copy = self.device.alloc(self.bytes)?;
        copy.assign(self)?;
        Ok(copy)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.place {
            Place::Arena(owner) => lock(&self.device.memory).free(owner, self.address, &*self.device.driver),
            Place::Slot(slot) => {
                // An error here shows again in the next call that waits.
                let _ = self.device.driver.unstage(slot);
                lock(&self.device.free_slots).push_back(slot);
            }
        }
    }
}
