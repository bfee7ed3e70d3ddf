//! Logic, shifts, bit fields, comparisons and selections.

use super::scalar::{ScalarFn, mask, sign_extend};
use super::{Lowered, Mods, Operands, Sort, Ty, sink, wrong};
use crate::code::{Bin32, Bin64, Class, Cmp, Kind, Logic, Op, Place, SINK, Setp, Shift, Special, TRUE, Tri32, Un32};
use crate::module::Constant;
use crate::ptx::body::Body;
use crate::ptx::operand::Operand;

const B32: Ty = Ty { sort: Sort::Bits, bits: 32 };
const PRED: Ty = Ty { sort: Sort::Pred, bits: 1 };

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "and" | "or" | "xor" | "not" | "cnot" => bitwise(body, name, mods, ops),
        "shl" | "shr" => shift(body, name, mods, ops),
        "shf" => funnel(body, mods, ops),
        "setp" | "set" => compare(body, name, mods, ops),
        "selp" | "slct" => select(body, name, mods, ops),
        "lop3" => {
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(5..=5)?;
            let Operand::Int(table @ 0..=255) = ops.0[4] else { return wrong(&ops.0[4], "the table") };
            if ty != B32 {
                return Err("lop3 is on b32".into());
            }
            let s = (1..4).map(|i| body.src(&ops.0[i], ty)).collect::<Lowered<Vec<_>>>()?;
            let d = body.dst(&ops.0[0], ty)?.reg;
            body.emit(Op::Tri32 { op: Tri32::Lop3(table as u8), d, a: s[0].reg, b: s[1].reg, c: s[2].reg });
            Ok(())
        }
        "prmt" => {
            let ty = mods.ty()?;
            mods.finish()?;
            plain(body, ops, ty, &[B32, B32, B32], ty, ScalarFn::Three(prmt))
        }
        "popc" | "clz" | "brev" => {
            let ty = mods.ty()?;
            mods.finish()?;
            count_bits(body, name, ty, ops)
        }
        "bfind" => {
            let shift_amount = mods.take("shiftamt");
            let ty = mods.ty()?;
            mods.finish()?;
            let function: fn(u64) -> u64 = match (ty.signed(), ty.bits, shift_amount) {
                (false, 32, false) => |a| bfind(a, 32, false),
                (false, 32, true) => |a| bfind(a, 32, true),
                (true, 32, false) => |a| bfind(positive(a, 32), 32, false),
                (true, 32, true) => |a| bfind(positive(a, 32), 32, true),
                (false, 64, false) => |a| bfind(a, 64, false),
                (false, 64, true) => |a| bfind(a, 64, true),
                (true, 64, false) => |a| bfind(positive(a, 64), 64, false),
                (true, 64, true) => |a| bfind(positive(a, 64), 64, true),
                _ => return Err("this type is not supported".into()),
            };
            plain(body, ops, B32, &[ty], ty, ScalarFn::One(function))
        }
        "bfe" => {
            let ty = mods.ty()?;
            mods.finish()?;
            let function: fn(u64, u64, u64) -> u64 = match (ty.signed(), ty.bits) {
                (false, 32) => |a, b, c| bfe(a, b, c, 32, false),
                (true, 32) => |a, b, c| bfe(a, b, c, 32, true),
                (false, 64) => |a, b, c| bfe(a, b, c, 64, false),
                (true, 64) => |a, b, c| bfe(a, b, c, 64, true),
                _ => return Err("this type is not supported".into()),
            };
            plain(body, ops, ty, &[ty, B32, B32], ty, ScalarFn::Three(function))
        }
        "bfi" => {
            let ty = mods.ty()?;
            mods.finish()?;
            let function: fn(u64, u64, u64, u64) -> u64 = match ty.bits {
                32 => |a, b, c, d| bfi(a, b, c, d, 32),
                64 => |a, b, c, d| bfi(a, b, c, d, 64),
                _ => return Err("this type is not supported".into()),
            };
            plain(body, ops, ty, &[ty, ty, B32, B32], ty, ScalarFn::Four(function))
        }
        _ => Err("this opcode is not supported".into()),
    }
}

/// A scalar operation with the given types of result and sources.
fn plain(body: &mut Body, ops: &Operands, result: Ty, sources: &[Ty], main: Ty, f: ScalarFn) -> Lowered {
    if !main.integer() || main.bits < 32 {
        return Err("this type is not supported".into());
    }
    ops.count(sources.len() + 1..=sources.len() + 1)?;
    let s = sources.iter().zip(&ops.0[1..]).map(|(&ty, o)| body.src(o, ty)).collect::<Lowered<Vec<_>>>()?;
    let d = body.dst(&ops.0[0], result)?;
    body.scalar(f, d, s)
}

