//! The instructions that PTX is lowered to: operands are indices into register files, constants sit in registers.

pub(crate) mod asynchronous;

use crate::lower::scalar::ScalarFn;

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
pub(crate) enum Un32 {
    Not,
    Neg,
    FNeg,
    FAbs,
    Popc,
    Clz,
    Brev,
    F32FromS32,
    F32FromU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bin32 {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    FAdd,
    FSub,
    FMul,
    FAddFtz,
    FSubFtz,
    FMulFtz,
    FMin,
    FMax,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tri32 {
    Mad,
    Fma,
    FmaFtz,
    ShfL,
    ShfR,
    /// Three-input logic by table.
    Lop3(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bin64 {
    Add,
    Sub,
    Mul,
    And,
    Or,
    Xor,
    DAdd,
    DSub,
    DMul,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tri64 {
    Mad,
    DFma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    RightU,
    RightS,
}

/// The types that comparisons tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F32Ftz,
    F64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// `setp`: `d = (a cmp b) logic (c ^ flip)`, and `q` the same with the comparison negated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setp {
    pub kind: Kind,
    pub cmp: Cmp,
    pub logic: Logic,
    pub flip: bool,
    pub d: u32,
    pub q: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
}

/// An operation on one lane at a time, for everything that is not worth a handler of its own.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    pub f: ScalarFn,
    pub d: Place,
    pub s: Vec<Place>,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

/// `bar` and `barrier`.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub kind: BarKind,
    /// All threads of the warp must execute it together.
    pub aligned: bool,
    pub id: Place,
    pub count: Option<Place>,
    pub d: Option<Place>,
    pub p: Option<(u32, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReduxOp {
    AddU,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// The collectives of a warp; every one names the lanes that take part.
#[derive(Clone, Debug)]
pub(crate) enum Collective {
    Shfl { mode: ShflMode, d: u32, p: u32, a: u32, b: u32, c: u32 },
    Vote { mode: VoteMode, d: Place, a: u32, flip: bool },
    MatchAny { d: u32, a: Place },
    MatchAll { d: u32, p: u32, a: Place },
    Redux { op: ReduxOp, d: u32, a: u32 },
    Elect { d: u32, p: u32 },
    Sync,
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
