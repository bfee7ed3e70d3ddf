//! `unfreeze inspect`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use unfreeze::{
    Result,
    checkpoint::{Conversion, ConvertOptions, TensorSource, TensorStats},
};

use super::options::open_checkpoint;

/// List the tensors of a checkpoint file: name, dtype, shape
///
/// Reads what `convert` reads: safetensors, sharded checkpoints (their .index.json), PyTorch files, NumPy's .npz.
/// Nothing in the file is executed, and without --stats no values are read.
#[derive(Args)]
pub struct Inspect {
    /// A checkpoint file
    file: PathBuf,
    /// Which weights of a training checkpoint to list, by their key in it, such as model_ema [default: the likeliest]
    #[arg(long)]
    key: Option<String>,
    /// Read the values too: min, max, mean and standard deviation of the finite ones, and how many are not finite
    #[arg(long)]
    stats: bool,
    /// Print one JSON object per tensor: name, dtype, shape (stats: min, max, mean, std, non_finite); then one of the
    /// file: format, arch, tensors, elements, metadata, left_out (name, reason), notes
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let file = open_checkpoint(&self.file, self.key.as_deref())?;
        // A longer one has its own width.
        let width = file.tensors.keys().map(|name| name.chars().count()).max().unwrap_or_default().min(80);
        for (name, tensor) in &file.tensors {
            let (dtype, shape) = (tensor.dtype().to_string(), tensor.shape());
            let stats = if self.stats { Some(TensorStats::of(&tensor.read()?)) } else { None };
            if self.json {
                let mut object = json!({ "name": name, "dtype": dtype, "shape": shape });
                if let Some(stats) = stats {
                    object["stats"] = json!(stats);
                }
                outln!("{object}");
            } else {
                let stats = stats.map_or(String::new(), |stats| line(&stats));
                let name = printable(name);
                outln!("{name:<width$}  {dtype:<4}  {shape:?}{stats}");
            }
        }
        let (format, count) = (file.format, file.tensors.len());
        let elements: usize = file.tensors.values().map(|tensor| tensor.elements()).sum();
        let (metadata, left_out, notes) = (file.metadata.clone(), file.left_out.clone(), file.notes.clone());
        // Names that collide are an error of converting, not of looking.
        let arch = Conversion::plan(file, &ConvertOptions::default()).ok().and_then(|plan| plan.arch);
        if self.json {
            let arch = arch.map(|arch| arch.name());
            let left_out: Vec<_> =
                left_out.into_iter().map(|(name, reason)| json!({ "name": name, "reason": reason })).collect();
            let file = json!({
                "format": format.to_string(), "arch": arch, "tensors": count, "elements": elements,
                "metadata": metadata, "left_out": left_out, "notes": notes,
            });
            outln!("{file}");
            return Ok(());
        }
        for (name, reason) in &left_out {
            outln!("left out: {} ({reason})", printable(name));
        }
        notes.iter().for_each(|note| outln!("note: {}", printable(note)));
        for (key, value) in &metadata {
            outln!("{}: {}", printable(key), printable(value));
        }
        let arch = arch.map_or(String::new(), |arch| format!(", {arch}"));
        outln!("{format}{arch}: {count} tensors, {elements} elements");
        Ok(())
    }
}

/// What a file says, without what would move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Statistics in a line, behind the shape.
fn line(stats: &TensorStats) -> String {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4e}"));
    let [min, max, mean, std] = [stats.min, stats.max, stats.mean, stats.std].map(number);
    let bad = match stats.non_finite {
        0 => String::new(),
        count => format!("  {count} NOT FINITE"),
    };
    format!("  min {min}  max {max}  mean {mean}  std {std}{bad}")
}
