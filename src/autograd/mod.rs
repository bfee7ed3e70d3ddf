//! Reverse-mode differentiation: [`Parameter`]s and the [`Tape`], nothing else.

mod gradient;
mod parameter;
mod tape;

pub use gradient::{Gradient, Gradients, Rest, Sink, Strided, TileSums};
pub use parameter::{Packed, Parameter, Parameters, Role};
pub use tape::{Fusion, ParameterGradients, Slot, Tape, Var};
