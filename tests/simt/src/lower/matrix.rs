//! Matrix instructions and asynchronous copies.

use super::{Lowered, Mods, Operands, Sort, Ty, require, words, wrong};
use crate::code::{CpAsync, MatrixAccess, Mma, MmaType, Op, Space};
use crate::ptx::body::Body;
use crate::ptx::operand::Operand;

const B32: Ty = Ty { sort: Sort::Bits, bits: 32 };

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "mma" => mma(body, mods, ops),
        "ldmatrix" | "stmatrix" => matrix(body, name, mods, ops),
        _ => cp_async(body, mods, ops),
    }
}

fn mma(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    require(mods, &["sync", "aligned"])?;
    let shape = mods.one_of(&["m16n8k16", "m16n8k8", "m16n8k4"]).ok_or("this shape is not supported")?;
    require(mods, &["row", "col"])?;
    let (d, a, b, c) = (mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?);
    mods.finish()?;
    ops.count(4..=4)?;
    let k = match shape {
        "m16n8k16" => 16,
        "m16n8k8" => 8,
        _ => 4,
    };
    let ty = match (a.sort, a.bits) {
        (Sort::Float, 16) if k >= 8 => MmaType::F16,
        (Sort::Bf16, _) if k >= 8 => MmaType::Bf16,
        (Sort::Tf32, _) if k <= 8 => MmaType::Tf32,
        _ => return Err("this shape and type of factors are not supported".into()),
    };
    let half = d.is(Sort::Float, 16);
    if a != b || c != d || !(d.is(Sort::Float, 32) || half && ty == MmaType::F16) {
        return Err("this combination of types is not supported".into());
    }
    let of_a = (16 * k / 32) as usize / if ty == MmaType::Tf32 { 1 } else { 2 };
    let of_c = if half { 2 } else { 4 };
    let a = words(body, &ops.0[1], of_a, true)?;
    let b = words(body, &ops.0[2], of_a / 2, true)?;
    let c = words(body, &ops.0[3], of_c, true)?;
    let d = words(body, &ops.0[0], of_c, false)?;
    body.emit(Op::Mma(Box::new(Mma { ty, k, half, d, a, b, c })));
    Ok(())
}

fn matrix(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    require(mods, &["sync", "aligned", "m8n8"])?;
    let count = match mods.one_of(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => return Err("`.x1`, `.x2` or `.x4` is missing".into()),
    };
    let trans = mods.take("trans");
    let space = super::memory::space(mods);
    let ty = mods.ty()?;
    mods.finish()?;
    ops.count(2..=2)?;
    if !matches!(space, Space::Shared | Space::Generic) || !ty.is(Sort::Bits, 16) {
        return Err("8x8 matrices are of b16 in shared memory".into());
    }
    let store = name == "stmatrix";
    let (place, value) = if store { (&ops.0[0], &ops.0[1]) } else { (&ops.0[1], &ops.0[0]) };
    let (address, space) = super::memory::address(place, space)?;
    let regs = words(body, value, count, store)?;
    body.emit(Op::Matrix(Box::new(MatrixAccess { store, trans, space, address, regs })));
    Ok(())
}

fn cp_async(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    require(mods, &["async"])?;
    if mods.take("bulk") {
        return super::asynchronous::bulk(body, mods, ops);
    }
    if mods.take("commit_group") {
        mods.finish()?;
        ops.count(0..=0)?;
        body.emit(Op::CpCommit);
        return Ok(());
    }
    if mods.take("wait_all") {
        mods.finish()?;
        ops.count(0..=0)?;
        body.emit(Op::CpWait { pending: None });
        return Ok(());
    }
    if mods.take("wait_group") {
        mods.finish()?;
        ops.count(1..=1)?;
        let Operand::Int(pending @ 0..=0xFFFF) = ops.0[0] else { return wrong(&ops.0[0], "the number of groups") };
        body.emit(Op::CpWait { pending: Some(pending as u32) });
        return Ok(());
    }
    let through = mods.one_of(&["ca", "cg"]).ok_or("`.ca` or `.cg` is missing")?;
    if !mods.take("shared") && !mods.take("shared::cta") {
        return Err("the destination must be shared memory".into());
    }
    require(mods, &["global"])?;
    mods.one_of(&["L2::64B", "L2::128B", "L2::256B"]);
    mods.finish()?;
    ops.count(3..=4)?;
    let bytes = match (through, &ops.0[2]) {
        ("ca", Operand::Int(n @ (4 | 8 | 16))) => *n as u32,
        ("cg", Operand::Int(16)) => 16,
        (_, other) => return wrong(other, "the size of the copy"),
    };
    let (to, _) = super::memory::address(&ops.0[0], Space::Shared)?;
    let (from, from_space) = super::memory::address(&ops.0[1], Space::Global)?;
    let (mut size, mut ignore) = (None, None);
    match ops.0.get(3) {
        None => {}
        Some(operand @ (Operand::Reg(_, 1) | Operand::NotPred(_))) => ignore = Some(body.predicate_src(operand)?),
        Some(operand) => size = Some(body.src(operand, B32)?),
    }
    body.emit(Op::CpAsync(Box::new(CpAsync { bytes, to, from, from_space, size, ignore })));
    Ok(())
}
