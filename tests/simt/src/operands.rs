//! The register operands of every operation: what it reads and what it writes.

use crate::code::asynchronous::{Asynchronous, BulkDirection, BulkWhat, Factor, MbarrierOp};
use crate::code::{Address, Class, Collective, Inst, Kind, Op, Place, Setp};

impl Inst {
    /// Calls `f(class, is_written, register)` for every register operand.
    pub fn operands(&mut self, f: &mut dyn FnMut(Class, bool, &mut u32)) {
        f(Class::Pred, false, &mut self.guard);
        self.op.operands(f);
    }
}

type Visit<'a> = &'a mut dyn FnMut(Class, bool, &mut u32);

fn address(address: &mut Address, f: Visit) {
    if let Some(base) = &mut address.base {
        f(base.class, false, &mut base.reg);
    }
}

impl Op {
    fn operands(&mut self, f: Visit) {
        use Class::{Long, Pred, Word};
        match self {
            Op::Nop | Op::Bra { .. } | Op::Exit | Op::Trap | Op::Fence { .. } | Op::CpCommit | Op::CpWait { .. } => {}
            Op::Mov32 { d, a } | Op::Un32 { d, a, .. } => {
                f(Word, false, a);
                f(Word, true, d);
            }
            Op::Mov64 { d, a } => {
                f(Long, false, a);
                f(Long, true, d);
            }
            Op::Bin32 { d, a, b, .. } => {
                f(Word, false, a);
                f(Word, false, b);
                f(Word, true, d);
            }
            Op::Tri32 { d, a, b, c, .. } => {
                [a, b, c].into_iter().for_each(|r| f(Word, false, r));
                f(Word, true, d);
            }
            Op::Bin64 { d, a, b, .. } => {
                f(Long, false, a);
                f(Long, false, b);
                f(Long, true, d);
            }
            Op::Tri64 { d, a, b, c, .. } => {
                [a, b, c].into_iter().for_each(|r| f(Long, false, r));
                f(Long, true, d);
            }
            Op::Shift64 { d, a, b, .. } => {
                f(Long, false, a);
                f(Word, false, b);
                f(Long, true, d);
            }
            Op::MulWide { d, a, b, .. } | Op::Pack { d, lo: a, hi: b } => {
                f(Word, false, a);
                f(Word, false, b);
                f(Long, true, d);
            }
            Op::MadWide { d, a, b, c, .. } => {
                f(Word, false, a);
                f(Word, false, b);
                f(Long, false, c);
                f(Long, true, d);
            }
            Op::Widen { d, a, .. } => {
                f(Word, false, a);
                f(Long, true, d);
            }
            Op::Narrow { d, a } => {
                f(Long, false, a);
                f(Word, true, d);
            }
            Op::Unpack { lo, hi, a } => {
                f(Long, false, a);
                f(Word, true, lo);
                f(Word, true, hi);
            }
            Op::Setp(Setp { kind, d, q, a, b, c, .. }) => {
                let class = if matches!(kind, Kind::U64 | Kind::S64 | Kind::F64) { Long } else { Word };
                f(class, false, a);
                f(class, false, b);
                f(Pred, false, c);
                f(Pred, true, d);
                f(Pred, true, q);
            }
            Op::Selp32 { d, a, b, p } => {
                f(Word, false, a);
                f(Word, false, b);
                f(Pred, false, p);
                f(Word, true, d);
            }
            Op::Selp64 { d, a, b, p } => {
                f(Long, false, a);
                f(Long, false, b);
                f(Pred, false, p);
                f(Long, true, d);
            }
            Op::Pred { d, a, b, .. } => {
                f(Pred, false, a);
                f(Pred, false, b);
                f(Pred, true, d);
            }
            Op::Scalar(scalar) => {
                scalar.s.iter_mut().for_each(|s| f(s.class, false, &mut s.reg));
                f(scalar.d.class, true, &mut scalar.d.reg);
            }
            Op::Special { d, .. } => f(d.class, true, &mut d.reg),
            Op::Activemask { d } => f(Word, true, d),
            Op::Load(access) => {
                address(&mut access.address, f);
                access.regs.iter_mut().for_each(|r| f(r.class, true, &mut r.reg));
            }
            Op::Store(access) => {
                address(&mut access.address, f);
                access.regs.iter_mut().for_each(|r| f(r.class, false, &mut r.reg));
            }
            Op::Atomic(atomic) => {
                address(&mut atomic.address, f);
                f(atomic.b.class, false, &mut atomic.b.reg);
                if let Some(c) = &mut atomic.c {
                    f(c.class, false, &mut c.reg);
                }
                if let Some(d) = &mut atomic.d {
                    f(d.class, true, &mut d.reg);
                }
            }
            Op::BraTable { index, .. } => f(Word, false, index),
            Op::Bar(bar) => {
                f(bar.id.class, false, &mut bar.id.reg);
                if let Some(count) = &mut bar.count {
                    f(count.class, false, &mut count.reg);
                }
                if let Some((p, _)) = &mut bar.p {
                    f(Pred, false, p);
                }
                if let Some(d) = &mut bar.d {
                    f(d.class, true, &mut d.reg);
                }
            }
            Op::Collective { mask, op } => {
                f(Word, false, mask);
                op.operands(f);
            }
            Op::Mma(mma) => {
                for r in mma.a.iter_mut().chain(&mut mma.b).chain(&mut mma.c) {
                    f(Word, false, r);
                }
                mma.d.iter_mut().for_each(|r| f(Word, true, r));
            }
            Op::Matrix(matrix) => {
                address(&mut matrix.address, f);
                let store = matrix.store;
                matrix.regs.iter_mut().for_each(|r| f(Word, !store, r));
            }
            Op::CpAsync(copy) => {
                address(&mut copy.to, f);
                address(&mut copy.from, f);
                if let Some(size) = &mut copy.size {
                    f(size.class, false, &mut size.reg);
                }
                if let Some((p, _)) = &mut copy.ignore {
                    f(Pred, false, p);
                }
            }
            Op::Asynchronous(op) => op.operands(f),
        }
    }
}

