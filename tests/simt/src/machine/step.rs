//! What each instruction does: the frequent ones here, the others by a call.

use super::alu;
use super::cluster::Cluster;
use super::order::Order;
use super::regs::Bits;
use super::trouble::{Step, trouble};
use super::warp::{Flow, Group, State, Warp, together};
use crate::code::asynchronous::Asynchronous;
use crate::code::{Inst, Op, Place, Special};
use crate::fault::FaultKind;
use crate::gpu::Launch;

#[inline(always)]
pub(crate) fn step(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    inst: &Inst,
    mask: u32,
    m: u32,
) -> Step<Flow> {
    let r = &mut warp.regs;
    match &inst.op {
        Op::Nop => {}
        Op::Mov32 { d, a } => alu::mov32(r, m, *d, *a),
        Op::Mov64 { d, a } => alu::mov64(r, m, *d, *a),
        Op::Un32 { op, d, a } => alu::unary(r, m, *op, *d, *a),
        Op::Bin32 { op, d, a, b } => alu::binary(r, m, *op, *d, *a, *b),
        Op::Tri32 { op, d, a, b, c } => {
            if matches!(op, crate::code::Tri32::Fma | crate::code::Tri32::FmaFtz) {
                cluster.counters.fma += u64::from(m.count_ones());
            }
            alu::ternary(r, m, *op, *d, *a, *b, *c);
        }
        Op::Bin64 { op, d, a, b } => alu::binary64(r, m, *op, *d, *a, *b),
        Op::Tri64 { op, d, a, b, c } => {
            if *op == crate::code::Tri64::DFma {
                cluster.counters.fma += u64::from(m.count_ones());
            }
            alu::ternary64(r, m, *op, *d, *a, *b, *c);
        }
        Op::Shift64 { op, d, a, b } => alu::shift64(r, m, *op, *d, *a, *b),
        Op::MulWide { signed, d, a, b } => alu::mul_wide(r, m, *signed, *d, [*a, *b], None),
        Op::MadWide { signed, d, a, b, c } => alu::mul_wide(r, m, *signed, *d, [*a, *b], Some(*c)),
        Op::Widen { signed, d, a } => alu::widen(r, m, *signed, *d, *a),
        Op::Narrow { d, a } => alu::narrow(r, m, *d, *a, 0),
        Op::Pack { d, lo, hi } => alu::pack(r, m, *d, *lo, *hi),
        Op::Unpack { lo, hi, a } => {
            alu::narrow(r, m, *lo, *a, 0);
            alu::narrow(r, m, *hi, *a, 32);
        }
        Op::Setp(set) => alu::setp(r, m, set),
        Op::Selp32 { d, a, b, p } => alu::select32(r, m, *d, *a, *b, *p),
        Op::Selp64 { d, a, b, p } => alu::select64(r, m, *d, *a, *b, *p),
        Op::Pred { logic, d, a, b, flip } => alu::predicate(r, m, *logic, *d, *a, *b, *flip),
        Op::Scalar(scalar) => alu::scalar(r, m, scalar),
        Op::Load(access) => {
            if m != 0 {
                super::access::load(cluster, warp, sync, access, m)?;
            }
        }
        Op::Store(access) => {
            if m != 0 {
                super::access::store(cluster, warp, sync, access, m)?;
            }
        }
        Op::Bra { target } => {
            return Ok(if m == 0 {
                Flow::Next
            } else if m == mask {
                Flow::Jump(*target)
            } else {
                Flow::Split(*target, m)
            });
        }
        _ => return rare(cluster, warp, sync, inst, mask, m),
    }
    Ok(Flow::Next)
}

/// Instructions that are not worth a place in the inner loop.
#[inline(never)]
fn rare(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, inst: &Inst, mask: u32, m: u32) -> Step<Flow> {
    if m == 0 {
        return Ok(Flow::Next);
    }
    match &inst.op {
        Op::Special { which, d } => special(cluster, warp, *which, *d, m),
        Op::Activemask { d } => Bits(m).for_each(|lane| warp.regs.word[*d as usize][lane] = m),
        Op::Atomic(atomic) => super::atomic::run(cluster, warp, sync, atomic, m)?,
        Op::Fence { acquire, release } => super::atomic::fence(cluster, warp, sync, *acquire, *release),
        Op::BraTable { index, targets } => return jump_table(warp, *index, targets, mask, m),
        Op::Exit => return Ok(Flow::Exit(m)),
        Op::Trap => {
            return trouble(FaultKind::Trap, m.trailing_zeros() as usize, "executes `trap` (an assertion?)");
        }
        Op::Bar(bar) => return super::barrier::run(cluster, warp, sync, bar, mask, m),
        Op::Collective { mask: members, op } => return super::collective::run(cluster, warp, *members, op, m),
        Op::Mma(mma) => {
            if let Some(wait) = together(warp, m, warp.live) {
                return wait;
            }
            super::matrix::mma(warp, mma);
            cluster.counters.mma += 1;
        }
        Op::Matrix(matrix) => {
            if let Some(wait) = together(warp, m, warp.live) {
                return wait;
            }
            super::matrix::access(cluster, warp, matrix)?;
        }
        Op::CpAsync(copy) => super::async_copy::issue(cluster, warp, sync, copy, m)?,
        Op::CpCommit => super::async_copy::commit(warp, m),
        Op::CpWait { pending } => super::async_copy::wait(cluster, warp, *pending, m),
        Op::Asynchronous(op) => return asynchronous(cluster, warp, sync, op, mask, m),
        _ => {}
    }
    Ok(Flow::Next)
}

