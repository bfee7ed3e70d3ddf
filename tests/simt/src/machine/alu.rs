//! Arithmetic on whole warps. Everything here is inlined into a function compiled for wide vectors and fused
//! multiply-add, where the CPU has them (see `warp::run`).

use super::regs::{FULL, LANES, Regs};
use crate::code::*;
use crate::lower::float::ftz;

const CHUNK: usize = 8;

#[inline(always)]
fn chunk<T: Copy + Default>(lanes: &[T; LANES], at: usize) -> [T; CHUNK] {
    let mut out = [T::default(); CHUNK];
    out.copy_from_slice(&lanes[at * CHUNK..(at + 1) * CHUNK]);
    out
}

/// Writes a chunk of results in the lanes of `mask`.
#[inline(always)]
fn store<T: Copy>(lanes: &mut [T; LANES], at: usize, values: [T; CHUNK], mask: u32) {
    let lanes = &mut lanes[at * CHUNK..(at + 1) * CHUNK];
    if mask == FULL {
        lanes.copy_from_slice(&values);
    } else {
        for i in 0..CHUNK {
            lanes[i] = if mask >> (at * CHUNK + i) & 1 == 1 { values[i] } else { lanes[i] };
        }
    }
}

macro_rules! maps {
    ($one:ident, $two:ident, $three:ident, $file:ident, $t:ty) => {
        #[inline(always)]
        fn $one(r: &mut Regs, m: u32, d: u32, a: u32, f: impl Fn($t) -> $t) {
            for at in 0..LANES / CHUNK {
                let x = chunk(&r.$file[a as usize], at);
                let mut out = x;
                for i in 0..CHUNK {
                    out[i] = f(x[i]);
                }
                store(&mut r.$file[d as usize], at, out, m);
            }
        }

        #[inline(always)]
        fn $two(r: &mut Regs, m: u32, d: u32, a: u32, b: u32, f: impl Fn($t, $t) -> $t) {
            for at in 0..LANES / CHUNK {
                let (x, y) = (chunk(&r.$file[a as usize], at), chunk(&r.$file[b as usize], at));
                let mut out = x;
                for i in 0..CHUNK {
                    out[i] = f(x[i], y[i]);
                }
                store(&mut r.$file[d as usize], at, out, m);
            }
        }

        #[inline(always)]
        fn $three(r: &mut Regs, m: u32, d: u32, [a, b, c]: [u32; 3], f: impl Fn($t, $t, $t) -> $t) {
            for at in 0..LANES / CHUNK {
                let (x, y) = (chunk(&r.$file[a as usize], at), chunk(&r.$file[b as usize], at));
                let z = chunk(&r.$file[c as usize], at);
                let mut out = x;
                for i in 0..CHUNK {
                    out[i] = f(x[i], y[i], z[i]);
                }
                store(&mut r.$file[d as usize], at, out, m);
            }
        }
    };
}

maps!(one, two, three, word, u32);
maps!(one64, two64, three64, long, u64);

/// NaN results take their canonical form, as on the device.
#[inline(always)]
fn out(x: f32) -> u32 {
    if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits() }
}

#[inline(always)]
fn out64(x: f64) -> u64 {
    if x.is_nan() { 0x7FFF_FFFF_FFFF_FFFF } else { x.to_bits() }
}

#[inline(always)]
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[inline(always)]
fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

/// The smaller one, a number before NaN, -0 before +0.
#[inline(always)]
fn fmin(a: f32, b: f32) -> f32 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

#[inline(always)]
fn fmax(a: f32, b: f32) -> f32 {
    if a.is_nan() || b > a || (a == b && b.is_sign_positive()) { b } else { a }
}

