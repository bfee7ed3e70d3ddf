//! `unfreeze convert`

use std::path::PathBuf;

use clap::Args;
use unfreeze::{
    Device, Error, Result,
    checkpoint::{Checkpoint, FileDtype, Weights, to_safetensors},
    nn::Arch,
};

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
    /// Cast floating-point tensors: f32, f16 or bf16 [default: as they are]
    #[arg(long)]
    dtype: Option<FileDtype>,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        if self.output.extension().is_none_or(|extension| extension != "safetensors") {
            let message = format!("'{}' should end in .safetensors, the format written", self.output.display());
            return Err(Error::setting("OUTPUT", message));
        }
        if let Some(arch) = self.arch {
            Weights::file_of(arch, &self.input)?.with_classifier(&Device::cpu(0)?)?;
        }
        let checkpoint = Checkpoint::read(&self.input)?.normalised()?;
        to_safetensors(&checkpoint, &self.output, self.dtype)?;
        eprintln!("{}: {} tensors", self.output.display(), checkpoint.tensors.len());
        Ok(())
    }
}