#[inline(never)]
fn asynchronous(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    op: &Asynchronous,
    mask: u32,
    m: u32,
) -> Step<Flow> {
    let together = |warp: &Warp| together(warp, m, super::regs::FULL);
    match op {
        Asynchronous::Mbarrier(op) => return super::mbarrier::run(cluster, warp, sync, op, mask, m),
        Asynchronous::Bulk(copy) => super::bulk::issue(cluster, warp, sync, copy, m)?,
        Asynchronous::BulkCommit => super::bulk::commit(warp, m),
        Asynchronous::BulkWait { pending, read } => super::bulk::wait(cluster, warp, sync, (*pending, *read), m)?,
        Asynchronous::PrefetchTensormap { map } => {
            for lane in Bits(m) {
                super::bulk::tensor_map(cluster, warp, sync, map, lane)?;
            }
        }
        Asynchronous::Wgmma(wgmma) => return super::wgmma::run(cluster, warp, wgmma, m),
        Asynchronous::WgmmaFence | Asynchronous::WgmmaCommit | Asynchronous::WgmmaWait { .. } => {
            if let Some(wait) = together(warp) {
                return wait;
            }
            match op {
                Asynchronous::WgmmaFence => warp.flight.fence(),
                Asynchronous::WgmmaWait { pending } => return Ok(super::flight::wait(cluster, warp, *pending)),
                _ => super::flight::commit(cluster, warp),
            }
        }
        Asynchronous::ProxyFence => {
            super::mbarrier::fence(cluster, warp);
            super::shadow::fence_proxy(cluster, warp);
        }
        Asynchronous::MbarrierInitFence => {
            super::mbarrier::fence(cluster, warp);
            super::atomic::release_known(cluster, warp);
        }
        Asynchronous::ClusterArrive { release, aligned } => {
            return super::cluster_barrier::arrive(cluster, warp, sync, *release, *aligned, m);
        }
        Asynchronous::ClusterWait { aligned } => {
            return super::cluster_barrier::wait(cluster, warp, *aligned, mask, m);
        }
        Asynchronous::SetRegisters { count, more } => {
            return super::warpgroup::set_registers(cluster, warp, *count, *more, m);
        }
    }
    Ok(Flow::Next)
}

fn jump_table(warp: &mut Warp, index: u32, targets: &[u32], mask: u32, m: u32) -> Step<Flow> {
    let index = warp.regs.word[index as usize];
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for lane in Bits(m) {
        let Some(&target) = targets.get(index[lane] as usize) else {
            let text = format!("jumps to entry {} of a table of {}", index[lane], targets.len());
            return trouble(FaultKind::OutOfBounds, lane, text);
        };
        match parts.iter_mut().find(|p| p.0 == target) {
            Some(part) => part.1 |= 1 << lane,
            None => parts.push((target, 1 << lane)),
        }
    }
    if mask != m {
        parts.push((warp.pc as u32 + 1, mask & !m));
    }
    if let [(target, _)] = parts[..] {
        return Ok(Flow::Jump(target));
    }
    warp.groups.extend(parts.into_iter().map(|(pc, mask)| Group { pc, mask, state: State::Ready }));
    Ok(Flow::Regrouped)
}

fn special(cluster: &Cluster, warp: &mut Warp, which: Special, d: Place, m: u32) {
    let Launch { grid, block: shape, dynamic_shared, .. } = *cluster.context.launch;
    let index = super::trouble::coordinates(cluster.blocks[warp.rank], grid);
    let size = cluster.context.cluster;
    for lane in Bits(m) {
        let bit = 1u32 << lane;
        let value: u64 = match which {
            Special::Tid(axis) => warp.threads[axis as usize][lane].into(),
            Special::Ntid(axis) => shape[axis as usize].into(),
            Special::Ctaid(axis) => index[axis as usize].into(),
            Special::Nctaid(axis) => grid[axis as usize].into(),
            Special::Clusterid(axis) => (index[axis as usize] / size[axis as usize]).into(),
            Special::Nclusterid(axis) => (grid[axis as usize] / size[axis as usize]).into(),
            Special::ClusterCtaid(axis) => (index[axis as usize] % size[axis as usize]).into(),
            Special::ClusterNctaid(axis) => size[axis as usize].into(),
            Special::ClusterCtarank => warp.rank as u64,
            Special::ClusterNctarank => cluster.blocks.len() as u64,
            Special::IsExplicitCluster => {
                u64::from(cluster.context.entry.limits.cluster.is_some() || size != [1, 1, 1])
            }
            Special::Laneid => lane as u64,
            Special::Warpid => warp.index as u64,
            Special::Nwarpid => cluster.context.warps() as u64,
            Special::Smid | Special::Gridid => 0,
            Special::Nsmid => 1,
            Special::Clock | Special::Clock64 => cluster.counters.instructions,
            Special::LanemaskEq => bit.into(),
            Special::LanemaskLe => (bit | (bit - 1)).into(),
            Special::LanemaskLt => (bit - 1).into(),
            Special::LanemaskGe => (!(bit - 1)).into(),
            Special::LanemaskGt => (!(bit | (bit - 1))).into(),
            Special::DynamicShared => dynamic_shared.into(),
            Special::TotalShared => {
                let fixed = cluster.context.entry.dynamic_base as i64 - crate::ptx::module::SHARED_BASE;
                fixed as u64 + u64::from(dynamic_shared)
            }
        };
        warp.regs.put(d, lane, value);
    }
}
