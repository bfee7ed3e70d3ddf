//! Networks: layers, the ResNet family, heads, and a [`Model`] of both with its layer groups.

mod arch;
mod block;
pub mod cost;
mod groups;
mod head;
mod init;
mod layers;
mod model;
mod pass;
mod resnet;
mod structure;

pub use arch::Arch;
pub use block::{Block, Shortcut};
pub use groups::{FreezeState, Grouping, Unit};
pub use head::{Head, HeadSpec};
pub use layers::{BatchNorm, ConvNorm, Linear};
pub use model::Model;
pub use pass::Pass;
pub use resnet::{Layer, ResNet};
pub(crate) use structure::{BlockStructure, ConvLayer, ShortcutLayer, Structure};
