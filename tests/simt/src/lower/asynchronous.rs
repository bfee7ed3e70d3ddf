//! Mbarriers, bulk copies, `wgmma`, and what else belongs to warpgroups and clusters.

use super::memory::address;
use super::{Lowered, Mods, Operands, Sort, Ty, require, words, wrong};
use crate::code::asynchronous::{
    Asynchronous, BulkCopy, BulkDirection, BulkWhat, Factor, Mbarrier, MbarrierOp, MbarrierWait, Wgmma,
};
use crate::code::{Address, MmaType, Op, Place, Space};
use crate::machine::access::RANK_SHIFT;
use crate::ptx::body::Body;
use crate::ptx::operand::Operand;

const B16: Ty = Ty { sort: Sort::Bits, bits: 16 };
const B32: Ty = Ty { sort: Sort::Bits, bits: 32 };
const B64: Ty = Ty { sort: Sort::Bits, bits: 64 };
const PRED: Ty = Ty { sort: Sort::Pred, bits: 1 };

fn emit(body: &mut Body, op: Asynchronous) -> Lowered {
    body.emit(Op::Asynchronous(Box::new(op)));
    Ok(())
}

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "mbarrier" => mbarrier(body, mods, ops),
        "wgmma" => wgmma(body, mods, ops),
        "mapa" => {
            let space = mods.take("shared::cluster");
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(3..=3)?;
            if ty.sort != Sort::Unsigned || ty.bits < 32 || space && ty.bits != 32 && ty.bits != 64 {
                return Err("addresses are of u32 or u64".into());
            }
            let (d, a) = (body.dst(&ops.0[0], ty)?, body.src(&ops.0[1], ty)?);
            let rank = body.src(&ops.0[2], B32)?;
            let map = |address, rank: u64| address & !(0xFF << RANK_SHIFT) | ((rank + 1) & 0xFF) << RANK_SHIFT;
            body.scalar(super::scalar::ScalarFn::Two(map), d, vec![a, rank])
        }
        "setmaxnreg" => {
            let more = mods.one_of(&["inc", "dec"]).ok_or("`.inc` or `.dec` is missing")? == "inc";
            require(mods, &["sync", "aligned", "u32"])?;
            mods.finish()?;
            ops.count(1..=1)?;
            match ops.0[0] {
                Operand::Int(count @ 24..=256) if count % 8 == 0 => {
                    emit(body, Asynchronous::SetRegisters { count: count as u32, more })
                }
                _ => wrong(&ops.0[0], "a number of registers (a multiple of 8 from 24 to 256)"),
            }
        }
        // Another launch before or after this one is never under way at the same time here.
        "griddepcontrol" => {
            mods.one_of(&["launch_dependents", "wait"]).ok_or("`.launch_dependents` or `.wait` is missing")?;
            mods.finish()?;
            ops.count(0..=0)?;
            body.emit(Op::Nop);
            Ok(())
        }
        _ => Err("this opcode is not supported".into()),
    }
}

/// Order of an mbarrier operation: whether it releases or acquires (`relaxed` does not). All scopes are as one.
fn ordered(mods: &mut Mods, sem: &'static str) -> bool {
    let sem = mods.one_of(&[sem, "relaxed"]);
    mods.one_of(&["cta", "cluster"]);
    sem != Some("relaxed")
}

fn shared_space(mods: &mut Mods) -> Lowered<Space> {
    match super::memory::space(mods) {
        space @ (Space::Shared | Space::Cluster | Space::Generic) => Ok(space),
        _ => Err("mbarriers are in shared memory".into()),
    }
}

