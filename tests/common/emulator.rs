//! The emulator as a GPU: the same kernels, launchers and learner, run on the processor with every access checked.
//! Shared by the library's own tests and those beside this folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, ThreadId},
};

use unfreeze::{
    Device, DeviceName, Error, Result,
    device::{
        CudaDevice,
        cuda::{
            Attributes, Compiler, Driver, EncodedMap, FunctionId, GraphId, Image, ImageKind, Launch, MemoryInfo,
            ModuleId, Properties, Swizzle, TensorMap, TensorMode, TensorType,
        },
    },
};

/// A checking driver: what leaves its buffer, races, or reads what nobody wrote, is an error.
pub struct Emulator {
    gpu: simt::Gpu,
    properties: Properties,
    capacity: usize,
    captures: bool,
    modules: Mutex<Vec<Arc<simt::Module>>>,
    functions: Mutex<Vec<(Arc<simt::Module>, String)>>,
    slots: Mutex<BTreeMap<usize, u64>>,
    counters: Mutex<BTreeMap<String, simt::Counters>>,
    carved: Mutex<Vec<(u64, usize)>>,
    live: Mutex<BTreeSet<u64>>,
    capture: Mutex<Option<Capture>>,
    graphs: Mutex<BTreeMap<u64, Capture>>,
    calls: AtomicUsize,
    launches: AtomicUsize,
}

/// Something that a graph holds.
#[derive(Clone)]
enum Operation {
    Launch(FunctionId, Launch, Vec<u8>),
    Copy { from: u64, to: u64, bytes: usize },
    Fill { to: u64, byte: u8, bytes: usize },
    Carve(u64, usize),
    Release(u64),
}

/// A graph, captured or being captured.
#[derive(Clone)]
struct Capture {
    thread: ThreadId,
    operations: Vec<Operation>,
    /// Chunks allocated meanwhile: what is carved from them is carved anew at each replay.
    chunks: Vec<(u64, usize)>,
}

/// How an emulated GPU is to be.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Decides in which order blocks and warps run.
    pub schedule: u64,
    /// Compute capability: whose machine code is run.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub capacity: usize,
    /// Whether what is copied or multiplied in the background is done as late as is allowed, or at once.
    pub copies: simt::AsyncCopies,
    /// Whether graphs can be captured.
    pub captures: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let copies = simt::AsyncCopies::Late;
        Self { schedule: 0, capability: (8, 0), capacity: 4 << 30, copies, captures: true }
    }
}

fn failed(fault: simt::Fault) -> Error {
    Error::Device { device: "emulated".into(), message: fault.to_string() }
}

impl Emulator {
    /// An emulated GPU.
    pub fn new(settings: Settings) -> Self {
        let Settings { schedule, capability, capacity, copies, captures } = settings;
        let config = simt::Config {
            seed: schedule,
            threads: 2,
            capacity: Some(capacity),
            async_copies: copies,
            ..simt::Config::default()
        };
        let properties = Properties {
            name: "emulated GPU".into(),
            capability,
            multiprocessors: 4,
            shared_per_block: if capability == (9, 0) { 227 << 10 } else { 99 << 10 },
            driver_version: 13000,
            image: ImageKind::Ptx,
            guard: 4096,
        };
        Self {
            gpu: simt::Gpu::new(config),
            properties,
            capacity,
            captures,
            modules: Mutex::default(),
            functions: Mutex::default(),
            slots: Mutex::default(),
            counters: Mutex::default(),
            carved: Mutex::default(),
            live: Mutex::default(),
            capture: Mutex::default(),
            graphs: Mutex::default(),
            calls: AtomicUsize::default(),
            launches: AtomicUsize::default(),
        }
    }

    /// Address and length of every buffer made since the last call.
    pub fn take_carved(&self) -> Vec<(u64, usize)> {
        std::mem::take(&mut self.carved.lock().unwrap())
    }

    /// What each kernel has done so far.
    pub fn counters(&self) -> BTreeMap<String, simt::Counters> {
        self.counters.lock().unwrap().clone()
    }
}

