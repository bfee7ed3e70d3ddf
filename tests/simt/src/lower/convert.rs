//! Moves, conversions and addresses.

use super::float::Round;
use super::scalar::{Convert, ScalarFn};
use super::{Lowered, Mods, Operands, Sort, Ty, wrong};
use crate::code::{Bin32, Bin64, Class, Logic, Op, Place, TRUE, Un32};
use crate::module::Constant;
use crate::ptx::body::{Body, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::ptx::operand::{Operand, Var};

const B16: Ty = Ty { sort: Sort::Bits, bits: 16 };
const B32: Ty = Ty { sort: Sort::Bits, bits: 32 };
const B64: Ty = Ty { sort: Sort::Bits, bits: 64 };
const PRED: Ty = Ty { sort: Sort::Pred, bits: 1 };

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "mov" => {
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(2..=2)?;
            mov(body, ty, ops)
        }
        "cvt" => cvt(body, mods, ops),
        "cvta" => {
            let to = mods.take("to");
            let space = mods.one_of(&[
                "global",
                "shared::cta",
                "shared::cluster",
                "shared",
                "local",
                "const",
                "param::entry",
                "param",
            ]);
            let space = space.ok_or("no state space among the modifiers")?;
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(2..=2)?;
            if ty.bits != 64 {
                return Err("addresses have 64 bits".into());
            }
            let (d, a) = (body.dst(&ops.0[0], ty)?, body.src(&ops.0[1], ty)?);
            if space.starts_with("shared") {
                let window = body.constant(Class::Long, Constant::Bits(SHARED_WINDOW as u64));
                let op = if to { Bin64::Sub } else { Bin64::Add };
                body.emit(Op::Bin64 { op, d: d.reg, a: a.reg, b: window });
            } else {
                body.emit(Op::Mov64 { d: d.reg, a: a.reg });
            }
            Ok(())
        }
        _ => {
            let space = mods.one_of(&["global", "shared::cta", "shared::cluster", "shared", "local", "const", "param"]);
            mods.finish()?;
            ops.count(2..=2)?;
            let function: fn(u64) -> u64 = match space {
                Some("shared" | "shared::cta" | "shared::cluster") => {
                    |a| u64::from(a >> 56 == SHARED_WINDOW as u64 >> 56)
                }
                Some("local") => |a| u64::from(a >> 56 == LOCAL_WINDOW as u64 >> 56),
                Some("param") => |a| u64::from(a >> 56 == PARAM_WINDOW as u64 >> 56),
                Some("global") => |a| u64::from(a >> 56 == 0),
                _ => return Err("this state space is not supported".into()),
            };
            let (d, a) = (body.dst(&ops.0[0], PRED)?, body.src(&ops.0[1], B64)?);
            body.scalar(ScalarFn::One(function), d, vec![a])
        }
    }
}

impl Body<'_, '_> {
    /// A register with a variable's address in its own space.
    pub fn address_of(&mut self, var: Var, offset: i64, class: Class) -> Lowered<Place> {
        let constant = match var {
            Var::Shared(at) => Constant::Bits(at.wrapping_add(offset) as u64),
            Var::DynamicShared => Constant::DynamicShared(offset),
            _ if class != Class::Long => return Err("this address does not fit 32 bits".into()),
            Var::Param(at) => Constant::Bits((PARAM_WINDOW + at).wrapping_add(offset) as u64),
            Var::Local(at) => Constant::Bits((LOCAL_WINDOW + at).wrapping_add(offset) as u64),
            Var::Module(index) => Constant::Module(index, offset),
        };
        Ok(Place { class, reg: self.constant(class, constant) })
    }
}

