//! From source text to a loaded module: kernels compiled ahead of time where a folder of them is named, else from the
//! cache, else by NVRTC.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex},
};

use super::{
    Compiled, Driver, Gpu, HEADERS, Image, ImageKind, ModuleId, Nvrtc, Prebuilt, Program, Source, cache, find_nvrtc,
    lock, prebuilt,
    source::{F32_ARCHS, architecture},
};
use crate::{Error, Result};

/// Compiles kernels, or finds them compiled.
#[derive(Clone)]
pub struct Compiler {
    kernels: Option<PathBuf>,
    cache: Option<PathBuf>,
    nvrtc: Arc<Mutex<Option<Arc<Nvrtc>>>>,
}

/// An image, once it is compiled.
type Slot = Arc<Mutex<Option<Arc<[u8]>>>>;

/// Images of this process, by hash and cache: many devices, as tests make them, compile once.
static IMAGES: LazyLock<Mutex<Images>> = LazyLock::new(Mutex::default);
type Images = HashMap<(blake3::Hash, Option<PathBuf>), Slot>;

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Compiler {
    /// As the environment says: `UNFREEZE_KERNELS`, `UNFREEZE_CACHE`, `UNFREEZE_NVRTC`.
    pub fn new() -> Self {
        Self { kernels: prebuilt::asked(), cache: cache::kernel_cache(), nvrtc: Arc::default() }
    }

    /// Takes kernels from this folder alone; `None` compiles them.
    pub fn kernels(self, folder: Option<PathBuf>) -> Self {
        Self { kernels: folder, ..self }
    }

    /// Keeps what it compiles in this folder; `None` keeps it in this process alone.
    pub fn cache(self, folder: Option<PathBuf>) -> Self {
        Self { cache: folder, ..self }
    }

    /// Compiles by this NVRTC.
    pub fn nvrtc(self, nvrtc: Arc<Nvrtc>) -> Self {
        Self { nvrtc: Arc::new(Mutex::new(Some(nvrtc))), ..self }
    }

    /// The folder of kernels compiled ahead of time, if there is one.
    pub fn kernels_folder(&self) -> Option<&Path> {
        self.kernels.as_deref()
    }

    /// The folder of the cache, if there is one.
    pub fn cache_folder(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    /// The NVRTC to compile with; one that fits a driver of this CUDA version.
    ///
    /// # Errors
    /// [`Error::Device`], saying where it was looked for and how to get it.
    pub fn find_nvrtc(&self, driver_version: Option<u32>) -> Result<Arc<Nvrtc>> {
        let mut nvrtc = lock(&self.nvrtc);
        match &*nvrtc {
            Some(nvrtc) => Ok(nvrtc.clone()),
            None => Ok(nvrtc.insert(Arc::new(find_nvrtc(driver_version).map_err(error)?)).clone()),
        }
    }

    /// Whether kernels can be had for a GPU, as far as can be said without compiling any.
    ///
    /// # Errors
    /// Of [`Compiler::find_nvrtc`] or [`Prebuilt::open`]; [`Error::Device`] if there are none for its architecture.
    pub fn check(&self, gpu: &Gpu) -> Result<()> {
        let (major, minor) = gpu.capability;
        architecture(F32_ARCHS, gpu.capability).ok_or_else(|| {
            error(format!("{} ({major}.{minor}) is newer than the kernels of this version", gpu.name))
        })?;
        match &self.kernels {
            Some(folder) => Prebuilt::open(folder).map(|_| ()),
            None => self.find_nvrtc(Some(gpu.driver_version)).map(|_| ()),
        }
    }

    /// Compiles `source` for `arch`, whatever is cached.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's messages, or if there is no compiler.
    pub fn compile(&self, source: &Source, arch: &str) -> Result<Compiled> {
        compile(&*self.find_nvrtc(None)?, source, arch)
    }

    /// Whether `source` is in the cache, compiled for `arch` by the NVRTC at hand.
    pub fn is_cached(&self, source: &Source, arch: &str) -> bool {
        let (Ok(nvrtc), Some(folder)) = (self.find_nvrtc(None), &self.cache) else { return false };
        let hash = cache::image_hash(source, arch, ImageKind::Cubin, nvrtc.version());
        cache::read(&cache::entry(folder, source, arch, ImageKind::Cubin, &hash)).is_some()
    }

    /// `source` for `arch`, compiled now or before, for a driver of this CUDA version.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's messages, or if there is no compiler; [`Error::Data`] if a folder of
    /// compiled kernels is named and does not hold it.
    pub fn image(
        &self,
        source: &Source,
        arch: &str,
        kind: ImageKind,
        driver_version: Option<u32>,
    ) -> Result<Arc<[u8]>> {
        if let (Some(folder), ImageKind::Cubin) = (&self.kernels, kind) {
            return Ok(Prebuilt::open(folder)?.read(source, arch)?.into());
        }
        let nvrtc = self.find_nvrtc(driver_version)?;
        let hash = cache::image_hash(source, arch, kind, nvrtc.version());
        // Whoever comes first works, others that want the same wait for it, others go on.
        let slot = lock(&IMAGES).entry((hash, self.cache.clone())).or_default().clone();
        let mut slot = lock(&slot);
        if let Some(image) = &*slot {
            return Ok(image.clone());
        }
        let entry = self.cache.as_ref().map(|folder| cache::entry(folder, source, arch, kind, &hash));
        let image = match entry.as_deref().and_then(cache::read) {
            Some(image) => image,
            None => {
                let compiled = compile(&nvrtc, source, arch)?;
                let image = match kind {
                    ImageKind::Cubin => compiled.cubin,
                    ImageKind::Ptx => compiled.ptx.into_bytes(),
                };
                if let Some(entry) = entry {
                    cache::write(&entry, &image);
                }
                image
            }
        };
        Ok(slot.insert(image.into()).clone())
    }

    /// Loads `source`, compiled for the GPU behind `driver`.
    pub(super) fn load(&self, source: &Source, driver: &dyn Driver) -> Result<ModuleId> {
        let gpu = driver.properties();
        let arch = source.arch(gpu.capability)?;
        // Assembly language is for emulators, which have no driver that could be too old.
        let driver_version = (gpu.image == ImageKind::Cubin).then_some(gpu.driver_version);
        let image = self.image(source, arch, gpu.image, driver_version)?;
        let image = match gpu.image {
            ImageKind::Cubin => Image::Cubin(&image),
            ImageKind::Ptx => {
                Image::Ptx(std::str::from_utf8(&image).map_err(|_| error("the assembly language is no text"))?)
            }
        };
        driver.load(image).map_err(|failed| match failed {
            Error::Device { device, message } => {
                let message = format!("{message} ({} for {arch}, {})", source.name, self.origin());
                Error::Device { device, message }
            }
            other => other,
        })
    }

    /// Where kernels come from, in words.
    fn origin(&self) -> String {
        match (&self.kernels, &*lock(&self.nvrtc)) {
            (Some(folder), _) => format!("from {}", folder.display()),
            (None, Some(nvrtc)) => format!("compiled by {nvrtc:?}"),
            (None, None) => "not compiled".into(),
        }
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernels {}", self.origin())
    }
}

/// Compiles, and says of a failure what was compiled.
fn compile(nvrtc: &Nvrtc, source: &Source, arch: &str) -> Result<Compiled> {
    let (name, text) = (format!("{}.cu", source.name), source.program());
    let program = Program { name: &name, text: &text, headers: HEADERS };
    let compiled = nvrtc.compile(&program, &cache::options(arch));
    compiled.map_err(|message| error(format!("{name} for {arch} by {nvrtc:?}: {message}")))
}

fn error(message: impl Into<String>) -> Error {
    Error::Device { device: "cuda".into(), message: message.into() }
}
