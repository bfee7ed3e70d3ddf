//! Flags of `unfreeze convert` for ONNX files.

use clap::{Args, ValueEnum};
use unfreeze::{
    Error, Result,
    checkpoint::{BatchNormForm, OnnxOptions},
};

/// How an ONNX file is written.
#[derive(Args)]
pub struct OnnxFlags {
    /// Batchnorm of an ONNX file: folded into the layers beside it, or kept as nodes with PyTorch's tensor names
    /// [default: fold]
    #[arg(long, value_name = "fold|keep")]
    batchnorm: Option<Batchnorm>,
    /// Where images are normalised: inside the ONNX file, which then takes RGB of 0 to 1, or outside, before it
    /// [default: outside]
    #[arg(long, value_name = "inside|outside")]
    normalise: Option<Normalise>,
    /// Let the ONNX file end in probabilities instead of logits: a softmax, for several labels a sigmoid
    #[arg(long)]
    softmax: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Batchnorm {
    Fold,
    Keep,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Normalise {
    Inside,
    Outside,
}

impl OnnxFlags {
    /// What is asked for.
    pub fn options(&self) -> OnnxOptions {
        let batchnorm = match self.batchnorm {
            Some(Batchnorm::Keep) => BatchNormForm::Keep,
            Some(Batchnorm::Fold) | None => BatchNormForm::Fold,
        };
        let normalise = self.normalise == Some(Normalise::Inside);
        OnnxOptions { batchnorm, normalise, probabilities: self.softmax, ..OnnxOptions::default() }
    }

    /// Refuses the flags where another format is written.
    pub fn expect_none(&self) -> Result<()> {
        let Self { batchnorm, normalise, softmax } = self;
        let given =
            [("--batchnorm", batchnorm.is_some()), ("--normalise", normalise.is_some()), ("--softmax", *softmax)];
        match given.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::setting(flag, "is for ONNX files alone; let OUTPUT end in .onnx")),
            None => Ok(()),
        }
    }
}
