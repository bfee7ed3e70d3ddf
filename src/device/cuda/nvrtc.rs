//! NVIDIA's run-time compiler: from CUDA C++ to machine code, in this process, with no CUDA toolkit and no GPU. Loaded
//! where it is found; several versions can be in one process.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fmt,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    ptr::null_mut,
};

use libloading::Library;

use super::resources::{Resources, resources};

/// A loaded NVRTC.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    api: Api,
    /// Keeps the functions of `api` valid.
    _library: ManuallyDrop<Library>,
}

/// What comes out of a compilation.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code of one architecture.
    pub cubin: Vec<u8>,
    /// NVIDIA's assembly language.
    pub ptx: String,
    /// What each kernel takes, in the compiler's order.
    pub resources: Vec<Resources>,
}

/// A program to compile.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// The name by which messages and line tables call it.
    pub name: &'a str,
    /// CUDA C++.
    pub text: &'a str,
    /// Names and texts of what it includes.
    pub headers: &'a [(&'a str, &'a str)],
}

type Handle = *mut c_void;

macro_rules! api {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*);)*) => {
        /// The functions, under the types that the header nvrtc.h gives them.
        struct Api { $($field: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Api {
            fn load(library: &Library) -> Result<Self, String> {
                // SAFETY: each is called by the type that NVRTC's header gives it.
                $(let $field = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> c_int>($symbol) };
                let $field = *$field.map_err(|_| concat!("it has no ", $symbol))?;)*
                Ok(Self { $($field,)* })
            }
        }
    };
}

api! {
    version = "nvrtcVersion": fn(*mut c_int, *mut c_int);
    create = "nvrtcCreateProgram": fn(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    compile = "nvrtcCompileProgram": fn(Handle, c_int, *const *const c_char);
    destroy = "nvrtcDestroyProgram": fn(*mut Handle);
    log_size = "nvrtcGetProgramLogSize": fn(Handle, *mut usize);
    log = "nvrtcGetProgramLog": fn(Handle, *mut c_char);
    cubin_size = "nvrtcGetCUBINSize": fn(Handle, *mut usize);
    cubin = "nvrtcGetCUBIN": fn(Handle, *mut c_char);
    arch_count = "nvrtcGetNumSupportedArchs": fn(*mut c_int);
    archs = "nvrtcGetSupportedArchs": fn(*mut c_int);
    ptx_size = "nvrtcGetPTXSize": fn(Handle, *mut usize);
    ptx = "nvrtcGetPTX": fn(Handle, *mut c_char);
}

impl Nvrtc {
    /// Loads NVRTC from a file, or from the loader's path where `path` is a bare name.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, String> {
        load_builtins(path);
        // SAFETY: NVRTC may be loaded at any time.
        let library = unsafe { Library::new(path) }.map_err(|error| cause(&error))?;
        // NVRTC is not made to be unloaded.
        let library = ManuallyDrop::new(library);
        let api = Api::load(&library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        named("nvrtcVersion", unsafe { (api.version)(&mut major, &mut minor) })?;
        let version = (major.max(0) as u32, minor.max(0) as u32);
        if version.0 < 12 {
            return Err(format!("it is of CUDA {}.{}, and 12.0 is needed", version.0, version.1));
        }
        Ok(Self { path: path.to_owned(), version, api, _library: library })
    }

    /// The file, or its bare name where the loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// CUDA version, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Whether it compiles for an architecture such as `sm_90a`.
    pub fn supports(&self, arch: &str) -> bool {
        let mut count = 0;
        // SAFETY: writes one integer.
        if unsafe { (self.api.arch_count)(&mut count) } != 0 {
            return false;
        }
        let mut numbers = vec![0; count.max(0) as usize];
        // SAFETY: writes as many integers as it has just said.
        let code = unsafe { (self.api.archs)(numbers.as_mut_ptr()) };
        let number = arch.trim_start_matches("sm_").trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse();
        code == 0 && number.is_ok_and(|number: c_int| numbers.contains(&number))
    }

    /// Compiles `program` with `options`, one of which names a real architecture.
    ///
    /// # Errors
    /// The compiler's messages, cut short.
    pub fn compile(&self, program: &Program, options: &[String]) -> Result<Compiled, String> {
        let (text, name) = (c_string(program.text)?, c_string(program.name)?);
        let headers = Strings::new(program.headers.iter().map(|(_, text)| *text))?;
        let names = Strings::new(program.headers.iter().map(|(name, _)| *name))?;
        let options = Strings::new(options.iter().map(String::as_str))?;
        let mut unit = Unit { api: &self.api, handle: null_mut() };
        // SAFETY: C strings, and arrays of them of the length given, that live until the call returns; NVRTC copies
        // them.
        let code = unsafe {
            let (count, headers, names) = (headers.count(), headers.as_ptr(), names.as_ptr());
            (self.api.create)(&mut unit.handle, text.as_ptr(), name.as_ptr(), count, headers, names)
        };
        named("nvrtcCreateProgram", code)?;
        // SAFETY: as above.
        let code = unsafe { (self.api.compile)(unit.handle, options.count(), options.as_ptr()) };
        let log = unit.bytes("nvrtcGetProgramLog", self.api.log_size, self.api.log)?;
        let log = until_zero(&log);
        if let Err(message) = named("nvrtcCompileProgram", code) {
            return Err(if log.trim().is_empty() { message } else { shortened(&log) });
        }
        let ptx = unit.bytes("nvrtcGetPTX", self.api.ptx_size, self.api.ptx)?;
        Ok(Compiled {
            cubin: unit.bytes("nvrtcGetCUBIN", self.api.cubin_size, self.api.cubin)?,
            ptx: until_zero(&ptx),
            resources: resources(&log),
        })
    }
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC {}.{} ({})", self.version.0, self.version.1, self.path.display())
    }
}

