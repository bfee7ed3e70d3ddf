//! The emulated device: memory, settings, launches.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};
use crate::machine;
use crate::memory::store::Store;
use crate::memory::{Allocation, Table};
use crate::module::Module;

/// When asynchronous copies (`cp.async`, bulk copies) take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AsyncCopies {
    /// Only at the wait that demands them, or when nothing else can go on: a missing wait gives wrong results, and is
    /// caught.
    #[default]
    Late,
    /// At once: overwriting data that is still being read gives wrong results, and is caught.
    Early,
}

/// Settings of a [`Gpu`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The schedule: 0 runs warps and blocks in order, 1 in reverse, others in orders drawn from the seed.
    pub seed: u64,
    /// OS threads that blocks run on. Results and counters do not depend on it.
    pub threads: usize,
    /// Shared memory that a block can have, static and dynamic, in bytes.
    pub max_shared: usize,
    /// Threads that a block can have.
    pub max_threads_per_block: u32,
    /// Blocks that a cooperative launch can have (those that fit the device at once).
    pub max_cooperative_blocks: u32,
    /// Device memory in bytes; unlimited if none.
    pub capacity: Option<usize>,
    /// When asynchronous copies land.
    pub async_copies: AsyncCopies,
    /// Whether `__syncthreads` may be reached after some threads of the block have returned. Devices since Volta wait
    /// for the other threads only; CUDA's rule is that all reach it.
    pub exited_threads_pass_barriers: bool,
    /// Instructions that a warp may execute without any warp storing anything, before the launch counts as hung.
    pub patience: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 0,
            threads: 1,
            max_shared: 227 << 10,
            max_threads_per_block: 1024,
            max_cooperative_blocks: 132,
            capacity: None,
            async_copies: AsyncCopies::Late,
            exited_threads_pass_barriers: false,
            patience: 20_000_000,
        }
    }
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// All blocks are resident at once and may wait for each other.
    pub cooperative: bool,
    /// Blocks of a cluster along x, y and z; `[1, 1, 1]` leaves it to the kernel (`__cluster_dims__`).
    pub cluster: [u32; 3],
}

impl Default for Launch {
    /// One thread.
    fn default() -> Launch {
        Launch { grid: [1; 3], block: [1; 3], dynamic_shared: 0, cooperative: false, cluster: [1; 3] }
    }
}

impl Launch {
    /// A one-dimensional launch without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Launch {
        Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], ..Launch::default() }
    }
}

/// An emulated device.
pub struct Gpu {
    config: Config,
    store: Mutex<Store>,
    /// Read by launches while they run.
    running: RwLock<()>,
}

impl Gpu {
    /// A device with nothing in its memory.
    pub fn new(config: Config) -> Gpu {
        Gpu { config, store: Mutex::default(), running: RwLock::default() }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn store(&self) -> std::sync::MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves memory, uninitialised and 512-byte aligned, far from all other. The name is for messages.
    pub fn alloc(&self, bytes: usize, name: &str) -> Result<u64, Fault> {
        self.store().alloc(bytes, name, self.config.capacity)
    }

    /// Frees an allocation; later accesses are faults that say so.
    pub fn free(&self, address: u64) -> Result<(), Fault> {
        self.store().free(address)
    }

    /// For an allocator above: marks `[address, address + bytes)` as one live buffer of its own, uninitialised again.
    ///
    /// Once an allocation has been carved, its bytes outside of live parts are out of bounds, and an access that
    /// begins in one part must end in it.
    pub fn carve(&self, address: u64, bytes: usize, name: &str) -> Result<(), Fault> {
        self.store().carve(address, bytes, name)
    }

    /// Ends a part that [`Gpu::carve`] began.
    pub fn release(&self, address: u64) -> Result<(), Fault> {
        self.store().release(address)
    }

    /// Finds the buffer of a host access: its allocation, the offset in it, and the offset in the buffer.
    fn locate(&self, address: u64, bytes: usize, what: &str) -> Result<Located, Fault> {
        let table = self.store().table();
        let index = table.find(address, bytes as u64).ok_or_else(|| table.fault(address, bytes as u64, what))?;
        let allocation = table.ranges[index].allocation.clone();
        let offset = (address - allocation.base) as usize;
        Ok(Located { table, index, allocation, offset })
    }

    /// Copies bytes to the device.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let at = self.locate(address, bytes.len(), "write from the host")?;
        at.allocation.write(at.offset, bytes);
        Ok(())
    }

    /// Copies bytes from the device. Reading a byte that nothing has written is a fault: an unwritten output.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let at = self.locate(address, bytes.len(), "read by the host")?;
        match at.allocation.read(at.offset, bytes) {
            None => Ok(()),
            Some(first) => {
                let range = &at.table.ranges[at.index];
                let first = at.allocation.base + first as u64 - range.start;
                Err(Fault::new(
                    FaultKind::UninitialisedMemory,
                    format!(
                        "read by the host: byte {first} of buffer `{}` ({} bytes) has never been written: no kernel \
                         wrote this output",
                        range.name,
                        range.end - range.start
                    ),
                ))
            }
        }
    }

    /// Copies between device buffers, with what is and is not initialised.
    pub fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        let source = self.locate(from, bytes, "copy on the device, source")?;
        let target = self.locate(to, bytes, "copy on the device, target")?;
        source.allocation.copy_to(source.offset, &target.allocation, target.offset, bytes);
        Ok(())
    }

    /// Fills device memory with one byte.
    pub fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Fault> {
        let at = self.locate(to, bytes, "fill")?;
        at.allocation.write(at.offset, &vec![byte; bytes]);
        Ok(())
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, module: &Module, entry: &str, launch: &Launch, params: &[u8]) -> Result<Counters, Fault> {
        let Some(kernel) = module.entry(entry) else {
            let names: Vec<_> = module.entries().collect();
            return Err(Fault::new(
                FaultKind::Launch,
                format!("no kernel `{entry}` in the module, which has: {}", names.join(", ")),
            ));
        };
        machine::launch::check(&self.config, entry, kernel, launch, params)?;
        let mut store = self.store();
        let constants = machine::launch::constants(kernel, |index| store.variable(module, index))?;
        let table = store.table();
        drop(store);
        let (number, _running) = self.begin_launch();
        machine::run(&self.config, entry, kernel, launch, params, &table, number, &constants)
    }

    /// The number of a launch, and what is to be held while it runs.
    fn begin_launch(&self) -> (u64, RwLockReadGuard<'_, ()>) {
        loop {
            let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(number) = self.store().next_launch() {
                return (number, running);
            }
            drop(running);
            // What still runs would leave records of the numbers that come again.
            let _alone = self.running.write().unwrap_or_else(PoisonError::into_inner);
            self.store().forget_launches();
        }
    }

    /// Bytes allocated now.
    pub fn live_bytes(&self) -> usize {
        self.store().live_bytes
    }
}

struct Located {
    table: Arc<Table>,
    index: usize,
    allocation: Arc<Allocation>,
    offset: usize,
}
