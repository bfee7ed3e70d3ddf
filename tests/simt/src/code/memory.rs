//! Accesses to memory: loads and stores, atomics, matrices, asynchronous copies.

use super::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    /// Shared memory of all blocks of the cluster.
    Cluster,
    Local,
    Param,
}

/// How an access takes part in synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Order {
    /// Volatile, relaxed or stronger: not a race with other such accesses.
    pub strong: bool,
    pub acquire: bool,
    pub release: bool,
}

/// How a narrow element fills its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extend {
    Zero,
    /// Sign-extended to 32 bits.
    Sign,
    /// Sign-extended to 64 bits.
    SignLong,
    /// Sign-extended to 16 bits.
    SignHalf,
}

/// An address: a register (or nothing) and an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub base: Option<Place>,
    pub offset: i64,
}

/// A load or a store of `regs.len()` elements of `width` bytes.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub space: Space,
    pub address: Address,
    pub width: u32,
    pub extend: Extend,
    pub order: Order,
    /// `ld.global.nc`: through the read-only path.
    pub constant: bool,
    pub regs: Vec<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exch,
    Cas,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomType {
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    F16x2,
    Bf16x2,
    F16,
    Bf16,
    B16,
}

/// `atom` (with `d`) or `red` (without).
#[derive(Clone, Debug)]
pub(crate) struct Atomic {
    pub op: AtomOp,
    pub ty: AtomType,
    pub space: Space,
    pub address: Address,
    pub order: Order,
    pub d: Option<Place>,
    pub b: Place,
    pub c: Option<Place>,
}

/// `ldmatrix` (`store` unset) or `stmatrix`.
#[derive(Clone, Debug)]
pub(crate) struct MatrixAccess {
    pub store: bool,
    pub trans: bool,
    pub space: Space,
    pub address: Address,
    pub regs: Vec<u32>,
}

/// `cp.async`.
#[derive(Clone, Debug)]
pub(crate) struct CpAsync {
    pub bytes: u32,
    pub to: Address,
    pub from: Address,
    pub from_space: Space,
    pub size: Option<Place>,
    /// A predicate under which nothing is read and zeros are written.
    pub ignore: Option<(u32, bool)>,
}