fn bitwise(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    let ty = mods.ty()?;
    mods.finish()?;
    if ty.sort == Sort::Pred {
        return predicates(body, name, ops);
    }
    if ty.sort != Sort::Bits || ty.bits < 16 {
        return Err("logic is on b16, b32, b64 and pred".into());
    }
    let d = body.dst(ops.get(0)?, ty)?;
    let a = body.src(ops.get(1)?, ty)?;
    if name == "not" || name == "cnot" {
        ops.count(2..=2)?;
        if name == "not" && ty.bits == 32 {
            body.emit(Op::Un32 { op: Un32::Not, d: d.reg, a: a.reg });
            return Ok(());
        }
        let function: fn(u64) -> u64 = match (name, ty.bits) {
            ("not", 16) => |a| !a & 0xFFFF,
            ("not", _) => |a| !a,
            _ => |a| u64::from(a == 0),
        };
        return body.scalar(ScalarFn::One(function), d, vec![a]);
    }
    ops.count(3..=3)?;
    let b = body.src(&ops.0[2], ty)?;
    let (op32, op64) = match name {
        "and" => (Bin32::And, Bin64::And),
        "or" => (Bin32::Or, Bin64::Or),
        _ => (Bin32::Xor, Bin64::Xor),
    };
    body.emit(if ty.bits == 64 {
        Op::Bin64 { op: op64, d: d.reg, a: a.reg, b: b.reg }
    } else {
        Op::Bin32 { op: op32, d: d.reg, a: a.reg, b: b.reg }
    });
    Ok(())
}

fn predicates(body: &mut Body, name: &str, ops: &Operands) -> Lowered {
    let d = body.dst(ops.get(0)?, PRED)?.reg;
    let (a, flip_a) = body.predicate_src(ops.get(1)?)?;
    if flip_a {
        return Err("a negated first predicate is not supported".into());
    }
    if name == "not" {
        ops.count(2..=2)?;
        body.emit(Op::Pred { logic: Logic::And, d, a: TRUE, b: a, flip: true });
        return Ok(());
    }
    ops.count(3..=3)?;
    let (b, flip) = body.predicate_src(&ops.0[2])?;
    let logic = match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return Err("not defined for predicates".into()),
    };
    body.emit(Op::Pred { logic, d, a, b, flip });
    Ok(())
}

impl Body<'_, '_> {
    /// A predicate, and whether `!` stands before it.
    pub fn predicate_src(&mut self, operand: &Operand) -> Lowered<(u32, bool)> {
        match operand {
            Operand::Reg(Place { class: Class::Pred, reg }, _) => Ok((*reg, false)),
            Operand::NotPred(reg) => Ok((*reg, true)),
            Operand::Int(value) => Ok((TRUE, *value == 0)),
            Operand::Special(Special::IsExplicitCluster) => {
                let d = self.fresh(Class::Pred, 1);
                self.emit(Op::Special { which: Special::IsExplicitCluster, d });
                Ok((d.reg, false))
            }
            other => wrong(other, "a predicate"),
        }
    }
}

fn shift(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    let ty = mods.ty()?;
    mods.finish()?;
    ops.count(3..=3)?;
    if !ty.integer() || ty.bits < 16 || (name == "shl" && ty.sort != Sort::Bits) {
        return Err("this type is not supported".into());
    }
    let d = body.dst(&ops.0[0], ty)?;
    let (a, b) = (body.src(&ops.0[1], ty)?, body.src(&ops.0[2], B32)?);
    let right_signed = ty.signed();
    match ty.bits {
        32 => {
            let op = match (name, right_signed) {
                ("shl", _) => Bin32::Shl,
                (_, false) => Bin32::ShrU,
                (_, true) => Bin32::ShrS,
            };
            body.emit(Op::Bin32 { op, d: d.reg, a: a.reg, b: b.reg });
        }
        64 => {
            let op = match (name, right_signed) {
                ("shl", _) => Shift::Left,
                (_, false) => Shift::RightU,
                (_, true) => Shift::RightS,
            };
            body.emit(Op::Shift64 { op, d: d.reg, a: a.reg, b: b.reg });
        }
        _ => {
            let function: fn(u64, u64) -> u64 = match (name, right_signed) {
                ("shl", _) => |a, n| if n > 15 { 0 } else { (a << n) & 0xFFFF },
                (_, false) => |a, n| if n > 15 { 0 } else { a >> n },
                (_, true) => |a, n| (sign_extend(a, 16) >> n.min(15)) as u64 & 0xFFFF,
            };
            return body.scalar(ScalarFn::Two(function), d, vec![a, b]);
        }
    }
    Ok(())
}

