//! Arithmetic.

use super::float::{F32, Round, fma_f32, from_f64, ftz};
use super::scalar::{HalfOp, ScalarFn, clamp01, format, max, min, sign_extend};
use super::{Lowered, Mods, Operands, Sort, Ty};
use crate::code::{Bin32, Bin64, Class, Op, Place, Tri32, Tri64, Un32};
use crate::ptx::body::Body;

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
            return super::special::lower(body, name, mods, ops);
        }
        "addc" | "subc" | "madc" | "dp4a" | "dp2a" => return Err("this opcode is not supported".into()),
        "testp" => return super::special::testp(body, mods, ops),
        _ => {}
    }
    let rounding = mods.one_of(&["rn", "rz", "rm", "rp"]);
    let flags = Flags {
        round: Round::parse(rounding.unwrap_or("rn")),
        rounding: rounding.is_some(),
        ftz: mods.take("ftz"),
        sat: mods.take("sat"),
        nan: mods.take("NaN"),
        relu: mods.take("relu"),
        approx: mods.take("approx") | mods.take("full"),
    };
    let part = mods.one_of(&["lo", "hi", "wide"]);
    let ty = mods.ty()?;
    mods.finish()?;
    match ty.sort {
        Sort::Float if ty.bits == 32 => f32_op(body, name, ty, flags, part, ops),
        Sort::Float if ty.bits == 64 => f64_op(body, name, ty, flags, part, ops),
        Sort::Float | Sort::Bf16 | Sort::F16x2 | Sort::Bf16x2 => half_op(body, name, ty, flags, part, ops),
        Sort::Unsigned | Sort::Signed if ty.bits >= 16 => {
            if flags.rounding || flags.ftz || flags.nan || flags.approx || flags.relu {
                return Err("a floating-point modifier on an integer type".into());
            }
            integer(body, name, ty, flags.sat, part, ops)
        }
        _ => Err(format!("type {:?} {} is not supported here", ty.sort, ty.bits)),
    }
}

#[derive(Clone, Copy)]
struct Flags {
    round: Round,
    rounding: bool,
    ftz: bool,
    sat: bool,
    nan: bool,
    relu: bool,
    approx: bool,
}

/// The destination and `n` sources of one type.
pub(crate) fn same(body: &mut Body, ops: &Operands, ty: Ty, n: usize) -> Lowered<(Place, Vec<Place>)> {
    ops.count(n + 1..=n + 1)?;
    let sources = (1..=n).map(|i| body.src(&ops.0[i], ty)).collect::<Lowered<Vec<_>>>()?;
    Ok((body.dst(&ops.0[0], ty)?, sources))
}

pub(crate) fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

pub(crate) fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// An f32 result as bits, NaN in its canonical form.
pub(crate) fn w(x: f32) -> u64 {
    if x.is_nan() { F32.nan() } else { u64::from(x.to_bits()) }
}

pub(crate) fn w64(x: f64) -> u64 {
    if x.is_nan() { super::float::F64.nan() } else { x.to_bits() }
}

