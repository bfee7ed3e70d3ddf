//! The [`Driver`] that is a GPU, through cudarc's thin layer over the CUDA driver. One queue computes, another brings
//! input, a third is where graphs are captured; every answer of the driver is checked.

mod hopper;
mod recorder;
mod slot;

use std::{
    ffi::{CString, c_void},
    sync::{Arc, Mutex},
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::{
    Attributes, Driver, EncodedMap, FunctionId, GraphId, Image, ImageKind, Launch, MemoryInfo, ModuleId, Properties,
    SLOTS, TensorMap,
    codes::Code,
    lock,
    probe::{Gpu, Unavailable},
};
use crate::{Error, Result};
use recorder::Recorder;
use slot::{SLOT_GRAIN, Slot};

/// A GPU behind NVIDIA's driver.
pub struct Hardware {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    compute: sys::CUstream,
    copies: sys::CUstream,
    recorder: Recorder,
    properties: Properties,
    modules: Mutex<Vec<sys::CUmodule>>,
    functions: Mutex<Vec<Function>>,
    slots: [Mutex<Slot>; SLOTS],
    /// The function launched last, to say so where one fails.
    last: Mutex<Option<Arc<str>>>,
}

// SAFETY: the driver's handles may be used from any thread; what this struct changes itself is behind mutexes.
unsafe impl Send for Hardware {}
// SAFETY: as above; every method makes the context current in the thread that it is called on.
unsafe impl Sync for Hardware {}

/// A loaded kernel.
struct Function {
    raw: sys::CUfunction,
    entry: Arc<str>,
    /// Bytes of dynamic shared memory that it may be launched with so far.
    dynamic: u32,
}

/// What a call of the driver answers.
type Answer<T> = Result<T, DriverError>;

impl Hardware {
    /// Takes `gpu` into use, sharing its primary context with whatever else of the process uses it.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses, or the GPU is too old.
    pub fn open(gpu: &Gpu) -> Result<Self> {
        let name = format!("cuda:{}", gpu.ordinal);
        let failed = |call: &str, code: Code| {
            let message = format!("{call} failed: {code}; or use --device cpu");
            Error::Device { device: name.clone(), message }
        };
        gpu.check().map_err(|reason: Unavailable| reason.into_error(&name))?;
        let answer = |call, error: DriverError| failed(call, Code(error.0 as u32));
        result::init().map_err(|error| answer("cuInit", error))?;
        let device = result::device::get(gpu.ordinal as i32).map_err(|error| answer("cuDeviceGet", error))?;
        // SAFETY: the device is the driver's own answer; it is released below or when the struct is dropped.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|error| answer("cuDevicePrimaryCtxRetain", error))?;
        Self::on(gpu, name.clone(), device, context).map_err(|error| {
            // SAFETY: retained above, and not used any more.
            let _ = unsafe { result::primary_ctx::release(device) };
            answer("starting the GPU", error)
        })
    }

    fn on(gpu: &Gpu, name: String, device: sys::CUdevice, context: sys::CUcontext) -> Answer<Self> {
        use sys::CUdevice_attribute as Attribute;
        // SAFETY: the context has just been retained.
        unsafe { result::ctx::set_current(context)? };
        let attribute = |attribute: Attribute| {
            // SAFETY: the device is the driver's own answer.
            unsafe { result::device::get_attribute(device, attribute) }
        };
        let properties = Properties {
            name: gpu.name.clone(),
            capability: gpu.capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            driver_version: gpu.driver_version,
            image: ImageKind::Cubin,
            guard: 0,
        };
        // What a failure half way leaves behind (a queue, an event) goes with the context.
        let queue = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let slots = [Slot::new()?, Slot::new()?].map(Mutex::new);
        Ok(Self {
            name,
            device,
            context,
            compute: queue()?,
            copies: queue()?,
            recorder: Recorder::new(queue()?),
            properties,
            modules: Mutex::default(),
            functions: Mutex::default(),
            slots,
            last: Mutex::default(),
        })
    }

    /// Makes the context current in this thread, runs `work`, and puts its failure into words.
    fn run<T>(&self, what: &str, work: impl FnOnce() -> Answer<T>) -> Result<T> {
        // SAFETY: the context lives as long as this struct.
        unsafe { result::ctx::set_current(self.context) }.and_then(|()| work()).map_err(|error| self.error(what, error))
    }

    fn error(&self, what: &str, error: DriverError) -> Error {
        let code = Code(error.0 as u32);
        let mut message = format!("{what} failed: {code}");
        if code.is_fatal() {
            if let Some(last) = &*lock(&self.last) {
                message += &format!("; the kernel launched last was {last}");
            }
            message += "; this process cannot use the GPU any more";
        }
        Error::Device { device: self.name.clone(), message }
    }

    /// An error of an allocation of `bytes`.
    fn allocation_error(&self, bytes: usize, error: DriverError) -> Error {
        match (Code(error.0 as u32), self.memory()) {
            (Code::OUT_OF_MEMORY, Ok(MemoryInfo { free, total })) => {
                Error::OutOfMemory { device: self.name.clone(), requested: bytes, free, total }
            }
            _ => self.error(&format!("allocating {bytes} bytes"), error),
        }
    }

    /// Where this thread's work goes.
    fn queue(&self) -> sys::CUstream {
        self.recorder.queue().unwrap_or(self.compute)
    }

    /// That this thread captures no graph, of which `what` could be no part.
    fn not_capturing(&self, what: &str) -> Result<()> {
        match self.recorder.queue() {
            None => Ok(()),
            Some(_) => Err(self.refused(&format!("{what} while a graph is captured"))),
        }
    }

    /// An error that is not the driver's.
    fn refused(&self, message: &str) -> Error {
        Error::Device { device: self.name.clone(), message: message.into() }
    }

    fn no_function(&self) -> Error {
        self.refused("a kernel that was not loaded")
    }
}

impl Driver for Hardware {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let (free, total) = self.run("asking for free memory", result::mem_get_info)?;
        Ok(MemoryInfo { free, total })
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: nothing is read from the block before it is written; `run` made the context current.
        let answer = self.run("allocating", || Ok(unsafe { result::malloc_sync(bytes) }))?;
        answer.map_err(|error| self.allocation_error(bytes, error))
    }

    fn free(&self, address: u64) {
        // A failure here is one of the kernels before, which shows in the next call; or the process is ending.
        let _ = self.run("freeing memory", || {
            // SAFETY: the queue is ours, and once it has run nothing of ours uses the block.
            unsafe {
                result::stream::synchronize(self.compute)?;
                result::free_sync(address)
            }
        });
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.not_capturing("an upload")?;
        self.run("copying to the GPU", || {
            // SAFETY: the caller owns `from.len()` bytes at `to`. The driver has taken what is not page-locked, as
            // Rust's memory is not, by the time that it returns.
            unsafe { result::memcpy_htod_async(to, from, self.compute) }
        })
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.not_capturing("a download")?;
        self.run("copying from the GPU", || {
            // SAFETY: the caller owns `to.len()` bytes at `from`; `to` is borrowed until the copy is done.
            let copied = unsafe { result::memcpy_dtoh_async(to, from, self.compute) };
            // SAFETY: the queue is ours. It is waited for even where the copy was refused.
            let waited = unsafe { result::stream::synchronize(self.compute) };
            copied.and(waited)
        })
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller owns both ranges.
        self.run("copying", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.queue()) })
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller owns the range.
        self.run("filling", || unsafe { result::memset_d8_async(to, byte, bytes, self.queue()) })
    }

    fn stage(&self, slot: usize, bytes: &[u8]) -> Result<u64> {
        self.not_capturing("input")?;
        let mut slot = lock(self.slot(slot)?);
        if slot.capacity < bytes.len().max(1) {
            self.grow(&mut slot, bytes.len().max(1).next_multiple_of(SLOT_GRAIN))?;
        }
        self.run("copying input to the GPU", || {
            // SAFETY: the page-locked buffer holds `capacity` bytes, at least as many as are copied, and is not read
            // by the copy before any more. Queues and events are our own.
            unsafe {
                result::event::synchronize(slot.copied)?;
                let host = std::slice::from_raw_parts_mut(slot.host, bytes.len());
                host.copy_from_slice(bytes);
                let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
                result::stream::wait_event(self.copies, slot.read, flags)?;
                result::memcpy_htod_async(slot.device, host, self.copies)?;
                result::event::record(slot.copied, self.copies)?;
                result::stream::wait_event(self.compute, slot.copied, flags)?;
            }
            Ok(slot.device)
        })
    }

    fn unstage(&self, slot: usize) -> Result<()> {
        let slot = lock(self.slot(slot)?);
        // SAFETY: event and queue are our own.
        self.run("recording an event", || unsafe { result::event::record(slot.read, self.compute) })
    }

    fn load(&self, image: Image) -> Result<ModuleId> {
        // In words, since machine code is an ELF file, which is aligned; text ends in a zero.
        let bytes = match image {
            Image::Cubin(bytes) => bytes,
            Image::Ptx(text) => text.as_bytes(),
        };
        let mut words = vec![0u64; bytes.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        self.run("loading kernels", || {
            // SAFETY: the image is whole, by its checksum or fresh from the compiler, and the driver copies it.
            let module = unsafe { result::module::load_data(words.as_ptr().cast::<c_void>())? };
            let mut modules = lock(&self.modules);
            modules.push(module);
            Ok(ModuleId(modules.len() as u64 - 1))
        })
    }

    fn function(&self, module: ModuleId, entry: &str) -> Result<FunctionId> {
        let module = lock(&self.modules).get(module.0 as usize).copied();
        let (Some(module), Ok(name)) = (module, CString::new(entry)) else {
            return Err(self.refused(&format!("there is no kernel {entry:?}, or not its module")));
        };
        self.run(&format!("finding the kernel {entry}"), || {
            // SAFETY: modules are not unloaded while this struct lives.
            let raw = unsafe { result::module::get_function(module, name)? };
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function has just been found.
            let dynamic = unsafe { result::function::get_function_attribute(raw, limit)? } as u32;
            let mut functions = lock(&self.functions);
            functions.push(Function { raw, entry: entry.into(), dynamic });
            Ok(FunctionId(functions.len() as u64 - 1))
        })
    }

    fn attributes(&self, function: FunctionId) -> Result<Attributes> {
        use sys::CUfunction_attribute as Attribute;
        let raw = lock(&self.functions).get(function.0 as usize).map(|function| function.raw);
        let raw = raw.ok_or_else(|| self.no_function())?;
        self.run("asking for a kernel's attributes", || {
            // SAFETY: functions live as long as their modules, which this struct holds.
            let get = |attribute| unsafe { result::function::get_function_attribute(raw, attribute) };
            Ok(Attributes {
                registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)? as u32,
                local_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)? as u32,
                shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as u32,
                max_threads: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? as u32,
            })
        })
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<EncodedMap> {
        map.check().map_err(|message| Error::Device { device: self.name.clone(), message })?;
        self.run(&format!("describing a tensor, {map:?},"), || hopper::encode(map))
    }

    fn launch(&self, function: FunctionId, launch: &Launch, params: &[u8]) -> Result<()> {
        let mut functions = lock(&self.functions);
        let function = functions.get_mut(function.0 as usize).ok_or_else(|| self.no_function())?;
        self.run(&format!("launching {}", function.entry), || {
            if launch.shared > function.dynamic {
                let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: functions live as long as their modules, which this struct holds.
                unsafe { result::function::set_function_attribute(function.raw, limit, launch.shared as i32)? };
                function.dynamic = launch.shared;
            }
            *lock(&self.last) = Some(function.entry.clone());
            // The driver reads as many bytes as the kernel's one parameter has, before it returns.
            let mut params = [params.as_ptr().cast_mut().cast::<c_void>()];
            if launch.cluster != [1; 3] {
                return hopper::launch(function.raw, launch, self.queue(), &mut params);
            }
            let queue = if launch.cooperative { result::launch_cooperative_kernel } else { result::launch_kernel };
            let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
            // SAFETY: the compiler has compared the parameter's layout with the kernel's.
            unsafe { queue(function.raw, (gx, gy, gz), (bx, by, bz), launch.shared, self.queue(), &mut params) }
        })
    }

    fn synchronize(&self) -> Result<()> {
        self.not_capturing("waiting")?;
        // SAFETY: queues are our own.
        self.run("waiting for the GPU", || unsafe {
            result::stream::synchronize(self.copies)?;
            result::stream::synchronize(self.compute)
        })
    }

    fn begin_capture(&self) -> Result<()> {
        let begun = self.run("beginning a graph", || self.recorder.begin())?;
        begun.ok_or_else(|| self.refused("a graph is captured already"))
    }

    fn end_capture(&self) -> Result<GraphId> {
        self.run("capturing a graph", || self.recorder.end()).map(GraphId)
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        self.not_capturing("a replay")?;
        let found = self.run("replaying a graph", || self.recorder.replay(graph.0, self.compute))?;
        found.ok_or_else(|| self.refused("a graph that is not there"))
    }

    fn forget(&self, graph: GraphId) {
        // A failure here is one of the kernels before, which shows in the next call; or the process is ending.
        let _ = self.run("forgetting a graph", || self.recorder.forget(graph.0));
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // Where the GPU has failed, each of these does too, and there is nothing left to do about it.
        let _ = self.run("stopping", || {
            // SAFETY: all of these are our own, and this is their last use.
            unsafe {
                let _ = result::stream::synchronize(self.copies);
                let _ = result::stream::synchronize(self.compute);
                self.recorder.destroy();
                for slot in &self.slots {
                    let mut slot = lock(slot);
                    let _ = slot.release();
                    let _ = result::event::destroy(slot.copied);
                    let _ = result::event::destroy(slot.read);
                }
                for module in lock(&self.modules).drain(..) {
                    let _ = result::module::unload(module);
                }
                let _ = result::stream::destroy(self.copies);
                let _ = result::stream::destroy(self.compute);
            }
            Ok(())
        });
        // SAFETY: retained in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
