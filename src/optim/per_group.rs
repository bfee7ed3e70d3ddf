//! A learning rate or weight decay for each layer group.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, nn::FreezeState};

/// One value for all layer groups, one for each, or a geometric range from the first group to the last.
///
/// ```
/// use unfreeze::optim::PerGroup;
/// assert_eq!("1e-4,1e-3,1e-2".parse::<PerGroup>()?, PerGroup::from([1e-4, 1e-3, 1e-2]));
/// assert_eq!("1e-4..1e-2".parse::<PerGroup>()?, PerGroup::Range(1e-4, 1e-2));
/// # Ok::<(), unfreeze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PerGroup {
    /// The same for every group.
    All(f32),
    /// One for each group, in order, frozen groups included.
    Each(Vec<f32>),
    /// Geometrically spaced, from the first group's to the last one's.
    Range(f32, f32),
}

impl PerGroup {
    /// The last group's value.
    pub(crate) fn last(&self) -> f32 {
        match self {
            PerGroup::All(value) | PerGroup::Range(_, value) => *value,
            PerGroup::Each(values) => values.last().copied().unwrap_or_default(),
        }
    }

    /// One value for each group of `state`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming `setting` if the count is wrong or a value is negative or not finite.
    pub fn resolve(&self, setting: &str, state: &FreezeState) -> Result<Vec<f32>> {
        let count = state.names().len();
        let values = match self {
            PerGroup::All(value) => vec![*value; count],
            PerGroup::Each(values) if values.len() == count => values.clone(),
            PerGroup::Each(values) => {
                let message = format!(
                    "{} values given for {count} layer groups ({state}); give one value, {count} values, or LO..HI",
                    values.len()
                );
                return Err(Error::setting(setting, message));
            }
            PerGroup::Range(low, high) if *low > 0.0 && *high > 0.0 => {
                let ratio = f64::from(high / low).powf(1.0 / (count.max(2) - 1) as f64);
                let inner = (0..count - 1).map(|group| (f64::from(*low) * ratio.powi(group as i32)) as f32);
                inner.chain([*high]).collect()
            }
            PerGroup::Range(low, high) => {
                let message = format!("the range {low}..{high} needs two positive ends");
                return Err(Error::setting(setting, message));
            }
        };
        match values.iter().find(|value| !value.is_finite() || **value < 0.0) {
            Some(bad) => Err(Error::setting(setting, format!("{bad} is not a rate; give finite values from 0 up"))),
            None => Ok(values),
        }
    }
}

impl From<f32> for PerGroup {
    fn from(value: f32) -> Self {
        PerGroup::All(value)
    }
}

impl<const N: usize> From<[f32; N]> for PerGroup {
    fn from(values: [f32; N]) -> Self {
        PerGroup::Each(values.into())
    }
}

impl From<Vec<f32>> for PerGroup {
    fn from(values: Vec<f32>) -> Self {
        PerGroup::Each(values)
    }
}

impl FromStr for PerGroup {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| {
            let wrong = || Error::setting("rate", format!("'{text}' is no number; give V, V,V,V or LO..HI"));
            text.trim().parse::<f32>().map_err(|_| wrong())
        };
        if let Some((low, high)) = text.split_once("..") {
            return Ok(PerGroup::Range(number(low)?, number(high)?));
        }
        match text.split(',').map(number).collect::<Result<Vec<f32>>>()?.as_slice() {
            [value] => Ok(PerGroup::All(*value)),
            values => Ok(PerGroup::Each(values.to_vec())),
        }
    }
}

impl fmt::Display for PerGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PerGroup::All(value) => write!(f, "{value}"),
            PerGroup::Each(values) => {
                let values: Vec<String> = values.iter().map(f32::to_string).collect();
                f.write_str(&values.join(","))
            }
            PerGroup::Range(low, high) => write!(f, "{low}..{high}"),
        }
    }
}

impl TryFrom<String> for PerGroup {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PerGroup> for String {
    fn from(values: PerGroup) -> Self {
        values.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Arch, Grouping};

    fn resolve(text: &str) -> Result<Vec<f32>> {
        text.parse::<PerGroup>()?.resolve("lr", &FreezeState::head_only(Arch::ResNet18, Grouping::Fastai))
    }

    #[test]
    fn one_value_each_or_a_geometric_range() -> Result<()> {
        assert_eq!(resolve("0.1")?, [0.1; 3]);
        assert_eq!(resolve("1,2,3")?, [1.0, 2.0, 3.0]);
        let range = resolve("1e-4..1e-2")?;
        assert!((range[1] / 1e-3 - 1.0).abs() < 1e-5 && range[0] == 1e-4 && range[2] == 1e-2, "{range:?}");
        Ok(())
    }

    #[test]
    fn wrong_counts_and_values_name_the_groups() {
        let message = resolve("1,2").unwrap_err().to_string();
        assert!(message.contains("2 values given for 3 layer groups (0 stem..layer2"), "{message}");
        for bad in ["-1", "nan", "0..1", "1..x", "", "1,,2", "inf"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn display_parses_back() -> Result<()> {
        for text in ["0.001", "1e-4,0.5,3", "1e-6..0.01"] {
            let value: PerGroup = text.parse()?;
            assert_eq!(value.to_string().parse::<PerGroup>()?, value);
        }
        Ok(())
    }
}
