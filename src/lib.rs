//! ResNet transfer learning in pure Rust: freezing, cached activations, a learning rate per layer group.
//!
//! Start with [`learner::Learner`] to train and [`learner::Classifier`] to predict; the [`prelude`] has what both need.
//! Each module imports only from those below it: `report` → `learner` → `cache` → `data`, `checkpoint` → `nn`, `optim`
//! → `ops` → `autograd` → `tensor` → `device`.
#![deny(missing_docs)]

// What tests beside the library share with those in it names the library by its name.
#[cfg(test)]
extern crate self as unfreeze;

pub mod autograd;
pub mod cache;
pub mod checkpoint;
pub mod data;
pub mod device;
mod error;
mod files;
pub mod learner;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
#[cfg(feature = "plot")]
pub mod report;
pub mod tensor;

pub use device::{Device, DeviceName};
pub use error::{Error, Result};
pub use tensor::{DType, Element, Precision, Shape, Tensor};

/// What a program that trains or predicts needs.
pub mod prelude {
    pub use crate::{
        Device, DeviceName, Error, Precision, Result, Tensor,
        checkpoint::Weights,
        data::{Augment, ImageData, Split, Transforms},
        learner::{CancelToken, Classifier, Event, Fit, Flow, Learner, LrFind},
        nn::{Arch, Grouping, HeadSpec},
        optim::{OptimizerKind, PerGroup},
    };
}

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
