//! Every opcode on random and special values, against Rust's own arithmetic.

mod common;

use common::*;
use half::{bf16, f16};
use proptest::prelude::*;
use simt::{Gpu, Module};

/// An instruction on `%a`, `%b`, `%c` to `%d`, their widths in bits (1: a predicate), and what it must compute.
struct Case {
    text: &'static str,
    widths: [u32; 4],
    right: fn(u64, u64, u64) -> u64,
}

/// `[a, b, c] -> d`.
const fn op(text: &'static str, widths: [u32; 4], right: fn(u64, u64, u64) -> u64) -> Case {
    Case { text, widths, right }
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn w(x: f32) -> u64 {
    if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits().into() }
}

fn l(x: f64) -> u64 {
    if x.is_nan() { 0x7FFF_FFFF_FFFF_FFFF } else { x.to_bits() }
}

fn h(x: f32) -> u64 {
    if x.is_nan() { 0x7FFF } else { f16::from_f32(x).to_bits().into() }
}

fn b(x: f32) -> u64 {
    if x.is_nan() { 0x7FFF } else { bf16::from_f32(x).to_bits().into() }
}

fn of_h(x: u64) -> f32 {
    f16::from_bits(x as u16).to_f32()
}

fn of_b(x: u64) -> f32 {
    bf16::from_bits(x as u16).to_f32()
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn s(x: u64) -> i32 {
    x as i32
}

fn u(x: i32) -> u64 {
    x as u32 as u64
}

fn shl(x: u32, n: u64) -> u64 {
    if n > 31 { 0 } else { (x << n).into() }
}

/// The minimum as PTX has it: a number before NaN, -0 before +0.
fn least(x: f32, y: f32) -> u64 {
    if x.is_nan() || y.is_nan() {
        return w(if x.is_nan() { y } else { x });
    }
    w(if x.total_cmp(&y).is_lt() { x } else { y })
}

fn most(x: f32, y: f32) -> u64 {
    if x.is_nan() || y.is_nan() {
        return w(if x.is_nan() { y } else { x });
    }
    w(if x.total_cmp(&y).is_gt() { x } else { y })
}

fn prmt(a: u64, b: u64, c: u64) -> u64 {
    let bytes = [a.to_le_bytes(), b.to_le_bytes()];
    (0..4)
        .map(|i| {
            let k = c >> (4 * i) & 15;
            let byte = bytes[(k >> 2 & 1) as usize][(k & 3) as usize];
            let byte = if k & 8 == 0 {
                byte
            } else if byte & 128 != 0 {
                255
            } else {
                0
            };
            u64::from(byte) << (8 * i)
        })
        .sum()
}

/// The nearest f32 below or above an exact f64.
fn toward(x: f64, up: bool) -> f32 {
    let near = x as f32;
    match (f64::from(near) > x, f64::from(near) < x, up) {
        (true, _, false) => near.next_down(),
        (_, true, true) => near.next_up(),
        _ => near,
    }
}

fn toward_zero(x: f64) -> f32 {
    toward(x, x < 0.0)
}

const W: [u32; 4] = [32, 32, 32, 32];
const L: [u32; 4] = [64, 64, 64, 64];
const H: [u32; 4] = [16, 16, 16, 16];

fn cases() -> Vec<Case> {
    vec![
        // Integers of 32 bits.
        op("add.s32 %d, %a, %b", W, |a, b, _| u(s(a).wrapping_add(s(b)))),
        op("add.sat.s32 %d, %a, %b", W, |a, b, _| u(s(a).saturating_add(s(b)))),
        op("sub.u32 %d, %a, %b", W, |a, b, _| u(s(a).wrapping_sub(s(b)))),
        op("mul.lo.s32 %d, %a, %b", W, |a, b, _| u(s(a).wrapping_mul(s(b)))),
        op("mul.hi.s32 %d, %a, %b", W, |a, b, _| u(((i64::from(s(a)) * i64::from(s(b))) >> 32) as i32)),
        op("mul.hi.u32 %d, %a, %b", W, |a, b, _| (a * b) >> 32),
        op("mul24.lo.u32 %d, %a, %b", W, |a, b, _| ((a & 0xFF_FFFF) * (b & 0xFF_FFFF)) & 0xFFFF_FFFF),
        op("mad.lo.s32 %d, %a, %b, %c", W, |a, b, c| u(s(a).wrapping_mul(s(b)).wrapping_add(s(c)))),
        op("mad.hi.u32 %d, %a, %b, %c", W, |a, b, c| (((a * b) >> 32) + c) & 0xFFFF_FFFF),
        op("sad.s32 %d, %a, %b, %c", W, |a, b, c| {
            u(s(c).wrapping_add(s(a).wrapping_sub(s(b)).wrapping_mul(if s(a) < s(b) { -1 } else { 1 })))
        }),
        op("div.s32 %d, %a, %b", W, |a, b, _| if b == 0 { 0xFFFF_FFFF } else { u(s(a).wrapping_div(s(b))) }),
        op("div.u32 %d, %a, %b", W, |a, b, _| a.checked_div(b).unwrap_or(0xFFFF_FFFF)),
        op("rem.s32 %d, %a, %b", W, |a, b, _| if b == 0 { a } else { u(s(a).wrapping_rem(s(b))) }),
        op("rem.u32 %d, %a, %b", W, |a, b, _| a.checked_rem(b).unwrap_or(a)),
        op("min.s32 %d, %a, %b", W, |a, b, _| u(s(a).min(s(b)))),
        op("max.s32 %d, %a, %b", W, |a, b, _| u(s(a).max(s(b)))),
        op("min.u32 %d, %a, %b", W, |a, b, _| a.min(b)),
        op("max.u32 %d, %a, %b", W, |a, b, _| a.max(b)),
        op("abs.s32 %d, %a", W, |a, _, _| u(s(a).wrapping_abs())),
        op("neg.s32 %d, %a", W, |a, _, _| u(s(a).wrapping_neg())),
        op("and.b32 %d, %a, %b", W, |a, b, _| a & b),
        op("or.b32 %d, %a, %b", W, |a, b, _| a | b),
        op("xor.b32 %d, %a, -17", W, |a, _, _| (a ^ -17i64 as u64) & 0xFFFF_FFFF),
        op("not.b32 %d, %a", W, |a, _, _| !a & 0xFFFF_FFFF),
        op("cnot.b32 %d, %a", W, |a, _, _| (a == 0).into()),
        op("shl.b32 %d, %a, %b", W, |a, b, _| shl(a as u32, b)),
        op("shl.b32 %d, %a, 7", W, |a, _, _| shl(a as u32, 7)),
        op("shr.u32 %d, %a, %b", W, |a, b, _| if b > 31 { 0 } else { a >> b }),
        op("shr.s32 %d, %a, %b", W, |a, b, _| u(s(a) >> b.min(31))),
        op("shf.l.wrap.b32 %d, %a, %b, %c", W, |a, b, c| ((b << 32 | a) << (c & 31)) >> 32),
        op("shf.r.wrap.b32 %d, %a, %b, %c", W, |a, b, c| ((b << 32 | a) >> (c & 31)) & 0xFFFF_FFFF),
        op("shf.l.clamp.b32 %d, %a, %b, %c", W, |a, b, c| ((b << 32 | a) << c.min(32)) >> 32),
        op("shf.r.clamp.b32 %d, %a, %b, %c", W, |a, b, c| ((b << 32 | a) >> c.min(32)) & 0xFFFF_FFFF),
        op("lop3.b32 %d, %a, %b, %c, 0x96", W, |a, b, c| a ^ b ^ c),
        op("lop3.b32 %d, %a, %b, %c, 0xF8", W, |a, b, c| a | b & c),
        op("lop3.b32 %d, %a, %b, %c, 0x6C", W, |a, b, c| (b ^ a & c) & 0xFFFF_FFFF),
        op("lop3.b32 %d, %a, %b, %c, 0x1D", W, |a, b, c| lop(0x1D, a, b, c)),
        op("prmt.b32 %d, %a, %b, %c", W, prmt),
        op("prmt.b32 %d, %a, %b, 0x5410", W, |a, b, _| a & 0xFFFF | (b & 0xFFFF) << 16),
        op("bfe.u32 %d, %a, %b, %c", W, |a, b, c| field(a, b, c, 32, false)),
        op("bfe.s32 %d, %a, %b, %c", W, |a, b, c| field(a, b, c, 32, true)),
        op("bfi.b32 %d, %a, %b, 5, 9", W, |a, b, _| b & !(0x1FF << 5) | (a & 0x1FF) << 5),
        op("popc.b32 %d, %a", W, |a, _, _| a.count_ones().into()),
        op("clz.b32 %d, %a", W, |a, _, _| (a as u32).leading_zeros().into()),
        op("brev.b32 %d, %a", W, |a, _, _| (a as u32).reverse_bits().into()),
        op("bfind.u32 %d, %a", W, |a, _, _| (31u32.wrapping_sub((a as u32).leading_zeros())).into()),
        op("bfind.s32 %d, %a", W, |a, _, _| 31u32.wrapping_sub((s(a) ^ s(a) >> 31).leading_zeros()).into()),
        op(
            "bfind.shiftamt.u32 %d, %a",
            W,
            |a, _, _| if a == 0 { 0xFFFF_FFFF } else { (a as u32).leading_zeros().into() },
        ),
        op("slct.b32.s32 %d, %a, %b, %c", W, |a, b, c| if s(c) >= 0 { a } else { b }),
        op("slct.b32.f32 %d, %a, %b, %c", W, |a, b, c| if f(c) >= 0.0 { a } else { b }),
        op("set.lt.u32.s32 %d, %a, %b", W, |a, b, _| if s(a) < s(b) { 0xFFFF_FFFF } else { 0 }),
        op("set.geu.f32.f32 %d, %a, %b", W, |a, b, _| if f(a) < f(b) { 0 } else { w(1.0) }),
        op("selp.b32 %d, %a, %b, %c", [32, 32, 1, 32], |a, b, c| if c == 1 { a } else { b }),
        // 64 bits.
        op("add.s64 %d, %a, %b", L, |a, b, _| a.wrapping_add(b)),
        op("sub.s64 %d, %a, %b", L, |a, b, _| a.wrapping_sub(b)),
        op("mul.lo.s64 %d, %a, %b", L, |a, b, _| a.wrapping_mul(b)),
        op("mul.hi.u64 %d, %a, %b", L, |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        op("mul.hi.s64 %d, %a, %b", L, |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        op("mad.lo.u64 %d, %a, %b, %c", L, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        op("mad.hi.s64 %d, %a, %b, %c", L, |a, b, c| {
            (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).wrapping_add(c)
        }),
        op("div.u64 %d, %a, %b", L, |a, b, _| a.checked_div(b).unwrap_or(u64::MAX)),
        op("rem.s64 %d, %a, %b", L, |a, b, _| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }),
        op("min.s64 %d, %a, %b", L, |a, b, _| (a as i64).min(b as i64) as u64),
        op("max.u64 %d, %a, %b", L, |a, b, _| a.max(b)),
        op("abs.s64 %d, %a", L, |a, _, _| (a as i64).wrapping_abs() as u64),
        op("neg.s64 %d, %a", L, |a, _, _| (a as i64).wrapping_neg() as u64),
        op("and.b64 %d, %a, %b", L, |a, b, _| a & b),
        op("xor.b64 %d, %a, %b", L, |a, b, _| a ^ b),
        op("not.b64 %d, %a", L, |a, _, _| !a),
        op("shl.b64 %d, %a, %b", [64, 32, 32, 64], |a, b, _| if b > 63 { 0 } else { a << b }),
        op("shr.u64 %d, %a, %b", [64, 32, 32, 64], |a, b, _| if b > 63 { 0 } else { a >> b }),
        op("shr.s64 %d, %a, 33", L, |a, _, _| (a as i64 >> 33) as u64),
        op("popc.b64 %d, %a", [64, 32, 32, 32], |a, _, _| a.count_ones().into()),
        op("clz.b64 %d, %a", [64, 32, 32, 32], |a, _, _| a.leading_zeros().into()),
        op("brev.b64 %d, %a", L, |a, _, _| a.reverse_bits()),
        op("bfe.s64 %d, %a, %b, %c", [64, 32, 32, 64], |a, b, c| field(a, b, c, 64, true)),
        op("bfi.b64 %d, %a, %b, 20, 40", L, |a, b, _| b & !(((1 << 40) - 1) << 20) | (a & ((1 << 40) - 1)) << 20),
        op("selp.b64 %d, %a, %b, %c", [64, 64, 1, 64], |a, b, c| if c == 1 { a } else { b }),
        op("mul.wide.s32 %d, %a, %b", [32, 32, 32, 64], |a, b, _| (i64::from(s(a)) * i64::from(s(b))) as u64),
        op("mul.wide.u32 %d, %a, %b", [32, 32, 32, 64], |a, b, _| a * b),
        op("mad.wide.u32 %d, %a, %b, %c", [32, 32, 64, 64], |a, b, c| (a * b).wrapping_add(c)),
        op("mad.wide.s32 %d, %a, 12, %c", [32, 32, 64, 64], |a, _, c| {
            (i64::from(s(a)) * 12).wrapping_add(c as i64) as u64
        }),
        op("mov.b64 %d, {%a, %b}", [32, 32, 32, 64], |a, b, _| a | b << 32),
        // 16 bits.
        op("add.s16 %d, %a, %b", H, |a, b, _| (a + b) & 0xFFFF),
        op("sub.u16 %d, %a, %b", H, |a, b, _| a.wrapping_sub(b) & 0xFFFF),
        op("mul.lo.u16 %d, %a, %b", H, |a, b, _| (a * b) & 0xFFFF),
        op("mul.hi.s16 %d, %a, %b", H, |a, b, _| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16 as u64),
        op("mad.lo.s16 %d, %a, %b, %c", H, |a, b, c| (a * b + c) & 0xFFFF),
        op(
            "div.s16 %d, %a, %b",
            H,
            |a, b, _| if b == 0 { 0xFFFF } else { (a as i16).wrapping_div(b as i16) as u16 as u64 },
        ),
        op("min.s16 %d, %a, %b", H, |a, b, _| (a as i16).min(b as i16) as u16 as u64),
        op("and.b16 %d, %a, %b", H, |a, b, _| a & b),
        op("not.b16 %d, %a", H, |a, _, _| !a & 0xFFFF),
        op("shl.b16 %d, %a, %b", [16, 32, 32, 16], |a, b, _| if b > 15 { 0 } else { a << b & 0xFFFF }),
        op("shr.s16 %d, %a, %b", [16, 32, 32, 16], |a, b, _| ((a as i16) >> b.min(15)) as u16 as u64),
        op("shr.u16 %d, %a, 3", H, |a, _, _| a >> 3),
        op("neg.s16 %d, %a", H, |a, _, _| a.wrapping_neg() & 0xFFFF),
        op("mul.wide.s16 %d, %a, %b", [16, 16, 16, 32], |a, b, _| u(i32::from(a as i16) * i32::from(b as i16))),
        op("mul.wide.u16 %d, %a, %b", [16, 16, 16, 32], |a, b, _| a * b),
        op("mov.b32 %d, {%a, %b}", [16, 16, 16, 32], |a, b, _| a | b << 16),
        op("mov.b64 %d, {%a, %b, %c, %a}", [16, 16, 16, 64], |a, b, c| a | b << 16 | c << 32 | a << 48),
        // f32.
        op("add.f32 %d, %a, %b", W, |a, b, _| w(f(a) + f(b))),
        op("add.rn.f32 %d, %a, 0f3F800000", W, |a, _, _| w(f(a) + 1.0)),
        op("sub.f32 %d, %a, %b", W, |a, b, _| w(f(a) - f(b))),
        op("mul.f32 %d, %a, %b", W, |a, b, _| w(f(a) * f(b))),
        op("fma.rn.f32 %d, %a, %b, %c", W, |a, b, c| w(f(a).mul_add(f(b), f(c)))),
        op("add.ftz.f32 %d, %a, %b", W, |a, b, _| w(flush(flush(f(a)) + flush(f(b))))),
        op("mul.ftz.f32 %d, %a, %b", W, |a, b, _| w(flush(flush(f(a)) * flush(f(b))))),
        op("fma.rn.ftz.f32 %d, %a, %b, %c", W, |a, b, c| w(flush(flush(f(a)).mul_add(flush(f(b)), flush(f(c)))))),
        op("add.sat.f32 %d, %a, %b", W, |a, b, _| {
            let x = f(a) + f(b);
            w(if x > 0.0 { x.min(1.0) } else { 0.0 })
        }),
        op("fma.rn.sat.f32 %d, %a, %b, %c", W, |a, b, c| {
            let x = f(a).mul_add(f(b), f(c));
            w(if x > 0.0 { x.min(1.0) } else { 0.0 })
        }),
        op("mul.rz.f32 %d, %a, %b", W, |a, b, _| {
            let x = f64::from(f(a)) * f64::from(f(b));
            if huge(x) { skip() } else { w(toward_zero(x)) }
        }),
        op("mul.rm.f32 %d, %a, %b", W, |a, b, _| {
            let x = f64::from(f(a)) * f64::from(f(b));
            if huge(x) { skip() } else { w(toward(x, false)) }
        }),
        op("mul.rp.f32 %d, %a, %b", W, |a, b, _| {
            let x = f64::from(f(a)) * f64::from(f(b));
            if huge(x) { skip() } else { w(toward(x, true)) }
        }),
        op("div.rn.f32 %d, %a, %b", W, |a, b, _| w(f(a) / f(b))),
        op("div.full.f32 %d, %a, %b", W, |a, b, _| w(f(a) / f(b))),
        op("div.approx.f32 %d, %a, %b", W, |a, b, _| w(f(a) / f(b))),
        op("rcp.rn.f32 %d, %a", W, |a, _, _| w((1.0 / f64::from(f(a))) as f32)),
        op("sqrt.rn.f32 %d, %a", W, |a, _, _| w(f(a).sqrt())),
        op("rsqrt.approx.f32 %d, %a", W, |a, _, _| w((1.0 / f64::from(f(a)).sqrt()) as f32)),
        op("ex2.approx.f32 %d, %a", W, |a, _, _| w(f64::from(f(a)).exp2() as f32)),
        op("lg2.approx.f32 %d, %a", W, |a, _, _| w(f64::from(f(a)).log2() as f32)),
        op("tanh.approx.f32 %d, %a", W, |a, _, _| w(f64::from(f(a)).tanh() as f32)),
        op("min.f32 %d, %a, %b", W, |a, b, _| least(f(a), f(b))),
        op("max.f32 %d, %a, %b", W, |a, b, _| most(f(a), f(b))),
        op(
            "min.NaN.f32 %d, %a, %b",
            W,
            |a, b, _| if f(a).is_nan() || f(b).is_nan() { 0x7FFF_FFFF } else { least(f(a), f(b)) },
        ),
        op(
            "max.NaN.f32 %d, %a, %b",
            W,
            |a, b, _| if f(a).is_nan() || f(b).is_nan() { 0x7FFF_FFFF } else { most(f(a), f(b)) },
        ),
        op("abs.f32 %d, %a", W, |a, _, _| a & 0x7FFF_FFFF),
        op("neg.f32 %d, %a", W, |a, _, _| a ^ 0x8000_0000),
        op("copysign.f32 %d, %a, %b", W, |a, b, _| b & 0x7FFF_FFFF | a & 0x8000_0000),
        // f64.
        op("add.f64 %d, %a, %b", L, |a, b, _| l(d(a) + d(b))),
        op("sub.f64 %d, %a, %b", L, |a, b, _| l(d(a) - d(b))),
        op("mul.f64 %d, %a, %b", L, |a, b, _| l(d(a) * d(b))),
        op("fma.rn.f64 %d, %a, %b, %c", L, |a, b, c| l(d(a).mul_add(d(b), d(c)))),
        op("div.rn.f64 %d, %a, %b", L, |a, b, _| l(d(a) / d(b))),
        op("sqrt.rn.f64 %d, %a", L, |a, _, _| l(d(a).sqrt())),
        op("abs.f64 %d, %a", L, |a, _, _| a & !(1 << 63)),
        op("neg.f64 %d, %a", L, |a, _, _| a ^ 1 << 63),
        // Half precision.
        op("add.f16 %d, %a, %b", H, |a, b, _| h(of_h(a) + of_h(b))),
        op("mul.f16 %d, %a, %b", H, |a, b, _| h(of_h(a) * of_h(b))),
        op("fma.rn.bf16 %d, %a, %b, %c", H, |a, b_, c| {
            let x = f64::from(of_b(a)) * f64::from(of_b(b_));
            let y = f64::from(of_b(c));
            if (x + y) - x != y || (x + y) - y != x { skip() } else { narrow_bf16(x + y) }
        }),
        op("add.f16x2 %d, %a, %b", W, |a, b, _| pair(a, b, |x, y| h(of_h(x) + of_h(y)))),
        op("mul.bf16x2 %d, %a, %b", W, |a, b_, _| {
            pair(a, b_, |x, y| narrow_bf16(f64::from(of_b(x)) * f64::from(of_b(y))))
        }),
        op("neg.bf16x2 %d, %a", W, |a, _, _| a ^ 0x8000_8000),
        op("abs.f16x2 %d, %a", W, |a, _, _| a & 0x7FFF_7FFF),
        // Conversions.
        op("cvt.rn.f32.s32 %d, %a", W, |a, _, _| w(s(a) as f32)),
        op("cvt.rn.f32.u32 %d, %a", W, |a, _, _| w(a as u32 as f32)),
        op("cvt.rz.f32.u32 %d, %a", W, |a, _, _| w(toward_zero(a as f64))),
        op("cvt.rn.f32.u64 %d, %a", [64, 32, 32, 32], |a, _, _| w(a as f32)),
        op("cvt.rn.f32.s64 %d, %a", [64, 32, 32, 32], |a, _, _| w(a as i64 as f32)),
        op("cvt.rn.f64.s32 %d, %a", [32, 32, 32, 64], |a, _, _| l(s(a).into())),
        op("cvt.rn.f64.u64 %d, %a", L, |a, _, _| l(a as f64)),
        op("cvt.f64.f32 %d, %a", [32, 32, 32, 64], |a, _, _| l(f(a).into())),
        op("cvt.rn.f32.f64 %d, %a", [64, 32, 32, 32], |a, _, _| w(d(a) as f32)),
        op("cvt.rzi.s32.f32 %d, %a", W, |a, _, _| u(f(a) as i32)),
        op("cvt.rzi.u32.f32 %d, %a", W, |a, _, _| (f(a) as u32).into()),
        op("cvt.rni.s32.f32 %d, %a", W, |a, _, _| u(f(a).round_ties_even() as i32)),
        op("cvt.rmi.s32.f32 %d, %a", W, |a, _, _| u(f(a).floor() as i32)),
        op("cvt.rpi.s32.f32 %d, %a", W, |a, _, _| u(f(a).ceil() as i32)),
        op("cvt.rzi.s64.f64 %d, %a", L, |a, _, _| if d(a).is_nan() { 1 << 63 } else { d(a) as i64 as u64 }),
        op("cvt.rzi.f32.f32 %d, %a", W, |a, _, _| w(f(a).trunc())),
        op("cvt.rni.f32.f32 %d, %a", W, |a, _, _| w(f(a).round_ties_even())),
        op("cvt.rmi.f32.f32 %d, %a", W, |a, _, _| w(f(a).floor())),
        op("cvt.sat.f32.f32 %d, %a", W, |a, _, _| w(if f(a) > 0.0 { f(a).min(1.0) } else { 0.0 })),
        op("cvt.rn.f16.f32 %d, %a", [32, 32, 32, 16], |a, _, _| h(f(a))),
        op("cvt.f32.f16 %d, %a", [16, 32, 32, 32], |a, _, _| w(of_h(a))),
        op("cvt.rn.bf16.f32 %d, %a", [32, 32, 32, 16], |a, _, _| b(f(a))),
        op("cvt.f32.bf16 %d, %a", [16, 32, 32, 32], |a, _, _| w(of_b(a))),
        op("cvt.rn.bf16x2.f32 %d, %a, %b", W, |x, y, _| b(f(x)) << 16 | b(f(y))),
        op("cvt.rn.f16x2.f32 %d, %a, %b", W, |x, y, _| h(f(x)) << 16 | h(f(y))),
        op("cvt.rn.relu.bf16x2.f32 %d, %a, %b", W, |x, y, _| relu(b(f(x))) << 16 | relu(b(f(y)))),
        op("cvt.rna.tf32.f32 %d, %a", W, |a, _, _| if !f(a).is_finite() { w(f(a)) } else { (a + 0x1000) & !0x1FFF }),
        op("cvt.u64.u32 %d, %a", [32, 32, 32, 64], |a, _, _| a),
        op("cvt.s64.s32 %d, %a", [32, 32, 32, 64], |a, _, _| i64::from(s(a)) as u64),
        op("cvt.u32.u64 %d, %a", [64, 32, 32, 32], |a, _, _| a & 0xFFFF_FFFF),
        op("cvt.u16.u32 %d, %a", [32, 32, 32, 16], |a, _, _| a & 0xFFFF),
        op("cvt.u32.u16 %d, %a", [16, 32, 32, 32], |a, _, _| a),
        op("cvt.s32.s16 %d, %a", [16, 32, 32, 32], |a, _, _| u((a as i16).into())),
        op("cvt.s32.s8 %d, %a", W, |a, _, _| u((a as i8).into())),
        op("cvt.u32.u8 %d, %a", W, |a, _, _| a & 0xFF),
        op("cvt.s64.s16 %d, %a", [16, 32, 32, 64], |a, _, _| i64::from(a as i16) as u64),
        op("cvt.sat.u8.s32 %d, %a", W, |a, _, _| s(a).clamp(0, 255) as u64),
        op("cvt.sat.s16.s32 %d, %a", W, |a, _, _| u(s(a).clamp(-32768, 32767))),
        // Comparisons.
        op("setp.lt.s32 %d, %a, %b", [32, 32, 32, 1], |a, b, _| (s(a) < s(b)).into()),
        op("setp.ge.u32 %d, %a, 77", [32, 32, 32, 1], |a, _, _| (a >= 77).into()),
        op("setp.ne.s64 %d, %a, %b", [64, 64, 32, 1], |a, b, _| (a != b).into()),
        op("setp.gt.s16 %d, %a, %b", [16, 16, 16, 1], |a, b, _| (a as i16 > b as i16).into()),
        op("setp.eq.f32 %d, %a, %b", [32, 32, 32, 1], |a, b, _| (f(a) == f(b)).into()),
        op("setp.ne.f32 %d, %a, %b", [32, 32, 32, 1], |a, b, _| (f(a) < f(b) || f(a) > f(b)).into()),
        op("setp.neu.f32 %d, %a, %b", [32, 32, 32, 1], |a, b, _| (f(a) != f(b)).into()),
        op("setp.ltu.f32 %d, %a, %b", [32, 32, 32, 1], |a, b, _| {
            (f(a).partial_cmp(&f(b)).is_none_or(|o| o.is_lt())).into()
        }),
        op("setp.nan.f32 %d, %a, %b", [32, 32, 32, 1], |a, b, _| (f(a).is_nan() || f(b).is_nan()).into()),
        op("setp.num.f64 %d, %a, %b", [64, 64, 32, 1], |a, b, _| (!d(a).is_nan() && !d(b).is_nan()).into()),
        op("setp.gt.f16 %d, %a, %b", [16, 16, 16, 1], |a, b, _| (of_h(a) > of_h(b)).into()),
        op("setp.lt.and.s32 %d, %a, %b, %c", [32, 32, 1, 1], |a, b, c| (s(a) < s(b) && c == 1).into()),
        op("setp.lt.or.s32 %d, %a, %b, !%c", [32, 32, 1, 1], |a, b, c| (s(a) < s(b) || c == 0).into()),
        op("setp.lt.xor.f32 %d, %a, %b, %c", [32, 32, 1, 1], |a, b, c| ((f(a) < f(b)) ^ (c == 1)).into()),
        op("testp.normal.f32 %d, %a", [32, 32, 32, 1], |a, _, _| f(a).is_normal().into()),
        op("and.pred %d, %a, %b", [1, 1, 1, 1], |a, b, _| a & b),
        op("or.pred %d, %a, %b", [1, 1, 1, 1], |a, b, _| a | b),
        op("xor.pred %d, %a, !%b", [1, 1, 1, 1], |a, b, _| a ^ b ^ 1),
        op("not.pred %d, %a", [1, 1, 1, 1], |a, _, _| a ^ 1),
        op("{ .reg .pred q; setp.lt.s32 q|%d, %a, %b; }", [32, 32, 32, 1], |a, b, _| (s(a) >= s(b)).into()),
    ]
}

fn lop(table: u64, a: u64, b: u64, c: u64) -> u64 {
    (0..32).map(|i| (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i).sum()
}

/// Bits `position..position + length` of `a`, as `bfe` takes them.
fn field(a: u64, position: u64, length: u64, bits: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    let at = |i: u64| {
        if i < bits.into() {
            a >> i & 1
        } else if signed {
            a >> (bits - 1) & 1
        } else {
            0
        }
    };
    if length == 0 {
        return 0;
    }
    let sign = if signed { at((position + length - 1).min(bits as u64 - 1)) } else { 0 };
    (0..bits as u64)
        .map(|i| if i < length { at_or(a, position + i, bits, sign) } else { sign } << i)
        .fold(0, |x, y| x | y)
}

fn at_or(a: u64, i: u64, bits: u32, sign: u64) -> u64 {
    if i < bits.into() { a >> i & 1 } else { sign }
}

fn pair(a: u64, b: u64, f: fn(u64, u64) -> u64) -> u64 {
    f(a & 0xFFFF, b & 0xFFFF) | f(a >> 16 & 0xFFFF, b >> 16 & 0xFFFF) << 16
}

/// bf16 from an f64 that is exact: by way of an f32 that keeps what is lost as its last bit.
fn narrow_bf16(x: f64) -> u64 {
    let near = x as f32;
    let odd = if f64::from(near) == x || near.to_bits() & 1 == 1 || !near.is_finite() {
        near
    } else if f64::from(near).abs() > x.abs() {
        f32::from_bits(near.to_bits() - 1)
    } else {
        f32::from_bits(near.to_bits() + 1)
    };
    b(odd)
}

fn relu(x: u64) -> u64 {
    if x & 0x8000 != 0 { 0 } else { x }
}

/// Beyond what the reference can round.
fn huge(x: f64) -> bool {
    x.is_nan() || x.abs() > f32::MAX.into() || x.abs() < 1e-37
}

/// A result that is not compared.
fn skip() -> u64 {
    0xDEAD_BEEF_0BAD_F00D
}

fn register(width: u32) -> &'static str {
    match width {
        1 => ".pred",
        16 => ".b16",
        32 => ".b32",
        _ => ".b64",
    }
}

/// One kernel for each case: loads the operands, runs the instruction, stores the result.
fn module(cases: &[Case]) -> Module {
    let mut text = String::from(".version 8.0\n.target sm_90\n.address_size 64\n");
    for (i, case) in cases.iter().enumerate() {
        text += &format!(
            ".visible .entry k{i}(.param .u64 x, .param .u64 out)\n{{\n.reg .b64 %p<5>; .reg .b32 %t; .reg .b64 %w;\n"
        );
        for (name, width) in ["a", "b", "c", "d"].iter().zip(case.widths) {
            text += &format!(".reg {} %{name};\n", register(width));
        }
        text += "mov.u32 %t, %tid.x; ld.param.u64 %p1, [x]; ld.param.u64 %p2, [out];\n";
        text += "mad.wide.u32 %p1, %t, 24, %p1; mad.wide.u32 %p2, %t, 8, %p2;\n";
        for (offset, (name, width)) in ["a", "b", "c"].iter().zip(case.widths).enumerate() {
            let at = 8 * offset;
            match width {
                1 => text += &format!("ld.global.u64 %w, [%p1+{at}]; and.b64 %w, %w, 1; setp.ne.u64 %{name}, %w, 0;\n"),
                _ => text += &format!("ld.global.b{width} %{name}, [%p1+{at}];\n"),
            }
        }
        text += case.text;
        text += if case.text.ends_with("; }") { "\n" } else { ";\n" };
        match case.widths[3] {
            1 => text += "selp.u64 %w, 1, 0, %d;\n",
            16 | 32 => text += &format!("cvt.u64.u{} %w, %d;\n", case.widths[3]),
            _ => text += "mov.b64 %w, %d;\n",
        }
        text += "st.global.u64 [%p2], %w;\nret;\n}\n";
    }
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}"))
}

const SPECIAL: [u64; 20] = [
    0,
    1,
    31,
    32,
    33,
    63,
    64,
    0xFFFF_FFFF,
    u64::MAX,
    0x8000_0000,
    0x7FFF_FFFF,
    1 << 63,
    0x3F80_0000,
    0xBF80_0000,
    0x7F80_0000,
    0x7FC0_0000,
    0x0000_1234,
    0x3FF0_0000_0000_0000,
    0x7FF8_0000_0000_0000,
    0x4049_0FDB,
];

/// Bits of all kinds: any, special ones, floats and doubles of ordinary size.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => any::<u64>(),
        2 => prop::sample::select(SPECIAL.to_vec()),
        1 => any::<u64>().prop_map(|x| x % 80),
        3 => (-100f32..100.0).prop_map(|x| u64::from(x.to_bits()) | u64::from(x.to_bits()) << 32),
        1 => (-1e6f64..1e6).prop_map(f64::to_bits),
        1 => (-20f32..20.0).prop_map(|x| {
            let (h, b) = (u64::from(f16::from_f32(x).to_bits()), u64::from(bf16::from_f32(x).to_bits()));
            h | b << 16
        }),
    ]
}