fn funnel(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    let left = mods.take("l");
    if !left && !mods.take("r") {
        return Err("`.l` or `.r` is missing".into());
    }
    let wrap = mods.take("wrap");
    if !wrap && !mods.take("clamp") {
        return Err("`.wrap` or `.clamp` is missing".into());
    }
    let ty = mods.ty()?;
    mods.finish()?;
    ops.count(4..=4)?;
    if ty != B32 {
        return Err("shf is on b32".into());
    }
    let s = (1..4).map(|i| body.src(&ops.0[i], B32)).collect::<Lowered<Vec<_>>>()?;
    let d = body.dst(&ops.0[0], B32)?;
    if wrap {
        let op = if left { Tri32::ShfL } else { Tri32::ShfR };
        body.emit(Op::Tri32 { op, d: d.reg, a: s[0].reg, b: s[1].reg, c: s[2].reg });
        return Ok(());
    }
    let function: fn(u64, u64, u64) -> u64 = if left {
        |a, b, n| ((b << 32 | a) << n.min(32)) >> 32
    } else {
        |a, b, n| ((b << 32 | a) >> n.min(32)) & 0xFFFF_FFFF
    };
    body.scalar(ScalarFn::Three(function), d, s)
}

fn count_bits(body: &mut Body, name: &str, ty: Ty, ops: &Operands) -> Lowered {
    ops.count(2..=2)?;
    if ty.sort != Sort::Bits || ty.bits < 32 {
        return Err("this type is not supported".into());
    }
    let result = if name == "brev" { ty } else { B32 };
    let (d, a) = (body.dst(&ops.0[0], result)?, body.src(&ops.0[1], ty)?);
    if ty.bits == 32 {
        let op = match name {
            "popc" => Un32::Popc,
            "clz" => Un32::Clz,
            _ => Un32::Brev,
        };
        body.emit(Op::Un32 { op, d: d.reg, a: a.reg });
        return Ok(());
    }
    let function: fn(u64) -> u64 = match name {
        "popc" => |a| u64::from(a.count_ones()),
        "clz" => |a| u64::from(a.leading_zeros()),
        _ => u64::reverse_bits,
    };
    body.scalar(ScalarFn::One(function), d, vec![a])
}

fn prmt(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = (b << 32) | a;
    (0..4).fold(0, |out, i| {
        let control = selector >> (4 * i);
        let byte = bytes >> (8 * (control & 7)) & 0xFF;
        let byte = if control & 8 != 0 { (byte >> 7) * 0xFF } else { byte };
        out | byte << (8 * i)
    })
}

/// For `bfind` on signed types: bits that differ from the sign.
fn positive(a: u64, bits: u32) -> u64 {
    if sign_extend(a, bits) < 0 { !a & mask(bits) } else { a }
}

fn bfind(a: u64, bits: u32, shift_amount: bool) -> u64 {
    if a == 0 {
        return 0xFFFF_FFFF;
    }
    let top = 63 - a.leading_zeros();
    u64::from(if shift_amount { bits - 1 - top } else { top })
}

fn bfe(a: u64, position: u64, length: u64, bits: u32, signed: bool) -> u64 {
    let (position, length) = (position as u32 & 0xFF, length as u32 & 0xFF);
    let msb = bits - 1;
    let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(msb) & 1 };
    (0..bits).fold(0, |out, i| {
        let bit = if i < length && position + i <= msb { a >> (position + i) & 1 } else { sign };
        out | bit << i
    })
}

fn bfi(a: u64, b: u64, position: u64, length: u64, bits: u32) -> u64 {
    let (position, length) = (position as u32 & 0xFF, length as u32 & 0xFF);
    if position >= bits || length == 0 {
        return b;
    }
    let length = length.min(bits - position);
    let field = mask(length) << position;
    (b & !field) | ((a << position) & field)
}

/// The kind of comparison for a type.
fn kind(ty: Ty, ftz: bool) -> Lowered<Kind> {
    Ok(match (ty.sort, ty.bits) {
        (Sort::Signed, 16) => Kind::S16,
        (Sort::Unsigned | Sort::Bits, 16 | 32) => Kind::U32,
        (Sort::Signed, 32) => Kind::S32,
        (Sort::Unsigned | Sort::Bits, 64) => Kind::U64,
        (Sort::Signed, 64) => Kind::S64,
        (Sort::Float, 16) => Kind::F16,
        (Sort::Bf16, _) => Kind::Bf16,
        (Sort::Float, 32) if ftz => Kind::F32Ftz,
        (Sort::Float, 32) => Kind::F32,
        (Sort::Float, 64) => Kind::F64,
        _ => return Err("this type cannot be compared".into()),
    })
}

