//! Whether both sides compute the same, before anything is timed.

use std::{collections::HashSet, path::PathBuf};

use tempfile::TempDir;
use unfreeze::{
    Device, Error, Precision, Result,
    checkpoint::{collect, write_safetensors},
    nn::{Arch, HeadSpec, Model},
};

use super::worker::Worker;
use crate::cli::bench::{
    cell::{CLASSES, Cell},
    protocol::{Logits, Request},
};

/// Images whose logits are compared.
const IMAGES: usize = 4;

/// Compares logits of both sides by the same weights, once for each network, size and precision.
pub struct Check {
    folder: TempDir,
    agreed: HashSet<(Arch, usize, Precision)>,
}

impl Check {
    /// A check with a folder for weights.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        Ok(Self { folder, agreed: HashSet::new() })
    }

    /// Whether logits agree; if not, or if a side has none, why.
    ///
    /// # Errors
    /// [`Error::Io`] if weights cannot be written.
    pub fn logits(&mut self, cell: &Cell, ours: &mut Worker, theirs: &mut Worker) -> Result<Result<(), String>> {
        let key = (cell.arch, cell.size, cell.dtype);
        if self.agreed.contains(&key) {
            return Ok(Ok(()));
        }
        let request = Request::Logits { cell: *cell, weights: self.weights(cell.arch)?, images: IMAGES };
        let ours = ours.ask::<Logits>(&request).map_err(|message| format!("no logits of unfreeze: {message}"));
        let theirs =
            theirs.ask::<Logits>(&request).map_err(|message| format!("no logits of the other side: {message}"));
        let outcome = ours.and_then(|ours| agree(&ours.logits, &theirs?.logits, cell.dtype));
        if outcome.is_ok() {
            self.agreed.insert(key);
        }
        Ok(outcome)
    }

    /// A file of random weights.
    fn weights(&self, arch: Arch) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("{arch}.safetensors"));
        if !path.exists() {
            let model = Model::new(arch, HeadSpec::Linear, CLASSES, 1, &Device::cpu(1)?)?;
            write_safetensors(&path, &collect(&model)?, &Default::default())?;
        }
        Ok(path)
    }
}

/// Whether the distance of two sides' logits is what rounding makes of it.
fn agree(ours: &[f32], theirs: &[f32], precision: Precision) -> Result<(), String> {
    let tolerance = match precision {
        Precision::Bf16 => 5e-2,
        Precision::Tf32 => 1e-2,
        _ => 1e-4,
    };
    if ours.len() != theirs.len() || ours.len() != IMAGES * CLASSES {
        return Err(format!("{} logits here, {} there, for {IMAGES} images", ours.len(), theirs.len()));
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = norm(&mut theirs.iter().map(|value| f64::from(*value)));
    let distance = norm(&mut ours.iter().zip(theirs).map(|(ours, theirs)| f64::from(ours - theirs))) / size;
    // A NaN is no agreement either.
    if distance <= tolerance {
        return Ok(());
    }
    Err(format!("logits differ by {distance:.1e} of their norm, more than {tolerance:.0e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_agree_within_their_rounding() {
        let logits: Vec<f32> = (0..IMAGES * CLASSES).map(|i| (i as f32).sin()).collect();
        let off = |by: f32| logits.iter().map(|value| value * (1.0 + by)).collect::<Vec<f32>>();
        assert!(agree(&logits, &off(1e-5), Precision::F32).is_ok());
        assert!(agree(&off(1e-3), &logits, Precision::F32).unwrap_err().contains("differ by 1.0e-3"));
        assert!(agree(&off(1e-3), &logits, Precision::Tf32).is_ok());
        assert!(agree(&off(1e-1), &logits, Precision::Bf16).is_err());
        assert!(agree(&off(f32::NAN), &logits, Precision::Bf16).is_err());
        assert!(agree(&logits[1..], &logits, Precision::Bf16).unwrap_err().contains("3999 logits here"));
    }
}