fn keep(width: u32, value: u64) -> u64 {
    value & (u64::MAX >> (64 - width))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn all(values in prop::collection::vec(value(), 3 * 45)) {
        thread_local! {
            static CASES: (Vec<Case>, Module) = {
                let cases = cases();
                let module = module(&cases);
                (cases, module)
            };
        }
        CASES.with(|(cases, module)| {
            let gpu = Gpu::new(config(0));
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let x = upload_bytes(&gpu, "x", &bytes);
            let out = gpu.alloc(8 * 45, "out").unwrap();
            for (i, case) in cases.iter().enumerate() {
                launch(&gpu, module, &format!("k{i}"), 1, 45, Params::default().u64(x).u64(out)).unwrap();
                let got = download_u32(&gpu, out, 90).unwrap();
                for (lane, operands) in values.chunks_exact(3).enumerate() {
                    let operand = |i: usize| keep(case.widths[i], operands[i]);
                    let right = (case.right)(operand(0), operand(1), operand(2));
                    let got = u64::from(got[2 * lane]) | u64::from(got[2 * lane + 1]) << 32;
                    let [a, b, c] = [operand(0), operand(1), operand(2)];
                    if right != skip() {
                        prop_assert_eq!(got, right, "{} of {:#x} {:#x} {:#x}: {:#x}", case.text, a, b, c, got);
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn what_is_not_understood_is_an_error_that_names_it() {
    let parse = |body: &str| {
        let text = format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 x)\n{{\n.reg .b32 %r<9>; .reg .b64 \
             %rd<9>; .reg .pred %p<9>; .reg .b16 %h<9>;\n{body}\nret;\n}}\n"
        );
        Module::parse(&text).expect_err(body)
    };
    let cases = [
        ("frobnicate.u32 %r1, %r2;", "frobnicate"),
        ("add.wobbly.u32 %r1, %r2, %r3;", "wobbly"),
        ("add.u32 %r1, %r2;", "operands"),
        ("add.u32 %r1, %r2, %rd3;", "64-bit register"),
        ("add.u32 %r1, %r2, %q3;", "%q3"),
        ("setp.lt.nand.u32 %p1, %r1, %r2;", "nand"),
        ("ld.global.L3::fast.u32 %r1, [%rd1];", "L3::fast"),
        ("ld.weird.u32 %r1, [%rd1];", "weird"),
        ("ld.global.v2.u32 %r1, [%rd1];", "vector"),
        ("mul.s32 %r1, %r2, %r3;", "`.lo`, `.hi` or `.wide`"),
        ("bra nowhere;", "nowhere"),
        ("cvt.u32.f32 %r1, %r2;", "integer rounding"),
        ("mbarrier.arrive.noComplete.shared.b64 %rd1, [%r1], 1;", "noComplete"),
        ("mbarrier.pending_count.b64 %r1, %rd1;", "pending_count"),
        ("mbarrier.try_wait.shared::cluster.b64 %p1, [%r1], %rd1;", "of the block only"),
        ("wgmma.mma_async.sync.aligned.m64n4k16.f32.bf16.bf16 {%r1,%r2}, %rd1, %rd2, 1, 1, 1, 0, 0;", "columns"),
        ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 0;", "sp"),
        ("cp.async.bulk.global.shared::cta.commit.bulk_group [%rd1], [%r1], 16;", "commit"),
        ("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1}], [%r2];", "2 coordinates"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], 16;", "reduce"),
        ("fence.proxy.alias;", "`.async`"),
        ("setmaxnreg.dec.sync.aligned.u32 30;", "a multiple of 8"),
        ("shfl.down.b32 %r1, %r2, 1, 31;", "`.sync`"),
        ("fma.rn.f32 %r1, %r2, %r3, 1;", "integer 1"),
        ("mov.u32 %r1, 0x;", "0x"),
        (".magic 1;", ".magic"),
        ("@%r1 bra done; done:", "%r1"),
        ("call (%r1), foo, (%r2);", "%r1"),
        ("atom.global.add.f32 %r1, [%rd1], %r2, %r3;", "operands"),
        ("st.const.u32 [%rd1], %r1;", "constant memory"),
        ("lop3.b32 %r1, %r2, %r3, %r4, 256;", "table"),
        ("add.u32 %r1, %r2, %r3", "expected"),
    ];
    for (body, names) in cases {
        let error = parse(body);
        assert!(error.message.contains(names), "{body}: {error}");
        assert!(error.line >= 5, "{body}: {error}");
    }
}

/// Damaged PTX is an error when it is loaded, or runs to some end; it never panics.
#[test]
fn damaged_text_never_panics() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels");
    let texts = ["compute", "sm80", "sm90", "sm90_copies", "sm90_products"]
        .map(|name| std::fs::read_to_string(format!("{folder}/{name}.ptx")).unwrap());
    let mut state = 1u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut ran = 0;
    for round in 0..400 {
        let mut bytes = texts[round % texts.len()].clone().into_bytes();
        for _ in 0..1 + next(3) {
            let at = next(bytes.len());
            match next(8) {
                0 => bytes[at] = b" ;,{}[]()%.-a9"[next(14)],
                1 => drop(bytes.remove(at)),
                2 if round % 8 == 0 => bytes.truncate(at.max(1)),
                _ => {
                    // Another digit: other registers, offsets and constants, mostly still well-formed.
                    let digit = bytes[at..].iter().position(u8::is_ascii_digit);
                    if let Some(digit) = digit {
                        bytes[at + digit] = b'0' + next(10) as u8;
                    }
                }
            }
        }
        let Ok(module) = Module::parse(&String::from_utf8(bytes).unwrap()) else { continue };
        let gpu = Gpu::new(simt::Config { patience: 2000, ..config(round as u64) });
        let buffer = upload(&gpu, "buffer", &numbers(4096, 1));
        let entries: Vec<String> = module.entries().map(String::from).collect();
        for entry in entries {
            let params = Params::default().u64(buffer).u64(buffer + 4096).u64(buffer + 8192).u64(buffer + 12288).u64(7);
            let mut params = params.0;
            params.resize(module.param_bytes(&entry).unwrap(), 0);
            // Kernels for one warp, for warpgroups, and for clusters.
            let block = [if round % 3 == 0 { 32 } else { 128 }, 1, 1];
            let launch = simt::Launch { grid: [2, 2, 1], block, dynamic_shared: 4096, ..simt::Launch::default() };
            ran += u32::from(gpu.launch(&module, &entry, &launch, &params).is_ok());
        }
    }
    assert!(ran > 30, "only {ran} damaged kernels ran");
}
