//! `unfreeze inspect`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use unfreeze::{Result, checkpoint::Checkpoint};

/// List the tensors of a checkpoint file: name, dtype, shape
#[derive(Args)]
pub struct Inspect {
    /// A .safetensors or PyTorch file
    file: PathBuf,
    /// Print one JSON object per tensor: name, dtype, shape
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let checkpoint = Checkpoint::read(&self.file)?;
        let width = checkpoint.tensors.keys().map(String::len).max().unwrap_or_default();
        for (name, tensor) in &checkpoint.tensors {
            let dtype = tensor.dtype.to_string();
            if self.json {
                outln!("{}", json!({ "name": name, "dtype": dtype, "shape": tensor.shape }));
            } else {
                outln!("{name:<width$}  {dtype:<4}  {:?}", tensor.shape);
            }
        }
        if !self.json {
            for (key, value) in &checkpoint.metadata {
                outln!("{key}: {value}");
            }
            let elements: usize = checkpoint.tensors.values().map(|tensor| tensor.elements()).sum();
            outln!("{}: {} tensors, {elements} elements", checkpoint.format, checkpoint.tensors.len());
        }
        Ok(())
    }
}