impl Asynchronous {
    fn operands(&mut self, f: Visit) {
        use Class::{Long, Pred, Word};
        let read = |place: &mut Place, f: Visit| f(place.class, false, &mut place.reg);
        match self {
            Asynchronous::Mbarrier(mbarrier) => {
                address(&mut mbarrier.address, f);
                match &mut mbarrier.op {
                    MbarrierOp::Init { count: value }
                    | MbarrierOp::ExpectTx { bytes: value }
                    | MbarrierOp::CompleteTx { bytes: value } => read(value, f),
                    MbarrierOp::Inval => {}
                    MbarrierOp::Arrive { count, expect, d, .. } => {
                        count.iter_mut().chain(expect).for_each(|place| read(place, f));
                        if let Some(d) = d {
                            f(d.class, true, &mut d.reg);
                        }
                    }
                    MbarrierOp::Wait(wait) => {
                        read(&mut wait.phase, f);
                        f(Pred, true, &mut wait.d);
                    }
                }
            }
            Asynchronous::Bulk(copy) => {
                address(&mut copy.shared, f);
                match &mut copy.what {
                    BulkWhat::Bytes { global, size } => {
                        address(global, f);
                        read(size, f);
                    }
                    BulkWhat::Tensor { map, coordinates, offsets } => {
                        address(map, f);
                        coordinates.iter_mut().chain(offsets.iter_mut().flatten()).for_each(|place| read(place, f));
                    }
                }
                if let BulkDirection::Load { mbarrier, multicast } = &mut copy.direction {
                    address(mbarrier, f);
                    multicast.iter_mut().for_each(|place| read(place, f));
                }
            }
            Asynchronous::PrefetchTensormap { map } => address(map, f),
            Asynchronous::Wgmma(wgmma) => {
                match &mut wgmma.a {
                    Factor::Registers(regs) => regs.iter_mut().for_each(|r| f(Word, false, r)),
                    Factor::Shared { descriptor, .. } => f(Long, false, descriptor),
                }
                f(Long, false, &mut wgmma.b);
                f(Pred, false, &mut wgmma.add.0);
                wgmma.c.iter_mut().for_each(|r| f(Word, false, r));
                wgmma.d.iter_mut().for_each(|r| f(Word, true, r));
            }
            Asynchronous::BulkCommit
            | Asynchronous::BulkWait { .. }
            | Asynchronous::WgmmaFence
            | Asynchronous::WgmmaCommit
            | Asynchronous::WgmmaWait { .. }
            | Asynchronous::ProxyFence
            | Asynchronous::MbarrierInitFence
            | Asynchronous::ClusterArrive { .. }
            | Asynchronous::ClusterWait { .. }
            | Asynchronous::SetRegisters { .. } => {}
        }
    }
}

impl Collective {
    fn operands(&mut self, f: Visit) {
        use Class::{Pred, Word};
        match self {
            Collective::Shfl { d, p, a, b, c, .. } => {
                [a, b, c].into_iter().for_each(|r| f(Word, false, r));
                f(Word, true, d);
                f(Pred, true, p);
            }
            Collective::Vote { d, a, .. } => {
                f(Pred, false, a);
                f(d.class, true, &mut d.reg);
            }
            Collective::MatchAny { d, a } => {
                f(a.class, false, &mut a.reg);
                f(Word, true, d);
            }
            Collective::MatchAll { d, p, a } => {
                f(a.class, false, &mut a.reg);
                f(Word, true, d);
                f(Pred, true, p);
            }
            Collective::Redux { d, a, .. } => {
                f(Word, false, a);
                f(Word, true, d);
            }
            Collective::Elect { d, p } => {
                f(Word, true, d);
                f(Pred, true, p);
            }
            Collective::Sync => {}
        }
    }
}
