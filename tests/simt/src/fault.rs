//! What can go wrong: PTX that is not understood, and kernels that misbehave.

/// PTX that this crate does not understand, or that is malformed.
///
/// Nothing is ever skipped: an unknown opcode, modifier or operand is an error when the module is loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// The line of the PTX text, from 1.
    pub line: u32,
    /// What is wrong; names the opcode and the modifier or operand.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> ParseError {
        ParseError { line, message: message.into() }
    }
}

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An address in no live buffer, or an access past the end of one.
    OutOfBounds,
    /// An address in a buffer that has been freed or released.
    UseAfterFree,
    /// An address that is no multiple of the access's width.
    Misaligned,
    /// A read of memory that nothing has written.
    UninitialisedMemory,
    /// A use of a register that nothing has written.
    UninitialisedRegister,
    /// Two accesses, one of them a write, with nothing that orders them.
    Race,
    /// A barrier, shuffle or other collective that not all its threads reach, or not the same one.
    Divergence,
    /// Nothing can run any more, or threads spin on a value that no one will write.
    Deadlock,
    /// A read or write of what an asynchronous operation is still to fill, or a write to what one still reads: shared
    /// memory, or registers of `wgmma`.
    InFlight,
    /// An asynchronous operation on what was written with no fence behind it: `wgmma.fence` for registers,
    /// `fence.proxy.async` for shared memory, `fence.mbarrier_init` for mbarriers.
    Unfenced,
    /// An mbarrier that is not initialised, is used as memory, or whose counts do not fit.
    Mbarrier,
    /// A write to memory that is constant.
    ReadOnly,
    /// More memory than the device has.
    OutOfMemory,
    /// A launch that a device would refuse: block size, shared memory, parameters, unknown entry.
    Launch,
    /// The kernel executed `trap`.
    Trap,
    /// A host call with an address or size that fits no buffer.
    Host,
    /// Valid PTX of a form whose execution is not modelled.
    Unsupported,
}

/// A kernel or a host call that did what it must not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The kind.
    pub kind: FaultKind,
    /// Everything known: what happened, where (kernel, block, thread, PTX line, source line), and what it means.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }
}