fn f32_op(body: &mut Body, name: &str, ty: Ty, flags: Flags, part: Option<&str>, ops: &Operands) -> Lowered {
    let Flags { round, ftz: flush, sat, nan, relu, approx, .. } = flags;
    if part.is_some() || relu || (approx && name != "div") || (nan && !matches!(name, "min" | "max")) {
        return Err("an integer or half-precision modifier on f32".into());
    }
    let directed = round != Round::Nearest;
    match name {
        "fma" | "mad" => {
            let (place, s) = same(body, ops, ty, 3)?;
            if !directed && !sat {
                let op = if flush { Tri32::FmaFtz } else { Tri32::Fma };
                body.emit(Op::Tri32 { op, d: place.reg, a: s[0].reg, b: s[1].reg, c: s[2].reg });
                return Ok(());
            }
            body.scalar(directed_fma(round, flush, sat)?, place, s)
        }
        "add" | "sub" | "mul" => {
            let (place, s) = same(body, ops, ty, 2)?;
            if !directed && !sat {
                let op = match (name, flush) {
                    ("add", false) => Bin32::FAdd,
                    ("sub", false) => Bin32::FSub,
                    ("mul", false) => Bin32::FMul,
                    ("add", true) => Bin32::FAddFtz,
                    ("sub", true) => Bin32::FSubFtz,
                    _ => Bin32::FMulFtz,
                };
                body.emit(Op::Bin32 { op, d: place.reg, a: s[0].reg, b: s[1].reg });
                return Ok(());
            }
            // As a fused operation with a factor of ±1, or with -0 added.
            let one = body.constant(Class::Word, crate::module::Constant::Bits(u64::from(1f32.to_bits())));
            let minus = body.constant(Class::Word, crate::module::Constant::Bits(u64::from((-1f32).to_bits())));
            let zero = body.constant(Class::Word, crate::module::Constant::Bits(0x8000_0000));
            let word = |reg| Place { class: Class::Word, reg };
            let sources = match name {
                "add" => vec![s[0], word(one), s[1]],
                "sub" => vec![s[1], word(minus), s[0]],
                _ => vec![s[0], s[1], word(zero)],
            };
            body.scalar(directed_fma(round, flush, sat)?, place, sources)
        }
        "div" => {
            if sat || directed {
                return Err("division with `.sat` or directed rounding is not supported".into());
            }
            let (place, s) = same(body, ops, ty, 2)?;
            let function: fn(u64, u64) -> u64 =
                if flush { |a, b| w(ftz(ftz(f(a)) / ftz(f(b)))) } else { |a, b| w(f(a) / f(b)) };
            body.scalar(ScalarFn::Two(function), place, s)
        }
        "min" | "max" => {
            let three = ops.0.len() == 4;
            let (place, s) = same(body, ops, ty, if three { 3 } else { 2 })?;
            if three {
                return Err("the three-operand form is not supported".into());
            }
            let op = if name == "min" { Bin32::FMin } else { Bin32::FMax };
            if !flush && !nan {
                body.emit(Op::Bin32 { op, d: place.reg, a: s[0].reg, b: s[1].reg });
                return Ok(());
            }
            let function: fn(u64, u64) -> u64 = match (op, nan, flush) {
                (Bin32::FMin, false, _) => |a, b| w(min(ftz(f(a)).into(), ftz(f(b)).into()) as f32),
                (_, false, _) => |a, b| w(max(ftz(f(a)).into(), ftz(f(b)).into()) as f32),
                (Bin32::FMin, true, false) => |a, b| either_nan(a, b, |a, b| w(min(a.into(), b.into()) as f32)),
                (_, true, false) => |a, b| either_nan(a, b, |a, b| w(max(a.into(), b.into()) as f32)),
                (Bin32::FMin, true, true) => {
                    |a, b| either_nan(a, b, |a, b| w(min(ftz(a).into(), ftz(b).into()) as f32))
                }
                (_, true, true) => |a, b| either_nan(a, b, |a, b| w(max(ftz(a).into(), ftz(b).into()) as f32)),
            };
            body.scalar(ScalarFn::Two(function), place, s)
        }
        "abs" | "neg" => {
            let (place, s) = same(body, ops, ty, 1)?;
            if !flush {
                let op = if name == "abs" { Un32::FAbs } else { Un32::FNeg };
                body.emit(Op::Un32 { op, d: place.reg, a: s[0].reg });
                return Ok(());
            }
            let function: fn(u64) -> u64 =
                if name == "abs" { |a| w(ftz(f(a)).abs()) } else { |a| u64::from((-ftz(f(a))).to_bits()) };
            body.scalar(ScalarFn::One(function), place, s)
        }
        "copysign" => {
            let (place, s) = same(body, ops, ty, 2)?;
            body.scalar(ScalarFn::Two(|a, b| (b & 0x7FFF_FFFF) | (a & 0x8000_0000)), place, s)
        }
        _ => Err("not defined for f32".into()),
    }
}

fn either_nan(a: u64, b: u64, otherwise: fn(f32, f32) -> u64) -> u64 {
    if f(a).is_nan() || f(b).is_nan() { F32.nan() } else { otherwise(f(a), f(b)) }
}

/// `fma` in every rounding mode, with and without `.ftz` and `.sat`.
fn directed_fma(round: Round, flush: bool, sat: bool) -> Lowered<ScalarFn> {
    fn finish<const FLUSH: bool, const SAT: bool>(a: u64, b: u64, c: u64, round: Round) -> u64 {
        let [a, b, c] = [a, b, c].map(|x| if FLUSH { ftz(f(x)) } else { f(x) });
        let mut out = f32::from_bits(fma_f32(a, b, c, round));
        if FLUSH {
            out = ftz(out);
        }
        if SAT {
            out = clamp01(out.into()) as f32;
        }
        w(out)
    }
    macro_rules! by_round {
        ($flush:literal, $sat:literal) => {
            match round {
                Round::Zero => |a, b, c| finish::<$flush, $sat>(a, b, c, Round::Zero),
                Round::Down => |a, b, c| finish::<$flush, $sat>(a, b, c, Round::Down),
                Round::Up => |a, b, c| finish::<$flush, $sat>(a, b, c, Round::Up),
                _ => |a, b, c| finish::<$flush, $sat>(a, b, c, Round::Nearest),
            }
        };
    }
    let function: fn(u64, u64, u64) -> u64 = match (flush, sat) {
        (false, false) => by_round!(false, false),
        (false, true) => by_round!(false, true),
        (true, false) => by_round!(true, false),
        (true, true) => by_round!(true, true),
    };
    Ok(ScalarFn::Three(function))
}

