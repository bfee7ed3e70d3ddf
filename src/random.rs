//! Counter-based randomness: a value is a pure function of (seed, stream, counter), so it depends neither on
//! thread count nor on what was drawn before, and a resumed run draws what an uninterrupted one would have drawn.
//!
//! The mixing function is splitmix64 (Steele, Lea, Flood 2014); string keys enter through FNV-1a.

use std::convert::Infallible;

/// One splitmix64 output for the counter `x`.
#[inline]
pub(crate) fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a over the bytes of `text`.
pub(crate) fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// A stream of random numbers named by a key; implements [`rand::Rng`], so that rand's distributions and
/// shuffles work on it.
#[derive(Clone, Debug)]
pub struct Random {
    key: u64,
    counter: u64,
}

impl Random {
    /// The stream of `seed` for a purpose (`"shuffle"`, `"augment"`, a layer's name) and its numbers
    /// (epoch, sample, …).
    pub fn stream(seed: u64, purpose: &str, numbers: &[u64]) -> Self {
        let start = splitmix64(seed ^ fnv1a64(purpose));
        numbers.iter().fold(Self { key: start, counter: 0 }, |stream, &number| stream.numbered(number))
    }

    /// A stream of its own for a part of what this one is for, whatever was drawn before: so that a part which is left
    /// out, or draws more, does not change what the others draw.
    pub fn part(&self, name: &str, number: u64) -> Self {
        Self { key: splitmix64(splitmix64(self.key ^ fnv1a64(name)) ^ number), counter: 0 }
    }

    /// The stream with one more number, as [`Random::stream`] would have named it.
    pub(crate) fn numbered(&self, number: u64) -> Self {
        Self { key: splitmix64(self.key ^ number), counter: 0 }
    }

    /// The value at position `index`, whatever was drawn before, in `[0, 1)` with 24 bits.
    #[inline]
    pub fn at(&self, index: u64) -> f32 {
        unit_f32(splitmix64(self.key.wrapping_add(index)))
    }

    /// What a kernel needs to compute [`Random::at`] itself (`kernels/include/random.cuh`).
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// The next value, uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        let unit = unit_f32(self.advance());
        low + (high - low) * unit
    }

    /// The next two values of a standard normal distribution (Box & Muller 1958).
    pub fn normal_pair(&mut self) -> [f32; 2] {
        let (radius, angle) = (1.0 - self.uniform(0.0, 1.0), self.uniform(0.0, std::f32::consts::TAU));
        let radius = (-2.0 * radius.ln()).sqrt();
        [radius * angle.cos(), radius * angle.sin()]
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.uniform(0.0, 1.0) < p
    }

    fn advance(&mut self) -> u64 {
        let value = splitmix64(self.key.wrapping_add(self.counter));
        self.counter += 1;
        value
    }
}

#[inline]
fn unit_f32(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u32 << 24) as f32
}

impl rand::TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.advance() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.advance())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.advance().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let mut a = Random::stream(1, "shuffle", &[0]);
        let mut b = Random::stream(1, "shuffle", &[1]);
        assert_eq!(a.clone().uniform(0.0, 1.0), a.uniform(0.0, 1.0));
        assert_ne!(a.uniform(0.0, 1.0), b.uniform(0.0, 1.0));
    }

    #[test]
    fn parts_differ_and_do_not_depend_on_what_was_drawn() {
        let mut whole = Random::stream(1, "augment", &[0]);
        let first = |random: &Random, name, number| random.part(name, number).uniform(0.0, 1.0);
        let before = first(&whole, "flip", 0);
        whole.uniform(0.0, 1.0);
        assert_eq!(before, first(&whole, "flip", 0));
        assert_ne!(before, first(&whole, "flip", 1));
        assert_ne!(before, first(&whole, "crop", 0));
        assert_ne!(before, first(&Random::stream(1, "augment", &[1]), "flip", 0));
    }

    #[test]
    fn normal_has_unit_variance() {
        let mut random = Random::stream(3, "init", &[]);
        let values: Vec<f64> = (0..10_000).flat_map(|_| random.normal_pair().map(f64::from)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "mean {mean}, variance {variance}");
    }
}