fn mov(body: &mut Body, ty: Ty, ops: &Operands) -> Lowered {
    match (&ops.0[0], &ops.0[1]) {
        (Operand::Vector(parts), source) => unpack(body, ty, parts, source),
        (d, Operand::Vector(parts)) => pack(body, ty, d, parts),
        (d, source) if ty.sort == Sort::Pred => {
            let d = body.dst(d, PRED)?.reg;
            let (a, flip) = body.predicate_src(source)?;
            body.emit(Op::Pred { logic: Logic::And, d, a: TRUE, b: a, flip });
            Ok(())
        }
        (d, source) => {
            if ty.bits < 16 {
                return Err("this type is not supported".into());
            }
            let (d, a) = (body.dst(d, ty)?.reg, body.src(source, ty)?.reg);
            body.emit(if ty.bits == 64 { Op::Mov64 { d, a } } else { Op::Mov32 { d, a } });
            Ok(())
        }
    }
}

/// `mov.b64 d, {a, b}`, `mov.b32 d, {a, b}` and `mov.b64 d, {a, b, c, d}`.
fn pack(body: &mut Body, ty: Ty, d: &Operand, parts: &[Operand]) -> Lowered {
    let d = body.dst(d, ty)?;
    match (ty.bits, parts) {
        (64, [lo, hi]) => {
            let (lo, hi) = (body.src(lo, B32)?.reg, body.src(hi, B32)?.reg);
            body.emit(Op::Pack { d: d.reg, lo, hi });
            Ok(())
        }
        (32, [lo, hi]) => {
            let s = vec![body.src(lo, B16)?, body.src(hi, B16)?];
            body.scalar(ScalarFn::Two(|lo, hi| lo | hi << 16), d, s)
        }
        (64, parts @ [_, _, _, _]) => {
            let s = parts.iter().map(|p| body.src(p, B16)).collect::<Lowered<Vec<_>>>()?;
            body.scalar(ScalarFn::Four(|a, b, c, d| a | b << 16 | c << 32 | d << 48), d, s)
        }
        _ => Err(format!("{} parts do not make {} bits in a way that is supported", parts.len(), ty.bits)),
    }
}

fn unpack(body: &mut Body, ty: Ty, parts: &[Operand], source: &Operand) -> Lowered {
    let a = body.src(source, ty)?;
    match (ty.bits, parts) {
        (64, [lo, hi]) => {
            // Two sinks of one class are one register: that is fine, nothing reads it.
            let (lo, hi) = (body.dst(lo, B32)?.reg, body.dst(hi, B32)?.reg);
            body.emit(Op::Unpack { lo, hi, a: a.reg });
            Ok(())
        }
        (32, [_, _]) | (64, [_, _, _, _]) => {
            const SHIFTS: [fn(u64) -> u64; 4] =
                [|a| a & 0xFFFF, |a| a >> 16 & 0xFFFF, |a| a >> 32 & 0xFFFF, |a| a >> 48 & 0xFFFF];
            for (part, shift) in parts.iter().zip(SHIFTS) {
                let d = body.dst(part, B16)?;
                body.scalar(ScalarFn::One(shift), d, vec![a])?;
            }
            Ok(())
        }
        _ => Err(format!("{} bits do not unpack to {} parts in a way that is supported", ty.bits, parts.len())),
    }
}

