//! Rules that read a learning rate off the curve of a search.

use std::{fmt, str::FromStr};

use crate::Error;

/// Which rate a search for the learning rate suggests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Suggestion {
    /// A tenth of the rate where the smoothed loss is lowest: fastai's rule since its course with 0.7, and `minimum` in
    /// its later versions. Where the loss still falls at the last step its minimum was not met, and it is that of
    /// [`Suggestion::Steepest`].
    #[default]
    Minimum,
    /// The rate where the smoothed loss falls fastest, measured over a tenth of the steps (after `steep` in later
    /// versions of fastai). Noisier than the others.
    Steepest,
    /// The middle of the longest fall, after `valley`, the default of fastai 2.3 and later: of all choices of points
    /// in which each is lower than the one before, the longest is taken; its number of points is gone back from its
    /// last one, and half of that forward again.
    Valley,
}

impl Suggestion {
    const ALL: [(&str, Suggestion); 3] =
        [("minimum", Suggestion::Minimum), ("steepest", Suggestion::Steepest), ("valley", Suggestion::Valley)];
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, rule)| rule == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

impl FromStr for Suggestion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, rule)| *rule);
        found.ok_or_else(|| Error::setting("suggest", format!("'{text}' is no rule; give minimum, steepest or valley")))
    }
}

/// Position of the lowest value, the first of equals.
pub(super) fn lowest(curve: &[f32]) -> usize {
    (0..curve.len()).fold(0, |best, at| if curve[at] < curve[best] { at } else { best })
}

/// Where the curve falls fastest before its lowest point, over `near` points to each side: since rates grow by the same
/// factor from step to step, differences are slopes, and those of single steps are mostly noise.
pub(super) fn steepest(curve: &[f32], near: usize) -> Option<usize> {
    let falls = |at: &usize| curve[at.saturating_sub(near)] - curve[(at + near).min(curve.len() - 1)];
    (0..lowest(curve)).max_by(|a, b| falls(a).total_cmp(&falls(b)))
}

/// The middle of the longest fall; `None` if nothing falls.
pub(super) fn valley(curve: &[f32]) -> Option<usize> {
    // The highest last point of the falls of each length: the easiest to go on from.
    let mut tails: Vec<f32> = Vec::new();
    let mut end = 0;
    for (at, value) in curve.iter().enumerate() {
        let before = tails.partition_point(|tail| tail > value);
        match tails.get_mut(before) {
            Some(tail) => *tail = *value,
            None => {
                tails.push(*value);
                end = at;
            }
        }
    }
    let length = tails.len();
    (length > 1).then(|| (end + length / 3 + length / 6).saturating_sub(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Positions that fastai's `valley` gives for these curves, computed by executing its definition.
    #[test]
    fn valleys_equal_fastai() {
        // As a search's: noise on a fall and an explosion.
        let search: Vec<f32> = (0..90)
            .map(|n| {
                let (x, noise) = (f64::from(n) / 15.0, (f64::from(n * n) * 0.7).sin() * 0.05);
                (2.0 - 1.2 / (1.0 + (-2.0 * (x - 3.0)).exp()) + (0.9 * (x - 4.0)).exp() * 0.2 + noise) as f32
            })
            .collect();
        let falling: Vec<f32> = (0..20).map(|n| 1.0 / (n + 1) as f32).collect();
        let cases: [(&[f32], usize); 5] = [
            (&search, 50),
            (&falling, 8),
            (&[5.0, 4.0, 3.0, 2.0, 1.0, 9.0, 9.5], 0),
            (&[1.0, 5.0, 6.0, 4.0, 4.5, 3.0, 2.0, 8.0], 3),
            (&[3.0, 3.0, 2.0, 2.0, 1.0, 1.0], 2),
        ];
        for (curve, expected) in cases {
            assert_eq!(valley(curve), Some(expected), "{curve:?}");
        }
        for nothing in [&[][..], &[1.0], &[1.0, 1.0, 2.0]] {
            assert_eq!(valley(nothing), None);
        }
        assert_eq!(valley(&[2.0, 1.0]), Some(0), "where fastai counts from the end of the list");
    }

    /// The length and the end of the longest fall, from the definition: by trying every choice of points.
    #[test]
    fn the_longest_fall_is_found() {
        for seed in 0..200 {
            let mut random = Random::stream(seed, "curve", &[]);
            let curve: Vec<f32> = (0..9).map(|_| random.uniform(0.0, 6.0).floor()).collect();
            let (mut length, mut end) = (0, 0);
            for choice in 1u32..1 << curve.len() {
                let chosen: Vec<usize> = (0..curve.len()).filter(|at| choice >> at & 1 == 1).collect();
                let falls = chosen.windows(2).all(|pair| curve[pair[1]] < curve[pair[0]]);
                let last = *chosen.last().unwrap();
                if falls && (chosen.len() > length || chosen.len() == length && last < end) {
                    (length, end) = (chosen.len(), last);
                }
            }
            let expected = (length > 1).then(|| (end + length / 3 + length / 6).saturating_sub(length));
            assert_eq!(valley(&curve), expected, "{curve:?}");
        }
    }

    #[test]
    fn names_read_back() {
        for (name, rule) in Suggestion::ALL {
            assert_eq!((rule.to_string().as_str(), name.parse::<Suggestion>().unwrap()), (name, rule));
        }
        assert!("slide".parse::<Suggestion>().unwrap_err().to_string().contains("valley"));
    }
}