fn compare(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    const NAMES: [(&str, Cmp); 18] = [
        ("eq", Cmp::Eq),
        ("ne", Cmp::Ne),
        ("lt", Cmp::Lt),
        ("le", Cmp::Le),
        ("gt", Cmp::Gt),
        ("ge", Cmp::Ge),
        ("lo", Cmp::Lt),
        ("ls", Cmp::Le),
        ("hi", Cmp::Gt),
        ("hs", Cmp::Ge),
        ("equ", Cmp::Equ),
        ("neu", Cmp::Neu),
        ("ltu", Cmp::Ltu),
        ("leu", Cmp::Leu),
        ("gtu", Cmp::Gtu),
        ("geu", Cmp::Geu),
        ("num", Cmp::Num),
        ("nan", Cmp::Nan),
    ];
    let found = NAMES.iter().find(|(n, _)| mods.take(n));
    let &(cmp_name, cmp) = found.ok_or("no comparison among the modifiers")?;
    let logic = match mods.one_of(&["and", "or", "xor"]) {
        None => None,
        Some("and") => Some(Logic::And),
        Some("or") => Some(Logic::Or),
        Some(_) => Some(Logic::Xor),
    };
    let ftz = mods.take("ftz");
    let result = if name == "set" { Some(mods.ty()?) } else { None };
    let ty = mods.ty()?;
    mods.finish()?;
    let kind = kind(ty, ftz)?;
    let float = !ty.integer();
    let ordered_only =
        matches!(cmp, Cmp::Equ | Cmp::Neu | Cmp::Ltu | Cmp::Leu | Cmp::Gtu | Cmp::Geu | Cmp::Num | Cmp::Nan);
    if ordered_only && !float || float && matches!(cmp_name, "lo" | "ls" | "hi" | "hs") || ftz && kind != Kind::F32Ftz {
        return Err(format!("comparison `.{cmp_name}` does not fit the type"));
    }
    let expected = if logic.is_some() { 4 } else { 3 };
    ops.count(expected..=expected)?;
    let (a, b) = (body.src(&ops.0[1], ty)?.reg, body.src(&ops.0[2], ty)?.reg);
    let (c, flip) = if logic.is_some() { body.predicate_src(&ops.0[3])? } else { (TRUE, false) };
    let logic = logic.unwrap_or(Logic::And);
    let Some(result) = result else {
        let (d, q) = match &ops.0[0] {
            Operand::Pair(d, q) => (body.dst(d, PRED)?.reg, body.dst(q, PRED)?.reg),
            other => (body.dst(other, PRED)?.reg, SINK),
        };
        body.emit(Op::Setp(Setp { kind, cmp, logic, flip, d, q, a, b, c }));
        return Ok(());
    };
    let truth = match (result.sort, result.bits) {
        (Sort::Float, 32) => u64::from(1f32.to_bits()),
        (Sort::Unsigned | Sort::Signed, 32) => 0xFFFF_FFFF,
        _ => return Err("this result type of set is not supported".into()),
    };
    let p = body.fresh(Class::Pred, 1).reg;
    body.emit(Op::Setp(Setp { kind, cmp, logic, flip, d: p, q: SINK, a, b, c }));
    let [yes, no] = [truth, 0].map(|bits| body.constant(Class::Word, Constant::Bits(bits)));
    let d = body.dst(&ops.0[0], result)?.reg;
    body.emit(Op::Selp32 { d, a: yes, b: no, p });
    Ok(())
}

fn select(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    let ftz = mods.take("ftz");
    let ty = mods.ty()?;
    let by = if name == "slct" { Some(mods.ty()?) } else { None };
    mods.finish()?;
    ops.count(4..=4)?;
    let (a, b) = (body.src(&ops.0[1], ty)?, body.src(&ops.0[2], ty)?);
    let p = match by {
        None if ftz => return Err("unknown modifier `.ftz`".into()),
        None => {
            let (p, flip) = body.predicate_src(&ops.0[3])?;
            if flip {
                return Err("a negated predicate is not supported".into());
            }
            p
        }
        Some(by) if by.is(Sort::Signed, 32) || by.is(Sort::Float, 32) => {
            let c = body.src(&ops.0[3], by)?.reg;
            let zero = body.constant(Class::Word, Constant::Bits(0));
            let p = body.fresh(Class::Pred, 1).reg;
            let kind = kind(by, ftz)?;
            let q = sink(Class::Pred);
            let set = Setp { kind, cmp: Cmp::Ge, logic: Logic::And, flip: false, d: p, q, a: c, b: zero, c: TRUE };
            body.emit(Op::Setp(set));
            p
        }
        Some(_) => return Err("the selector must be s32 or f32".into()),
    };
    let d = body.dst(&ops.0[0], ty)?;
    body.emit(match ty.bits {
        64 => Op::Selp64 { d: d.reg, a: a.reg, b: b.reg, p },
        16 | 32 => Op::Selp32 { d: d.reg, a: a.reg, b: b.reg, p },
        _ => return Err("this type is not supported".into()),
    });
    Ok(())
}