#[inline(always)]
pub(crate) fn unary(r: &mut Regs, m: u32, op: Un32, d: u32, a: u32) {
    match op {
        Un32::Not => one(r, m, d, a, |x| !x),
        Un32::Neg => one(r, m, d, a, u32::wrapping_neg),
        Un32::FNeg => one(r, m, d, a, |x| x ^ 0x8000_0000),
        Un32::FAbs => one(r, m, d, a, |x| x & 0x7FFF_FFFF),
        Un32::Popc => one(r, m, d, a, u32::count_ones),
        Un32::Clz => one(r, m, d, a, u32::leading_zeros),
        Un32::Brev => one(r, m, d, a, u32::reverse_bits),
        Un32::F32FromS32 => one(r, m, d, a, |x| (x as i32 as f32).to_bits()),
        Un32::F32FromU32 => one(r, m, d, a, |x| (x as f32).to_bits()),
    }
}

#[inline(always)]
pub(crate) fn binary(r: &mut Regs, m: u32, op: Bin32, d: u32, a: u32, b: u32) {
    match op {
        Bin32::Add => two(r, m, d, a, b, u32::wrapping_add),
        Bin32::Sub => two(r, m, d, a, b, u32::wrapping_sub),
        Bin32::Mul => two(r, m, d, a, b, u32::wrapping_mul),
        Bin32::MulHiU => two(r, m, d, a, b, |x, y| ((u64::from(x) * u64::from(y)) >> 32) as u32),
        Bin32::MulHiS => two(r, m, d, a, b, |x, y| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32),
        Bin32::And => two(r, m, d, a, b, |x, y| x & y),
        Bin32::Or => two(r, m, d, a, b, |x, y| x | y),
        Bin32::Xor => two(r, m, d, a, b, |x, y| x ^ y),
        Bin32::Shl => two(r, m, d, a, b, |x, n| if n > 31 { 0 } else { x << (n & 31) }),
        Bin32::ShrU => two(r, m, d, a, b, |x, n| if n > 31 { 0 } else { x >> (n & 31) }),
        Bin32::ShrS => two(r, m, d, a, b, |x, n| (x as i32 >> n.min(31)) as u32),
        Bin32::MinU => two(r, m, d, a, b, u32::min),
        Bin32::MinS => two(r, m, d, a, b, |x, y| (x as i32).min(y as i32) as u32),
        Bin32::MaxU => two(r, m, d, a, b, u32::max),
        Bin32::MaxS => two(r, m, d, a, b, |x, y| (x as i32).max(y as i32) as u32),
        Bin32::FAdd => two(r, m, d, a, b, |x, y| out(f(x) + f(y))),
        Bin32::FSub => two(r, m, d, a, b, |x, y| out(f(x) - f(y))),
        Bin32::FMul => two(r, m, d, a, b, |x, y| out(f(x) * f(y))),
        Bin32::FAddFtz => two(r, m, d, a, b, |x, y| out(ftz(ftz(f(x)) + ftz(f(y))))),
        Bin32::FSubFtz => two(r, m, d, a, b, |x, y| out(ftz(ftz(f(x)) - ftz(f(y))))),
        Bin32::FMulFtz => two(r, m, d, a, b, |x, y| out(ftz(ftz(f(x)) * ftz(f(y))))),
        Bin32::FMin => two(r, m, d, a, b, |x, y| out(fmin(f(x), f(y)))),
        Bin32::FMax => two(r, m, d, a, b, |x, y| out(fmax(f(x), f(y)))),
    }
}

