//! The kernels' source text as the program carries it, and how a launcher names a kernel.

use std::marker::PhantomData;

use super::{Layout, Params};

/// A file of CUDA C++: one module.
#[derive(Debug)]
pub struct Source {
    /// The file's name in `kernels/`, without its extension.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Architectures that it is written for, such as `sm_80`.
    pub archs: &'static [&'static str],
    /// Its kernels.
    pub entries: &'static [&'static str],
    /// Layouts of its parameter structs.
    pub layouts: &'static [Layout],
}

/// Architectures of the f32 kernels: every GPU since Turing.
pub const F32_ARCHS: &[&str] = &["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// Headers that sources include by name.
pub const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../../kernels/include/common.cuh")),
    ("ptx.cuh", include_str!("../../../kernels/include/ptx.cuh")),
];

impl Source {
    /// The text to compile: the file, and assertions that its structs are laid out as their Rust counterparts.
    pub fn program(&self) -> String {
        let assertions = self.layouts.iter().map(Layout::assertions);
        std::iter::once(format!("{}\n", self.text)).chain(assertions).collect()
    }
}

/// A kernel that takes the parameters `P`.
pub(crate) struct Kernel<P> {
    pub source: &'static Source,
    pub entry: &'static str,
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    params: PhantomData<fn(P)>,
}

impl<P: Params> Kernel<P> {
    /// The kernel `entry` of `source`, launched in blocks of `threads`.
    pub const fn new(source: &'static Source, entry: &'static str, threads: u32) -> Self {
        Self { source, entry, block: [threads, 1, 1], params: PhantomData }
    }
}
