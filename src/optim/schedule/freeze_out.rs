//! FreezeOut: layers whose rates end one after the other, the first ones first.

use std::{f64::consts::PI, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How layers are frozen one after the other: FreezeOut (Brock et al. 2017, [arXiv
/// 1706.04983](https://arxiv.org/abs/1706.04983)). Layer i of 0 … L learns until the share `t_i = f(t₀ + (1 − t₀)·i /
/// L)` of the fit, at a rate that falls along half a cosine, and costs no backward pass after that.
///
/// As text `linear`, `quadratic` or `cubic`, then `:T0` and `:unscaled` where they are not the defaults.
///
/// ```
/// use unfreeze::optim::FreezeOut;
/// let ends = FreezeOut::default().ends(3);
/// assert!((ends[0] - 0.512).abs() < 1e-9 && ends[2] == 1.0);
/// assert_eq!("cubic:0.8".parse::<FreezeOut>()?, FreezeOut::default());
/// # Ok::<(), unfreeze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FreezeOut {
    /// Exponent of f: 1, 2 or 3. Default 3, cubic.
    pub power: u32,
    /// t₀, in (0, 1]. Default 0.8.
    pub t0: f64,
    /// Whether a layer's rate begins `1 / t_i` higher, so that all move equally far. Default true.
    pub scaled: bool,
}

const NAMES: [&str; 3] = ["linear", "quadratic", "cubic"];

impl Default for FreezeOut {
    fn default() -> Self {
        Self { power: 3, t0: 0.8, scaled: true }
    }
}

impl FreezeOut {
    /// The share of the fit after which each of `layers` is frozen, the first layer first; 1 for the last.
    pub fn ends(&self, layers: usize) -> Vec<f64> {
        let last = layers.saturating_sub(1).max(1) as f64;
        let from = layers.saturating_sub(1);
        let linear = |layer: usize| if layer == from { 1.0 } else { self.t0 + (1.0 - self.t0) * layer as f64 / last };
        (0..layers).map(|layer| linear(layer).powi(self.power as i32)).collect()
    }

    /// The factor on the rate of a layer that is frozen after the share `end`, at the share `at` of the fit; 0 from
    /// there on.
    pub fn factor(&self, end: f64, at: f64) -> f64 {
        match at < end {
            true => 0.5 * (1.0 + (PI * at / end).cos()) / if self.scaled { end } else { 1.0 },
            false => 0.0,
        }
    }

    /// The share of a fit's time that the paper expects to save, where layer i costs `costs[i]` forward and as much
    /// backward: `1 − (Σc + Σ c_i·t_i) / 2Σc`.
    pub fn predicted_saving(&self, costs: &[f64]) -> f64 {
        let all: f64 = costs.iter().sum();
        let backward: f64 = costs.iter().zip(self.ends(costs.len())).map(|(cost, end)| cost * end).sum();
        1.0 - (all + backward) / (2.0 * all)
    }

    /// Whether it makes sense.
    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=3).contains(&self.power) {
            return Err(Error::setting("freeze_out", format!("the power {} is not 1, 2 or 3", self.power)));
        }
        match self.t0 > 0.0 && self.t0 <= 1.0 {
            true => Ok(()),
            false => Err(Error::setting("freeze_out", format!("t0 is {}; give a share above 0, up to 1", self.t0))),
        }
    }
}

impl fmt::Display for FreezeOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.get((self.power as usize).wrapping_sub(1)).copied().unwrap_or("none");
        write!(f, "{name}:{}{}", self.t0, if self.scaled { "" } else { ":unscaled" })
    }
}

impl FromStr for FreezeOut {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let message =
                format!("'{text}' is none; give linear, quadratic or cubic, then :T0 and :unscaled if wanted");
            Error::setting("freeze_out", message)
        };
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let power = NAMES.iter().position(|known| *known == name).ok_or_else(wrong)? as u32 + 1;
        let mut found = Self { power, ..Self::default() };
        for part in parts {
            match part {
                "unscaled" => found.scaled = false,
                t0 => found.t0 = t0.parse().map_err(|_| wrong())?,
            }
        }
        found.check().map(|()| found)
    }
}

impl TryFrom<String> for FreezeOut {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<FreezeOut> for String {
    fn from(options: FreezeOut) -> Self {
        options.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand from the paper's formulas.
    #[test]
    fn layers_end_and_rates_fall_as_in_the_paper() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let linear: FreezeOut = "linear:0.5:unscaled".parse().unwrap();
        assert_eq!(linear.ends(5), [0.5, 0.625, 0.75, 0.875, 1.0]);
        let cubic = FreezeOut::default();
        assert!(near(cubic.ends(3)[0], 0.512) && near(cubic.ends(3)[1], 0.729) && cubic.ends(3)[2] == 1.0);
        assert_eq!((cubic.ends(1), cubic.ends(0)), (vec![1.0], vec![]));
        assert!(near(linear.factor(0.5, 0.0), 1.0) && near(linear.factor(0.5, 0.25), 0.5));
        assert_eq!((linear.factor(0.5, 0.5), linear.factor(0.5, 0.9)), (0.0, 0.0));
        assert!(near(cubic.factor(0.512, 0.0), 1.0 / 0.512) && near(cubic.factor(1.0, 0.5), 0.5));
        // All layers of a scaled one move equally far: half a unit, the area under half a cosine.
        for end in cubic.ends(4) {
            let area: f64 = (0..10_000).map(|step| cubic.factor(end, (f64::from(step) + 0.5) / 1e4) / 1e4).sum();
            assert!((area - 0.5).abs() < 1e-3, "{end}: {area}");
        }
        // Costs 3, 1 and ends .5, 1: of 8 units backward passes spare 1.5.
        assert!(near(linear.predicted_saving(&[3.0, 1.0]), 1.5 / 8.0));
        assert!(near(FreezeOut { t0: 1.0, ..cubic }.predicted_saving(&[3.0, 1.0]), 0.0));
    }

    #[test]
    fn text_reads_back_and_nonsense_is_refused() {
        for text in ["linear:0.5", "quadratic:0.8", "cubic:1:unscaled"] {
            assert_eq!(text.parse::<FreezeOut>().unwrap().to_string(), text);
        }
        for (text, cause) in
            [("quartic", "cubic"), ("cubic:x", "T0"), ("cubic:0", "t0 is 0"), ("cubic:1.5", "t0 is 1.5")]
        {
            let message = text.parse::<FreezeOut>().unwrap_err().to_string();
            assert!(message.contains(cause), "{message}");
        }
    }
}
