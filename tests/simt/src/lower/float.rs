//! Exact floating-point rounding between formats, and arithmetic in other rounding modes than to nearest.

/// Rounding modes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Round {
    Nearest,
    /// To nearest, ties away from zero (`.rna`).
    NearestAway,
    Zero,
    Down,
    Up,
}

impl Round {
    pub fn parse(name: &str) -> Round {
        match name.trim_end_matches('i') {
            "rz" => Round::Zero,
            "rm" => Round::Down,
            "rp" => Round::Up,
            "rna" => Round::NearestAway,
            _ => Round::Nearest,
        }
    }
}

/// Floating-point formats: bits of the significand after the point, and of the exponent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub fraction: u32,
    pub exponent: u32,
}

pub(crate) const F16: Format = Format { fraction: 10, exponent: 5 };
pub(crate) const BF16: Format = Format { fraction: 7, exponent: 8 };
pub(crate) const F32: Format = Format { fraction: 23, exponent: 8 };
pub(crate) const F64: Format = Format { fraction: 52, exponent: 11 };

impl Format {
    pub fn nan(self) -> u64 {
        match self {
            F16 | BF16 => 0x7FFF,
            F32 => 0x7FFF_FFFF,
            _ => 0x7FFF_FFFF_FFFF_FFFF,
        }
    }

    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    pub fn sign(self) -> u64 {
        1 << (self.fraction + self.exponent)
    }
}

/// `±significand × 2^exponent`, rounded to `format`: its bits.
pub(crate) fn encode(negative: bool, significand: u64, exponent: i32, format: Format, round: Round) -> u64 {
    let sign = if negative { format.sign() } else { 0 };
    if significand == 0 {
        return sign;
    }
    let bias = (1 << (format.exponent - 1)) - 1;
    let top = 63 - significand.leading_zeros() as i32;
    // The exponent of the last place kept: limited below by subnormals.
    let last = (top + exponent).max(1 - bias) - format.fraction as i32;
    let drop = last - exponent;
    let (mut kept, exact, half) = if drop <= 0 {
        ((significand as u128) << -drop, true, std::cmp::Ordering::Less)
    } else if drop > 64 {
        (0, false, std::cmp::Ordering::Less)
    } else {
        let wide = u128::from(significand);
        let rest = wide & ((1 << drop) - 1);
        (wide >> drop, rest == 0, rest.cmp(&(1 << (drop - 1))))
    };
    let up = !exact
        && match round {
            Round::Nearest => half.is_gt() || (half.is_eq() && kept & 1 == 1),
            Round::NearestAway => half.is_ge(),
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
    kept += u128::from(up);
    // `kept` is at most 2^(fraction+1); adding it to the biased exponent carries as it should.
    let biased = (last + format.fraction as i32 + bias - 1) as u64;
    let bits = (biased << format.fraction) + kept as u64;
    if bits >= format.infinity() {
        let away = match round {
            Round::Nearest | Round::NearestAway => true,
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
        return sign | if away { format.infinity() } else { format.infinity() - 1 };
    }
    sign | bits
}

/// An `f64` rounded to `format`; NaN becomes the format's canonical NaN.
pub(crate) fn from_f64(value: f64, format: Format, round: Round) -> u64 {
    if value.is_nan() {
        return format.nan();
    }
    let sign = if value.is_sign_negative() { format.sign() } else { 0 };
    if value.is_infinite() {
        return sign | format.infinity();
    }
    let bits = value.to_bits();
    let (biased, fraction) = ((bits >> 52) as i32 & 0x7FF, bits & ((1 << 52) - 1));
    let (significand, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
    encode(value.is_sign_negative(), significand, exponent, format, round)
}

pub(crate) fn to_f64(bits: u64, format: Format) -> f64 {
    match format {
        F16 => half::f16::from_bits(bits as u16).to_f64(),
        BF16 => f64::from(f32::from_bits((bits as u32) << 16)),
        F32 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

/// `a * b + c` of values of at most 24 significant bits, rounded to odd in an f64: rounding that again is exact.
pub(crate) fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    let product = a * b;
    let sum = product + c;
    if !sum.is_finite() {
        return sum;
    }
    // Knuth's two-sum: the exact error of the addition.
    let part = sum - product;
    let error = (product - (sum - part)) + (c - part);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    if (error > 0.0) == (sum > 0.0) { f64::from_bits(sum.to_bits() + 1) } else { f64::from_bits(sum.to_bits() - 1) }
}

/// `a * b + c` in f32 in any rounding mode.
pub(crate) fn fma_f32(a: f32, b: f32, c: f32, round: Round) -> u32 {
    let odd = fma_odd(f64::from(a), f64::from(b), f64::from(c));
    if odd == 0.0 && round == Round::Down && exact_zero_of_opposites(a, b, c) {
        return 0x8000_0000;
    }
    from_f64(odd, F32, round) as u32
}

/// Exact cancellation gives -0 when rounding down.
fn exact_zero_of_opposites(a: f32, b: f32, c: f32) -> bool {
    let product_negative = a.is_sign_negative() != b.is_sign_negative();
    product_negative != c.is_sign_negative()
}

/// Flushes subnormals to zero of the same sign.
#[inline(always)]
pub(crate) fn ftz(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_matches_rusts_own_conversion() {
        let mut bits = 0x1234_5678_9ABC_DEFFu64;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let value = f64::from_bits(bits ^ (bits >> 29));
            // Exponents near f32's range, ties among them.
            let value = f64::from_bits((value.to_bits() & 0x800F_FFFF_F000_0000) | ((bits >> 5) % 300 + 870) << 52);
            assert_eq!(from_f64(value, F32, Round::Nearest) as u32, (value as f32).to_bits(), "{value:e}");
            let f = value as f32;
            assert_eq!(from_f64(f.into(), F16, Round::Nearest) as u16, half::f16::from_f32(f).to_bits(), "{f:e}");
            assert_eq!(from_f64(f.into(), BF16, Round::Nearest) as u16, half::bf16::from_f32(f).to_bits(), "{f:e}");
        }
    }

    #[test]
    fn fma_by_odd_rounding_is_the_fused_one() {
        let mut bits = 99u64;
        for _ in 0..200_000 {
            let mut next = || {
                bits = bits.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
                f32::from_bits(((bits >> 33) as u32 & 0x807F_FFFF) | (100 + (bits >> 20) as u32 % 50) << 23)
            };
            let (a, b, c) = (next(), next(), next());
            assert_eq!(fma_f32(a, b, c, Round::Nearest), a.mul_add(b, c).to_bits());
        }
    }
}