#[inline(always)]
pub(crate) fn ternary(r: &mut Regs, m: u32, op: Tri32, d: u32, a: u32, b: u32, c: u32) {
    let s = [a, b, c];
    match op {
        Tri32::Mad => three(r, m, d, s, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        Tri32::Fma => three(r, m, d, s, |x, y, z| out(f(x).mul_add(f(y), f(z)))),
        Tri32::FmaFtz => three(r, m, d, s, |x, y, z| out(ftz(ftz(f(x)).mul_add(ftz(f(y)), ftz(f(z)))))),
        Tri32::ShfL => three(r, m, d, s, |lo, hi, n| {
            let both = u64::from(hi) << 32 | u64::from(lo);
            ((both << (n & 31)) >> 32) as u32
        }),
        Tri32::ShfR => three(r, m, d, s, |lo, hi, n| ((u64::from(hi) << 32 | u64::from(lo)) >> (n & 31)) as u32),
        Tri32::Lop3(table) => match table {
            0x96 => three(r, m, d, s, |x, y, z| x ^ y ^ z),
            0xF8 => three(r, m, d, s, |x, y, z| x | y & z),
            0x80 => three(r, m, d, s, |x, y, z| x & y & z),
            _ => three(r, m, d, s, |x, y, z| {
                let pick = |bit: u32, v: u32| if table >> bit & 1 == 1 { v } else { 0 };
                pick(0, !x & !y & !z)
                    | pick(1, !x & !y & z)
                    | pick(2, !x & y & !z)
                    | pick(3, !x & y & z)
                    | pick(4, x & !y & !z)
                    | pick(5, x & !y & z)
                    | pick(6, x & y & !z)
                    | pick(7, x & y & z)
            }),
        },
    }
}

#[inline(always)]
pub(crate) fn binary64(r: &mut Regs, m: u32, op: Bin64, place: u32, a: u32, b: u32) {
    match op {
        Bin64::Add => two64(r, m, place, a, b, u64::wrapping_add),
        Bin64::Sub => two64(r, m, place, a, b, u64::wrapping_sub),
        Bin64::Mul => two64(r, m, place, a, b, u64::wrapping_mul),
        Bin64::And => two64(r, m, place, a, b, |x, y| x & y),
        Bin64::Or => two64(r, m, place, a, b, |x, y| x | y),
        Bin64::Xor => two64(r, m, place, a, b, |x, y| x ^ y),
        Bin64::DAdd => two64(r, m, place, a, b, |x, y| out64(d(x) + d(y))),
        Bin64::DSub => two64(r, m, place, a, b, |x, y| out64(d(x) - d(y))),
        Bin64::DMul => two64(r, m, place, a, b, |x, y| out64(d(x) * d(y))),
    }
}

#[inline(always)]
pub(crate) fn ternary64(r: &mut Regs, m: u32, op: Tri64, place: u32, a: u32, b: u32, c: u32) {
    match op {
        Tri64::Mad => three64(r, m, place, [a, b, c], |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        Tri64::DFma => three64(r, m, place, [a, b, c], |x, y, z| out64(d(x).mul_add(d(y), d(z)))),
    }
}

#[inline(always)]
pub(crate) fn mov32(r: &mut Regs, m: u32, d: u32, a: u32) {
    one(r, m, d, a, |x| x);
}

#[inline(always)]
pub(crate) fn mov64(r: &mut Regs, m: u32, d: u32, a: u32) {
    one64(r, m, d, a, |x| x);
}

#[inline(always)]
pub(crate) fn shift64(r: &mut Regs, m: u32, op: Shift, d: u32, a: u32, b: u32) {
    for at in 0..LANES / CHUNK {
        let (x, n) = (chunk(&r.long[a as usize], at), chunk(&r.word[b as usize], at));
        let mut out = x;
        for i in 0..CHUNK {
            let (x, n) = (x[i], n[i]);
            out[i] = match op {
                Shift::Left if n > 63 => 0,
                Shift::Left => x << (n & 63),
                Shift::RightU if n > 63 => 0,
                Shift::RightU => x >> (n & 63),
                Shift::RightS => (x as i64 >> n.min(63)) as u64,
            };
        }
        store(&mut r.long[d as usize], at, out, m);
    }
}

/// A 64-bit result from two words and, for `mad`, a long.
#[inline(always)]
fn long_from_words(r: &mut Regs, m: u32, d: u32, [a, b]: [u32; 2], c: Option<u32>, f: impl Fn(u32, u32, u64) -> u64) {
    for at in 0..LANES / CHUNK {
        let (x, y) = (chunk(&r.word[a as usize], at), chunk(&r.word[b as usize], at));
        let z = c.map_or([0; CHUNK], |c| chunk(&r.long[c as usize], at));
        let mut out = [0; CHUNK];
        for i in 0..CHUNK {
            out[i] = f(x[i], y[i], z[i]);
        }
        store(&mut r.long[d as usize], at, out, m);
    }
}

#[inline(always)]
pub(crate) fn mul_wide(r: &mut Regs, m: u32, signed: bool, d: u32, ab: [u32; 2], c: Option<u32>) {
    if signed {
        long_from_words(r, m, d, ab, c, |x, y, z| {
            (i64::from(x as i32) * i64::from(y as i32)).wrapping_add(z as i64) as u64
        });
    } else {
        long_from_words(r, m, d, ab, c, |x, y, z| (u64::from(x) * u64::from(y)).wrapping_add(z));
    }
}

#[inline(always)]
pub(crate) fn widen(r: &mut Regs, m: u32, signed: bool, d: u32, a: u32) {
    if signed {
        long_from_words(r, m, d, [a, a], None, |x, _, _| x as i32 as i64 as u64);
    } else {
        long_from_words(r, m, d, [a, a], None, |x, _, _| u64::from(x));
    }
}

#[inline(always)]
pub(crate) fn pack(r: &mut Regs, m: u32, d: u32, lo: u32, hi: u32) {
    long_from_words(r, m, d, [lo, hi], None, |lo, hi, _| u64::from(hi) << 32 | u64::from(lo));
}

#[inline(always)]
pub(crate) fn narrow(r: &mut Regs, m: u32, d: u32, a: u32, shift: u32) {
    for at in 0..LANES / CHUNK {
        let x = chunk(&r.long[a as usize], at);
        let mut out = [0; CHUNK];
        for i in 0..CHUNK {
            out[i] = (x[i] >> shift) as u32;
        }
        store(&mut r.word[d as usize], at, out, m);
    }
}

#[inline(always)]
pub(crate) fn select32(r: &mut Regs, m: u32, d: u32, a: u32, b: u32, p: u32) {
    let p = r.pred[p as usize];
    for at in 0..LANES / CHUNK {
        let (x, y) = (chunk(&r.word[a as usize], at), chunk(&r.word[b as usize], at));
        let mut out = x;
        for i in 0..CHUNK {
            out[i] = if p >> (at * CHUNK + i) & 1 == 1 { x[i] } else { y[i] };
        }
        store(&mut r.word[d as usize], at, out, m);
    }
}

#[inline(always)]
pub(crate) fn select64(r: &mut Regs, m: u32, d: u32, a: u32, b: u32, p: u32) {
    let p = r.pred[p as usize];
    for at in 0..LANES / CHUNK {
        let (x, y) = (chunk(&r.long[a as usize], at), chunk(&r.long[b as usize], at));
        let mut out = x;
        for i in 0..CHUNK {
            out[i] = if p >> (at * CHUNK + i) & 1 == 1 { x[i] } else { y[i] };
        }
        store(&mut r.long[d as usize], at, out, m);
    }
}

/// One bit for each lane where the comparison holds.
#[inline(always)]
fn test<T: Copy + Default>(a: &[T; LANES], b: &[T; LANES], holds: impl Fn(T, T) -> bool) -> u32 {
    let mut bits = [0u32; CHUNK];
    for at in 0..LANES / CHUNK {
        let (x, y) = (chunk(a, at), chunk(b, at));
        for i in 0..CHUNK {
            bits[i] |= u32::from(holds(x[i], y[i])) << (at * CHUNK + i);
        }
    }
    bits.iter().fold(0, |all, b| all | b)
}

macro_rules! compare {
    ($cmp:expr, $a:expr, $b:expr, $get:expr) => {{
        let get = $get;
        match $cmp {
            Cmp::Eq => test($a, $b, |x, y| get(x) == get(y)),
            Cmp::Ne => test($a, $b, |x, y| get(x) != get(y)),
            Cmp::Lt => test($a, $b, |x, y| get(x) < get(y)),
            Cmp::Le => test($a, $b, |x, y| get(x) <= get(y)),
            Cmp::Gt => test($a, $b, |x, y| get(x) > get(y)),
            _ => test($a, $b, |x, y| get(x) >= get(y)),
        }
    }};
}

macro_rules! compare_float {
    ($cmp:expr, $a:expr, $b:expr, $get:expr) => {{
        let get = $get;
        match $cmp {
            // `ne` is false for NaN in PTX, `neu` true.
            Cmp::Ne => test($a, $b, |x, y| get(x) < get(y) || get(x) > get(y)),
            Cmp::Equ => test($a, $b, |x, y| !(get(x) < get(y) || get(x) > get(y))),
            Cmp::Neu => test($a, $b, |x, y| get(x) != get(y)),
            Cmp::Ltu => test($a, $b, |x, y| !(get(x) >= get(y))),
            Cmp::Leu => test($a, $b, |x, y| !(get(x) > get(y))),
            Cmp::Gtu => test($a, $b, |x, y| !(get(x) <= get(y))),
            Cmp::Geu => test($a, $b, |x, y| !(get(x) < get(y))),
            Cmp::Num => test($a, $b, |x, y| !get(x).is_nan() && !get(y).is_nan()),
            Cmp::Nan => test($a, $b, |x, y| get(x).is_nan() || get(y).is_nan()),
            cmp => compare!(cmp, $a, $b, $get),
        }
    }};
}

#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord)]
pub(crate) fn setp(r: &mut Regs, m: u32, set: &Setp) {
    let Setp { kind, cmp, logic, flip, d: place, q, a, b, c } = *set;
    let (a, b) = (a as usize, b as usize);
    let mut holds = match kind {
        Kind::U32 => compare!(cmp, &r.word[a], &r.word[b], |x| x),
        Kind::S32 => compare!(cmp, &r.word[a], &r.word[b], |x: u32| x as i32),
        Kind::F32 => compare_float!(cmp, &r.word[a], &r.word[b], f),
        Kind::U64 => compare!(cmp, &r.long[a], &r.long[b], |x| x),
        Kind::S64 => compare!(cmp, &r.long[a], &r.long[b], |x: u64| x as i64),
        Kind::S16 => compare!(cmp, &r.word[a], &r.word[b], |x: u32| x as i16),
        _ => setp_rare(kind, cmp, r, a, b),
    };
    let c = r.pred[c as usize] ^ if flip { FULL } else { 0 };
    let join = |x: u32| match logic {
        Logic::And => x & c,
        Logic::Or => x | c,
        Logic::Xor => x ^ c,
    };
    let other = join(!holds);
    holds = join(holds);
    put_pred(r, m, place, holds);
    if q != SINK {
        put_pred(r, m, q, other);
    }
}

#[inline(never)]
#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn setp_rare(kind: Kind, cmp: Cmp, r: &Regs, a: usize, b: usize) -> u32 {
    match kind {
        Kind::F32Ftz => compare_float!(cmp, &r.word[a], &r.word[b], |x: u32| ftz(f(x))),
        Kind::F16 => {
            compare_float!(cmp, &r.word[a], &r.word[b], |x: u32| half::f16::from_bits(x as u16).to_f32())
        }
        Kind::Bf16 => compare_float!(cmp, &r.word[a], &r.word[b], |x: u32| f(x << 16)),
        _ => compare_float!(cmp, &r.long[a], &r.long[b], d),
    }
}

#[inline(always)]
pub(crate) fn put_pred(r: &mut Regs, m: u32, d: u32, value: u32) {
    let old = r.pred[d as usize];
    r.pred[d as usize] = old & !m | value & m;
}

#[inline(always)]
pub(crate) fn predicate(r: &mut Regs, m: u32, logic: Logic, d: u32, a: u32, b: u32, flip: bool) {
    let (a, b) = (r.pred[a as usize], r.pred[b as usize] ^ if flip { FULL } else { 0 });
    let value = match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    };
    put_pred(r, m, d, value);
}

#[inline(never)]
pub(crate) fn scalar(r: &mut Regs, m: u32, op: &Scalar) {
    for lane in super::regs::Bits(m) {
        let mut s = [0; 4];
        for (s, &place) in s.iter_mut().zip(&op.s) {
            *s = r.get(place, lane);
        }
        let value = op.f.call(s);
        r.put(op.d, lane, value);
    }
}
