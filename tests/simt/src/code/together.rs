//! What threads do together: barriers, and the collectives of a warp.

use super::Place;

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
