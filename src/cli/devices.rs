//! `unfreeze devices`

use clap::Args;
use serde_json::json;
use unfreeze::{
    Device, Result,
    device::cuda::{Compiler, Gpu, gpus, version},
};

/// List the devices of this machine, and what the GPUs' kernels are compiled with
#[derive(Args)]
pub struct Devices {
    /// Print one JSON object per device: name and threads; of GPUs product, capability, memory and driver; reason where
    /// it cannot be used. Last an object kernels: nvrtc, version, prebuilt, cache
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub fn run(self) -> Result<()> {
        let cpu = Device::cpu(0)?;
        let gpus = gpus();
        let compiler = Compiler::new();
        let driver = gpus.as_ref().ok().and_then(|gpus| gpus.first()).map(|gpu| gpu.driver_version);
        let nvrtc = compiler.find_nvrtc(driver);
        if self.json {
            outln!("{}", json!({ "name": cpu.to_string(), "threads": cpu.threads() }));
            match &gpus {
                Ok(gpus) => gpus.iter().for_each(|gpu| {
                    let (major, minor) = gpu.capability;
                    let object = json!({
                        "name": format!("cuda:{}", gpu.ordinal),
                        "product": gpu.name,
                        "capability": format!("{major}.{minor}"),
                        "memory": gpu.memory,
                        "driver": version(gpu.driver_version),
                        "reason": problem(gpu, &compiler),
                    });
                    outln!("{object}");
                }),
                Err(reason) => outln!("{}", json!({ "name": "cuda", "reason": reason.to_string() })),
            }
            let found = nvrtc.as_ref().ok();
            let kernels = json!({
                "nvrtc": found.map(|nvrtc| nvrtc.path()),
                "version": found.map(|nvrtc| format!("{}.{}", nvrtc.version().0, nvrtc.version().1)),
                "prebuilt": compiler.kernels_folder(),
                "cache": compiler.cache_folder(),
            });
            outln!("{}", json!({ "kernels": kernels }));
            return Ok(());
        }

        outln!("{cpu}: {} threads", cpu.threads());
        match &gpus {
            Ok(gpus) => gpus.iter().for_each(|gpu| {
                let (major, minor) = gpu.capability;
                let memory = gpu.memory as f64 / f64::from(1 << 30);
                let driver = version(gpu.driver_version);
                let (name, ordinal) = (&gpu.name, gpu.ordinal);
                outln!("cuda:{ordinal}: {name}, {memory:.1} GiB, capability {major}.{minor}, driver of CUDA {driver}");
                if let Some(reason) = problem(gpu, &compiler) {
                    outln!("  cannot be used: {reason}");
                }
            }),
            Err(reason) => outln!("cuda: {reason}"),
        }
        match (compiler.kernels_folder(), &nvrtc) {
            (Some(folder), _) => outln!("kernels: compiled ahead of time, in {}", folder.display()),
            (None, Ok(nvrtc)) => outln!("kernels: compiled by {nvrtc:?}"),
            // Where there is a GPU, it has said so.
            (None, Err(error)) if gpus.is_err() => outln!("kernels: {error}"),
            (None, Err(_)) => {}
        }
        if let Some(cache) = compiler.cache_folder() {
            outln!("kernel cache: {}", cache.display());
        }
        Ok(())
    }
}

/// Why a GPU cannot be used.
fn problem(gpu: &Gpu, compiler: &Compiler) -> Option<String> {
    let kernels = || compiler.check(gpu).map_err(|error| error.to_string());
    gpu.check().map_err(|reason| reason.to_string()).and_then(|()| kernels()).err()
}
