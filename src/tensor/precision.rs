//! The numeric paths of a network.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::DType;
use crate::{Device, Error, Result};

/// Compute capability of the first GPUs with the tensor cores that TF32 and bf16 need.
const TENSOR_CORES: (u32, u32) = (8, 0);

/// What a network's activations are stored in and what its convolutions multiply with. Parameters, batchnorm
/// statistics, sums and the head are f32 in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

    /// Checks that `device` can compute with it.
    ///
    /// # Errors
    /// [`Error::Setting`] if not.
    pub fn check(self, device: &Device) -> Result<()> {
        let remedy = match device {
            _ if self == Precision::F32 => return Ok(()),
            Device::Cuda(cuda) if cuda.properties().capability >= TENSOR_CORES => return Ok(()),
            Device::Cuda(_) => "has no tensor cores for it: that takes compute capability 8.0",
            Device::Cpu(_) => "computes in f32 alone",
        };
        Err(Error::setting("dtype", format!("{self} is for newer GPUs: {device} {remedy}; use f32")))
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
