//! `unfreeze bench`: how fast this machine is, how near to what it could be, and beside PyTorch.

mod cache;
mod cell;
mod compare;
mod data;
#[cfg(test)]
#[path = "../../../tests/common/emulator.rs"]
#[allow(dead_code)] // other tests use more of it
mod emulator;
mod explain;
mod freeze_out;
mod measure;
mod memory;
mod network;
mod ops;
mod protocol;
mod resident;
mod roof;
mod scaling;
mod serve;
mod task;
mod views;

use clap::{Args, Subcommand};
use unfreeze::Result;

/// Measure speed on random data
#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The frozen network, in evaluation mode
    Forward(network::Forward),
    /// A whole training step: forward, backward, optimizer
    Train(network::Train),
    /// Epochs of a linear head on cached activations
    Cache(cache::Cache),
    /// From image files to batches: decoding, resizing, augmentation
    Data(Box<data::Data>),
    /// How good a head is after equal wall time, with and without cached views
    Views(Box<views::Views>),
    /// Layers frozen one after the other (FreezeOut), beside all trained to the end
    FreezeOut(freeze_out::Frozen),
    /// The frozen network with more threads, larger batches and larger images
    Scaling(scaling::Scaling),
    /// Each operation alone, at the shapes of a network
    Ops(ops::Ops),
    /// This engine beside PyTorch, every network and setting in turn
    Compare(Box<compare::Compare>),
    /// Measures what it is told to on standard input, for `compare`
    #[command(hide = true)]
    Serve(serve::Serve),
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Forward(command) => command.run(),
            What::Train(command) => command.run(),
            What::Cache(command) => command.run(),
            What::Data(command) => command.run(),
            What::Views(command) => command.run(),
            What::FreezeOut(command) => command.run(),
            What::Scaling(command) => command.run(),
            What::Ops(command) => command.run(),
            What::Compare(command) => command.run(),
            What::Serve(command) => command.run(),
        }
    }
}
