//! Reverse-mode differentiation: [`Parameter`]s and the [`Tape`], nothing else.

mod parameter;
mod tape;

pub use parameter::{Packed, Parameter, Parameters, Role};
pub use tape::{Gradients, ParameterGradients, Slot, Tape, Var};
