//! Reverse-mode differentiation: [`Parameter`]s and the tape, nothing else.

mod parameter;

pub use parameter::{Parameter, Parameters, Role};
