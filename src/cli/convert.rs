//! `unfreeze convert`

use std::path::PathBuf;

use clap::Args;

use super::options::check_output;
use unfreeze::{
    Device, Result,
    checkpoint::{Checkpoint, FileDtype, Weights, to_safetensors},
    nn::Arch,
};

fn float(text: &str) -> Result<FileDtype, String> {
    match text.parse::<FileDtype>() {
        Ok(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err("give f32, f16, bf16 or f64".into()),
    }
}

/// Convert a checkpoint to safetensors, with torchvision's tensor names
///
/// Reads safetensors and PyTorch files (.pth, .pt, .th) without executing anything in them; wrappers such as
/// state_dict and prefixes such as module. are taken away.
#[derive(Args)]
pub struct Convert {
    /// Checkpoint to read
    input: PathBuf,
    /// File to write
    #[arg(value_name = "OUTPUT.safetensors")]
    output: PathBuf,
    /// Check that the checkpoint fits this architecture, its classifier included
    #[arg(long)]
    arch: Option<Arch>,
    /// Cast floating-point tensors: f32, f16, bf16 or f64 [default: as they are]
    #[arg(long, value_parser = float)]
    dtype: Option<FileDtype>,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        check_output("OUTPUT", &self.output, "safetensors")?;
        if let Some(arch) = self.arch {
            Weights::file_of(arch, &self.input)?.with_classifier(&Device::cpu(1)?)?;
        }
        let checkpoint = Checkpoint::read(&self.input)?.normalised()?;
        to_safetensors(&checkpoint, &self.output, self.dtype)?;
        errln!("{}: {} tensors", self.output.display(), checkpoint.tensors.len());
        Ok(())
    }
}
