//! NVRTC for tests: compiles CUDA to PTX where the library can be found; and running kernels on slices.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use simt::{Config, Counters, Fault, Gpu, Launch, Module};

/// NVRTC's library, kept loaded.
pub struct Nvrtc {
    library: Library,
}

/// The library: `UNFREEZE_NVRTC` (files, their folders, or folders that pip installed to), what the loader finds, Python's
/// packages.
pub fn nvrtc() -> Option<&'static Nvrtc> {
    static FOUND: OnceLock<Option<Nvrtc>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let library = candidates().into_iter().find_map(|path| load(&path));
        if library.is_none() {
            let text = "NVRTC was not found: kernels are not compiled anew, the checked-in PTX is used";
            assert!(std::env::var_os("UNFREEZE_REQUIRE_NVRTC").is_none_or(|v| v != "1"), "{text}");
            eprintln!("SKIPPED: {text} (pip install nvidia-cuda-nvrtc, or set UNFREEZE_NVRTC)");
        }
        library.map(|library| Nvrtc { library })
    });
    found.as_ref()
}

fn candidates() -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Some(paths) = std::env::var_os("UNFREEZE_NVRTC") {
        all.extend(std::env::split_paths(&paths).flat_map(|path| packaged(&path)));
    }
    all.extend(["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from));
    let script = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
    if let Ok(output) = Command::new("python3").args(["-c", script]).output() {
        all.extend(packaged(Path::new(String::from_utf8_lossy(&output.stdout).trim())));
    }
    all
}

/// Libraries at `path`, or in the packages that pip installed there.
fn packaged(path: &Path) -> Vec<PathBuf> {
    let places = [path.to_path_buf(), path.join("nvidia/cu13/lib"), path.join("nvidia/cuda_nvrtc/lib")];
    places.iter().flat_map(|place| libraries(place)).collect()
}

fn libraries(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.into()];
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let name = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc.so"));
    entries.filter(name).collect()
}

fn load(path: &Path) -> Option<Library> {
    let open = |path: &Path| unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok();
    // NVRTC looks for its builtins by name only: they must be loaded first.
    if let Some(folder) = path.parent().filter(|p| p.is_dir()) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("libnvrtc-builtins.so") && !name.contains("alt") {
                std::mem::forget(open(&entry.path()));
            }
        }
    }
    open(path)
}

impl Nvrtc {
    fn function<T>(&self, name: &CStr) -> Symbol<T> {
        unsafe { self.library.get(name.to_bytes_with_nul()) }.expect("NVRTC lacks a function")
    }

