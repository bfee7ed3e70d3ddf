//! Operations on one lane: what the scalar handler calls.

use super::float::{BF16, F16, F32, F64, Format, Round, encode, from_f64, ftz, to_f64};
use super::{Sort, Ty};

/// What a scalar operation computes from its sources; values are zero-extended.
#[derive(Clone, Debug)]
pub(crate) enum ScalarFn {
    One(fn(u64) -> u64),
    Two(fn(u64, u64) -> u64),
    Three(fn(u64, u64, u64) -> u64),
    Four(fn(u64, u64, u64, u64) -> u64),
    Convert(Convert),
    /// Arithmetic in a 16-bit format, on `pairs` halves.
    Half {
        op: HalfOp,
        format: Format,
        pair: bool,
        ftz: bool,
        sat: bool,
        relu: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Ex2,
    Tanh,
}

/// `cvt`: from one type to another.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Convert {
    pub from: Ty,
    pub to: Ty,
    pub round: Round,
    /// Rounds to an integral value in the same floating-point format.
    pub integral: bool,
    pub sat: bool,
    pub ftz: bool,
    pub relu: bool,
    /// Sign-extends the result beyond its type, up to the register's width.
    pub wide: u32,
}

impl ScalarFn {
    #[inline]
    pub fn call(&self, s: [u64; 4]) -> u64 {
        match self {
            ScalarFn::One(f) => f(s[0]),
            ScalarFn::Two(f) => f(s[0], s[1]),
            ScalarFn::Three(f) => f(s[0], s[1], s[2]),
            ScalarFn::Four(f) => f(s[0], s[1], s[2], s[3]),
            ScalarFn::Convert(convert) => convert.call(s[0]),
            ScalarFn::Half { op, format, pair, ftz, sat, relu } => {
                let part = |shift: u32| {
                    let operand = |i: usize| (s[i] >> shift) & 0xFFFF;
                    half_op(*op, *format, operand(0), operand(1), operand(2), *ftz, *sat, *relu)
                };
                if *pair { part(0) | part(16) << 16 } else { part(0) }
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn half_op(op: HalfOp, format: Format, a: u64, b: u64, c: u64, ftz: bool, sat: bool, relu: bool) -> u64 {
    let sign = format.sign();
    match op {
        HalfOp::Neg => return a ^ sign,
        HalfOp::Abs => return a & (sign - 1),
        _ => {}
    }
    let flush = |bits: u64| if ftz && bits & format.infinity() == 0 { bits & sign } else { bits };
    let [x, y, z] = [a, b, c].map(|bits| to_f64(flush(bits), format));
    let value = match op {
        HalfOp::Add => x + y,
        HalfOp::Sub => x - y,
        HalfOp::Mul => x * y,
        HalfOp::Fma => super::float::fma_odd(x, y, z),
        HalfOp::Min => min(x, y),
        HalfOp::Max => max(x, y),
        HalfOp::MinNan if x.is_nan() || y.is_nan() => f64::NAN,
        HalfOp::MinNan => min(x, y),
        HalfOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        HalfOp::MaxNan => max(x, y),
        HalfOp::Ex2 => x.exp2(),
        HalfOp::Tanh => x.tanh(),
        HalfOp::Neg | HalfOp::Abs => x,
    };
    let value = if sat { clamp01(value) } else { value };
    let value = if relu && value <= 0.0 { 0.0 } else { value };
    flush(from_f64(value, format, Round::Nearest))
}

/// The smaller; the other one if one is NaN; -0 is smaller than +0.
pub(crate) fn min(x: f64, y: f64) -> f64 {
    if x.is_nan() {
        y
    } else if y.is_nan() || x < y || (x == y && x.is_sign_negative()) {
        x
    } else {
        y
    }
}

pub(crate) fn max(x: f64, y: f64) -> f64 {
    if x.is_nan() {
        y
    } else if y.is_nan() || x > y || (x == y && x.is_sign_positive()) {
        x
    } else {
        y
    }
}

/// `.sat`: to [0, 1], NaN to 0.
pub(crate) fn clamp01(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

pub(crate) fn format(ty: Ty) -> Format {
    match (ty.sort, ty.bits) {
        (Sort::Bf16, _) => BF16,
        (_, 16) => F16,
        (_, 64) => F64,
        _ => F32,
    }
}

pub(crate) fn sign_extend(value: u64, bits: u32) -> i64 {
    (value << (64 - bits)) as i64 >> (64 - bits)
}

pub(crate) fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// Rounds to an integral value.
fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::NearestAway => x.round(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

impl Convert {
    fn call(&self, raw: u64) -> u64 {
        let from_bits = raw & mask(self.from.bits);
        match (self.from.integer(), self.to.integer()) {
            (true, true) => self.extend(self.integer(from_bits)),
            (true, false) => {
                let negative = self.from.signed() && sign_extend(from_bits, self.from.bits) < 0;
                let size = if negative { sign_extend(from_bits, self.from.bits).unsigned_abs() } else { from_bits };
                let bits = encode(negative, size, 0, format(self.to), self.round);
                self.float(to_f64(bits, format(self.to)))
            }
            (false, true) => self.extend(self.round_to_integer(self.source(from_bits))),
            (false, false) => {
                let value = self.source(from_bits);
                self.float(if self.integral { integral(value, self.round) } else { value })
            }
        }
    }

    fn source(&self, bits: u64) -> f64 {
        let value = to_f64(bits, format(self.from));
        if self.ftz && self.from.bits == 32 { f64::from(ftz(value as f32)) } else { value }
    }

    fn float(&self, value: f64) -> u64 {
        let value = if self.sat { clamp01(value) } else { value };
        let value = if self.relu && value <= 0.0 { 0.0 } else { value };
        if self.to.sort == Sort::Tf32 {
            let format = Format { fraction: 10, exponent: 8 };
            return if value.is_nan() { F32.nan() } else { from_f64(value, format, self.round) << 13 };
        }
        let bits = from_f64(value, format(self.to), self.round);
        if self.ftz && self.to.bits == 32 { u64::from(ftz(f32::from_bits(bits as u32)).to_bits()) } else { bits }
    }

    fn integer(&self, bits: u64) -> u64 {
        let value = if self.from.signed() { i128::from(sign_extend(bits, self.from.bits)) } else { i128::from(bits) };
        let value = if self.sat { value.clamp(self.lowest(), self.highest()) } else { value };
        value as u64 & mask(self.to.bits)
    }

    fn lowest(&self) -> i128 {
        if self.to.signed() { -(1i128 << (self.to.bits - 1)) } else { 0 }
    }

    fn highest(&self) -> i128 {
        (1i128 << (self.to.bits - u32::from(self.to.signed()))) - 1
    }

    fn round_to_integer(&self, value: f64) -> u64 {
        if value.is_nan() {
            let wide = self.from.bits == 64 || self.to.bits == 64;
            return if wide { 1 << (self.to.bits - 1) } else { 0 };
        }
        // `as` saturates at i128's limits, far outside of the result's.
        let value = integral(value, self.round) as i128;
        value.clamp(self.lowest(), self.highest()) as u64 & mask(self.to.bits)
    }

    fn extend(&self, bits: u64) -> u64 {
        if self.to.signed() && self.wide > self.to.bits {
            sign_extend(bits, self.to.bits) as u64 & mask(self.wide)
        } else {
            bits
        }
    }
}