impl Emulator {
    /// Calls that the host has made, as far as they reach a driver of hardware.
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }

    /// Kernels that have run.
    pub fn launches(&self) -> usize {
        self.launches.load(Relaxed)
    }

    /// Kernels of each graph that there is.
    pub fn graphs(&self) -> Vec<usize> {
        let kernels = |graph: &Capture| {
            graph.operations.iter().filter(|operation| matches!(operation, Operation::Launch(..))).count()
        };
        self.graphs.lock().unwrap().values().map(kernels).collect()
    }

    fn count_call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// Counts a call; what is being captured.
    fn called(&self) -> MutexGuard<'_, Option<Capture>> {
        self.count_call();
        self.capture.lock().unwrap()
    }

    /// Counts a call that is no part of a graph.
    fn outside(&self, what: &str) -> Result<()> {
        match &*self.called() {
            Some(capture) if capture.thread == thread::current().id() => {
                let message = format!("{what} while a graph is captured");
                Err(Error::Device { device: "emulated".into(), message })
            }
            _ => Ok(()),
        }
    }

    /// Does something, or writes it down where this thread captures a graph.
    fn queue(&self, operation: Operation) -> Result<()> {
        if let Some(capture) = &mut *self.called()
            && capture.thread == thread::current().id()
        {
            capture.operations.push(operation);
            return Ok(());
        }
        self.perform(operation)
    }

    /// As [`Emulator::queue`], for bookkeeping: written down where it is about the graph's own chunks.
    fn keep_book(&self, address: u64, operation: Operation) -> Result<()> {
        if let Some(capture) = &mut *self.capture.lock().unwrap()
            && capture.thread == thread::current().id()
            && capture.chunks.iter().any(|(chunk, bytes)| (*chunk..chunk + *bytes as u64).contains(&address))
        {
            capture.operations.push(operation);
            return Ok(());
        }
        self.perform(operation)
    }

    fn perform(&self, operation: Operation) -> Result<()> {
        match operation {
            Operation::Launch(function, Launch { grid, block, shared, cooperative, cluster }, params) => {
                let (module, entry) = self.functions.lock().unwrap()[function.0 as usize].clone();
                let launch = simt::Launch { grid, block, dynamic_shared: shared, cooperative, cluster };
                let counters = self.gpu.launch(&module, &entry, &launch, &params).map_err(failed)?;
                *self.counters.lock().unwrap().entry(entry).or_default() += counters;
                self.launches.fetch_add(1, Relaxed);
                Ok(())
            }
            Operation::Copy { from, to, bytes } => self.gpu.copy(from, to, bytes).map_err(failed),
            Operation::Fill { to, byte, bytes } => self.gpu.fill(to, byte, bytes).map_err(failed),
            Operation::Carve(address, bytes) => {
                self.live.lock().unwrap().insert(address);
                self.gpu.carve(address, bytes, "tensor").map_err(failed)
            }
            // Of a graph that was never replayed, nothing is there.
            Operation::Release(address) => match self.live.lock().unwrap().remove(&address) {
                true => self.gpu.release(address).map_err(failed),
                false => Ok(()),
            },
        }
    }
}