fn f64_op(body: &mut Body, name: &str, ty: Ty, flags: Flags, part: Option<&str>, ops: &Operands) -> Lowered {
    if part.is_some() || flags.sat || flags.ftz || flags.nan || flags.relu || flags.approx {
        return Err("a modifier that f64 does not have".into());
    }
    if flags.round != Round::Nearest {
        return Err("f64 arithmetic in other rounding modes than `.rn` is not supported".into());
    }
    match name {
        "fma" | "mad" => {
            let (place, s) = same(body, ops, ty, 3)?;
            body.emit(Op::Tri64 { op: Tri64::DFma, d: place.reg, a: s[0].reg, b: s[1].reg, c: s[2].reg });
            Ok(())
        }
        "add" | "sub" | "mul" => {
            let (place, s) = same(body, ops, ty, 2)?;
            let op = match name {
                "add" => Bin64::DAdd,
                "sub" => Bin64::DSub,
                _ => Bin64::DMul,
            };
            body.emit(Op::Bin64 { op, d: place.reg, a: s[0].reg, b: s[1].reg });
            Ok(())
        }
        "div" | "min" | "max" | "copysign" => {
            let (place, s) = same(body, ops, ty, 2)?;
            let function: fn(u64, u64) -> u64 = match name {
                "div" => |a, b| w64(d(a) / d(b)),
                "min" => |a, b| w64(min(d(a), d(b))),
                "max" => |a, b| w64(max(d(a), d(b))),
                _ => |a, b| (b & !(1 << 63)) | (a & 1 << 63),
            };
            body.scalar(ScalarFn::Two(function), place, s)
        }
        "abs" | "neg" => {
            let (place, s) = same(body, ops, ty, 1)?;
            let function: fn(u64) -> u64 = if name == "abs" { |a| a & !(1 << 63) } else { |a| a ^ 1 << 63 };
            body.scalar(ScalarFn::One(function), place, s)
        }
        _ => Err("not defined for f64".into()),
    }
}

fn half_op(body: &mut Body, name: &str, ty: Ty, flags: Flags, part: Option<&str>, ops: &Operands) -> Lowered {
    if part.is_some() || flags.approx || flags.round != Round::Nearest {
        return Err("a modifier that half-precision types do not have".into());
    }
    let (op, sources) = match (name, flags.nan) {
        ("add", false) => (HalfOp::Add, 2),
        ("sub", false) => (HalfOp::Sub, 2),
        ("mul", false) => (HalfOp::Mul, 2),
        ("fma", false) => (HalfOp::Fma, 3),
        ("min", false) => (HalfOp::Min, 2),
        ("max", false) => (HalfOp::Max, 2),
        ("min", true) => (HalfOp::MinNan, 2),
        ("max", true) => (HalfOp::MaxNan, 2),
        ("neg", false) => (HalfOp::Neg, 1),
        ("abs", false) => (HalfOp::Abs, 1),
        _ => return Err("not defined for half-precision types".into()),
    };
    let (place, s) = same(body, ops, Ty { sort: Sort::Bits, bits: ty.bits }, sources)?;
    let format = match ty.sort {
        Sort::F16x2 => super::float::F16,
        Sort::Bf16x2 => super::float::BF16,
        _ => format(ty),
    };
    let Flags { ftz, sat, relu, .. } = flags;
    body.scalar(ScalarFn::Half { op, format, pair: ty.bits == 32, ftz, sat, relu }, place, s)
}