/// A program within NVRTC.
struct Unit<'a> {
    api: &'a Api,
    handle: Handle,
}

impl Unit<'_> {
    /// What a pair of functions (how long it is, and what it is) returns.
    fn bytes(
        &self,
        what: &str,
        size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program exists; writes one size.
        named(what, unsafe { size(self.handle, &mut length) })?;
        let mut bytes = vec![0; length];
        // SAFETY: the program exists; writes as many bytes as it has just said.
        named(what, unsafe { get(self.handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created by this NVRTC, and not used any more.
            unsafe { (self.api.destroy)(&mut self.handle) };
        }
    }
}

/// C strings, and the array of pointers to them that C takes.
struct Strings {
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let texts = texts.map(c_string).collect::<Result<Vec<_>, _>>()?;
        // The pointers are into the heap, so that the strings may move.
        let pointers = texts.iter().map(|text| text.as_ptr()).collect();
        Ok(Self { _texts: texts, pointers })
    }

    fn count(&self) -> c_int {
        self.pointers.len() as c_int
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a zero byte in a program, a header or an option".to_owned())
}

/// NVRTC looks for a second library by its bare name, which the loader finds only where it is loaded already, or lies
/// on the loader's path.
fn load_builtins(path: &Path) {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.contains("nvrtc-builtins") && !name.contains(".alt.") && !name.contains("static") {
            // SAFETY: it holds data. One that cannot be loaded shows when NVRTC needs it.
            let _ = unsafe { Library::new(entry.path()) }.map(std::mem::forget);
        }
    }
}

/// What the loader says, without the outer layers.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string())
}

/// An error for a code other than 0, by a table of our own: another version's names may be others.
fn named(call: &str, code: c_int) -> Result<(), String> {
    const NAMES: &[&str] = &[
        "success",
        "out of memory",
        "the program could not be created",
        "invalid input",
        "invalid program",
        "invalid option",
        "the program does not compile",
        "the builtins library (libnvrtc-builtins) is not found or does not fit; install NVRTC anew",
    ];
    match code {
        0 => Ok(()),
        _ => match usize::try_from(code).ok().and_then(|code| NAMES.get(code)) {
            Some(name) => Err(format!("{call}: {name}")),
            None => Err(format!("{call}: NVRTC error {code}")),
        },
    }
}

/// The text before the zero that ends it.
fn until_zero(bytes: &[u8]) -> String {
    match CStr::from_bytes_until_nul(bytes) {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The first lines of a log that may have hundreds.
fn shortened(log: &str) -> String {
    const LINES: usize = 20;
    let mut text = log.trim().lines().take(LINES).collect::<Vec<_>>().join("\n");
    let left = log.trim().lines().count().saturating_sub(LINES);
    if left > 0 {
        text += &format!("\n… and {left} lines more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_cut_short_and_codes_named() {
        let log: String = (0..30).map(|line| format!("line {line}\n")).collect();
        let short = shortened(&log);
        assert!(short.ends_with("line 19\n… and 10 lines more"), "{short}");
        assert_eq!(shortened("one\n"), "one");
        assert_eq!(named("f", 6), Err("f: the program does not compile".into()));
        assert_eq!(named("f", 77), Err("f: NVRTC error 77".into()));
    }

    #[test]
    fn a_file_that_is_no_nvrtc_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libnvrtc.so.13");
        std::fs::write(&file, "text").unwrap();
        assert!(!Nvrtc::open(&file).unwrap_err().is_empty());
    }
}
