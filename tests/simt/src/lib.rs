#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]
// Loops over lanes index several arrays at once.
#![allow(clippy::needless_range_loop)]

mod code;
mod counters;
mod fault;
mod flow;
mod gpu;
mod lower;
mod machine;
mod memory;
mod module;
mod operands;
mod ptx;
mod tensor;

pub use counters::Counters;
pub use fault::{Fault, FaultKind, ParseError};
pub use gpu::{AsyncCopies, Config, Gpu, Launch};
pub use module::Module;
pub use tensor::{Swizzle, TensorMap, TensorMode, TensorType};
