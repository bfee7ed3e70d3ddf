//! Flags that several commands share.

use clap::Args;
use unfreeze::{Device, DeviceName, Result};

/// Where and how to compute.
#[derive(Args, Clone)]
pub struct Compute {
    /// Device: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: DeviceName,
    /// Worker threads; 0 means one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Decides every random choice
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

impl Compute {
    /// Opens the device asked for.
    pub fn open(&self) -> Result<Device> {
        Device::open(self.device, self.threads)
    }
}