fn mbarrier(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    let names = ["init", "inval", "expect_tx", "complete_tx", "arrive", "try_wait", "test_wait"];
    let name = mods.one_of(&names).ok_or("this operation on mbarriers is not supported")?;
    // `mbarrier.arrive.expect_tx` has both.
    let (name, expects) = match name {
        "expect_tx" if mods.take("arrive") => ("arrive", true),
        name => (name, false),
    };
    let parity = mods.take("parity");
    let order = match name {
        "arrive" => ordered(mods, "release"),
        "try_wait" | "test_wait" => ordered(mods, "acquire"),
        "expect_tx" | "complete_tx" => ordered(mods, "relaxed"),
        _ => false,
    };
    let waits = matches!(name, "try_wait" | "test_wait");
    let space = shared_space(mods)?;
    require(mods, &["b64"])?;
    mods.finish()?;
    if parity && !waits {
        return Err("unknown modifier or combination `.parity`".into());
    }
    let skip = usize::from(waits || name == "arrive");
    let place = address(ops.get(skip)?, space)?;
    let op = match name {
        "init" => {
            ops.count(2..=2)?;
            MbarrierOp::Init { count: body.src(&ops.0[1], B32)? }
        }
        "inval" => {
            ops.count(1..=1)?;
            MbarrierOp::Inval
        }
        "expect_tx" => {
            ops.count(2..=2)?;
            MbarrierOp::ExpectTx { bytes: body.src(&ops.0[1], B32)? }
        }
        "complete_tx" => {
            ops.count(2..=2)?;
            MbarrierOp::CompleteTx { bytes: body.src(&ops.0[1], B32)? }
        }
        "arrive" => {
            ops.count(if expects { 3..=3 } else { 2..=3 })?;
            let d = match &ops.0[0] {
                Operand::Sink => None,
                _ if space == Space::Cluster => return Err("an arrival in the cluster returns no state".into()),
                operand => Some(body.dst(operand, B64)?),
            };
            let value = ops.0.get(2).map(|operand| body.src(operand, B32)).transpose()?;
            let (count, expect) = if expects { (None, value) } else { (value, None) };
            MbarrierOp::Arrive { count, expect, release: order, d }
        }
        _ => {
            // The last operand of `try_wait` is a hint of how long.
            let sleeps = name == "try_wait";
            ops.count(3..=if sleeps { 4 } else { 3 })?;
            let d = body.dst(&ops.0[0], PRED)?.reg;
            let phase = body.src(&ops.0[2], if parity { B32 } else { B64 })?;
            MbarrierOp::Wait(MbarrierWait { d, phase, parity, sleeps, acquire: order })
        }
    };
    if space == Space::Cluster && !matches!(name, "arrive" | "expect_tx" | "complete_tx") {
        return Err("this operation is on mbarriers of the block only".into());
    }
    emit(body, Asynchronous::Mbarrier(Mbarrier { op, space: place.1, address: place.0 }))
}

/// `cp.async.bulk`, after that.
pub(crate) fn bulk(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    if mods.take("commit_group") {
        mods.finish()?;
        ops.count(0..=0)?;
        return emit(body, Asynchronous::BulkCommit);
    }
    if mods.take("wait_group") {
        let read = mods.take("read");
        mods.finish()?;
        return emit(body, Asynchronous::BulkWait { pending: pending(ops)?, read });
    }
    let tensor = mods.take("tensor");
    let dimensions = if tensor { mods.one_of(&["1d", "2d", "3d", "4d", "5d"]).ok_or("no dimensions")? } else { "" };
    let loads = mods.take("mbarrier::complete_tx::bytes");
    if !loads && !mods.take("bulk_group") {
        return Err("`.mbarrier::complete_tx::bytes` or `.bulk_group` is missing".into());
    }
    mods.one_of(if loads { &["shared::cluster", "shared::cta"] } else { &["shared::cta"] })
        .ok_or("the other side must be shared memory")?;
    require(mods, &["global"])?;
    let im2col = tensor && loads && mods.take("im2col");
    if tensor && !im2col {
        mods.take("tile");
    }
    let multicast = loads && mods.take("multicast::cluster");
    let hint = mods.take("L2::cache_hint");
    mods.finish()?;
    let offsets = usize::from(im2col && dimensions > "2d");
    let count = 2 + usize::from(!tensor) + usize::from(loads) + offsets + usize::from(multicast) + usize::from(hint);
    ops.count(count..=count)?;
    let (shared, global) = if loads { (&ops.0[0], &ops.0[1]) } else { (&ops.0[1], &ops.0[0]) };
    let shared = shared_address(shared)?;
    let mut next = 2;
    let mut operand = || {
        next += 1;
        &ops.0[next - 1]
    };
    let mut what = if tensor {
        let Operand::Tensor(map, coordinates) = global else { return wrong(global, "a tensor map and coordinates") };
        if coordinates.len() != usize::from(dimensions.as_bytes()[0] - b'0') {
            return wrong(global, &format!("a tensor map with {} coordinates", &dimensions[..1]));
        }
        let coordinates = places(body, coordinates, B32)?;
        BulkWhat::Tensor { map: *map, coordinates, offsets: None }
    } else {
        let (global, _) = address(global, Space::Global)?;
        BulkWhat::Bytes { global, size: body.src(operand(), B32)? }
    };
    let direction = if loads {
        let mbarrier = shared_address(operand())?;
        if let (BulkWhat::Tensor { offsets: to, .. }, 1) = (&mut what, offsets) {
            let from = operand();
            let Operand::Vector(parts) = from else { return wrong(from, "a vector of offsets") };
            *to = Some(places(body, parts, B16)?);
        }
        let multicast = if multicast { Some(body.src(operand(), B16)?) } else { None };
        BulkDirection::Load { mbarrier, multicast }
    } else {
        BulkDirection::Store
    };
    if hint {
        body.src(operand(), B64)?;
    }
    emit(body, Asynchronous::Bulk(BulkCopy { what, direction, shared }))
}