    /// The PTX of a source for an architecture such as `sm_80`; panics with NVRTC's log.
    pub fn compile(&self, source: &str, name: &str, arch: &str, options: &[&str]) -> String {
        type Create = unsafe extern "C" fn(
            *mut *mut c_void,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
        type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
        let text = |size: &CStr, get: &CStr, program| unsafe {
            let mut bytes = 0usize;
            assert_eq!(self.function::<Size>(size)(program, &mut bytes), 0);
            let mut buffer = vec![0u8; bytes.max(1)];
            assert_eq!(self.function::<Get>(get)(program, buffer.as_mut_ptr().cast()), 0);
            CStr::from_bytes_until_nul(&buffer).expect("text without end").to_string_lossy().into_owned()
        };
        let all = ["-lineinfo", "-default-device", "--include-path=tests/kernels"]
            .iter()
            .chain(options)
            .map(|o| o.to_string());
        let all: Vec<CString> = all
            .chain([format!("--gpu-architecture={arch}")])
            .map(|o| CString::new(o).expect("an option with NUL"))
            .collect();
        let pointers: Vec<_> = all.iter().map(|o| o.as_ptr()).collect();
        let (source, name) = (CString::new(source).unwrap(), CString::new(name).unwrap());
        let mut program = std::ptr::null_mut();
        unsafe {
            let none = std::ptr::null();
            let created = self.function::<Create>(c"nvrtcCreateProgram")(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                none,
                none,
            );
            assert_eq!(created, 0);
            let result =
                self.function::<Compile>(c"nvrtcCompileProgram")(program, pointers.len() as c_int, pointers.as_ptr());
            let log = text(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog", program);
            assert_eq!(result, 0, "NVRTC: {log}");
            let ptx = text(c"nvrtcGetPTXSize", c"nvrtcGetPTX", program);
            self.function::<Destroy>(c"nvrtcDestroyProgram")(&mut program);
            // NVRTC puts the current folder before the name.
            let folder = std::env::current_dir().expect("no current folder").display().to_string();
            ptx.replace(&format!("{folder}/"), "")
        }
    }
}

/// Modules with the architectures that they were compiled for.
pub type Modules = Arc<Vec<(String, Module)>>;

/// The PTX of `tests/kernels/<name>.cu`: the checked-in one, and those that NVRTC makes now for `archs`.
///
/// With `SIMT_WRITE_PTX=1` the checked-in one is written anew.
pub fn kernels(name: &str, archs: &[&str]) -> Modules {
    static CACHE: Mutex<BTreeMap<String, Modules>> = Mutex::new(BTreeMap::new());
    let mut cache = CACHE.lock().unwrap_or_else(|e| e.into_inner());
    cache.entry(name.into()).or_insert_with(|| Arc::new(compile_kernels(name, archs))).clone()
}

fn compile_kernels(name: &str, archs: &[&str]) -> Vec<(String, Module)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let source = std::fs::read_to_string(folder.join(format!("{name}.cu"))).expect("no such kernel file");
    let stored = folder.join(format!("{name}.ptx"));
    let file = format!("{name}.cu");
    if std::env::var_os("SIMT_WRITE_PTX").is_some() {
        let nvrtc = nvrtc().expect("writing PTX needs NVRTC");
        let arch = archs.iter().find(|&&arch| arch == "sm_80").unwrap_or(&archs[0]);
        std::fs::write(&stored, nvrtc.compile(&source, &file, arch, &[])).expect("cannot write PTX");
    }
    let mut all = vec![("stored".to_string(), std::fs::read_to_string(&stored).expect("no stored PTX"))];
    if let Some(nvrtc) = nvrtc() {
        all.extend(archs.iter().map(|arch| (arch.to_string(), nvrtc.compile(&source, &file, arch, &[]))));
    }
    let parse = |(arch, ptx): (String, String)| {
        let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{name} for {arch}: {e}"));
        (arch, module)
    };
    all.into_iter().map(parse).collect()
}

/// Parameters one after the other, each aligned to its size.
#[derive(Default, Clone)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn u64(mut self, value: u64) -> Params {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Params {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Bytes aligned to 64, such as a tensor map.
    pub fn map(mut self, map: &[u8; 128]) -> Params {
        self.0.resize(self.0.len().next_multiple_of(64), 0);
        self.0.extend(map);
        self
    }

    pub fn f32(self, value: f32) -> Params {
        self.u32(value.to_bits())
    }
}

pub fn config(seed: u64) -> Config {
    Config { seed, ..Config::default() }
}

pub fn upload(gpu: &Gpu, name: &str, values: &[f32]) -> u64 {
    upload_bytes(gpu, name, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

pub fn upload_u32(gpu: &Gpu, name: &str, values: &[u32]) -> u64 {
    upload_bytes(gpu, name, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

pub fn upload_bytes(gpu: &Gpu, name: &str, bytes: &[u8]) -> u64 {
    let address = gpu.alloc(bytes.len(), name).unwrap();
    gpu.write(address, bytes).unwrap();
    address
}

pub fn download(gpu: &Gpu, address: u64, count: usize) -> Result<Vec<f32>, Fault> {
    Ok(download_u32(gpu, address, count)?.into_iter().map(f32::from_bits).collect())
}

pub fn download_u32(gpu: &Gpu, address: u64, count: usize) -> Result<Vec<u32>, Fault> {
    let mut bytes = vec![0; 4 * count];
    gpu.read(address, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect())
}

/// A one-dimensional launch.
pub fn launch(
    gpu: &Gpu,
    module: &Module,
    entry: &str,
    blocks: u32,
    threads: u32,
    params: Params,
) -> Result<Counters, Fault> {
    let mut bytes = params.0;
    bytes.resize(module.param_bytes(entry).expect("no such entry").max(bytes.len()), 0);
    gpu.launch(module, entry, &Launch::linear(blocks, threads), &bytes)
}

/// Numbers in [-1, 1), the same in every run.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
