//! Reciprocals, roots, exponentials and the like; tests for kinds of numbers.

use super::arith::{d, f, same, w, w64};
use super::float::ftz;
use super::scalar::{HalfOp, ScalarFn};
use super::{Lowered, Mods, Operands, Sort, Ty};
use crate::ptx::body::Body;

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    let mode = mods.one_of(&["approx", "rn", "rz", "rm", "rp"]);
    let flush = mods.take("ftz");
    let ty = mods.ty()?;
    mods.finish()?;
    let exact = matches!(name, "rcp" | "sqrt");
    match mode {
        Some("approx") => {}
        Some("rn") if exact => {}
        _ => return Err("this rounding (or none) is not supported".into()),
    }
    if ty.bits == 64 && ty.sort == Sort::Float {
        let (place, s) = same(body, ops, ty, 1)?;
        let function: fn(u64) -> u64 = match name {
            "rcp" => |a| w64(1.0 / d(a)),
            "sqrt" => |a| w64(d(a).sqrt()),
            "rsqrt" => |a| w64(1.0 / d(a).sqrt()),
            _ => return Err("not defined for f64".into()),
        };
        return body.scalar(ScalarFn::One(function), place, s);
    }
    if matches!(ty.sort, Sort::F16x2 | Sort::Bf16x2 | Sort::Bf16) || ty.is(Sort::Float, 16) {
        let op = match name {
            "ex2" => HalfOp::Ex2,
            "tanh" => HalfOp::Tanh,
            _ => return Err("not defined for half-precision types".into()),
        };
        let (place, s) = same(body, ops, Ty { sort: Sort::Bits, bits: ty.bits }, 1)?;
        let bf16 = matches!(ty.sort, Sort::Bf16 | Sort::Bf16x2);
        let format = if bf16 { super::float::BF16 } else { super::float::F16 };
        let pair = ty.bits == 32;
        return body.scalar(ScalarFn::Half { op, format, pair, ftz: flush, sat: false, relu: false }, place, s);
    }
    if !ty.is(Sort::Float, 32) {
        return Err("this type is not supported".into());
    }
    let (place, s) = same(body, ops, ty, 1)?;
    macro_rules! function {
        ($f:expr) => {
            if flush { |a| round32(ftz(ftz32($f, a))) } else { |a| round32(($f)(f64::from(f(a))) as f32) }
        };
    }
    fn ftz32(function: fn(f64) -> f64, a: u64) -> f32 {
        function(f64::from(ftz(f(a)))) as f32
    }
    fn round32(x: f32) -> u64 {
        w(x)
    }
    let function: fn(u64) -> u64 = match name {
        "rcp" => function!(|x: f64| 1.0 / x),
        "sqrt" => function!(|x: f64| x.sqrt()),
        "rsqrt" => function!(|x: f64| 1.0 / x.sqrt()),
        "ex2" => function!(|x: f64| x.exp2()),
        "lg2" => function!(|x: f64| x.log2()),
        "sin" => function!(|x: f64| x.sin()),
        "cos" => function!(|x: f64| x.cos()),
        _ => function!(|x: f64| x.tanh()),
    };
    body.scalar(ScalarFn::One(function), place, s)
}

pub(crate) fn testp(body: &mut Body, mods: &mut Mods, ops: &Operands) -> Lowered {
    let test = mods.one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]);
    let test = test.ok_or("no test among the modifiers")?;
    let ty = mods.ty()?;
    mods.finish()?;
    ops.count(2..=2)?;
    let place = body.dst(&ops.0[0], Ty { sort: Sort::Pred, bits: 1 })?;
    let source = body.src(&ops.0[1], ty)?;
    macro_rules! test {
        ($x:ident, $($name:literal => $test:expr),*) => {
            match (test, ty.bits) {
                $(($name, 32) => |a| { let $x = f(a); u64::from($test) },
                  ($name, 64) => |a| { let $x = d(a); u64::from($test) },)*
                _ => return Err("this type is not supported".into()),
            }
        };
    }
    let function: fn(u64) -> u64 = test!(x,
        "finite" => x.is_finite(), "infinite" => x.is_infinite(), "number" => !x.is_nan(),
        "notanumber" => x.is_nan(), "normal" => x.is_normal(), "subnormal" => x.is_subnormal());
    body.scalar(ScalarFn::One(function), place, vec![source])
}
