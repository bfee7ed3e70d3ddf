//! A loaded PTX module.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::code::{Class, Inst};
use crate::fault::ParseError;
use crate::gpu::Launch;
use crate::ptx;

/// A parsed and lowered PTX module.
///
/// Loading is strict: what this crate does not understand is a [`ParseError`], never skipped.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: u64,
    pub(crate) vars: Vec<ModuleVar>,
    entries: Vec<(String, Entry)>,
}

/// A `.global` or `.const` variable.
#[derive(Clone, Debug)]
pub(crate) struct ModuleVar {
    pub name: String,
    pub align: usize,
    pub contents: Vec<u8>,
    pub constant: bool,
}

/// A value that a register holds from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Bits(u64),
    /// The first byte of dynamic shared memory, plus an offset.
    DynamicShared(i64),
    /// A module variable's address, plus an offset.
    Module(usize, i64),
}

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Entry {
    pub code: Vec<Inst>,
    /// For each instruction: where it comes from.
    pub lines: Vec<Line>,
    pub files: Vec<String>,
    pub param_bytes: usize,
    /// Numbers of registers: predicates, 32-bit, 64-bit.
    pub registers: [usize; 3],
    /// Registers whose written lanes are watched.
    pub tracked: [Vec<bool>; 3],
    pub constants: Vec<(Class, u32, Constant)>,
    /// Shared memory's first dynamic address: statically declared memory ends at or before it.
    pub dynamic_base: u32,
    pub static_shared: usize,
    pub local_bytes: usize,
    pub limits: Limits,
    /// 32-bit registers that `wgmma` works on, and what their values are moved to; none if the kernel has no `wgmma`.
    pub asynchronous: Vec<bool>,
    pub traits: Traits,
}

/// What a kernel says about how it is launched.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Largest block, and whether blocks must have exactly that many threads.
    pub threads: Option<(u32, bool)>,
    /// Blocks of a multiprocessor at once, and registers of a thread (`.maxnreg`).
    pub blocks_at_once: Option<u32>,
    pub registers: Option<u32>,
    /// Blocks of a cluster: exactly these along each axis, or at most so many.
    pub cluster: Option<[u32; 3]>,
    pub blocks_in_cluster: Option<u32>,
}

impl Limits {
    /// Blocks of a cluster of a launch.
    pub fn cluster_shape(&self, launch: &Launch) -> [u32; 3] {
        if launch.cluster == [1; 3] { self.cluster.unwrap_or([1; 3]) } else { launch.cluster }
    }

    /// Registers that each thread has from the start, for `setmaxnreg`: those of `.maxnreg`, or as many as the largest
    /// block leaves of a multiprocessor's 65536, in eights.
    pub fn registers_at_start(&self) -> Option<u32> {
        let (threads, _) = self.threads?;
        let share = 65536 / (threads.next_multiple_of(32) * self.blocks_at_once.unwrap_or(1)).max(1);
        Some(self.registers.unwrap_or(share.min(256)) / 8 * 8)
    }
}

/// Where an instruction comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Line {
    pub ptx: u32,
    pub source: Option<SourceLine>,
    /// The call, where the instruction is from an inlined function.
    pub caller: Option<SourceLine>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceLine {
    /// Index into `Entry::files`.
    pub file: u32,
    pub line: u32,
}

/// What a kernel contains, as far as it decides how it is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    /// Bytes of the narrowest access to shared memory (1, 2 or 4): the granule of its shadow.
    pub shared_granule: u32,
    pub global_granule: u32,
    /// Results may depend on the order of blocks: run them on one thread.
    pub ordered: bool,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Module {
    /// Reads a module.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        let parsed = ptx::module::parse(ptx)?;
        Ok(Module { id: NEXT.fetch_add(1, Ordering::Relaxed), vars: parsed.vars, entries: parsed.entries })
    }

    /// The names of its kernels.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// The size of a kernel's parameters in bytes.
    pub fn param_bytes(&self, entry: &str) -> Option<usize> {
        self.entry(entry).map(|e| e.param_bytes)
    }

    /// The bytes of statically declared shared memory of a kernel.
    pub fn static_shared(&self, entry: &str) -> Option<usize> {
        self.entry(entry).map(|e| e.static_shared)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, e)| e)
    }
}
