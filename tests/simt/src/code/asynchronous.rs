//! Operations of Hopper's asynchronous proxy and of clusters: mbarriers, bulk copies, `wgmma`, registers given back.

use super::{Address, MmaType, Place, Space};

/// An operation on an mbarrier.
#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    pub op: MbarrierOp,
    pub space: Space,
    pub address: Address,
}

#[derive(Clone, Debug)]
pub(crate) enum MbarrierOp {
    Init {
        count: Place,
    },
    Inval,
    ExpectTx {
        bytes: Place,
    },
    CompleteTx {
        bytes: Place,
    },
    /// Arrives `count` times (once if none), after expecting so many bytes more; `d` gets the phase.
    Arrive {
        count: Option<Place>,
        expect: Option<Place>,
        release: bool,
        d: Option<Place>,
    },
    Wait(MbarrierWait),
}

/// `mbarrier.try_wait` and `mbarrier.test_wait`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MbarrierWait {
    /// Gets whether the phase is over.
    pub d: u32,
    /// The phase: what an arrival said, or only its parity.
    pub phase: Place,
    pub parity: bool,
    /// `try_wait`: the thread sleeps until the phase is over, or for some time.
    pub sleeps: bool,
    pub acquire: bool,
}

/// A bulk copy: of consecutive bytes, or of a box of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct BulkCopy {
    pub what: BulkWhat,
    pub direction: BulkDirection,
    /// In shared memory.
    pub shared: Address,
}

#[derive(Clone, Debug)]
pub(crate) enum BulkWhat {
    Bytes {
        global: Address,
        size: Place,
    },
    /// The tensor map, the box's first element, and for im2col the offsets of all pixels.
    Tensor {
        map: Address,
        coordinates: Vec<Place>,
        offsets: Option<Vec<Place>>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum BulkDirection {
    /// To shared memory of the block, or of those in the mask; completes on an mbarrier.
    Load { mbarrier: Address, multicast: Option<Place> },
    /// To global memory; completes with its group.
    Store,
}

/// Where a factor of `wgmma` comes from: descriptors are in 64-bit registers.
#[derive(Clone, Debug)]
pub(crate) enum Factor {
    Registers(Vec<u32>),
    Shared { descriptor: u32, transposed: bool },
}

/// `wgmma.mma_async`: `d = a * b + c`, shape m64 n k; `c` are the registers of `d`.
#[derive(Clone, Debug)]
pub(crate) struct Wgmma {
    pub ty: MmaType,
    pub n: u32,
    pub d: Vec<u32>,
    pub c: Vec<u32>,
    pub a: Factor,
    pub b: u32,
    pub b_transposed: bool,
    /// Whether `c` is added.
    pub add: (u32, bool),
    pub negate_a: bool,
    pub negate_b: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Asynchronous {
    Mbarrier(Mbarrier),
    Bulk(BulkCopy),
    BulkCommit,
    /// Waits until at most `pending` bulk groups of the thread are in flight, or have not read their source.
    BulkWait {
        pending: u32,
        read: bool,
    },
    PrefetchTensormap {
        map: Address,
    },
    Wgmma(Wgmma),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        pending: u32,
    },
    /// `fence.proxy.async`.
    ProxyFence,
    /// `fence.mbarrier_init`.
    MbarrierInitFence,
    ClusterArrive {
        release: bool,
        aligned: bool,
    },
    ClusterWait {
        aligned: bool,
    },
    /// `setmaxnreg`: more registers for each thread, or fewer.
    SetRegisters {
        count: u32,
        more: bool,
    },
}