fn cvt(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    let rounding = mods.one_of(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]);
    let (sat, ftz, relu) = (mods.take("sat"), mods.take("ftz"), mods.take("relu"));
    let (to, from) = (mods.ty()?, mods.ty()?);
    mods.finish()?;
    let round = Round::parse(rounding.unwrap_or(if to.integer() { "rz" } else { "rn" }));
    if matches!(to.sort, Sort::F16x2 | Sort::Bf16x2) {
        return cvt_pair(body, to, from, round, sat, relu, ops);
    }
    ops.count(2..=2)?;
    let integral = rounding.is_some_and(|r| r.ends_with('i'));
    let (float_to, float_from) = (!to.integer(), !from.integer());
    if to.sort == Sort::Bits || from.sort == Sort::Bits || matches!(from.sort, Sort::F16x2 | Sort::Bf16x2) {
        return Err("conversions between these types are not supported".into());
    }
    if float_from && !float_to && !integral {
        return Err("a conversion from floating point to integer needs an integer rounding (`.rzi` …)".into());
    }
    if !float_from && (integral || (rounding.is_some() && !float_to)) {
        return Err("this rounding does not fit an integer source".into());
    }
    if float_to && rounding.is_none() && (!float_from || to.bits < from.bits) {
        return Err("this conversion needs a rounding modifier".into());
    }
    if integral && float_to && to != from {
        return Err("an integer rounding between different floating-point formats".into());
    }
    let (d, width) = body.loose_dst(&ops.0[0], to)?;
    let a = match &ops.0[1] {
        Operand::Reg(place, bits) if *bits >= from.bits && *bits > 1 => *place,
        operand @ (Operand::Int(_) | Operand::F32(_) | Operand::F64(_) | Operand::Special(_)) => {
            body.src(operand, from)?
        }
        other => return wrong(other, &format!("a source of {} bits", from.bits)),
    };
    if !sat && !float_from && !float_to && !relu {
        // A narrower or equal unsigned source in a word is zero-extended already.
        let widens = from.bits < to.bits;
        let same_place = (d.class, a.class);
        match (from.bits, to.bits, same_place) {
            (32, 64, (Class::Long, Class::Word)) => {
                body.emit(Op::Widen { signed: from.signed(), d: d.reg, a: a.reg });
                return Ok(());
            }
            (64, 32, (Class::Word, Class::Long)) => {
                body.emit(Op::Narrow { d: d.reg, a: a.reg });
                return Ok(());
            }
            (16, 32, (Class::Word, Class::Word)) if widens && !from.signed() && width == 32 => {
                let low = body.constant(Class::Word, Constant::Bits(0xFFFF));
                body.emit(Op::Bin32 { op: Bin32::And, d: d.reg, a: a.reg, b: low });
                return Ok(());
            }
            (32, 16, (Class::Word, Class::Word)) if width == 16 => {
                let low = body.constant(Class::Word, Constant::Bits(0xFFFF));
                body.emit(Op::Bin32 { op: Bin32::And, d: d.reg, a: a.reg, b: low });
                return Ok(());
            }
            _ => {}
        }
    }
    if to.is(Sort::Float, 32)
        && from.bits == 32
        && !float_from
        && round == Round::Nearest
        && !sat
        && a.class == Class::Word
    {
        let op = if from.signed() { Un32::F32FromS32 } else { Un32::F32FromU32 };
        body.emit(Op::Un32 { op, d: d.reg, a: a.reg });
        return Ok(());
    }
    body.scalar(ScalarFn::Convert(Convert { from, to, round, integral, sat, ftz, relu, wide: width }), d, vec![a])
}

/// `cvt.rn.bf16x2.f32 d, a, b`: `a` to the upper half, `b` to the lower.
fn cvt_pair(body: &mut Body, to: Ty, from: Ty, round: Round, sat: bool, relu: bool, ops: &Operands) -> Lowered {
    ops.count(3..=3)?;
    if !from.is(Sort::Float, 32) || sat {
        return Err("conversions between these types are not supported".into());
    }
    let half = Ty { sort: if to.sort == Sort::Bf16x2 { Sort::Bf16 } else { Sort::Float }, bits: 16 };
    let convert =
        ScalarFn::Convert(Convert { from, to: half, round, integral: false, sat: false, ftz: false, relu, wide: 16 });
    let (high, low) = (body.fresh(Class::Word, 1), body.fresh(Class::Word, 1));
    let (a, b) = (body.src(&ops.0[1], from)?, body.src(&ops.0[2], from)?);
    let d = body.dst(&ops.0[0], B32)?;
    body.scalar(convert.clone(), high, vec![a])?;
    body.scalar(convert, low, vec![b])?;
    body.scalar(ScalarFn::Two(|lo, hi| lo | hi << 16), d, vec![low, high])
}
