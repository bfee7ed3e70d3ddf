//! Faults on their way from an instruction to the caller: where it happened is added as they pass.

use super::Context;
use crate::fault::{Fault, FaultKind};

/// What went wrong in an instruction, and in which lane.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub kind: FaultKind,
    pub text: String,
    pub lane: Option<usize>,
}

pub(crate) type Step<T = ()> = Result<T, Box<Trouble>>;

pub(crate) fn trouble<T>(kind: FaultKind, lane: impl Into<Option<usize>>, text: impl Into<String>) -> Step<T> {
    Err(Box::new(Trouble { kind, text: text.into(), lane: lane.into() }))
}

/// What a kind of fault means, and what to do.
fn advice(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::UninitialisedMemory => "a fresh buffer or shared memory holds whatever was there before",
        FaultKind::UninitialisedRegister => "a variable is used before it gets a value on this path",
        FaultKind::Race => {
            "nothing orders these accesses: between threads of a block put __syncthreads() (or __syncwarp() within a \
             warp) between them; between blocks of a cluster barrier.cluster or an mbarrier; between others only another \
             launch, atomics, or a fence and flag do"
        }
        FaultKind::Divergence => "all the threads concerned must execute the same instruction together",
        FaultKind::Misaligned => "vector types need addresses that are multiples of their size",
        FaultKind::InFlight => {
            "wait for the operation first: cp.async.wait_group and __syncthreads(), the copy's mbarrier, \
             cp.async.bulk.wait_group, wgmma.wait_group"
        }
        FaultKind::Unfenced => {
            "asynchronous operations see only what is fenced: registers by wgmma.fence, shared memory by \
             fence.proxy.async of the threads that wrote it, mbarriers by fence.mbarrier_init"
        }
        FaultKind::UseAfterFree => "the buffer was freed or given back before this launch",
        FaultKind::Deadlock => "no thread can ever go on",
        _ => "",
    }
}

/// The source line of an instruction, its call if it was inlined, and its PTX line.
pub(crate) fn position(context: &Context, pc: usize) -> String {
    let line = context.entry.lines.get(pc).copied().unwrap_or_default();
    let name = |at: crate::module::SourceLine| format!("{}:{}", context.entry.files[at.file as usize], at.line);
    match (line.source.map(name), line.caller.map(name)) {
        (Some(source), Some(caller)) => format!("{source} called at {caller} (PTX line {})", line.ptx),
        (Some(source), None) => format!("{source} (PTX line {})", line.ptx),
        (None, _) => format!("PTX line {}", line.ptx),
    }
}

/// An index as (x, y, z).
pub(crate) fn coordinates(index: u64, extent: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = extent.map(u64::from);
    [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
}

pub(crate) fn triple([x, y, z]: [u32; 3]) -> String {
    format!("({x},{y},{z})")
}

impl Trouble {
    pub fn locate(self, context: &Context, block: u64, warp: usize, pc: usize) -> Fault {
        let block = triple(coordinates(block, context.launch.grid));
        let who = match self.lane {
            Some(lane) => {
                let thread = (warp * 32 + lane) as u64;
                format!("thread {}", triple(coordinates(thread, context.launch.block)))
            }
            None => format!("warp {warp}"),
        };
        let mut message =
            format!("kernel `{}`, block {block}, {who}, at {}: {}", context.name, position(context, pc), self.text);
        let advice = advice(self.kind);
        if !advice.is_empty() {
            message = format!("{message} [{advice}]");
        }
        Fault { kind: self.kind, message }
    }
}
