//! The numeric paths of a network.

use std::{fmt, str::FromStr};

use super::DType;

/// What a network's activations are stored in and what its convolutions multiply with. Parameters, batchnorm statistics,
/// sums and the head are f32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Stored as f32, multiplied on tensor cores with 10 bits of mantissa. GPUs of compute capability 8.0 or more.
    Tf32,
    /// Stored and multiplied as bfloat16, summed in f32. GPUs of compute capability 8.0 or more.
    Bf16,
}

impl Precision {
    /// The type of activations.
    pub fn storage(self) -> DType {
        match self {
            Precision::F32 | Precision::Tf32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Precision::F32),
            "tf32" => Ok(Precision::Tf32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(format!("'{text}' is no precision; use f32, tf32 or bf16")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        })
    }
}
