//! Operations on the values of a lane: arithmetic, logic, comparisons.

use super::Place;
use crate::lower::scalar::ScalarFn;

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