fn integer(body: &mut Body, name: &str, ty: Ty, sat: bool, part: Option<&str>, ops: &Operands) -> Lowered {
    if sat && !(matches!(name, "add" | "sub") && ty.is(Sort::Signed, 32)) {
        return Err("`.sat` is not supported here".into());
    }
    let needs_part = matches!(name, "mul" | "mad" | "mul24" | "mad24");
    if part.is_some() != needs_part {
        return Err("`.lo`, `.hi` or `.wide` belongs to mul and mad, and must be there".into());
    }
    match (name, part) {
        ("mul" | "mad", Some("wide")) => return wide(body, name, ty, ops),
        ("mul24" | "mad24", Some("hi")) => return Err("`.hi` of 24-bit products is not supported".into()),
        _ => {}
    }
    let sources = match name {
        "mad" | "mad24" | "sad" => 3,
        "abs" | "neg" => 1,
        _ => 2,
    };
    let (place, s) = same(body, ops, ty, sources)?;
    let signed = ty.signed();
    if ty.bits == 32 && !sat {
        let op = match (name, part, signed) {
            ("add", ..) => Some(Bin32::Add),
            ("sub", ..) => Some(Bin32::Sub),
            ("mul", Some("lo"), _) => Some(Bin32::Mul),
            ("mul", Some("hi"), false) => Some(Bin32::MulHiU),
            ("mul", Some("hi"), true) => Some(Bin32::MulHiS),
            ("min", _, false) => Some(Bin32::MinU),
            ("min", _, true) => Some(Bin32::MinS),
            ("max", _, false) => Some(Bin32::MaxU),
            ("max", _, true) => Some(Bin32::MaxS),
            _ => None,
        };
        if let Some(op) = op {
            body.emit(Op::Bin32 { op, d: place.reg, a: s[0].reg, b: s[1].reg });
            return Ok(());
        }
        if (name, part) == ("mad", Some("lo")) {
            body.emit(Op::Tri32 { op: Tri32::Mad, d: place.reg, a: s[0].reg, b: s[1].reg, c: s[2].reg });
            return Ok(());
        }
        if (name, signed) == ("neg", true) {
            body.emit(Op::Un32 { op: Un32::Neg, d: place.reg, a: s[0].reg });
            return Ok(());
        }
    }
    if ty.bits == 64 {
        let op = match (name, part) {
            ("add", _) => Some(Bin64::Add),
            ("sub", _) => Some(Bin64::Sub),
            ("mul", Some("lo")) => Some(Bin64::Mul),
            _ => None,
        };
        if let Some(op) = op {
            body.emit(Op::Bin64 { op, d: place.reg, a: s[0].reg, b: s[1].reg });
            return Ok(());
        }
        if (name, part) == ("mad", Some("lo")) {
            body.emit(Op::Tri64 { op: Tri64::Mad, d: place.reg, a: s[0].reg, b: s[1].reg, c: s[2].reg });
            return Ok(());
        }
    }
    if sat {
        let function: fn(u64, u64) -> u64 = if name == "add" {
            |a, b| u64::from((a as i32).saturating_add(b as i32) as u32)
        } else {
            |a, b| u64::from((a as i32).saturating_sub(b as i32) as u32)
        };
        return body.scalar(ScalarFn::Two(function), place, s);
    }
    body.scalar(integer_fn(name, part, ty)?, place, s)
}

