//! Parameter groups, optimizers and schedules.

mod optimizer;
mod per_group;
mod schedule;

pub use optimizer::{Optimizer, OptimizerKind};
pub use per_group::PerGroup;
pub use schedule::{Decay, FreezeOut, OneCycle, Point, Schedule, Triangle, TriangleTail, WarmUp};