impl Driver for Emulator {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: self.capacity.saturating_sub(self.gpu.live_bytes()), total: self.capacity })
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let MemoryInfo { free, total } = self.memory()?;
        if bytes > free {
            return Err(Error::OutOfMemory { device: "emulated".into(), requested: bytes, free, total });
        }
        let address = self.gpu.alloc(bytes, "chunk").map_err(failed)?;
        if let Some(capture) = &mut *self.called()
            && capture.thread == thread::current().id()
        {
            capture.chunks.push((address, bytes));
        }
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.count_call();
        self.gpu.free(address).expect("a chunk");
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.outside("an upload")?;
        self.gpu.write(to, from).map_err(failed)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.outside("a download")?;
        self.gpu.read(from, to).map_err(failed)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.queue(Operation::Copy { from, to, bytes })
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        self.queue(Operation::Fill { to, byte, bytes })
    }

    fn stage(&self, slot: usize, bytes: &[u8]) -> Result<u64> {
        self.outside("input")?;
        let address = self.gpu.alloc(bytes.len(), "input slot").map_err(failed)?;
        self.gpu.write(address, bytes).map_err(failed)?;
        let before = self.slots.lock().unwrap().insert(slot, address);
        assert!(before.is_none(), "slot {slot} was filled while it was in use");
        Ok(address)
    }

    fn unstage(&self, slot: usize) -> Result<()> {
        self.count_call();
        let address = self.slots.lock().unwrap().remove(&slot).expect("a slot in use");
        self.gpu.free(address).map_err(failed)
    }

    fn load(&self, image: Image) -> Result<ModuleId> {
        let Image::Ptx(text) = image else { panic!("the emulator runs PTX") };
        let module = simt::Module::parse(text)
            .map_err(|error| Error::Device { device: "emulated".into(), message: error.to_string() })?;
        let mut modules = self.modules.lock().unwrap();
        modules.push(Arc::new(module));
        Ok(ModuleId(modules.len() as u64 - 1))
    }

    fn function(&self, module: ModuleId, entry: &str) -> Result<FunctionId> {
        let module = self.modules.lock().unwrap()[module.0 as usize].clone();
        assert!(module.entries().any(|name| name == entry), "no kernel {entry}");
        let mut functions = self.functions.lock().unwrap();
        functions.push((module, entry.to_string()));
        Ok(FunctionId(functions.len() as u64 - 1))
    }

    fn attributes(&self, function: FunctionId) -> Result<Attributes> {
        let (module, entry) = self.functions.lock().unwrap()[function.0 as usize].clone();
        let shared_bytes = module.static_shared(&entry).unwrap_or(0) as u32;
        Ok(Attributes { shared_bytes, max_threads: 1024, ..Attributes::default() })
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<EncodedMap> {
        let TensorMap { element, address, extents, strides, steps, mode, swizzle } = map.clone();
        let element = match element {
            TensorType::Bf16 => simt::TensorType::BF16,
            TensorType::F32 => simt::TensorType::F32,
            TensorType::Tf32 => simt::TensorType::TF32,
        };
        let mode = match mode {
            TensorMode::Tiled { extents } => simt::TensorMode::Tiled { extents },
            TensorMode::Im2col { lower: [x, y], upper: [right, bottom], channels, pixels } => {
                let (lower, upper) = (vec![x, y], vec![right, bottom]);
                simt::TensorMode::Im2col { lower, upper, channels, pixels }
            }
        };
        let swizzle = match swizzle {
            Swizzle::None => simt::Swizzle::None,
            Swizzle::B32 => simt::Swizzle::B32,
            Swizzle::B64 => simt::Swizzle::B64,
            Swizzle::B128 => simt::Swizzle::B128,
        };
        let encoded = simt::TensorMap { element, address, extents, strides, steps, mode, swizzle }.encode();
        encoded.map(EncodedMap).map_err(|message| Error::Device { device: "emulated".into(), message })
    }

    fn launch(&self, function: FunctionId, launch: &Launch, params: &[u8]) -> Result<()> {
        self.queue(Operation::Launch(function, *launch, params.to_vec()))
    }

    fn synchronize(&self) -> Result<()> {
        self.outside("waiting")
    }

    fn begin_capture(&self) -> Result<()> {
        let mut capture = self.called();
        if !self.captures {
            return Err(Error::Device { device: "emulated".into(), message: "it captures nothing".into() });
        }
        assert!(capture.is_none(), "a graph is captured already");
        *capture = Some(Capture { thread: thread::current().id(), operations: Vec::new(), chunks: Vec::new() });
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let capture = self.called().take().expect("a capture");
        let mut graphs = self.graphs.lock().unwrap();
        let number = graphs.last_key_value().map_or(0, |(number, _)| number + 1);
        graphs.insert(number, capture);
        Ok(GraphId(number))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        self.outside("a replay")?;
        let graph = self.graphs.lock().unwrap()[&graph.0].clone();
        // What outlived the replay before ends here.
        for (chunk, bytes) in &graph.chunks {
            let outlived: Vec<u64> = self.live.lock().unwrap().range(*chunk..chunk + *bytes as u64).copied().collect();
            outlived.into_iter().try_for_each(|address| self.perform(Operation::Release(address)))?;
        }
        graph.operations.into_iter().try_for_each(|operation| self.perform(operation))
    }

    fn forget(&self, graph: GraphId) {
        self.count_call();
        self.graphs.lock().unwrap().remove(&graph.0).expect("a graph");
    }

    fn carve(&self, address: u64, bytes: usize) -> Result<()> {
        self.carved.lock().unwrap().push((address, bytes));
        self.keep_book(address, Operation::Carve(address, bytes))
    }

    fn release(&self, address: u64) {
        self.keep_book(address, Operation::Release(address)).expect("a buffer");
    }
}

/// An emulated GPU of its own, and its driver; `None`, said loudly, where there is no NVRTC to compile for it.
pub fn emulated(settings: Settings) -> Option<(Device, Arc<Emulator>)> {
    let compiler = Compiler::new();
    if let Err(error) = compiler.find_nvrtc(None) {
        let required = env::var_os("UNFREEZE_REQUIRE_NVRTC").is_some_and(|value| value == "1");
        assert!(!required, "UNFREEZE_REQUIRE_NVRTC is set, but: {error}");
        static TOLD: OnceLock<()> = OnceLock::new();
        TOLD.get_or_init(|| eprintln!("\nSKIPPED: tests of GPU kernels: {error}\n"));
        return None;
    }
    let driver = Arc::new(Emulator::new(settings));
    let device = CudaDevice::new("emulated", driver.clone(), compiler, 2).expect("two threads");
    Some((Device::Cuda(Arc::new(device)), driver))
}

/// The GPU under test, one for all tests of a program: `UNFREEZE_TEST_DEVICE` (such as `cuda:0`), or an emulated one.
pub fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    GPU.get_or_init(|| match env::var("UNFREEZE_TEST_DEVICE") {
        Ok(name) => {
            let name: DeviceName = name.parse().expect("UNFREEZE_TEST_DEVICE");
            Some(Device::open(name, 2).expect("the device of UNFREEZE_TEST_DEVICE"))
        }
        Err(_) => emulated(Settings::default()).map(|(device, _)| device),
    })
    .clone()
}
