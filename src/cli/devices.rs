//! `unfreeze devices`

use clap::Args;
use serde_json::json;
use unfreeze::{Device, Result};

/// List the devices of this machine
#[derive(Args)]
pub struct Devices {
    /// Print one JSON object per device: name, threads
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub fn run(self) -> Result<()> {
        let device = Device::cpu(0)?;
        if self.json {
            outln!("{}", json!({ "name": device.to_string(), "threads": device.threads() }));
        } else {
            outln!("{device}: {} threads", device.threads());
        }
        Ok(())
    }
}
