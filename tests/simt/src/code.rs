//! The instructions that PTX is lowered to: operands are indices into register files, constants sit in registers.

mod arithmetic;
pub(crate) mod asynchronous;
mod memory;
mod together;

pub(crate) use arithmetic::{Bin32, Bin64, Cmp, Kind, Logic, Scalar, Setp, Shift, Tri32, Tri64, Un32};
pub(crate) use memory::{Access, Address, AtomOp, AtomType, Atomic, CpAsync, Extend, MatrixAccess, Order, Space};
pub(crate) use together::{Bar, BarKind, Collective, ReduxOp, ShflMode, VoteMode};

/// The register file that a register is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub(crate) enum Class {
    /// One bit for each lane.
    Pred,
    /// Up to 32 bits for each lane; narrower values are zero-extended.
    Word,
    /// 64 bits for each lane.
    Long,
}

/// A register: its file and its index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Place {
    pub class: Class,
    pub reg: u32,
}

/// The predicate register that is always true, and the ones that results nobody wants go to.
pub(crate) const TRUE: u32 = 0;
pub(crate) const SINK: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    IsExplicitCluster,
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    Clock,
    Clock64,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicShared,
    TotalShared,
}

/// What the elements of a matrix product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaType {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync`: `d = a * b + c`, shape m16 n8 k.
#[derive(Clone, Debug)]
pub(crate) struct Mma {
    pub ty: MmaType,
    pub k: u32,
    /// `c` and `d` are f16 pairs instead of f32.
    pub half: bool,
    pub d: Vec<u32>,
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub c: Vec<u32>,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Nop,
    Mov32 {
        d: u32,
        a: u32,
    },
    Mov64 {
        d: u32,
        a: u32,
    },
    Un32 {
        op: Un32,
        d: u32,
        a: u32,
    },
    Bin32 {
        op: Bin32,
        d: u32,
        a: u32,
        b: u32,
    },
    Tri32 {
        op: Tri32,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    Bin64 {
        op: Bin64,
        d: u32,
        a: u32,
        b: u32,
    },
    Tri64 {
        op: Tri64,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    Shift64 {
        op: Shift,
        d: u32,
        a: u32,
        b: u32,
    },
    MulWide {
        signed: bool,
        d: u32,
        a: u32,
        b: u32,
    },
    MadWide {
        signed: bool,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    Widen {
        signed: bool,
        d: u32,
        a: u32,
    },
    Narrow {
        d: u32,
        a: u32,
    },
    Pack {
        d: u32,
        lo: u32,
        hi: u32,
    },
    Unpack {
        lo: u32,
        hi: u32,
        a: u32,
    },
    Setp(Setp),
    Selp32 {
        d: u32,
        a: u32,
        b: u32,
        p: u32,
    },
    Selp64 {
        d: u32,
        a: u32,
        b: u32,
        p: u32,
    },
    /// `d = a logic (b ^ flip)` on predicates.
    Pred {
        logic: Logic,
        d: u32,
        a: u32,
        b: u32,
        flip: bool,
    },
    Scalar(Box<Scalar>),
    Special {
        which: Special,
        d: Place,
    },
    Activemask {
        d: u32,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    Fence {
        acquire: bool,
        release: bool,
    },
    Bra {
        target: u32,
    },
    BraTable {
        index: u32,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    Bar(Box<Bar>),
    Collective {
        mask: u32,
        op: Box<Collective>,
    },
    Mma(Box<Mma>),
    Matrix(Box<MatrixAccess>),
    CpAsync(Box<CpAsync>),
    CpCommit,
    /// Waits until at most `pending` groups are in flight; all copies if none.
    CpWait {
        pending: Option<u32>,
    },
    Asynchronous(Box<asynchronous::Asynchronous>),
}

/// An instruction with its guard: it runs in the lanes where `guard ^ flip` holds.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub op: Op,
    pub guard: u32,
    pub flip: bool,
    /// The instruction reads registers that may be unwritten, writes ones whose state is tracked, or touches ones that
    /// `wgmma` works on.
    pub tracked: bool,
}