fn shared_address(operand: &Operand) -> Lowered<Address> {
    address(operand, Space::Cluster).map(|(address, _)| address)
}

fn places(body: &mut Body, operands: &[Operand], ty: Ty) -> Lowered<Vec<Place>> {
    operands.iter().map(|operand| body.src(operand, ty)).collect()
}

/// The groups that a wait leaves.
fn pending(ops: &Operands) -> Lowered<u32> {
    ops.count(1..=1)?;
    let Operand::Int(pending @ 0..=0xFFFF) = ops.0[0] else { return wrong(&ops.0[0], "the number of groups") };
    Ok(pending as u32)
}

pub(crate) fn prefetch_tensormap(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    mods.finish()?;
    ops.count(1..=1)?;
    let (map, _) = address(&ops.0[0], Space::Generic)?;
    emit(body, Asynchronous::PrefetchTensormap { map })
}

fn wgmma(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    let name =
        mods.one_of(&["mma_async", "fence", "commit_group", "wait_group"]).ok_or("this form is not supported")?;
    require(mods, &["sync", "aligned"])?;
    match name {
        "mma_async" => return product(body, mods, ops),
        "wait_group" => {
            mods.finish()?;
            return emit(body, Asynchronous::WgmmaWait { pending: pending(ops)? });
        }
        _ => {}
    }
    mods.finish()?;
    ops.count(0..=0)?;
    emit(body, if name == "fence" { Asynchronous::WgmmaFence } else { Asynchronous::WgmmaCommit })
}

fn product(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    let shape = mods.starting("m64n").ok_or("no shape m64n…k…")?;
    let (n, k) = shape.split_once('k').ok_or("no shape m64n…k…")?;
    let (n, k): (u32, u32) = (n.parse().map_err(|_| "no number")?, k.parse().map_err(|_| "no number")?);
    let (d, a, b) = (mods.ty()?, mods.ty()?, mods.ty()?);
    mods.finish()?;
    let ty = match (a.sort, a.bits, k) {
        (Sort::Float, 16, 16) => MmaType::F16,
        (Sort::Bf16, _, 16) => MmaType::Bf16,
        (Sort::Tf32, _, 8) => MmaType::Tf32,
        _ => return Err("this shape and type of factors are not supported".into()),
    };
    if a != b || !d.is(Sort::Float, 32) || n == 0 || !n.is_multiple_of(8) || n > 256 {
        return Err("this combination of types, or this number of columns, is not supported".into());
    }
    let from_registers = matches!(ops.get(1)?, Operand::Vector(_));
    let transposes = match (ty, from_registers) {
        (MmaType::Tf32, _) => 0,
        (_, true) => 1,
        _ => 2,
    };
    ops.count(6 + transposes..=6 + transposes)?;
    let flag = |operand: &Operand| match operand {
        Operand::Int(value @ (0 | 1)) => Ok(*value == 1),
        other => wrong(other, "0 or 1"),
    };
    let sign = |operand: &Operand| match operand {
        Operand::Int(value @ (-1 | 1)) => Ok(*value == -1),
        other => wrong(other, "1 or -1"),
    };
    let a_transposed = if transposes == 2 { flag(&ops.0[6])? } else { false };
    let b_transposed = if transposes > 0 { flag(&ops.0[5 + transposes])? } else { false };
    let a = if from_registers {
        Factor::Registers(words(body, &ops.0[1], 4, true)?)
    } else {
        Factor::Shared { descriptor: body.src(&ops.0[1], B64)?.reg, transposed: a_transposed }
    };
    let b = body.src(&ops.0[2], B64)?.reg;
    let add = match &ops.0[3] {
        Operand::Int(0) => (crate::code::TRUE, true),
        operand => body.predicate_src(operand)?,
    };
    let (negate_a, negate_b) = (sign(&ops.0[4])?, sign(&ops.0[5])?);
    let d = words(body, &ops.0[0], n as usize / 2, false)?;
    emit(body, Asynchronous::Wgmma(Wgmma { ty, n, c: d.clone(), d, a, b, b_transposed, add, negate_a, negate_b }))
}