/// `mul.wide` and `mad.wide`: a product of twice the width.
fn wide(body: &mut Body, name: &str, ty: Ty, ops: &Operands) -> Lowered {
    let mad = name == "mad";
    ops.count(if mad { 4..=4 } else { 3..=3 })?;
    let result = Ty { bits: ty.bits * 2, ..ty };
    let (a, b) = (body.src(&ops.0[1], ty)?, body.src(&ops.0[2], ty)?);
    let c = if mad { Some(body.src(&ops.0[3], result)?) } else { None };
    let place = body.dst(&ops.0[0], result)?;
    let signed = ty.signed();
    match (ty.bits, c) {
        (32, None) => body.emit(Op::MulWide { signed, d: place.reg, a: a.reg, b: b.reg }),
        (32, Some(c)) => body.emit(Op::MadWide { signed, d: place.reg, a: a.reg, b: b.reg, c: c.reg }),
        (16, None) => {
            let function: fn(u64, u64) -> u64 = if signed {
                |a, b| u64::from((i32::from(a as i16) * i32::from(b as i16)) as u32)
            } else {
                |a, b| u64::from(u32::from(a as u16) * u32::from(b as u16))
            };
            body.scalar(ScalarFn::Two(function), place, vec![a, b])?;
        }
        (16, Some(c)) => {
            let function: fn(u64, u64, u64) -> u64 = if signed {
                |a, b, c| u64::from((i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32)
            } else {
                |a, b, c| u64::from((u32::from(a as u16) * u32::from(b as u16)).wrapping_add(c as u32))
            };
            body.scalar(ScalarFn::Three(function), place, vec![a, b, c])?;
        }
        _ => return Err("`.wide` of 64-bit factors does not exist".into()),
    }
    Ok(())
}

/// Integer functions of every width without a handler of their own.
fn integer_fn(name: &str, part: Option<&str>, ty: Ty) -> Lowered<ScalarFn> {
    macro_rules! for_type {
        ($t:ty, $wide:ty) => {{
            // Values come zero-extended, results go so: through the unsigned type of the same width.
            fn out(x: $t) -> u64 {
                x as u64 & super::scalar::mask(<$t>::BITS)
            }
            fn three(f: fn($t, $t, $t) -> $t, a: u64, b: u64, c: u64) -> u64 {
                out(f(a as $t, b as $t, c as $t))
            }
            const LOW: u32 = <$t>::BITS;
            fn high(a: $t, b: $t) -> $t {
                (((a as $wide).wrapping_mul(b as $wide)) >> LOW) as $t
            }
            match (name, part) {
                ("add", None) => ScalarFn::Two(|a, b| out((a as $t).wrapping_add(b as $t))),
                ("sub", None) => ScalarFn::Two(|a, b| out((a as $t).wrapping_sub(b as $t))),
                ("mul", Some("lo")) => ScalarFn::Two(|a, b| out((a as $t).wrapping_mul(b as $t))),
                ("mul", Some("hi")) => ScalarFn::Two(|a, b| out(high(a as $t, b as $t))),
                ("mad", Some("lo")) => {
                    ScalarFn::Three(|a, b, c| three(|a, b, c| a.wrapping_mul(b).wrapping_add(c), a, b, c))
                }
                ("mad", Some("hi")) => ScalarFn::Three(|a, b, c| three(|a, b, c| high(a, b).wrapping_add(c), a, b, c)),
                // A division by zero gives all ones, its remainder the dividend: devices do so, PTX leaves it open.
                ("div", None) => ScalarFn::Two(|a, b| match b as $t {
                    0 => super::scalar::mask(LOW),
                    b => out((a as $t).wrapping_div(b)),
                }),
                ("rem", None) => ScalarFn::Two(|a, b| match b as $t {
                    0 => a,
                    b => out((a as $t).wrapping_rem(b)),
                }),
                ("min", None) => ScalarFn::Two(|a, b| out((a as $t).min(b as $t))),
                ("max", None) => ScalarFn::Two(|a, b| out((a as $t).max(b as $t))),
                ("sad", None) => ScalarFn::Three(|a, b, c| {
                    three(|a, b, c| c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) }), a, b, c)
                }),
                ("abs", None) if ty.signed() => ScalarFn::One(|a| {
                    out(if (a as $t) < (0 as $t) { (0 as $t).wrapping_sub(a as $t) } else { a as $t })
                }),
                ("neg", None) if ty.signed() => ScalarFn::One(|a| out((0 as $t).wrapping_sub(a as $t))),
                _ => return Err("not defined for this integer type".into()),
            }
        }};
    }
    if let ("mul24" | "mad24", Some("lo")) = (name, part) {
        let function = match (name, ty.signed(), ty.bits) {
            ("mul24", false, 32) => ScalarFn::Two(|a, b| ((a & 0xFF_FFFF) * (b & 0xFF_FFFF)) & 0xFFFF_FFFF),
            ("mul24", true, 32) => {
                ScalarFn::Two(|a, b| (sign_extend(a, 24).wrapping_mul(sign_extend(b, 24))) as u64 & 0xFFFF_FFFF)
            }
            ("mad24", false, 32) => ScalarFn::Three(|a, b, c| ((a & 0xFF_FFFF) * (b & 0xFF_FFFF) + c) & 0xFFFF_FFFF),
            ("mad24", true, 32) => ScalarFn::Three(|a, b, c| {
                (sign_extend(a, 24).wrapping_mul(sign_extend(b, 24)).wrapping_add(c as i64)) as u64 & 0xFFFF_FFFF
            }),
            _ => return Err("not defined for this integer type".into()),
        };
        return Ok(function);
    }
    Ok(match (ty.signed(), ty.bits) {
        (false, 16) => for_type!(u16, u32),
        (true, 16) => for_type!(i16, i32),
        (false, 32) => for_type!(u32, u64),
        (true, 32) => for_type!(i32, i64),
        (false, _) => for_type!(u64, u128),
        (true, _) => for_type!(i64, i128),
    })
}

/// Rounds through the format that `ty` names: shared with `atom`.
pub(crate) fn half_add(a: u64, b: u64, ty: Ty) -> u64 {
    let format = format(ty);
    let sum = super::float::to_f64(a, format) + super::float::to_f64(b, format);
    from_f64(sum, format, Round::Nearest)
}
